"""A first guess of the light: how the brightness of a surface depends on where it faces."""

from __future__ import annotations

import torch
from torch import Tensor

from models.shading.harmonics import ORDERS, harmonics
from models.shading.light import mean_radiance, solid_angles, texel_directions

_COSINE_LOBE = (1.0, 2 / 3, 1 / 4)  # what diffuse reflection leaves of each order of spherical harmonics
_RIDGE = 0.01  # pull towards an even light, against which a few bright sides cannot stand up
_ROUNDS = 8
_OUTLIER = 0.05  # log brightness; texels off by more are painted that way rather than lit so
_DARKEST, _BRIGHTEST = 0.2, 5.0  # bounds of the guessed radiance


def fit_light(normals: Tensor, brightness: Tensor, height: int) -> Tensor:
    """A grey environment that explains how brightness varies with the normal, albedo being independent of it.

    The log of the brightness is fitted by spherical harmonics of order 2 of the normal, which hold nearly all
    that diffuse reflection lets through, with the robustness of a sum of absolute errors: patches of another
    paint are outliers. The fit is then divided by the cosine lobe's transfer.

    Args:
        normals: [K, 3] unit normals of points of the surface.
        brightness: [K] linear luminance there, not negative.
        height: Rows of the map.

    Returns:
        [height, 2 height, 3] radiance, within [0.2, 5] times its mean, which is 1 over the sphere.

    Reference: Ramamoorthi and Hanrahan, "An Efficient Representation for Irradiance Environment Maps", 2001.
    """
    coefficients = _robust_fit(harmonics(normals), brightness.clamp(min=1e-3).log())
    width = 2 * height
    basis = harmonics(texel_directions(height, width, normals.device))  # [He, We, 9]
    irradiance = (basis @ coefficients).exp()
    weight = solid_angles(height, width, normals.device)
    lobe = normals.new_tensor([_COSINE_LOBE[order] for order in ORDERS])
    projected = torch.einsum("hwk,hw,hw->k", basis, weight, irradiance) / lobe
    radiance = (basis @ projected)[..., None].expand(-1, -1, 3)
    radiance = (radiance / mean_radiance(radiance)).clamp(_DARKEST, _BRIGHTEST)
    return radiance / mean_radiance(radiance)


def _robust_fit(basis: Tensor, value: Tensor) -> Tensor:
    """Coefficients [9] that minimise the absolute errors, by reweighted least squares."""
    ridge = torch.full_like(basis[0], _RIDGE)
    ridge[0] = 0
    weight = torch.ones_like(value)
    coefficients = torch.zeros_like(ridge)
    for _ in range(_ROUNDS):
        weighted = basis * (weight / weight.sum())[:, None]
        system = weighted.T @ basis + torch.diag(ridge)
        coefficients = torch.linalg.solve(system, weighted.T @ value)
        weight = 1 / (value - basis @ coefficients).abs().clamp(min=_OUTLIER)
    return coefficients
