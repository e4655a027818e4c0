"""A first shape from masks and depth: space carving on a grid.

A point is outside the object if any view says so: it projects outside that view's mask, or it lies before
the surface that the view's depth map measured. The signed distance is the largest of what the views claim.
Without depth this is the visual hull (Laurentini, 1994); with depth it is the projective signed distance of
Curless and Levoy (1996), joined by maximum instead of mean: a few opposite views must not erase each other.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from models.base import Views
from schemas.errors import ErrorCode, ModelError

_CHUNK = 1 << 21  # points times views that are looked at together
_COARSE_CELLS = 48  # resolution of the grid that looks for the object's bounds
_BOUNDS_MARGIN = 0.06  # free space round the object, as a share of its size


def silhouette_distance(masks: Tensor) -> Tensor:
    """Signed distance to the silhouette in pixels, negative inside.

    Args:
        masks: [V, H, W] coverage; pixels of at least one half are inside.

    Returns:
        [V, H, W]; a view without any outside (or inside) pixel gives distances of the image's diagonal.
    """
    fields = []
    for mask in masks.cpu().numpy() >= 0.5:
        far = float(np.hypot(*mask.shape))
        outside = distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, far)
        inside = distance_transform_edt(mask) if not mask.all() else np.full(mask.shape, far)
        fields.append(outside - inside + np.where(mask, 0.5, -0.5))
    return torch.tensor(np.stack(fields), dtype=torch.float32, device=masks.device)


class Carver:
    """Signed distance of points to what the views leave standing.

    Args:
        views: The views; depth maps are used where `use_depth` is set and the view has them.
        use_depth: Whether to carve by depth too.
    """

    def __init__(self, views: Views, *, use_depth: bool = True) -> None:
        self._cameras = views.cameras
        self._silhouette = silhouette_distance(views.masks)[:, None]  # [V, 1, H, W]
        # Where a mask keeps clear of its image's border the whole object is in the image, so that what lies
        # outside the image is outside the object. A cropped view says nothing about it.
        self._complete = ~_touches_border(views.masks)[:, None]  # [V, 1]
        self._depth: Tensor | None = None
        if use_depth and views.depths is not None:
            self._depth = views.depths[:, None] * (views.masks[:, None] >= 0.5)

    def __call__(self, points: Tensor) -> Tensor:
        """Signed distance [N] of `points` [N, 3], world units, positive outside.

        A point of which no view says anything is outside.
        """
        # Every view holds several numbers a point: in one piece, many views of a fine grid fill the memory.
        chunk = max(1, _CHUNK // len(self._cameras))
        return torch.cat([self._distance(part) for part in points.split(chunk)])

    def _distance(self, points: Tensor) -> Tensor:
        cameras = self._cameras
        pixel, depth = cameras.project(points)  # [V, N, 2], [V, N]
        size = torch.tensor([cameras.width, cameras.height], device=points.device, dtype=points.dtype)
        grid = (pixel / size * 2 - 1)[:, None]  # [V, 1, N, 2], grid_sample's align_corners=False frame
        world_per_pixel = depth / cameras.intrinsics[:, 0, 0, None]
        silhouette = _sample(self._silhouette, grid, "bilinear", "border") * world_per_pixel
        in_image = (depth > 0) & (grid[:, 0].abs() <= 1).all(-1)
        visible = in_image | ((depth > 0) & self._complete)
        distance = torch.where(visible, silhouette, silhouette.new_tensor(-torch.inf))
        if self._depth is not None:
            distance = torch.maximum(distance, self._before_surface(grid, depth, in_image))
        return torch.where(visible.any(0), distance.amax(0), distance.new_tensor(1.0))

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


def object_bounds(views: Views, carver: Carver) -> tuple[Tensor, float]:
    """Centre [3] and half side of a cube that holds the object with a small margin.

    Raises:
        ModelError: MODEL_DIVERGED, where the views leave nothing standing (masks and cameras disagree).
    """
    centre, half = _frame(views)
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


def _frame(views: Views) -> tuple[Tensor, float]:
    """A generous cube round the object: where the rays through the masks' centres come closest together."""
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

    distance_px = torch.hypot(columns - x[:, None, None], rows - y[:, None, None]) * (views.masks >= 0.5)
    distance = torch.linalg.vector_norm(cameras.positions - centre, dim=-1)
    radius = distance_px.amax((1, 2)) / k[:, 0, 0] * distance
    return centre, float(radius.max()) * 1.3
