"""How alike two images of an object are, inside the region that the object covers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import mean_squared_error, structural_similarity

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

MAX_PSNR_DB = 100.0
"""PSNR of equal images, which is infinite, is given as this: JSON has no infinity."""

SSIM_WINDOW = 7  # pixels; scikit-image's own default, and most papers'


def psnr_db(image: FloatArray, reference: FloatArray, region: BoolArray) -> float:
    """Peak signal-to-noise ratio over the pixels of a region, dB, at most `MAX_PSNR_DB`.

    Args:
        image, reference: [H, W, 3] in [0, 1].
        region: [H, W], at least one pixel true.
    """
    error = float(mean_squared_error(reference[region], image[region]))
    return min(-10 * math.log10(error), MAX_PSNR_DB) if error > 0 else MAX_PSNR_DB


def ssim(image: FloatArray, reference: FloatArray, region: BoolArray) -> float:
    """Structural similarity (7x7 window, mean of the channels), averaged over the pixels of a region.

    Windows at the region's border reach beyond it; an image smaller than the window is continued in white.

    Args:
        image, reference: [H, W, 3] in [0, 1].
        region: [H, W], at least one pixel true.
    """
    missing = [(0, max(SSIM_WINDOW - side, 0)) for side in region.shape]
    padded = [np.pad(x, [*missing, (0, 0)], constant_values=1.0) for x in (reference, image)]
    _, similarity = structural_similarity(  # type: ignore[no-untyped-call]
        *padded, win_size=SSIM_WINDOW, data_range=1.0, channel_axis=-1, full=True
    )
    height, width = region.shape
    return float(similarity[:height, :width][region].mean())


def mask_iou(mask: BoolArray, reference: BoolArray) -> float:
    """Intersection over union of two masks [H, W]; 1 if both are empty."""
    union = int((mask | reference).sum())
    return int((mask & reference).sum()) / union if union else 1.0


def depth_error(depth: FloatArray, reference: FloatArray, region: BoolArray) -> float | None:
    """Mean absolute difference of two depth maps over the pixels of a region where both exist.

    Args:
        depth, reference: [H, W] z-depth, world units, 0 where there is none.
        region: [H, W].

    Returns:
        World units; None if there is no such pixel.
    """
    both = region & (depth > 0) & (reference > 0)
    if not both.any():
        return None
    return float(np.abs(depth[both].astype(np.float64) - reference[both]).mean())
