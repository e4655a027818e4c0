"""Differences between a rendering and a view."""

from __future__ import annotations

import torch
from torch import Tensor


def color_loss(color: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of premultiplied colours, summed over channels.

    Premultiplied colours are the images over black; together with `mask_loss` this is the difference over any
    plain background.

    Args:
        color, target: [..., 3], sRGB premultiplied by coverage.
    """
    return (color - target).abs().sum(-1).mean()


def mask_loss(alpha: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of coverages [...] in [0, 1]."""
    return (alpha - target).square().mean()


def depth_loss(depth: Tensor, target: Tensor, weight: Tensor, cutoff: float) -> Tensor:
    """Mean absolute z-depth difference where both were seen, each difference cut off.

    Args:
        depth, target: [...] z-depth, one unit for both.
        weight: [...] 1 where the comparison counts, else 0.
        cutoff: Differences beyond this give no gradient: they are the wrong surface.
    """
    difference = (depth - target).abs()
    counts = weight * (difference.detach() < cutoff)
    return (difference * counts).sum() / weight.numel()


def psnr(mean_squared_error: Tensor | float) -> float:
    """PSNR in dB of a mean squared error of values in [0, 1], capped at 100 dB."""
    return float(-10 * torch.log10(torch.as_tensor(mean_squared_error).clamp(min=1e-10)))
