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

MAX_ASPECT_DEVIATION = 0.02
"""Largest relative difference between the aspect ratios of two sizes of one image."""

MAX_COMMON_AREA = 4.0
"""Largest area of the common size, as a multiple of the largest view's: portrait and landscape pictures of
any camera stay below, strips that lie across each other do not multiply their lengths."""

Size = tuple[int, int]
"""Width and height, pixels."""


def common_size(sizes: Sequence[Size], max_pixels: int) -> Size:
    """The size to which views of different sizes are brought.

    It is the smallest that takes nothing from any of them; where all views together would have more than
    `max_pixels`, or one view more than `MAX_COMMON_AREA` times the largest, it is smaller, by one factor
    along both axes.

    Args:
        sizes: Of the views.
        max_pixels: Of all views together.
    """
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    largest = max(size[0] * size[1] for size in sizes)
    area = min(max_pixels / len(sizes), MAX_COMMON_AREA * largest)
    scale = math.sqrt(area / (width * height))
    if scale >= 1:
        return width, height
    return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))


def same_aspect(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether two sizes (width, height; pixels) may be those of one image, in either order.

    They are if each is off by at most half a pixel along each side from sizes of one aspect ratio, which is
    what rounding to whole pixels does. Aspect ratios further apart than `MAX_ASPECT_DEVIATION` never are:
    half a pixel of a tiny image would let any shape pass.
    """
    return _not_wider(first, second) and _not_wider(second, first)


def _not_wider(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether the first has no larger width / height than the second but for what `same_aspect` allows."""
    (width, height), (other_width, other_height) = first, second
    rounded = (width - 0.5) * (other_height - 0.5) <= (other_width + 0.5) * (height + 0.5)
    return rounded and width * other_height <= (1 + MAX_ASPECT_DEVIATION) * other_width * height


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
    if coverage is None:
        plain = smooth(color)
    else:
        # In this order and in place: of a large image, no array exists longer than it has to.
        share = smooth(coverage)[..., None]
        own = smooth(color * coverage[..., None])
        own /= np.maximum(share, MIN_COVERAGE)
        plain = smooth(color)
        np.copyto(plain, own, where=share >= MIN_COVERAGE)
    return np.clip(plain, 0, 1, out=plain)
