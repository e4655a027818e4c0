"""The networks' view of the input: the object cut out, centred on black, at the size they were trained with.

The arithmetic is that of the published application, rounding included, so that the networks see the same
pixels: eight bits a channel before and after, whole pixels for the crop's box. On purpose different: a view
whose mask is empty, which is there passed on whole, is refused, and so is one of a few pixels; a mask that
covers the whole image is believed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from models.base import Views
from models.geometry.camera import Cameras
from schemas.errors import ErrorCode, InvalidJob

CROP_SIZE = 518
"""Pixels a side: 37 patches of 14 pixels."""

_MARGIN = 1.1  # side of the crop over the longer side of the object's box
_FOREGROUND = 0.8  # coverage above which a pixel counts as the object's
_SMALLEST = 16  # pixels of the longer side of the object's box: of less, nothing can be recognised


@dataclass(frozen=True)
class Window:
    """The square of a full image that a crop shows; parts of it may lie outside the image.

    Attributes:
        left, top: Place of the square's first corner in the image, pixels.
        side: Pixels of the image.
    """

    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Crops:
    """V square crops around the object.

    Attributes:
        images: [V, 3, S, S] float32, sRGB in [0, 1] in steps of 1/255, black where the mask is at most 0.8.
        masks: [V, S, S] float32 in [0, 1] in steps of 1/255.
        windows: What part of its full image each crop shows.
        width, height: Size of the full images, pixels.
    """

    images: Tensor
    masks: Tensor
    windows: tuple[Window, ...]
    width: int
    height: int

    @property
    def size(self) -> int:
        """Side S of the crops, pixels."""
        return self.images.shape[-1]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: list[int]) -> Crops:
        """Some of the crops, in the order of `index`."""
        windows = tuple(self.windows[i] for i in index)
        return Crops(self.images[index], self.masks[index], windows, self.width, self.height)

    def to(self, device: torch.device | str) -> Crops:
        """The same crops on another device."""
        return replace(self, images=self.images.to(device), masks=self.masks.to(device))

    def to_full(self, cameras: Cameras) -> Cameras:
        """Cameras of the full images from cameras of the crops, with the same poses."""
        window, scale = self._windows(cameras)
        intrinsics = cameras.intrinsics.clone()
        intrinsics[:, :2] /= scale
        intrinsics[:, :2, 2] += window
        return Cameras(cameras.camera_to_world, intrinsics, self.width, self.height)

    def to_crops(self, cameras: Cameras) -> Cameras:
        """Cameras of the crops from cameras of the full images, with the same poses."""
        window, scale = self._windows(cameras)
        intrinsics = cameras.intrinsics.clone()
        intrinsics[:, :2, 2] -= window
        intrinsics[:, :2] *= scale
        return Cameras(cameras.camera_to_world, intrinsics, self.size, self.size)

    def inside(self, side: int) -> Tensor:
        """Which pixels of the crops at another size show the full image and nothing beside it.

        Args:
            side: Of the crops, pixels.

        Returns:
            [V, side, side] bool, on the crops' device.
        """
        device = self.images.device
        return torch.stack(
            [
                _within(window.top, window.side, self.height, side, device)[:, None]
                & _within(window.left, window.side, self.width, side, device)
                for window in self.windows
            ]
        )

    def nearest(self, maps: Tensor, side: int) -> Tensor:
        """The crops' parts of maps of the full images, the nearest value each: depths must not be mixed.

        Args:
            maps: [V, H, W].
            side: Of the result, pixels.

        Returns:
            [V, side, side], 0 outside of the full images.
        """
        steps = (torch.arange(side, device=maps.device) + 0.5) / side
        found = []
        for values, window in zip(maps, self.windows, strict=True):
            column = (window.left + steps * window.side).floor().long()
            row = (window.top + steps * window.side).floor().long()
            inside = ((row >= 0) & (row < self.height))[:, None] & (column >= 0) & (column < self.width)
            part = values[row.clamp(0, self.height - 1)[:, None], column.clamp(0, self.width - 1)]
            found.append(part * inside)
        return torch.stack(found)

    def _windows(self, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """First corners [V, 2] and pixels of a crop per pixel of the image [V, 1, 1]."""
        device = cameras.intrinsics.device
        corner = torch.tensor([[float(w.left), float(w.top)] for w in self.windows], device=device)
        side = torch.tensor([float(w.side) for w in self.windows], device=device)
        return corner, (self.size / side)[:, None, None]


def evenly_spaced(count: int, most: int) -> list[int]:
    """The numbers of at most so many of `count` views, spread over all of them."""
    chosen = min(count, most)
    return [(2 * i + 1) * count // (2 * chosen) for i in range(chosen)]


def _within(first: int, length: int, end: int, count: int, device: torch.device) -> Tensor:
    """Which of `count` steps [count] from `first` over `length` lie between 0 and `end`.

    Where the crop reaches beyond the image, half a pixel of the image was mixed with what is outside.
    """
    step = torch.arange(count + 1, device=device) * (length / count) + first
    low = 0.5 if first < 0 else -torch.inf
    high = end - 0.5 if first + length > end else torch.inf
    return (step[:-1] >= low) & (step[1:] <= high)


def crop_views(views: Views, *, size: int = CROP_SIZE) -> Crops:
    """Cut the object out of every view.

    Args:
        views: Images and masks are used, and the names in errors.
        size: Side of the crops, pixels.

    Raises:
        InvalidJob: MASK_MISSING: a view's mask nowhere says that the object is there, or its box is smaller
            than 16 pixels.
    """
    pairs = [
        _cropped(image, mask, name, size)
        for image, mask, name in zip(views.images, views.masks, views.names, strict=True)
    ]
    height, width = views.masks.shape[1:]
    crops = torch.stack([crop for crop, _ in pairs])  # [V, 4, S, S]
    return Crops(crops[:, :3], crops[:, 3], tuple(window for _, window in pairs), width, height)


def _cropped(image: Tensor, mask: Tensor, name: str, size: int) -> tuple[Tensor, Window]:
    """Crop [4, S, S] of one view, colour and mask, and its place."""
    pixels = torch.cat([image, mask[..., None]], -1)
    pixels = (pixels * 255).round()  # the published application reads files of eight bits
    window, padded = _square(pixels, _box(pixels[..., 3], name))
    # Channels stay last in memory: with another layout torch sums in another order, and floors would differ.
    crop = (padded / 255).permute(2, 0, 1)[None]
    crop = functional.interpolate(crop, (size, size), mode="bilinear", align_corners=False)[0]
    colour = crop[:3] * (crop[3] > _FOREGROUND)
    return (torch.cat([colour, crop[3:]]) * 255).floor() / 255, window


def _box(mask: Tensor, name: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the object with its margin, pixels, not bounded by the image.

    Args:
        mask: [H, W], whole numbers from 0 to 255.
        name: Of the view, for the error.
    """
    inside = mask > _FOREGROUND * 255
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    if not len(rows):
        raise InvalidJob(
            ErrorCode.MASK_MISSING,
            f"The mask of {name} shows no object.",
            file=name,
            rule=f"a mask must cover the object's pixels by more than {_FOREGROUND:.0%}",
        )
    left, right = int(columns[0]), int(columns[-1])
    top, bottom = int(rows[0]), int(rows[-1])
    width, height = right - left + 1, bottom - top + 1
    if max(width, height) < _SMALLEST:
        raise InvalidJob(
            ErrorCode.MASK_MISSING,
            f"The object in the mask of {name} is only {width} x {height} pixels in size.",
            file=name,
            rule=f"the object must be at least {_SMALLEST} pixels wide or high",
        )
    half = int(max(right - left, bottom - top) * _MARGIN) // 2
    x, y = (left + right) / 2, (top + bottom) / 2
    return int(x - half), int(y - half), int(x + half), int(y + half)


def _square(pixels: Tensor, box: tuple[int, int, int, int]) -> tuple[Window, Tensor]:
    """Place of the square around the box's part in the image, and its pixels, black outside the image."""
    height, width = pixels.shape[:2]
    left, top = max(0, box[0]), max(0, box[1])
    right, bottom = min(width, box[2]), min(height, box[3])
    side = max(right - left, bottom - top)
    x, y = (side - (right - left)) // 2, (side - (bottom - top)) // 2
    padded = pixels.new_zeros(side, side, pixels.shape[2])
    padded[y : y + bottom - top, x : x + right - left] = pixels[top:bottom, left:right]
    return Window(left - x, top - y, side), padded
