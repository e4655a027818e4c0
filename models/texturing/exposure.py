"""Factors that bring differently exposed views to one exposure."""

from __future__ import annotations

import torch
from torch import Tensor

from models.texturing.sight import Sight

_DARKEST = 0.05  # colours below this say little of a factor
_PRIOR = 0.005  # weight of "no correction" against the mean pair of views
_WIDTH = 0.1  # logarithms that differ by more are another surface or a highlight
_ROUNDS = 4  # of reweighting


def exposure_gains(sights: list[Sight], points: Tensor, normals: Tensor) -> Tensor:
    """Factors with which the views agree best on what they see together.

    Robust least squares on the logarithms of smooth colours (Brown and Lowe, 2007, with logarithms); their
    mean is zero, so that the views as a whole stay as bright as they are.

    Args:
        sights: The V views.
        points, normals: [N, 3] points of the surface, some thousands.

    Returns:
        [V, 3] factors on the views' colours.
    """
    count = len(sights)
    logs = points.new_zeros(count, len(points), 3)
    weights = points.new_zeros(count, len(points), 3)
    for view, sight in enumerate(sights):
        index, looks = sight(points, normals)
        logs[view, index] = looks.smooth.clamp(min=_DARKEST).log()
        weights[view, index] = looks.trust[:, None] * (looks.smooth > _DARKEST)
    gains = points.new_zeros(count, 3)
    for _ in range(_ROUNDS):
        gains = torch.stack(
            [_solved(logs[..., channel], weights[..., channel], gains[:, channel]) for channel in range(3)], 1
        )
    return gains.exp()


def _solved(logs: Tensor, weights: Tensor, gains: Tensor) -> Tensor:
    """One round for one channel: [V] from values and weights [V, N] and the round before's result [V]."""
    residual = (logs + gains[:, None])[:, None] - (logs + gains[:, None])[None]  # [V, V, N]
    robust = 1 / (1 + (residual / _WIDTH).square()).square()
    pair = weights[:, None] * weights[None] * robust
    strength = pair.sum(2)
    scale = strength.sum() / max(1, int((strength > 0).sum()))
    matrix = (
        torch.diag(strength.sum(1))
        - strength
        + _PRIOR * scale.clamp(min=1e-9) * torch.eye(len(logs), dtype=logs.dtype, device=logs.device)
    )
    right = -(pair * (logs[:, None] - logs[None])).sum((1, 2))
    found: Tensor = torch.linalg.solve(matrix.double(), right.double()).to(logs.dtype)
    return found - found.mean()
