"""`nvdiffrec`: shape, materials and light of one object by differentiable rendering.

Method: Munkberg et al., "Extracting Triangular 3D Models, Materials, and Lighting From Images", CVPR 2022,
with FlexiCubes (Shen et al., 2023) as the isosurface and a first shape carved from masks and depth. Written
afresh.
"""
