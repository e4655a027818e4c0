"""Refuse depth maps that cannot belong to their cameras: wrong axes, wrong unit, another scene.

Every point of the object lies inside the object's silhouette in every other view, hidden or not, unless that
view cuts the object off. So the points of one view's depth are projected into the others; only a gross
contradiction is refused. A sensor's scale may be off, by a factor of its own for each view: the model finds
it, and here a map passes if it agrees under any of some likely factors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import PosedViews
from pipeline.masks import FOREGROUND
from schemas.errors import ErrorCode, InvalidJob

MIN_AGREEMENT = 0.3
"""Share of a view's points that must lie on the object, in the median over other views."""

LIKELY_FACTORS = (1.0, 0.9, 1.1, 0.8, 1.25)
"""By which a depth map's scale may be off."""

MAX_POINTS = 2000
MAX_OTHERS = 24
MIN_JUDGED = 0.1
"""A view that cuts the object off says nothing unless it sees at least this share of the points."""

MAX_SIDE = 512
"""Masks are compared at no more than this, pixels: dilating takes time by pixels times side."""

MARGIN = 0.03
"""Silhouettes are widened by this share of the image, for noise in depth and cameras."""

_RULE = "the points of a depth map must fall on the object in other views"


class _Silhouettes(NamedTuple):
    wide: Tensor  # [V, H, W], booleans
    cut_off: Tensor  # [V], booleans


def check_depths(views: PosedViews) -> None:
    """Hold every depth map against the masks of other views.

    Args:
        views: At least two, on the CPU.

    Raises:
        InvalidJob: INVALID_DEPTH.
    """
    if views.depths is None:
        return
    silhouettes = _Silhouettes(_widened(views.masks), _cut_off(views.masks))
    for index in range(len(views)):
        if not (views.depths[index] > 0).any():
            continue
        points = _object_points(views, index)
        if points.shape[0] == 0:
            raise _refusal(views.names[index], "it has no measurement on the object")
        agreement = _best_agreement(views, silhouettes, index, points)
        if agreement < MIN_AGREEMENT:
            raise _refusal(
                views.names[index],
                f"only {agreement:.0%} of its points fall on the object in most other views; likely causes: "
                "a wrong depth_unit_scale_factor, distance along the ray instead of z-depth, or OpenCV axes "
                "in transform_matrix instead of OpenGL's",
            )


def _widened(masks: Tensor) -> Tensor:
    """Masks [V, H, W] as booleans, dilated; large ones at a reduced size, which is precise enough."""
    factor = -(-max(masks.shape[1:]) // MAX_SIDE)
    if factor > 1:
        masks = F.max_pool2d(masks[:, None], factor, ceil_mode=True)[:, 0]
    reach = max(1, round(MARGIN * max(masks.shape[1:])))
    rows = F.max_pool2d(masks[:, None], (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    return F.max_pool2d(rows, (1, 2 * reach + 1), stride=1, padding=(0, reach))[:, 0] > FOREGROUND


def _object_points(views: PosedViews, index: int) -> Tensor:
    """Up to `MAX_POINTS` world points [N, 3] of a view's depth inside its mask."""
    assert views.depths is not None
    depth = views.depths[[index]]
    on_object = ((depth > 0) & (views.masks[[index]] > FOREGROUND))[0]
    points = views.cameras[[index]].unproject(depth)[0][on_object]
    return points[:: max(1, -(-points.shape[0] // MAX_POINTS))]


def _best_agreement(views: PosedViews, silhouettes: _Silhouettes, index: int, points: Tensor) -> float:
    """The first agreement that is enough, or else the best, of `points` [N, 3] under the likely factors."""
    eye, best = views.cameras.positions[index], 0.0
    for factor in LIKELY_FACTORS:
        best = max(best, _agreement(views, silhouettes, index, eye + factor * (points - eye)))
        if best >= MIN_AGREEMENT:
            break
    return best


def _agreement(views: PosedViews, silhouettes: _Silhouettes, index: int, points: Tensor) -> float:
    """Median over the other views of the share of `points` [N, 3] that lie on the object."""
    others = [i for i in range(len(views)) if i != index]
    others = others[:: max(1, -(-len(others) // MAX_OTHERS))]
    pixels, depth = views.cameras[others].project(points)  # [O, N, 2], [O, N]
    wide, cut_off = silhouettes.wide, silhouettes.cut_off
    cameras, (height, width) = views.cameras, wide.shape[1:]
    pixels = pixels / -(-max(cameras.width, cameras.height) // MAX_SIDE)  # to the size of `wide`
    # Clamped before the cast: a point beside a camera projects beyond the range of integers.
    x = pixels[..., 0].clamp(-1, width).floor().long()
    y = pixels[..., 1].clamp(-1, height).floor().long()
    seen = (depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    view = torch.tensor(others)[:, None].expand_as(x)
    inside = wide[view, y.clamp(0, height - 1), x.clamp(0, width - 1)] & seen
    judged = seen | ~cut_off[others][:, None]
    shares = inside.sum(1) / judged.sum(1).clamp(min=1)
    shares = shares[judged.sum(1) >= MIN_JUDGED * points.shape[0]]
    return float(shares.median()) if shares.numel() else 1.0


def _cut_off(masks: Tensor) -> Tensor:
    """Which masks [V, H, W] reach the border of their image, [V]: such a view may cut the object off."""
    rows, columns = masks[:, [0, -1]] > FOREGROUND, masks[:, :, [0, -1]] > FOREGROUND
    return rows.flatten(1).any(1) | columns.flatten(1).any(1)


def _refusal(name: str, found: str) -> InvalidJob:
    return InvalidJob(
        ErrorCode.INVALID_DEPTH,
        f"The depth map of {name!r} contradicts the cameras: {found}.",
        file=name,
        rule=_RULE,
    )
