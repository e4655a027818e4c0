"""Colours of points from what several views say of them.

Two bands (Baumberg, BMVC 2002; the idea of Burt and Adelson, 1983): colours without detail are averaged over
all views, so that differences of exposure and shading run out slowly; detail is taken nearly from the best
view alone, so that small errors of shape and cameras do not blur it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.texturing.sight import Sight

_DETAIL_POWER = 4  # of the weights in the detail's mean: the best view's counts nearly alone
_CHUNK = 1 << 20  # points that are looked at together


@dataclass(frozen=True)
class Blend:
    """Colours of N points.

    Attributes:
        colors: [N, 3] sRGB in [0, 1]; zero where nothing is known.
        smooth: [N, 3] the same without detail.
        trust: [N] in [0, 1]: 0 where no view sees the point, 1 where one sees it well.
    """

    colors: Tensor
    smooth: Tensor
    trust: Tensor


def blend(sights: list[Sight], points: Tensor, normals: Tensor, gains: Tensor | None = None) -> Blend:
    """Look at points of a surface from all views.

    Args:
        sights: The V views.
        points, normals: [N, 3].
        gains: [V, 3] factors on the views' colours; 1 by default.
    """
    if gains is None:
        gains = points.new_ones(len(sights), 3)
    parts = [
        _blend(sights, *part, gains) for part in zip(points.split(_CHUNK), normals.split(_CHUNK), strict=True)
    ]
    return Blend(*(torch.cat([getattr(part, name) for part in parts]) for name in Blend.__annotations__))


def _blend(sights: list[Sight], points: Tensor, normals: Tensor, gains: Tensor) -> Blend:
    smooth, detail = torch.zeros_like(points), torch.zeros_like(points)
    total, sharp, trust = (points.new_zeros(len(points)) for _ in range(3))
    found = [sight(points, normals) for sight in sights]
    best = points.new_zeros(len(points))
    for index, looks in found:
        best[index] = torch.maximum(best[index], looks.weight)
    for (index, looks), gain in zip(found, gains, strict=True):
        weight = looks.weight / best[index]  # a ratio: powers of the weights themselves would leave float32
        smooth[index] += weight[:, None] * looks.smooth * gain
        total[index] += weight
        weight = weight**_DETAIL_POWER
        detail[index] += weight[:, None] * looks.detail * gain
        sharp[index] += weight
        trust[index] = torch.maximum(trust[index], looks.trust)
    smooth = smooth / total.clamp(min=1e-6)[:, None]
    colors = smooth + detail / sharp.clamp(min=1e-6)[:, None]
    return Blend(colors.clamp(0, 1), smooth, trust)
