"""From an image that a lens has distorted to the image that a pinhole would have taken.

The pinhole stands where the lens stood and looks the same way, so poses and z-depths stay what they are. It
shows the largest upright rectangle of which the distorted image knows every pixel: nothing has to be made up
at the border, and no pixel counts as background without having been seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.distortion import Distortion, Points
from pipeline.images import Floats
from pipeline.settings import Limits
from pipeline.transforms import invalid_cameras
from schemas.errors import InvalidJob

MAX_WINDOW_DEGREES = 60.0
"""A pinhole image shows at most this angle from the optical axis along x and along y: beyond, pixels at the
border would be stretched at the cost of those in the middle."""

MAX_STRETCH = 5.0
"""Largest factor by which a lens may move a point away from the axis or towards it, within the image."""

MIN_WINDOW = 0.25
"""A window is at least this share of what a pinhole of the same focal length sees, along x and along y."""

MAX_ENLARGEMENT = 2.0
"""An undistorted image has at most this many times the pixels along a side, to keep its middle as sharp as
it was."""

_WORTH_ENLARGING = 1.05
_BORDER_STEPS = 65

Window = tuple[float, float, float, float]
Maps = tuple[Floats, Floats]


@dataclass(frozen=True)
class Undistortion:
    """How one image is undistorted; equal ones have equal maps.

    Attributes:
        distortion: The lens.
        focal, centre: Of the distorted image, pixels, x and y.
        window: Left, top, right and bottom of the pinhole image on the plane z = 1.
        width, height: Of the pinhole image, pixels.
    """

    distortion: Distortion
    focal: tuple[float, float]
    centre: tuple[float, float]
    window: Window
    width: int
    height: int

    @property
    def intrinsics(self) -> NDArray[np.float64]:
        """Intrinsic matrix [3, 3] of the pinhole image, pixels."""
        left, top, right, bottom = self.window
        fl_x, fl_y = self.width / (right - left), self.height / (bottom - top)
        return np.array([[fl_x, 0, -left * fl_x], [0, fl_y, -top * fl_y], [0, 0, 1.0]])

    def within(self, limits: Limits) -> Undistortion:
        """The same pinhole image, with fewer pixels where it was enlarged beyond what an image may have."""
        side = limits.max_image_side / max(self.width, self.height)
        scale = min(side, math.sqrt(limits.max_image_pixels / (self.width * self.height)))
        if scale >= 1:
            return self
        width, height = (max(1, math.floor(length * scale)) for length in (self.width, self.height))
        return replace(self, width=width, height=height)

    def maps(self) -> Maps:
        """Where each pixel of the pinhole image lies in the distorted one, x and y [H, W].

        OpenCV counts from the first pixel's centre, we from its corner: half a pixel is taken off at the end.
        """
        left, top, right, bottom = self.window
        x = left + (np.arange(self.width) + 0.5) / self.width * (right - left)
        y = top + (np.arange(self.height) + 0.5) / self.height * (bottom - top)
        maps = np.empty((2, self.height, self.width), np.float32)
        for row, value in enumerate(y):  # row by row: a large image's points need not all exist at once
            points = self.distortion.distort(np.stack([x, np.full_like(x, value)], -1))
            maps[:, row] = (points * self.focal + self.centre - 0.5).T
        return maps[0], maps[1]


def remapped(array: Floats, maps: Maps, *, nearest: bool = False) -> Floats:
    """An array [H, W] or [H, W, C] of the distorted image, as the pinhole sees it.

    Args:
        array: Its values.
        maps: Of its `Undistortion`.
        nearest: Take the nearest pixel instead of a cubic interpolation: for depth, which must not be mixed
            across an edge.
    """
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_CUBIC
    return np.asarray(cv2.remap(array, *maps, how, borderMode=cv2.BORDER_REPLICATE), np.float32)


def plan_undistortion(
    name: str, distortion: Distortion, intrinsics: NDArray[np.float64], width: int, height: int
) -> Undistortion:
    """Choose the pinhole image of a distorted one.

    Args:
        name: The view, for errors.
        distortion: Its lens.
        intrinsics: [3, 3], pixels of the distorted image.
        width, height: Of that image, pixels.

    Raises:
        InvalidJob: INVALID_CAMERAS: within the image the lens folds over, moves points by an absurd factor,
            or leaves no window.
    """
    focal, centre = intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2]
    window = _window(name, distortion, focal, centre, np.array([width, height], float))
    left, top, right, bottom = window
    loss = max(focal[0] * (right - left) / width, focal[1] * (bottom - top) / height)
    scale = min(loss, MAX_ENLARGEMENT) if loss > _WORTH_ENLARGING else 1.0
    return Undistortion(
        distortion,
        (float(focal[0]), float(focal[1])),
        (float(centre[0]), float(centre[1])),
        window,
        round(width * scale),
        round(height * scale),
    )


def _window(name: str, distortion: Distortion, focal: Points, centre: Points, size: Points) -> Window:
    low, high = -centre / focal, (size - centre) / focal
    _check_radial(name, distortion, np.maximum(-low, high))
    along = np.linspace(0, 1, _BORDER_STEPS)
    edges = [np.stack([np.full_like(along, x), along], -1) for x in (0.0, 1.0)]
    edges += [np.stack([along, np.full_like(along, y)], -1) for y in (0.0, 1.0)]
    left, right, top, bottom = (distortion.undistort(low + edge * (high - low)) for edge in edges)
    most = math.tan(math.radians(MAX_WINDOW_DEGREES))
    window = (
        max(float(left[:, 0].max()), -most),
        max(float(top[:, 1].max()), -most),
        min(float(right[:, 0].min()), most),
        min(float(bottom[:, 1].min()), most),
    )
    _check_window(name, distortion, window, low - 1 / focal, high + 1 / focal)
    return window


def _check_radial(name: str, distortion: Distortion, corner: Points) -> None:
    radius = float(np.linalg.norm(corner))
    if distortion.reach() < radius:
        raise _silly(
            name,
            "makes the image fold over inside of its border",
            "radii grow from the centre of the image to its corners",
        )
    low, high = distortion.stretch_range(radius)
    if low < 1 / MAX_STRETCH or high > MAX_STRETCH:
        raise _silly(
            name,
            f"moves points of the image by a factor of {low if low < 1 / MAX_STRETCH else high:.3g}",
            f"a lens moves points by a factor between {1 / MAX_STRETCH:g} and {MAX_STRETCH:g}",
        )


def _check_window(name: str, distortion: Distortion, window: Window, low: Points, high: Points) -> None:
    """Refuse a window that is too small, folds, or lies outside of what the image shows, `low` to `high`."""
    left, top, right, bottom = window
    least = np.minimum(high - low, 2.0) * MIN_WINDOW
    if right - left < least[0] or bottom - top < least[1]:
        raise _silly(name, "leaves no rectangle of the image", "a lens keeps most of the image")
    x, y = np.meshgrid(np.linspace(left, right, _BORDER_STEPS), np.linspace(top, bottom, _BORDER_STEPS))
    moved = distortion.distort(np.stack([x, y], -1))
    across, down = np.diff(moved, axis=1)[:-1], np.diff(moved, axis=0)[:, :-1]
    turned = (across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0]).min() <= 0
    if turned or (moved < low).any() or (moved > high).any():
        raise _silly(name, "makes the image fold over", "different points of the scene stay different")


def _silly(name: str, found: str, rule: str) -> InvalidJob:
    return invalid_cameras(f"the lens distortion of {name!r} {found}", rule)
