"""How well silhouettes alone agree on one rigid object.

The ray through every point of a view's silhouette touches the object, so some point of it must lie inside
all other masks. How far the best one stays outside is zero for exact cameras (Hernández, Schmitt and
Cipolla, 2007, "Silhouette coherence for camera calibration under circular motion").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nvdiffrec.agreement import OUTWARDS, Level, Pairs, Poses, Rows, bilinear, joined, silhouette_rows

_INSIDE = 0.3  # rays start this far inside their own silhouette, pixels
_TOLERANCE = 0.3  # points no further outside a mask than this, pixels, do not contradict it
_RAYS = 200  # of each view
_STEPS = 48  # along a ray
_FINE = 9  # within two of these steps, to find the best point more exactly, twice
_REACH = 1.2  # length of the rays' searched part, sides of the object's cube


@dataclass(frozen=True)
class Coherence:
    """What the silhouettes' rays found.

    Attributes:
        rows: Residuals of the rays' best points that lie outside masks.
        outside: [M] pixels that the best points lie outside the worst mask, 0 where inside all.
        owner: [M] int64, the views of the rays.
        points: [M, 3] the best points, world.
    """

    rows: Rows
    outside: Tensor
    owner: Tensor
    points: Tensor


def coherence(level: Level, poses: Poses, half: float, gate: float) -> Coherence:
    """Hold every view's silhouette against its partners' masks.

    Args:
        level: The views; depth is not looked at.
        poses: Where they stand.
        half: Half side of a cube round `poses.center` that holds the object.
        gate: Scale beyond which residuals lose weight, pixels.
    """
    parts = [_view(level, poses, half, gate, view) for view in range(len(level.rims))]
    return Coherence(
        joined([part.rows for part in parts]),
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("outside", "owner", "points")),
    )


def _view(level: Level, poses: Poses, half: float, gate: float, view: int) -> Coherence:
    start = _silhouette(level, view)
    focal = level.focal[view] * poses.log_focal.exp()
    across = (start - level.principal[view]) / focal * start.new_tensor([1.0, -1.0])
    pose = poses.camera_to_world[view]
    ray = F.pad(across, (0, 1), value=-1.0) @ pose[:3, :3].T  # [C, 3], z-depth 1
    by_focal = F.pad(-across, (0, 1)) @ pose[:3, :3].T
    middle = (pose[:3, 3] - poses.center) @ pose[:3, 2]

    def outside(depth: Tensor) -> Tensor:
        return _outside(level, poses, view, pose[:3, 3] + depth[..., None] * ray[:, None])

    step = 2 * _REACH * half / (_STEPS - 1)
    offset = torch.linspace(-_REACH * half, _REACH * half, _STEPS, dtype=ray.dtype, device=ray.device)
    depth = (middle + offset).expand(len(ray), _STEPS)
    for _ in range(3):
        best = depth.gather(1, outside(depth).amax(2).argmin(1, keepdim=True))
        depth = best + step * torch.linspace(-1, 1, _FINE, dtype=ray.dtype, device=ray.device)
        step *= 2 / (_FINE - 1)
    distance = outside(best)[:, 0]  # [C, J]
    chosen, column = (distance > _TOLERANCE).nonzero(as_tuple=True)
    world = pose[:3, 3] + best * ray
    index = torch.zeros_like(chosen)[:, None].repeat(1, 3)
    index[:, 0] = view
    derivatives = (world[chosen], torch.zeros_like(world[chosen]), (best * by_focal)[chosen])
    pairs = Pairs(level, poses, index, level.partners[view][column], derivatives)
    rows = silhouette_rows(pairs, gate, _TOLERANCE)
    owner = torch.full((len(ray),), view, device=ray.device)
    return Coherence(rows, distance.amax(1).clamp(min=0), owner, world)


def _silhouette(level: Level, view: int) -> Tensor:
    """Pixels [C, 2] just inside a view's silhouette, float64."""
    rim = level.rims[view].double()
    rim = rim[:: max(1, len(rim) // _RAYS)]
    found = bilinear(level.fields, torch.full_like(rim[:, 0], view, dtype=torch.long), rim)
    return rim - (OUTWARDS + _INSIDE) * F.normalize(found[:, [4, 8]], dim=1)


def _outside(level: Level, poses: Poses, view: int, world: Tensor) -> Tensor:
    """Distances [C, T, J] of `world` points [C, T, 3] to the partners' silhouettes, positive outside."""
    partner = level.partners[view]
    count = world.shape[0] * world.shape[1]
    views = partner.expand(count, -1).reshape(-1)
    points = world.reshape(-1, 1, 3).expand(-1, len(partner), 3).reshape(-1, 3)
    pixel, _ = level.project(poses, views, points)
    return bilinear(level.fields[..., :1], views, pixel).reshape(*world.shape[:2], len(partner))
