"""`nvdiffrec`: shape and texture of one object by differentiable rendering.

Method: Munkberg et al., "Extracting Triangular 3D Models, Materials, and Lighting From Images", CVPR 2022,
with FlexiCubes (Shen et al., 2023) as the isosurface. Written afresh; this version optimises base colour with
the photographs' light baked in.
"""
