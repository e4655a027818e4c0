"""What the refinement holds the object against: crops of the views, and voxels of its known surface."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.geometry.camera import Cameras
from models.reconviagen.crops import Crops


@dataclass(frozen=True)
class Targets:
    """What renderings of V views are held against.

    Attributes:
        images: [V, 3, S, S] sRGB in [0, 1] over black.
        masks: [V, S, S] in [0, 1].
        depths: [V, S, S] z-depth in model units, 0 where nothing was measured; None without depth.
        cameras: In model space, of this size.
    """

    images: Tensor
    masks: Tensor
    depths: Tensor | None
    cameras: Cameras

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice) -> Targets:
        depths = None if self.depths is None else self.depths[index]
        return Targets(self.images[index], self.masks[index], depths, self.cameras[index])

    def points(self) -> Tensor:
        """The measured points of the object, [N, 3], model space; none without depth."""
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
    cropped = None if depths is None else _cropped(depths, crops, size)
    return Targets(both[:, :3], both[:, 3], cropped, cameras.resized(size, size))


def _cropped(maps: Tensor, crops: Crops, size: int) -> Tensor:
    """The crops' parts of maps [V, H, W], [V, S, S]; the nearest value, because depths must not be mixed."""
    steps = (torch.arange(size, device=maps.device) + 0.5) / size
    found = []
    for values, window in zip(maps, crops.windows, strict=True):
        column = (window.left + steps * window.side).floor().long()
        row = (window.top + steps * window.side).floor().long()
        inside = ((row >= 0) & (row < crops.height))[:, None] & (column >= 0) & (column < crops.width)
        nearest = values[row.clamp(0, crops.height - 1)[:, None], column.clamp(0, crops.width - 1)]
        found.append(nearest * inside)
    return torch.stack(found)


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
