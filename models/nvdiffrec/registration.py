"""Make noisy cameras and depth maps agree before anything is carved from them.

The views' poses, one factor on the focal lengths and a factor on each view's depth are found by robust
least squares (Gauss-Newton, coarse to fine) on the residuals of `models.nvdiffrec.agreement` (with depth) and
`models.nvdiffrec.coherence` (where most views have none). Exact input stays as it is: corrections are taken
over only where the views agree clearly better with them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from models.base import Callback, PosedViews
from models.geometry.camera import Cameras
from models.geometry.carving import object_frame
from models.geometry.similarity import fit_similarity
from models.nvdiffrec.agreement import (
    DEPTH_SIGMA,
    LOCAL,
    RIM_SIGMA,
    Level,
    Poses,
    Rows,
    agreement,
    apply_rotation,
    mean_square,
)
from models.nvdiffrec.coherence import coherence

_SIDES = (64, 128)  # longer sides of the images at which views are compared, pixels
_POINTS = (400, 800)  # points of a view that are held against its partners
_GATES = ((8.0, 8.0, 6.0, 6.0, 4.0, 4.0), (6.0, 5.0, 4.0, 4.0))  # pixels, one a step
_PAIRS = 40_000  # of points and partners, about; many views need fewer points each,
_FEWEST = 100  # but so many
_ROWS = 1 << 14  # residuals that are squared together
_MAX_PARTNERS = 8
_ALL_PARTNERS = 12  # up to this many views each is compared with all others

_ROTATION = math.radians(2.0)  # expected errors: of a pose about the object's centre,
_TRANSLATION = 0.03  # of its place as a share of its distance,
_FOCAL = 0.03  # of the logarithm of the focal length,
_SCALE = 0.2  # and of that of a depth map's unit
_INDEPENDENT = 0.05  # share of residuals that count: neighbours err together

_INDEPENDENT_RAYS = 0.2  # the same of the silhouettes' rays
# What exact cameras disagree by comes from the pixels, so that these limits are in pixels of the last level:
# images smaller than that level are judged more loosely, as a share of their side.
_COHERENT = 0.15  # silhouettes of exact cameras disagree by less than this
_CONSISTENT = 0.4  # views of exact cameras and depth disagree by less than this
_BETTER = 1.4  # corrections must lower the disagreement by this factor
_LOWER = 1.05  # and those asked for by this: what gains less is noise
_SHIFT = 0.0028  # corrections that move the object's image by less than this share of its side are noise
_SCALE_SHIFT = 0.004  # the same for the factors on depth,
_HULL_SHIFT = 0.05  # and where the visual hull alone tells them
_JUDGED = 3.0  # gate at which solutions are compared, pixels
_MESSAGE = "comparing the views"


@dataclass(frozen=True)
class Registered:
    """Views that agree.

    Attributes:
        views: With corrected cameras and depth, in the frame and scale of the input as a whole.
        depth_scale: [V] factors by which the depth maps were multiplied.
        focal_factor: By which all focal lengths were multiplied.
        before_px, after_px: How much the views disagreed as given and as returned (root mean square of the
            distances between surfaces and between silhouettes, of silhouettes alone where most
            views lack depth; pixels of the views as they were given to `register`, whatever size the images
            came in); 0 where there is nothing to judge by.
        shift_px: By how much the best corrections of the cameras move the object in the images (root mean
            square, pixels as above), whether they were taken over or not; 0 where none were sought.
        inconsistent: Whether the cameras contradict each other by more than exact ones would.
        corrected: Whether the returned cameras differ from the input's.
    """

    views: PosedViews
    depth_scale: Tensor
    focal_factor: float = 1.0
    before_px: float = 0.0
    after_px: float = 0.0
    shift_px: float = 0.0
    inconsistent: bool = False
    corrected: bool = False

    def figures(self) -> dict[str, float]:
        """For the log and the quality report."""
        return {
            "registration/before_px": self.before_px,
            "registration/after_px": self.after_px,
            "registration/camera_shift_px": self.shift_px,
            "registration/cameras_inconsistent": float(self.inconsistent),
            "registration/cameras_corrected": float(self.corrected),
            "registration/focal_factor": self.focal_factor,
            "registration/depth_scale_min": float(self.depth_scale.min()),
            "registration/depth_scale_max": float(self.depth_scale.max()),
        }


def register(
    views: PosedViews,
    *,
    refine: Literal["auto", "on", "off"],
    seed: int = 0,
    callback: Callback | None = None,
) -> Registered:
    """Estimate what is wrong with the cameras and the depth maps, and correct it.

    Args:
        views: The views; depth should be clean (`models.geometry.depth_maps.clean_depths`).
        refine: Whether poses and focal length may change. `auto`: where they are inconsistent; `on`: wherever
            the views agree better for it. Factors on depth are estimated whatever is chosen, but not of views
            that agree as they are.
        seed: Chooses the points that are compared.
        callback: Called after every step with the share of the work that is done; what it raises is let
            through.

    Where no more than half of the views have depth, silhouettes alone decide about the cameras, as without
    any depth, and find the larger part of their errors.

    Returns:
        The views as they agree best. The corrections leave the views' common frame where it is.
    """
    if callback:
        callback(0.0, _MESSAGE, {})
    levels = _levels(views, seed)
    if not any(len(rim) for rim in levels[-1].rims):  # no silhouette, nothing to hold views against
        return Registered(views, torch.ones(len(views), device=views.masks.device))
    measured = torch.stack([level.measured() for level in levels]).all(0)
    most = 2 * int(measured.sum()) > len(views)
    problem = (_Surfaces if most else _Silhouettes)(views, levels, callback)
    found = _solved(problem, refine)
    if callback:
        callback(1.0, _MESSAGE, {})
    return found


def _solved(problem: _Problem, refine: Literal["auto", "on", "off"]) -> Registered:
    scaled = problem.depth_scales()
    if refine == "off" or (refine == "auto" and problem.agreed):
        return problem.result(scaled)
    moved = problem.poses(scaled)
    shift = problem.shift(moved)
    given, reached = problem.disagreement(scaled), problem.disagreement(moved)
    inconsistent = not problem.agreed and given > _BETTER * reached and shift > _SHIFT
    taken = inconsistent or (refine == "on" and given > _LOWER * reached)
    return problem.result(moved if taken else scaled, inconsistent=inconsistent, shift=shift)


class _Problem(ABC):
    """The views at all levels, and what is to be found.

    Attributes:
        before: By how much the views disagree as given.
        agreed: Whether exact views could disagree by as much.
    """

    consistent: float  # exact views disagree by less
    gates: tuple[tuple[float, ...], ...]  # of each level, one a step, pixels
    descents: int  # at most

    def __init__(self, views: PosedViews, levels: list[Level], callback: Callback | None) -> None:
        self.views, self.levels = views, levels
        self._callback, self._steps = callback, 0
        zero = torch.zeros(len(views), dtype=torch.float64, device=views.masks.device)
        pose = views.cameras.camera_to_world.double()
        start = Poses(pose, zero, zero.new_zeros(()), zero.new_zeros(3))
        center, self.half = self._frame(start)
        self.start = replace(start, center=center)
        self.distance = torch.linalg.vector_norm(pose[:, :3, 3] - center, dim=1)  # [V]
        self.before = self.disagreement(self.start)
        self.agreed = self.before < self.consistent

    @abstractmethod
    def _frame(self, start: Poses) -> tuple[Tensor, float]:
        """Where the object is, and how large."""

    @abstractmethod
    def depth_scales(self) -> Poses:
        """Factors on depth alone; poses stay."""

    @abstractmethod
    def poses(self, scaled: Poses) -> Poses:
        """Cameras, and factors on depth only where the views agree clearly better with them."""

    @abstractmethod
    def disagreement(self, poses: Poses) -> float:
        """Root mean square distance between what the views show, pixels of the last level."""

    @abstractmethod
    def _rows(self, level: Level, poses: Poses, gate: float, *, cameras: bool) -> list[Rows]:
        """All residuals at a level, for finding `cameras` or factors on depth."""

    def _free(self, *, cameras: bool, scales: bool) -> Tensor:
        """Which unknowns are to be found, [7 V + 1]."""
        views = len(self.views)
        free = torch.full((7 * views + 1,), cameras, device=self.distance.device)
        free[6 * views : 7 * views] = scales
        return free

    def _sigma(self) -> Tensor:
        """Expected size of every unknown, [7 V + 1]."""
        motion = self.distance.new_full((len(self.views), 6), _ROTATION)
        motion[:, 3:] = _TRANSLATION * self.distance[:, None]
        rest = self.distance.new_full((len(self.views) + 1,), _SCALE)
        rest[-1] = _FOCAL
        return torch.cat([motion.reshape(-1), rest])

    def _descend(self, poses: Poses, free: Tensor) -> Poses:
        """Gauss-Newton over all levels; corrections are counted from `poses`."""
        sigma, cameras = self._sigma(), bool(free[0])
        total = torch.zeros_like(sigma)
        for level, gates in zip(self.levels, self.gates, strict=False):
            for gate in gates:
                rows = self._rows(level, poses, gate, cameras=cameras)
                normal, right = _normal_equations(rows, len(self.views))
                normal = _INDEPENDENT * normal + torch.diag(sigma**-2)
                right = _INDEPENDENT * right + total / sigma**2
                step = torch.zeros_like(sigma)
                step[free] = -torch.linalg.solve(normal[free][:, free], right[free])
                total = total + step
                poses = poses.moved(step, cameras=cameras)
                self._report()
        return poses

    def _report(self) -> None:
        self._steps += 1
        if self._callback:
            self._callback(self._steps / (self.descents * sum(map(len, self.gates)) + 1), _MESSAGE, {})

    def shift(self, poses: Poses) -> float:
        """How far the object's image moves from the given cameras to `poses`, as a share of the longer side.

        The object's points are those that its silhouettes touch: every view has some, with depth or without.
        What a similarity of the whole would do is left out: it changes no image.
        """
        level = self.levels[-1]
        found = coherence(level, self.start, self.half, _JUDGED)
        before, view = found.points, found.owner
        motion = poses.camera_to_world @ torch.linalg.inv(self.start.camera_to_world)
        after = apply_rotation(motion[view], before) + motion[view, :3, 3]
        scale, rotation, translation = fit_similarity(after, before)
        aligned = scale * after @ rotation.T + translation
        moved = level.project(self.start, view, aligned)[0] - level.project(self.start, view, before)[0]
        return float(moved.square().sum(1).mean().sqrt()) / max(level.width, level.height)

    def result(self, poses: Poses, *, inconsistent: bool = False, shift: float = 0.0) -> Registered:
        """The views at `poses`; lengths in pixels of the last level and in shares of the side."""
        cameras, depths = self.views.cameras, self.views.depths
        corrected = poses.camera_to_world is not self.start.camera_to_world
        scale, focal = poses.log_scale.exp().float(), float(poses.log_focal.exp())
        if corrected:
            intrinsics = cameras.intrinsics.clone()
            intrinsics[:, [0, 1], [0, 1]] *= focal
            cameras = replace(cameras, camera_to_world=poses.camera_to_world.float(), intrinsics=intrinsics)
        side = max(cameras.width, cameras.height)
        pixel = side / max(self.levels[-1].width, self.levels[-1].height)
        return Registered(
            replace(
                self.views,
                cameras=cameras,
                depths=None if depths is None else depths * scale[:, None, None],
            ),
            depth_scale=scale,
            focal_factor=focal,
            before_px=self.before * pixel,
            after_px=self.disagreement(poses) * pixel,
            shift_px=shift * side,
            inconsistent=inconsistent,
            corrected=corrected,
        )


class _Surfaces(_Problem):
    """Most views have depth: what they measured is held against each other."""

    consistent = _CONSISTENT
    gates = _GATES
    descents = 3

    def _frame(self, start: Poses) -> tuple[Tensor, float]:
        level = self.levels[0]
        world, _, _ = level.world(start, level.chosen)
        center = world.median(0).values
        return center, float((world - center).abs().quantile(0.99))

    def depth_scales(self) -> Poses:
        """Factors on depth where the views do not agree as they are."""
        if self.agreed:
            return self.start
        start = replace(self.start, log_scale=self.levels[0].scales_from_masks(self.start))
        return _with_scales_beyond(_SCALE_SHIFT, self._descend(start, self._free(cameras=False, scales=True)))

    def poses(self, scaled: Poses) -> Poses:
        free = self._free(cameras=True, scales=False)
        moved = self._descend(self.start, free)
        if bool((scaled.log_scale == 0).all()):
            return moved
        also = self._descend(scaled, free)
        return also if self.disagreement(moved) > _BETTER * self.disagreement(also) else moved

    def disagreement(self, poses: Poses) -> float:
        """Between surfaces and between silhouettes."""
        depth, _, _, rim = agreement(self.levels[-1], poses, _JUDGED)
        surface = mean_square(depth) * DEPTH_SIGMA**2
        return math.sqrt(surface + mean_square(rim) * RIM_SIGMA**2)

    def _rows(self, level: Level, poses: Poses, gate: float, *, cameras: bool) -> list[Rows]:
        return agreement(level, poses, gate)


class _Silhouettes(_Problem):
    """Most views lack depth: their silhouettes are held against each other, whatever depth there is."""

    consistent = _COHERENT
    gates = (10 * (6.0,), 10 * (6.0,))
    descents = 3

    def _frame(self, start: Poses) -> tuple[Tensor, float]:
        center, half = object_frame(self.views)
        return center.double(), half

    def depth_scales(self) -> Poses:
        return self._rescaled(self.start)

    def poses(self, scaled: Poses) -> Poses:
        return self._rescaled(self._descend(self.start, self._free(cameras=True, scales=False)))

    def _rescaled(self, poses: Poses) -> Poses:
        """Factors on the depth there is, at the cameras of `poses`.

        Where hardly anything was measured twice, only the visual hull tells them, and that less exactly.
        """
        if not len(self.levels[-1].all):
            return poses
        hull = replace(poses, log_scale=self.levels[-1].scales_from_masks(poses))
        best = self._descend(hull, self._free(cameras=False, scales=True))
        given, reached = self._between_surfaces(poses), self._between_surfaces(best)
        told = given > max(_CONSISTENT, _BETTER * reached)
        return _with_scales_beyond(_SCALE_SHIFT if told else _HULL_SHIFT, best)

    def _between_surfaces(self, poses: Poses) -> float:
        depth, _, outside = agreement(self.levels[-1], poses, _JUDGED, rims=False)
        return math.sqrt(mean_square(depth) * DEPTH_SIGMA**2 + mean_square(outside) * RIM_SIGMA**2)

    def disagreement(self, poses: Poses) -> float:
        """Of the silhouettes' rays from other masks."""
        outside = coherence(self.levels[-1], poses, self.half, _JUDGED).outside
        return float(outside.clamp(max=5.0).square().mean().sqrt())

    def _rows(self, level: Level, poses: Poses, gate: float, *, cameras: bool) -> list[Rows]:
        if not cameras:
            return agreement(level, poses, gate, rims=False)
        rows = coherence(level, poses, self.half, gate).rows
        return [replace(rows, weight=rows.weight * (_INDEPENDENT_RAYS / _INDEPENDENT))]


def _with_scales_beyond(limit: float, poses: Poses) -> Poses:
    """The same without factors on depth whose logarithms are smaller."""
    scale = poses.log_scale
    return replace(poses, log_scale=torch.where(scale.abs() > limit, scale, 0.0))


def _levels(views: PosedViews, seed: int) -> list[Level]:
    """The views at all resolutions."""
    generator = torch.Generator().manual_seed(seed)
    longer = max(views.cameras.width, views.cameras.height)
    sides = sorted({min(side, longer) for side in _SIDES})
    partners = _partners(views.cameras)
    most = max(_FEWEST, _PAIRS // partners.numel())
    return [
        Level(views, side, min(points, most), partners, generator)
        for side, points in zip(sides, _POINTS, strict=False)
    ]


def _partners(cameras: Cameras) -> Tensor:
    """The views that each is compared with, [V, J]: all others, or the nearest and some all round."""
    count = len(cameras)
    offset = cameras.positions - cameras.positions.mean(0)
    order = torch.cdist(offset, offset).argsort(1)[:, 1:]  # by nearness, without itself
    if count <= _ALL_PARTNERS:
        return order
    half = _MAX_PARTNERS // 2
    spread = torch.linspace(half, count - 2, _MAX_PARTNERS - half, device=order.device).long()
    return torch.cat([order[:, :half], order[:, spread]], 1)


def _normal_equations(parts: list[Rows], views: int) -> tuple[Tensor, Tensor]:
    """Matrix [7 V + 1, 7 V + 1] and right side [7 V + 1] of the linearised problem."""
    device = parts[0].residual.device
    blocks = torch.zeros(views * views, LOCAL * LOCAL, dtype=torch.float64, device=device)
    sides = torch.zeros(views * views, LOCAL, dtype=torch.float64, device=device)
    for rows in parts:
        pair = rows.owner * views + rows.partner
        weighted = rows.jacobian * rows.weight[:, None]
        sides.index_add_(0, pair, weighted * rows.residual[:, None])
        for part in torch.arange(len(pair), device=device).split(_ROWS):
            square = rows.jacobian[part, :, None] * weighted[part, None]
            blocks.index_add_(0, pair[part], square.flatten(1))
    unknowns = 7 * views + 1
    place = _places(views, device)
    normal = torch.zeros(unknowns * unknowns, dtype=torch.float64, device=device)
    normal.index_add_(0, (place[:, :, None] * unknowns + place[:, None]).flatten(), blocks.flatten())
    right = torch.zeros(unknowns, dtype=torch.float64, device=device)
    right.index_add_(0, place.flatten(), sides.flatten())
    return normal.reshape(unknowns, unknowns), right


def _places(views: int, device: torch.device) -> Tensor:
    """Where the local unknowns of every pair of views stand among all, [V * V, LOCAL]."""
    pair = torch.arange(views * views, device=device)[:, None]
    owner, partner, six = pair // views, pair % views, torch.arange(6, device=device)
    focal = torch.full_like(pair, 7 * views)
    return torch.cat([6 * owner + six, 6 * partner + six, 6 * views + owner, 6 * views + partner, focal], 1)
