"""Small rotations and rigid motions."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALL = 1e-4  # squared angle below which the series replaces the quotients


def rotation_matrix(vector: Tensor) -> Tensor:
    """Rotations [..., 3, 3] of rotation vectors [..., 3] (axis times angle, radians): Rodrigues' formula.

    Differentiable everywhere, at zero too, where the derivative is the cross product's matrix.
    """
    squared = vector.square().sum(-1)[..., None, None]
    # Both branches of `where` are differentiated: the unused one must be finite as well.
    safe = torch.where(squared < _SMALL, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    first = torch.where(squared < _SMALL, 1 - squared / 6 * (1 - squared / 20), angle.sin() / angle)
    second = torch.where(squared < _SMALL, 0.5 - squared / 24 * (1 - squared / 30), (1 - angle.cos()) / safe)
    cross = cross_matrix(vector)
    identity = torch.eye(3, device=vector.device, dtype=vector.dtype)
    return identity + first * cross + second * (cross @ cross)


def cross_matrix(vector: Tensor) -> Tensor:
    """Matrices [..., 3, 3] with `cross_matrix(a) @ b == cross(a, b)`."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*vector.shape[:-1], 3, 3)


def rigid_about(vector: Tensor, translation: Tensor, center: Tensor) -> Tensor:
    """Motions `x -> center + R (x - center) + translation` as matrices [..., 4, 4].

    Args:
        vector: Rotation vectors [..., 3], radians.
        translation: [..., 3].
        center: The fixed point of the rotations, [3].
    """
    rotation = rotation_matrix(vector)
    shift = center + translation - (rotation @ center[..., None])[..., 0]
    last = vector.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*vector.shape[:-1], 1, 4)
    return torch.cat([torch.cat([rotation, shift[..., None]], -1), last], -2)


def rotation_between(start: Tensor, end: Tensor) -> Tensor:
    """The smallest rotations [..., 3, 3] that bring unit vectors `start` [..., 3] onto `end` [..., 3].

    Opposite vectors, between which no rotation is the smallest, are not provided for.
    """
    cross = cross_matrix(torch.linalg.cross(start, end))
    cosine = (start * end).sum(-1)[..., None, None]
    identity = torch.eye(3, device=start.device, dtype=start.dtype)
    return identity + cross + cross @ cross / (1 + cosine)
