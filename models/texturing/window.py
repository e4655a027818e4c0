"""The part of an image that shows the object, no finer than it is of use."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry.camera import Cameras

_RIM_PX = 2  # pixels beside the object that are kept: they tell its rim from the image's border


@dataclass(frozen=True)
class Window:
    """A part of an image.

    Attributes:
        image: [H, W, 3] sRGB, not premultiplied; meaningful where the mask is.
        mask: [H, W] coverage by the object.
        camera: The one camera, which sees this part alone.
    """

    image: Tensor
    mask: Tensor
    camera: Cameras


def object_window(
    image: Tensor, mask: Tensor, camera: Cameras, most: int, device: torch.device
) -> Window | None:
    """Cut an image to the object's box, and scale it down where that has more pixels than wanted.

    Args:
        image: [H, W, 3] sRGB, not premultiplied; on any device, which is left with the box alone.
        mask: [H, W] coverage by the object, beside it.
        camera: The one camera, on `device`.
        most: Pixels of the window's longer side at most.
        device: Where the window is wanted.

    Returns:
        The window; None where the mask is empty.
    """
    covered = mask >= 0.5
    rows, columns = (torch.nonzero(covered.any(axis))[:, 0].tolist() for axis in (1, 0))
    if not rows:
        return None
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    rim = _RIM_PX * math.ceil(max(1.0, longer / most))
    top, bottom = max(rows[0] - rim, 0), min(rows[-1] + 1 + rim, len(mask))
    left, right = max(columns[0] - rim, 0), min(columns[-1] + 1 + rim, mask.shape[1])
    part = Window(
        image[top:bottom, left:right].to(device),
        mask[top:bottom, left:right].to(device),
        _cut(camera, left, top, right - left, bottom - top),
    )
    return _scaled(part, most / max(right - left, bottom - top))


def _cut(camera: Cameras, left: int, top: int, width: int, height: int) -> Cameras:
    corner = torch.tensor([[0.0, 0.0, left], [0.0, 0.0, top], [0.0, 0.0, 0.0]])
    return Cameras(
        camera.camera_to_world, camera.intrinsics - corner.to(camera.intrinsics.device), width, height
    )


def _scaled(window: Window, factor: float) -> Window:
    """Means of the pixels that are merged; the object's colours are not mixed with others."""
    if factor >= 1:
        return window
    size = [max(1, round(side * factor)) for side in window.mask.shape]
    weighted = torch.cat([window.image * window.mask[..., None], window.mask[..., None]], -1)
    found = F.interpolate(weighted.permute(2, 0, 1)[None], size, mode="bilinear", antialias=True)[0]
    mask = found[3].clamp(0, 1)
    image = (found[:3] / mask.clamp(min=1e-3)).permute(1, 2, 0)
    return Window(image, mask, window.camera.resized(size[1], size[0]))
