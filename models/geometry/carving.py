"""A first shape from masks and depth: space carving on a grid.

A point is outside the object if any view says so: it projects outside that view's mask, or it lies before
the surface that the view's depth map measured. The signed distance is the largest of what the views claim.
Without depth this is the visual hull (Laurentini, 1994); with depth it is the projective signed distance of
Curless and Levoy (1996), joined by maximum: a few opposite views must not erase each other. Only claims that
differ by no more than the depth maps themselves disagree are averaged, as Curless and Levoy do, for of noisy
claims the largest is the worst.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import convolve, distance_transform_edt
from torch import Tensor

from models.base import PosedViews
from models.geometry.depth_maps import SAME_SURFACE
from schemas.errors import ErrorCode, ModelError

_CHUNK = 1 << 21  # points times views that are looked at together
_COARSE_CELLS = 48  # resolution of the grid that looks for the object's bounds
_BOUNDS_MARGIN = 0.06  # free space round the object, as a share of its size
_AVERAGED = 4.0  # claims within this many typical disagreements of the largest one are averaged
_SIDEWAYS = 0.3  # views whose directions differ by more than 90 degrees plus this (its sine) are not averaged
_SAMPLED = 4096  # points of each view whose depth is compared with the other views'


def silhouette_distance(masks: Tensor, aspect: Tensor | None = None) -> Tensor:
    """Signed distance to the silhouette in pixels' widths, negative inside.

    The silhouette runs between pixels, half a pixel from the nearest one of the other kind, and shifted from
    there by what partial coverage says (the idea of Gustavson and Strand's anti-aliased transform, 2011).

    Args:
        masks: [V, H, W] coverage; pixels of at least one half are inside.
        aspect: [V] heights of the views' pixels in their widths; square pixels unless given.

    Returns:
        [V, H, W]; a view without any outside (or inside) pixel gives distances of the image's diagonal.
    """
    fields = []
    heights = np.ones(len(masks)) if aspect is None else aspect.cpu().double().numpy()
    for mask, height in zip(masks.cpu().numpy(), heights, strict=True):
        inside = mask >= 0.5
        if inside.all() or not inside.any():
            far = float(np.hypot(height * mask.shape[0], mask.shape[1]))
            fields.append(np.full(mask.shape, -far if inside.all() else far))
            continue
        shift = _outward_shift(mask, inside)
        outer, to_inside = distance_transform_edt(~inside, sampling=(height, 1.0), return_indices=True)
        inner, to_outside = distance_transform_edt(inside, sampling=(height, 1.0), return_indices=True)
        outer -= (0.5 + shift[tuple(to_inside)]) * _pixel_along(to_inside, outer, height)
        inner -= (0.5 - shift[tuple(to_outside)]) * _pixel_along(to_outside, inner, height)
        fields.append(np.where(inside, -inner, outer))
    return torch.tensor(np.stack(fields), dtype=torch.float32, device=masks.device)


def _pixel_along(
    nearest: NDArray[np.int32], distance: NDArray[np.float64], height: float
) -> NDArray[np.float64]:
    """Length of a pixel towards the `nearest` [2, H, W] ones at `distance` [H, W], in pixels' widths."""
    rows, columns = np.indices(distance.shape)
    across, along = columns - nearest[1], height * (rows - nearest[0])
    return np.asarray(np.hypot(across, height * along) / distance.clip(1e-9))


def _outward_shift(mask: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How far coverage puts the silhouette outside the line between the pixels, at those along it, [H, W]."""

    def neighbours(values: NDArray[np.float32]) -> NDArray[np.float32]:
        cross = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32)
        return np.asarray(convolve(values, cross, mode="constant"))

    covered, outside = inside.astype(np.float32), (~inside).astype(np.float32)
    beyond = neighbours(mask * outside) / neighbours(outside).clip(1)
    within = neighbours(mask * covered) / neighbours(covered).clip(1)
    return np.asarray(np.where(inside, mask - 1 + beyond, mask + within - 1))


class Carver:
    """Signed distance of points to what the views leave standing.

    Args:
        views: The views; depth maps are used where `use_depth` is set and the view has them.
        use_depth: Whether to carve by depth too.
    """

    def __init__(self, views: PosedViews, *, use_depth: bool = True) -> None:
        self._cameras = views.cameras
        focal = views.cameras.intrinsics[:, [0, 1], [0, 1]]  # [V, 2]
        aspect = focal[:, 0] / focal[:, 1]
        self._silhouette = silhouette_distance(views.masks, aspect)[:, None]  # [V, 1, H, W]
        # Where a mask keeps clear of its image's border the whole object is in the image, so that what lies
        # outside the image is outside the object. A cropped view says nothing about it.
        self._complete = ~_touches_border(views.masks)[:, None]  # [V, 1]
        self._depth: Tensor | None = None
        if use_depth and views.depths is not None:
            self._depth = views.depths[:, None] * (views.masks[:, None] >= 0.5)
            self._band = max(_AVERAGED * self._disagreement(), torch.finfo(torch.float32).tiny)

    def __call__(self, points: Tensor) -> Tensor:
        """Signed distance [N] of `points` [N, 3], world units, positive outside.

        A point of which no view says anything is outside.
        """
        # Every view holds several numbers a point: in one piece, many views of a fine grid fill the memory.
        chunk = max(1, _CHUNK // len(self._cameras))
        return torch.cat([self._distance(part) for part in points.split(chunk)])

    def _distance(self, points: Tensor) -> Tensor:
        grid, depth, in_image = self._lookup(points)
        world_per_pixel = depth / self._cameras.intrinsics[:, 0, 0, None]
        silhouette = _sample(self._silhouette, grid, "bilinear", "border") * world_per_pixel
        visible = in_image | ((depth > 0) & self._complete)
        distance = torch.where(visible, silhouette, silhouette.new_tensor(-torch.inf)).amax(0)
        if self._depth is not None:
            claims = self._before_surface(grid, depth, in_image)
            distance = torch.maximum(distance, self._joined(points, claims))
        return torch.where(visible.any(0), distance, distance.new_tensor(1.0))

    def _joined(self, points: Tensor, claims: Tensor) -> Tensor:
        """The largest of `claims` [V, N], averaged with those that differ from it by no more than noise, [N].

        The weights fall linearly to zero at the band's edge and towards views from behind, which see the
        other side of a thin part.
        """
        largest, view = claims.max(0)
        below = (largest - claims).nan_to_num(torch.inf, posinf=torch.inf)  # -inf less -inf: nothing known
        weight = (1 - below / self._band).clamp(min=0) * self._beside(points, view)
        return largest - (weight * below.nan_to_num(posinf=0.0)).sum(0) / weight.sum(0).clamp(min=1e-6)

    def _beside(self, points: Tensor, view: Tensor) -> Tensor:
        """How far every view looks at `points` [N, 3] from the same side as the views `view` [N], [V, N]."""
        ray = F.normalize(self._cameras.positions[:, None] - points, dim=-1)  # [V, N, 3]
        chosen = ray[view, torch.arange(len(view), device=view.device)]
        return ((ray * chosen).sum(-1) + _SIDEWAYS).clamp(0, 1)

    def _disagreement(self) -> float:
        """How far the depth maps typically differ where they see the same surface, world units.

        Every second view of a surface tells it: noise, a wrong scale and wrong poses alike.
        """
        assert self._depth is not None
        found = []
        for index in range(len(self._cameras)):
            points = self._cameras[[index]].unproject(self._depth[[index], 0])[self._depth[[index], 0] > 0]
            points = points[:: max(1, points.shape[0] // _SAMPLED)]
            grid, depth, in_image = self._lookup(points)
            claim = self._before_surface(grid, depth, in_image)
            claim[index] = -torch.inf
            side = self._beside(points, torch.full_like(points[:, 0], index, dtype=torch.long))
            found.append(claim[(claim.abs() < SAME_SURFACE * depth) & (side > _SIDEWAYS / 2)].abs())
        differences = torch.cat(found)
        return float(differences.median()) if differences.numel() else 0.0

    def _lookup(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where each view sees `points` [N, 3].

        Returns:
            Places [V, 1, N, 2] in `grid_sample`'s frame, z-depth [V, N], and whether in the image [V, N].
        """
        pixel, depth = self._cameras.project(points)  # [V, N, 2], [V, N]
        size = torch.tensor([self._cameras.width, self._cameras.height], device=points.device)
        grid = (pixel / size * 2 - 1)[:, None]
        return grid, depth, (depth > 0) & (grid[:, 0].abs() <= 1).all(-1)

    def _before_surface(self, grid: Tensor, depth: Tensor, in_image: Tensor) -> Tensor:
        """How far each point lies before the measured surface, [V, N]; -inf where nothing was measured."""
        assert self._depth is not None
        # Interpolating across a depth edge would invent a surface between the two: interpolate only where
        # all four neighbours were measured and agree, else take the nearest measurement.
        nearest = _sample(self._depth, grid, "nearest", "zeros")
        linear = _sample(self._depth, grid, "bilinear", "zeros")
        jump = (linear - nearest).abs() > 0.02 * nearest
        surface = torch.where(jump, nearest, linear)
        return torch.where(in_image & (nearest > 0), surface - depth, surface.new_tensor(-torch.inf))


def _touches_border(masks: Tensor) -> Tensor:
    """Which masks [V, H, W] reach their image's border, [V] bool."""
    rim = torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], 1)
    return (rim >= 0.5).any(1)


def _sample(images: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    """Look up [V, 1, H, W] images at [V, 1, N, 2], giving [V, N]."""
    found = F.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=False)
    return found[:, 0, 0]


def object_bounds(views: PosedViews, carver: Carver) -> tuple[Tensor, float]:
    """Centre [3] and half side of a cube that holds the object with a small margin.

    Raises:
        ModelError: MODEL_DIVERGED, where the views leave nothing standing (masks and cameras disagree).
    """
    centre, half = object_frame(views)
    axis = torch.linspace(-1, 1, _COARSE_CELLS, device=centre.device)
    unit = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    for _ in range(3):  # each round looks closer
        points = centre + half * unit
        cell = 2 * half / (_COARSE_CELLS - 1)
        kept = points[carver(points) < cell]
        if kept.shape[0] == 0:
            raise ModelError(
                ErrorCode.MODEL_DIVERGED,
                "No point in space projects into every mask: masks and cameras contradict each other.",
                rule="visual hull is not empty",
            )
        low, high = kept.amin(0), kept.amax(0)
        centre, half = (low + high) / 2, float((high - low).max() / 2)
    return centre, half * (1 + 2 * _BOUNDS_MARGIN)


def object_frame(views: PosedViews) -> tuple[Tensor, float]:
    """Centre [3] and half side of a generous cube: where the rays through the masks' centres come closest."""
    cameras = views.cameras
    rows = (torch.arange(cameras.height, device=views.masks.device) + 0.5)[None, :, None]
    columns = (torch.arange(cameras.width, device=views.masks.device) + 0.5)[None, None, :]
    weight = views.masks.sum((1, 2)).clamp(min=1e-6)
    x = (views.masks * columns).sum((1, 2)) / weight
    y = (views.masks * rows).sum((1, 2)) / weight
    k = cameras.intrinsics
    ray = torch.stack([(x - k[:, 0, 2]) / k[:, 0, 0], (k[:, 1, 2] - y) / k[:, 1, 1], -torch.ones_like(x)], -1)
    direction = F.normalize(torch.einsum("vij,vj->vi", cameras.camera_to_world[:, :3, :3], ray), dim=-1)
    across = torch.eye(3, device=ray.device) - direction[:, :, None] * direction[:, None, :]  # [V, 3, 3]
    right = torch.einsum("vij,vj->i", across, cameras.positions)
    centre = torch.linalg.lstsq(across.sum(0), right[:, None]).solution[:, 0]

    across_image = (columns - x[:, None, None]) / k[:, 0, 0, None, None]
    down_image = (rows - y[:, None, None]) / k[:, 1, 1, None, None]
    slope = torch.hypot(across_image, down_image) * (views.masks >= 0.5)
    distance = torch.linalg.vector_norm(cameras.positions - centre, dim=-1)
    radius = slope.amax((1, 2)) * distance
    return centre, float(radius.max()) * 1.3
