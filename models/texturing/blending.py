"""Colours of points from what several views say of them.

Two bands (Baumberg, BMVC 2002; the idea of Burt and Adelson, 1983): colours without detail are averaged over
all views, so that differences of exposure and shading run out slowly; detail is taken nearly from the best
view alone, so that small errors of shape and cameras do not blur it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.texturing.sight import Sight

_DETAIL_POWER = 4  # of the weights in the detail's mean: the best view's counts nearly alone


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


def blend(
    sights: list[Sight],
    points: Tensor,
    normals: Tensor,
    gains: Tensor | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Blend:
    """Look at points of a surface from all views, one after the other.

    Args:
        sights: The V views.
        points, normals: [N, 3], a million at most: a view needs some hundred bytes for each.
        gains: [V, 3] factors on the views' colours; 1 by default.
        tick: Called after every view; what it raises is let through.
    """
    if gains is None:
        gains = points.new_ones(len(sights), 3)
    smooth, detail = torch.zeros_like(points), torch.zeros_like(points)
    total, sharp, trust, best = (points.new_zeros(len(points)) for _ in range(4))
    for sight, gain in zip(sights, gains, strict=True):
        index, looks = sight(points, normals)
        # Weights count against the best one so far: powers of the weights themselves would leave float32.
        top = torch.maximum(best[index], looks.weight)
        kept, weight = best[index] / top, looks.weight / top
        best[index] = top
        smooth[index] = smooth[index] * kept[:, None] + weight[:, None] * looks.smooth * gain
        total[index] = total[index] * kept + weight
        kept, weight = kept**_DETAIL_POWER, weight**_DETAIL_POWER
        detail[index] = detail[index] * kept[:, None] + weight[:, None] * looks.detail * gain
        sharp[index] = sharp[index] * kept + weight
        trust[index] = torch.maximum(trust[index], looks.trust)
        tick()
    smooth = smooth / total.clamp(min=1e-6)[:, None]
    colors = smooth + detail / sharp.clamp(min=1e-6)[:, None]
    return Blend(colors.clamp(0, 1), smooth, trust)
