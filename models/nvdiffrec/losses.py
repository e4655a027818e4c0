"""Differences between a rendering and a view."""

from __future__ import annotations

import torch
from torch import Tensor

from models.nvdiffrec.config import ImageWeights
from models.nvdiffrec.targets import Targets
from models.render import resolve, resolve_depth


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


def compare(
    image: Tensor, depth: Tensor, covered: Tensor, targets: Targets, weights: ImageWeights
) -> tuple[Tensor, Tensor]:
    """Weighted loss of rendered samples against a batch of views.

    Args:
        image: [B, h, w, 4] premultiplied colour and coverage, antialiased, at `targets.sample_size`.
        depth: [B, h, w, 1] z-depth.
        covered: [B, h, w, 1] whether a sample hit the surface.
        targets: The views.
        weights: Weights of the terms.

    Returns:
        The loss, and the mean squared error of the premultiplied colours (no gradient).
    """
    pixels = resolve(image, targets.samples)
    pixel_depth, whole = resolve_depth(depth, covered.to(depth.dtype), targets.samples)
    color = pixels[..., :3]
    loss = weights.color * color_loss(color, targets.color) + weights.mask * mask_loss(
        pixels[..., 3], targets.alpha
    )
    trusted = targets.depth_weight * whole
    loss = loss + weights.depth * depth_loss(pixel_depth, targets.depth, trusted, weights.depth_cutoff)
    return loss, (color.detach() - targets.color).square().mean()


def psnr(mean_squared_error: Tensor | float) -> float:
    """PSNR in dB of a mean squared error of values in [0, 1], capped at 100 dB."""
    return float(-10 * torch.log10(torch.as_tensor(mean_squared_error).clamp(min=1e-10)))
