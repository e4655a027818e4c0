"""How far renderings are from images: structure in small windows, and features of an image encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Encoder = Callable[[Tensor], Tensor]
"""Tokens [B, P, D] of the patches of images [B, 3, H, W], sRGB in [0, 1]; differentiable."""

_WINDOW = 11  # pixels a side
_SIGMA = 1.5  # pixels, of the window's Gaussian weights
_C1, _C2 = 0.01**2, 0.03**2  # for values in [0, 1]


def structural_similarity(images: Tensor, targets: Tensor) -> Tensor:
    """Mean structural similarity of each pair of images: Gaussian windows, black beyond the borders.

    Args:
        images, targets: [B, C, H, W] in [0, 1].

    Returns:
        [B], at most 1, which equal images have.

    Reference: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004.
    """
    moments = torch.cat([images, targets, images**2, targets**2, images * targets], 1)
    mean_x, mean_y, square_x, square_y, product = _blurred(moments).chunk(5, 1)
    means = mean_x * mean_y
    squares = mean_x**2 + mean_y**2
    covariance = product - means
    variances = square_x + square_y - squares
    similarity = (2 * means + _C1) * (2 * covariance + _C2) / ((squares + _C1) * (variances + _C2))
    return similarity.mean((1, 2, 3))


def patch_directions(encoder: Encoder, images: Tensor) -> Tensor:
    """Patch tokens of images [B, 3, H, W] as unit vectors, [B, P, D] float32."""
    return functional.normalize(encoder(images).float(), dim=-1)


def perceptual_distance(encoder: Encoder, rendered: Tensor, target: Tensor) -> Tensor:
    """Mean cosine distance between the features of the patches at the same places, in [0, 2].

    Stands in for distances with weights of their own (LPIPS, Zhang et al., 2018; DreamSim, Fu et al., 2023):
    their form, on the features of an encoder that is at hand.

    Args:
        encoder: Gives patch tokens.
        rendered: [B, 3, H, W], sRGB in [0, 1].
        target: Features of the other images, [B, P, D], from `patch_directions`.

    Returns:
        [B].
    """
    return 1 - (patch_directions(encoder, rendered) * target).sum(-1).mean(-1)


def _blurred(images: Tensor) -> Tensor:
    """Windowed means of every channel of [B, C, H, W]."""
    offsets = torch.arange(_WINDOW, device=images.device, dtype=images.dtype) - _WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, _WINDOW)
    half = _WINDOW // 2
    rows = functional.conv2d(images, weights, padding=(0, half), groups=images.shape[1])
    return functional.conv2d(rows, weights.transpose(2, 3), padding=(half, 0), groups=images.shape[1])
