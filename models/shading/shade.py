"""Radiance that leaves a surface towards the eye: glTF's metallic-roughness material by the split sum."""

from __future__ import annotations

import torch
from torch import Tensor

from models.shading.brdf import DIELECTRIC_F0, MIN_ROUGHNESS, specular_albedo
from models.shading.light import FilteredLight

_GRAZING = 1e-3  # smallest cosine: interpolated normals may even turn away from the eye


def shade(
    normal: Tensor,
    view: Tensor,
    base_color: Tensor,
    roughness: Tensor,
    metallic: Tensor,
    light: FilteredLight,
) -> Tensor:
    """Shade points under a distant light; nothing casts shadows.

    The material is that of glTF 2.0, appendix B. What the specular layer reflects of a constant light does
    not reach the diffuse one below, so no surface gives back more light than it gets; appendix B itself
    subtracts the Fresnel term of each direction of light, and exceeds 1 at grazing angles.

    Args:
        normal: [..., 3] unit; the zero vector where there is no surface: such points are black.
        view: [..., 3] unit, from the surface to the eye; zero where there is no surface.
        base_color: [..., 3] linear, in [0, 1].
        roughness, metallic: [..., 1], in [0, 1].
        light: The filtered environment.

    Returns:
        [..., 3] linear radiance, not negative. Differentiable in every argument.

    Reference: Karis, 2013; the turn of the lobe towards the normal is due to Lagarde and de Rousiers, "Moving
    Frostbite to Physically Based Rendering", 2014, with the simpler weight of three.js, roughness squared.
    """
    cosine = (normal * view).sum(-1, keepdim=True)
    roughness = roughness.clamp(min=MIN_ROUGHNESS)
    scale, bias = specular_albedo(cosine.clamp(min=_GRAZING), roughness)
    f0 = DIELECTRIC_F0 + metallic * (base_color - DIELECTRIC_F0)
    specular = f0 * scale + bias
    diffuse = base_color * (1 - metallic) * (1 - specular)
    mirrored = 2 * cosine * normal - view
    # Seen at a slant, a rough surface reflects more from near its normal than the mirrored lobe says.
    lobe = torch.lerp(mirrored, normal, roughness.square())
    return diffuse * light.irradiance(normal) + specular * light.reflected(lobe, roughness)
