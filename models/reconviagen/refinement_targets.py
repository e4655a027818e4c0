"""What the refinement holds the object against: crops of the views, and voxels of its known surface."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.geometry.camera import Cameras
from models.reconviagen.crops import Crops

_BESIDE = 0.1  # coverage below which a pixel shows what is beside the object


@dataclass(frozen=True)
class Targets:
    """What renderings of V views are held against.

    Attributes:
        images: [V, 3, S, S] sRGB in [0, 1] over black.
        masks: [V, S, S] in [0, 1].
        inside: [V, S, S] bool, false where the crop reaches beyond the full image, of which nothing is known.
        depths: [V, S, S] z-depth in model units, 0 where nothing was measured; None without depth.
        cameras: In model space, of this size.
    """

    images: Tensor
    masks: Tensor
    inside: Tensor
    depths: Tensor | None
    cameras: Cameras

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice) -> Targets:
        depths = None if self.depths is None else self.depths[index]
        return Targets(self.images[index], self.masks[index], self.inside[index], depths, self.cameras[index])

    def points(self) -> Tensor:
        """The measured points of the object, [N, 3], model space; views without depth have none."""
        if self.depths is None:
            return self.images.new_zeros(0, 3)
        return self.cameras.unproject(self.depths)[(self.depths > 0) & (self.masks > 0.5)]


def make_targets(crops: Crops, cameras: Cameras, depths: Tensor | None, size: int) -> Targets:
    """Targets from the views' crops.

    Args:
        crops: Of V views.
        cameras: Of the crops, in model space; all on one device, where the targets will be.
        depths: [V, H, W] z-depth of the full images in model units, 0 where nothing was measured.
        size: Side S of the targets, pixels.
    """
    both = torch.cat([crops.images, crops.masks[:, None]], 1)
    both = functional.interpolate(both, (size, size), mode="bilinear", antialias=True)
    cropped = None if depths is None else crops.nearest(depths, size)
    return Targets(both[:, :3], both[:, 3], crops.inside(size), cropped, cameras.resized(size, size))


def surface_voxels(points: Tensor, resolution: int) -> Tensor:
    """Voxels of the model's cube that hold points, [R, R, R] bool.

    Args:
        points: [N, 3], model space; those outside of the cube are left out.
        resolution: Voxels R along each axis.
    """
    voxels = ((points + 0.5) * resolution).floor().long()
    x, y, z = voxels[((voxels >= 0) & (voxels < resolution)).all(-1)].unbind(-1)
    grid = torch.zeros((resolution,) * 3, dtype=torch.bool, device=points.device)
    grid[x, y, z] = True
    return grid


def seen_voxels(targets: Targets, resolution: int) -> Tensor:
    """Voxels of the model's cube that some view looks into, [R, R, R] bool.

    Those before the surface or about it, by depth, and those beside the object, by masks. What lies behind
    the surface in every view is not seen, nor what no view shows, or shows without depth.

    Args:
        targets: The views.
        resolution: Voxels R along each axis.
    """
    axis = (torch.arange(resolution, device=targets.masks.device) + 0.5) / resolution - 0.5
    centers = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    seen = torch.zeros(len(centers), dtype=torch.bool, device=centers.device)
    side = targets.cameras.width
    reach = 0.5 * 3**0.5 / resolution  # from a voxel's middle to its corners: the surface may just touch it
    for view in range(len(targets)):  # one at a time: there are a quarter of a million voxels
        pixel, depth = targets.cameras[[view]].project(centers)
        column, row = pixel[0].floor().long().unbind(-1)
        shown = (depth[0] > 0) & (column >= 0) & (column < side) & (row >= 0) & (row < side)
        row, column = row.clamp(0, side - 1), column.clamp(0, side - 1)
        pixels = math.ceil(reach * float((targets.cameras.intrinsics[view, 0, 0] / depth[0]).median()))
        free = _grown(targets.masks[view], pixels)[row, column] < _BESIDE
        if targets.depths is not None:
            free |= depth[0] < targets.depths[view, row, column] + reach
        seen |= shown & targets.inside[view, row, column] & free
    return seen.reshape((resolution,) * 3)


def _grown(mask: Tensor, pixels: int) -> Tensor:
    """The largest value within so many pixels, [S, S]."""
    return functional.max_pool2d(mask[None, None], 2 * pixels + 1, 1, pixels)[0, 0]
