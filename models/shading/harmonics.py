"""Spherical harmonics of low order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ORDERS = (0, 1, 1, 1, 2, 2, 2, 2, 2)
"""The order of each of the nine functions."""


def harmonics(direction: Tensor) -> Tensor:
    """The nine real, orthonormal spherical harmonics up to order 2 of unit vectors [..., 3]: [..., 9]."""
    x, y, z = direction.unbind(-1)
    one, two = math.sqrt(3 / (4 * math.pi)), math.sqrt(15 / (4 * math.pi))
    return torch.stack(
        [
            torch.full_like(x, math.sqrt(1 / (4 * math.pi))),
            one * x,
            one * y,
            one * z,
            two * x * y,
            two * y * z,
            two * x * z,
            two / 2 * (x * x - y * y),
            math.sqrt(5 / (16 * math.pi)) * (3 * z * z - 1),
        ],
        -1,
    )
