"""The specular half of the split sum: how much of a constant light a rough surface reflects."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_ROUGHNESS = 0.04
"""Smoother surfaces than this are shaded as if they had it."""

DIELECTRIC_F0 = 0.04
"""Reflectance at normal incidence of what is not metal (glTF 2.0, appendix B: index of refraction 1.5)."""

_RESOLUTION = 32  # of the table
_SAMPLES = 1024
_GRAZING = 1e-3  # cosine of the table's first column: at 0 nothing is defined


def specular_albedo(n_dot_v: Tensor, roughness: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and bias such that `f0 * scale + bias` is the share of a constant light that is reflected.

    The GGX distribution with Smith's separable masking and Schlick's Fresnel term of glTF 2.0, appendix B,
    integrated numerically once for each device and looked up bilinearly: off by 0.0005 on average, at most
    0.01 at cosines above 0.2 and 0.05 below. Differentiable.

    Args:
        n_dot_v: Cosines [..., 1] between normal and view, in [0, 1].
        roughness: [..., 1] perceptual roughness, in [0, 1]; its square is GGX's alpha.

    Returns:
        Scale and bias, [..., 1] each. Their sum is the share of a white metal, at most 1.

    Reference: Karis, 2013, "Environment BRDF".
    """
    where = torch.cat([n_dot_v, roughness], -1) * 2 - 1
    table = _table(str(where.device)).to(where.dtype)
    found = F.grid_sample(table, where.reshape(1, 1, -1, 2), padding_mode="border", align_corners=True)
    scale, bias = found.reshape(2, *n_dot_v.shape).unbind(0)
    return scale, bias


@lru_cache
def _table(device: str) -> Tensor:
    """Scale and bias on a grid over [0, 1]^2: [1, 2, roughness, n.v]."""
    line = torch.linspace(0, 1, _RESOLUTION, dtype=torch.float64)
    rows = [
        integrate_specular(line.clamp(min=_GRAZING), max(roughness, MIN_ROUGHNESS))
        for roughness in line.tolist()
    ]
    table = torch.stack(rows, 1)
    return table[None].float().to(device)


def integrate_specular(n_dot_v: Tensor, roughness: float, samples: int = _SAMPLES) -> Tensor:
    """Scale and bias [2, N] by importance sampling of GGX at the points of Hammersley's sequence.

    Args:
        n_dot_v: Cosines [N] in (0, 1].
        roughness: Perceptual roughness in (0, 1].
        samples: Number of points.
    """
    alpha = roughness**2
    across, up = _hammersley(samples)  # [S]
    cosine = ((1 - up) / (1 + (alpha**2 - 1) * up)).sqrt()
    sine = (1 - cosine.square()).clamp(min=0).sqrt()
    view_x, view_z = (1 - n_dot_v.square()).clamp(min=0).sqrt()[:, None], n_dot_v[:, None]  # [N, 1]
    view_dot_half = view_x * sine * torch.cos(2 * torch.pi * across) + view_z * cosine  # [N, S]
    n_dot_l = 2 * view_dot_half * cosine - view_z
    seen = _masking(n_dot_l.clamp(min=0), alpha) * _masking(view_z, alpha)
    weight = torch.where(n_dot_l > 0, seen * view_dot_half.clamp(min=0) / (cosine * view_z), 0)
    fresnel = (1 - view_dot_half.clamp(0, 1)) ** 5
    return torch.stack([((1 - fresnel) * weight).mean(-1), (fresnel * weight).mean(-1)])


def _masking(cosine: Tensor, alpha: float) -> Tensor:
    """Smith's G1 of GGX."""
    return 2 * cosine / (cosine + (alpha**2 + (1 - alpha**2) * cosine.square()).sqrt())


def _hammersley(count: int) -> tuple[Tensor, Tensor]:
    """The points (i / count, i's bits mirrored at the point) of the unit square, centred, float64."""
    index = torch.arange(count)
    mirrored = torch.zeros(count, dtype=torch.float64)
    for bit in range(count.bit_length()):
        mirrored += ((index >> bit) & 1) * 0.5 ** (bit + 1)
    return (index + 0.5).double() / count, mirrored + 0.5 / count
