"""The transfer between linear radiance and sRGB values."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Exact sRGB encoding (IEC 61966-2-1), its power law continued above 1; values below 0 become 0."""
    linear = linear.clamp(min=0)
    # The clamp keeps the unused branch's slope finite: 0 times infinity would be not a number.
    curved = 1.055 * linear.clamp(min=0.0031308).pow(1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, curved)


def srgb_to_linear(encoded: Tensor) -> Tensor:
    """Inverse of `linear_to_srgb`."""
    encoded = encoded.clamp(min=0)
    curved = ((encoded.clamp(min=0.04045) + 0.055) / 1.055).pow(2.4)
    return torch.where(encoded <= 0.04045, encoded / 12.92, curved)


def exposed(srgb: Tensor) -> Tensor:
    """Cut off at 1, as a photograph does, but let gradients through.

    A pixel that is too bright must still be able to become darker, and one that the photograph cut off as
    well must not be pulled down to 1.
    """
    return srgb + (srgb.clamp(max=1) - srgb).detach()
