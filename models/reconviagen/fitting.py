"""Small moves of cameras or of the object by gradient, until silhouettes, depth and paint fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.geometry.camera import Cameras
from models.geometry.camera_corrections import CameraCorrections
from models.geometry.rotation import rigid_about
from models.geometry.similarity import Similarity
from models.reconviagen.comparison import Drawing
from models.render import clip_matrices

_RATE = 0.02  # of Adam, radians or shares of the object's size a step, at first,
_LAST = 0.1  # and at the end as a share of that
_FOCAL_PRIOR = 0.01  # weight of the focal length's square deviation,
_FOCAL_SIGMA = 0.1  # in units of its expected logarithm: perspective alone tells it from the distance
_FRONT = 0.25  # model units: the surface's usual distance before the middle


@dataclass(frozen=True)
class Schedule:
    """One descent.

    Attributes:
        steps: How many.
        rate: Of the first one, against the usual rate.
    """

    steps: int
    rate: float = 1.0


def fit_poses(
    drawing: Drawing,
    cameras: Cameras,
    schedule: Schedule,
    tick: Callable[[], None],
    *,
    focal: bool = True,
) -> tuple[Cameras, Tensor]:
    """Move every camera, and change the focal length of all by one factor.

    Args:
        drawing: The object against the views.
        cameras: V cameras in the object's space, of the views' size.
        schedule: Of the descent.
        tick: Called after every step; what it raises is let through.
        focal: Whether the focal length may change.

    Returns:
        The cameras and how far each view is off now, [V].
    """
    corrections = CameraCorrections(cameras, front=_FRONT, whole=True)
    corrections.log_focal.requires_grad_(focal)
    clip = clip_matrices(cameras, drawing.mesh.vertices)

    def matrices() -> Tensor:
        return corrections.matrices(clip)[None]

    def prior() -> Tensor:
        return _FOCAL_PRIOR * len(cameras) * (corrections.log_focal / _FOCAL_SIGMA).square()

    _descend(corrections, drawing, matrices, prior, schedule, tick)
    with torch.no_grad():
        origin = torch.zeros(3, device=clip.device)
        return corrections.corrected(cameras, origin, 1.0), drawing.mismatch(matrices())[0]


def fit_similarities(
    drawing: Drawing,
    cameras: Cameras,
    starts: list[Similarity],
    schedule: Schedule,
    tick: Callable[[], None],
) -> tuple[list[Similarity], Tensor]:
    """Move, turn and scale an object before cameras that stay, from several starts at once.

    Args:
        drawing: The object against the views.
        cameras: V cameras of the views' size.
        starts: K maps from the object's space to the cameras' world.
        schedule: Of the descent.
        tick: Called after every step; what it raises is let through.

    Returns:
        K maps and how far each leaves the views off, [K].
    """
    placed = _Moves(starts, drawing.mesh.vertices)
    world = torch.cat([start.points(drawing.mesh.vertices) for start in starts])
    clip = clip_matrices(cameras, world)

    def matrices() -> Tensor:
        return clip @ placed.matrices()[:, None]

    # Adam does not care that this is the sum over the views and not their mean.
    _descend(placed, drawing, matrices, lambda: clip.new_zeros(()), schedule, tick)
    with torch.no_grad():
        return placed.similarities(), drawing.mismatch(matrices()).mean(1)


class _Moves(nn.Module):
    """Similarities near others: a rigid motion about the object's middle, and a factor on its size."""

    def __init__(self, starts: list[Similarity], vertices: Tensor) -> None:
        super().__init__()
        middle = (vertices.amin(0) + vertices.amax(0)) / 2
        extent = torch.linalg.vector_norm(vertices.amax(0) - vertices.amin(0))
        self._start = torch.stack([start.matrix() for start in starts])  # [K, 4, 4]
        self._center = torch.stack([start.points(middle) for start in starts])  # [K, 3]
        self._size = torch.stack([start.scale for start in starts]) * extent  # [K]
        self.motion = nn.Parameter(torch.zeros(len(starts), 6, device=vertices.device))
        self.log_scale = nn.Parameter(torch.zeros(len(starts), device=vertices.device))

    def matrices(self) -> Tensor:
        """[K, 4, 4] from the object's space to the world."""
        turn, shift = self.motion.split(3, 1)
        moved = rigid_about(turn, shift * self._size[:, None], self._center)
        scale = self.log_scale.exp()[:, None, None]
        rows = self._start[:, :3] * scale
        about = self._center[..., None] * (1 - scale)
        grown = torch.cat([torch.cat([rows[..., :3], rows[..., 3:] + about], 2), self._start[:, 3:]], 1)
        return moved @ grown

    def similarities(self) -> list[Similarity]:
        """The same as maps."""
        found = []
        for matrix in self.matrices().detach().double():
            left, values, right = torch.linalg.svd(matrix[:3, :3])
            found.append(Similarity(values.mean().float(), (left @ right).float(), matrix[:3, 3].float()))
        return found


def _descend(
    module: nn.Module,
    drawing: Drawing,
    matrices: Callable[[], Tensor],
    prior: Callable[[], Tensor],
    schedule: Schedule,
    tick: Callable[[], None],
) -> None:
    """Lessen the sum of all views' mismatch under the module's `matrices` [K, V, 4, 4], and of the prior."""
    rate = _RATE * schedule.rate
    optimizer = torch.optim.Adam(module.parameters(), lr=rate, betas=(0.8, 0.95))
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (_LAST + (1 - _LAST) * (1 + math.cos(math.pi * step / schedule.steps)) / 2)
        optimizer.zero_grad(set_to_none=True)
        moved = matrices()
        slope = drawing.slope(moved)  # batch by batch: only the matrices' graph is kept
        torch.autograd.backward((moved * slope).sum() + prior())
        optimizer.step()
        tick()
