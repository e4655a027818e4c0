"""Rotary position embedding of tokens on a grid: rows turn one half of a head's channels, columns the other.

Reference: Su et al., RoFormer, 2021; for images Heo et al., ECCV 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """What turns the queries and keys of P tokens.

    Attributes:
        cosine, sine: [P, 1, 2, D/4] float32: token, any head, axis (row, column), frequency.
    """

    cosine: Tensor
    sine: Tensor


def grid_rotation(
    rows: int, columns: int, *, special: int, head_dim: int, device: torch.device, base: float = 100.0
) -> Rotation:
    """Rotation of `special` tokens without a place, which are not turned, and then of a grid, row by row.

    Args:
        rows, columns: Size of the grid; its first token has position 1 on both axes.
        special: Number of tokens before the grid.
        head_dim: Channels D of a head, a multiple of 4.
        device: Where the tables are made.
        base: Of the frequencies `base ** (-4 k / D)`, radians a token.

    Raises:
        ValueError: `head_dim` is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"rotary embedding on a grid needs a head dimension divisible by 4, not {head_dim}")
    row = torch.arange(1, rows + 1, device=device).repeat_interleave(columns)
    column = torch.arange(1, columns + 1, device=device).repeat(rows)
    place = torch.stack([row, column], -1).float()  # [P - special, 2]
    place = torch.cat([place.new_zeros(special, 2), place])
    exponent = torch.arange(0, head_dim // 2, 2, device=device).float() / (head_dim // 2)
    angle = place[:, None, :, None] * (1.0 / base**exponent)  # [P, 1, 2, D/4]
    return Rotation(angle.cos(), angle.sin())


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys by the places of their tokens.

    Args:
        x: [..., P, H, D]: tokens, heads, channels.
        rotation: Of the P tokens.

    Returns:
        [..., P, H, D], in the wider of the two dtypes. Scalar products of two turned tokens depend on their
        places only through the difference.
    """
    first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)  # [..., P, H, 2, D/4] each
    cosine, sine = rotation.cosine, rotation.sine
    turned = torch.stack([first * cosine - second * sine, second * cosine + first * sine], -2)
    return turned.flatten(-3)
