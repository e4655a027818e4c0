"""Bring arrays of images to another size; the outer borders stay where they are.

Pixel (column + 0.5) of one size is pixel (column + 0.5) * new / old of the other, so intrinsics follow by a
factor for each axis, and views of different sizes and aspect ratios come to one size without an empty border.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from pipeline.images import Floats

MIN_COVERAGE = 0.25
"""Below, the colour of a pixel that the object covers in part is not told apart from its background's."""

Size = tuple[int, int]
"""Width and height, pixels."""


def common_size(sizes: Sequence[Size], max_pixels: int) -> Size:
    """The size to which views of different sizes are brought.

    It is the smallest that takes nothing from any of them; where all views together would have more than
    `max_pixels`, it is smaller, by one factor along both axes.

    Args:
        sizes: Of the views.
        max_pixels: Of all views together.
    """
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    scale = math.sqrt(max_pixels / (len(sizes) * width * height))
    if scale >= 1:
        return width, height
    return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))


def same_aspect(first: Size, second: Size) -> bool:
    """Whether two sizes show the same image: equal aspect ratios but for the rounding to whole pixels."""
    small, large = sorted((first, second))
    scale_x, scale_y = large[0] / small[0], large[1] / small[1]
    return abs(small[1] * scale_x - large[1]) <= scale_x and abs(small[0] * scale_y - large[0]) <= scale_y


def resized(array: Floats, size: Size) -> Floats:
    """An array [H, W] or [H, W, C] at another size: averaged along axes that shrink, else cubic."""
    height, width = array.shape[:2]
    smaller = (min(size[0], width), min(size[1], height))
    if smaller != (width, height):
        array = np.asarray(cv2.resize(array, smaller, interpolation=cv2.INTER_AREA), np.float32)
    if smaller != size:
        array = np.asarray(cv2.resize(array, size, interpolation=cv2.INTER_CUBIC), np.float32)
    return array


def resized_nearest(array: Floats, size: Size) -> Floats:
    """An array [H, W] at another size, each value that of the nearest pixel: for depth."""
    if array.shape[1::-1] == size:
        return array
    return np.asarray(cv2.resize(array, size, interpolation=cv2.INTER_NEAREST_EXACT), np.float32)


def filtered_color(color: Floats, coverage: Floats | None, smooth: Callable[[Floats], Floats]) -> Floats:
    """Filter the colours [H, W, 3] of an image; the object's are not mixed with those around it.

    Args:
        color: In [0, 1], not premultiplied.
        coverage: [H, W] in [0, 1], by the object, if it is known.
        smooth: A linear filter of arrays [H, W] or [H, W, C].
    """
    plain = smooth(color)
    if coverage is not None:
        share = smooth(coverage)[..., None]
        own = smooth(color * coverage[..., None]) / np.maximum(share, MIN_COVERAGE)
        plain = np.where(share >= MIN_COVERAGE, own, plain)
    return np.clip(plain, 0, 1, out=plain)
