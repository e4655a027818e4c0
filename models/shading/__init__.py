"""Physically based shading: colour transfer, environment light, BRDF, deferred shading.

Split-sum shading of glTF's metallic-roughness material under an environment map. Karis, "Real Shading in
Unreal Engine 4", 2013; Munkberg et al., "Extracting Triangular 3D Models, Materials, and Lighting From
Images", 2022.
"""
