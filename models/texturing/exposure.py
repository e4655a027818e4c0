"""Factors that bring differently exposed views to one exposure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.texturing.sight import Sight

_DARKEST = 0.05  # colours below this say little of a factor
_PRIOR = 0.005  # weight of "no correction" against the mean pair of views
_WIDTH = 0.1  # logarithms that differ by more are another surface or a highlight
_ROUNDS = 4  # of reweighting
_PARTNERS = 16  # other views that a view is compared with
_AT_ONCE = 1 << 22  # colours of pairs of views


def exposure_gains(
    sights: list[Sight], points: Tensor, normals: Tensor, tick: Callable[[], None] = lambda: None
) -> Tensor:
    """Factors with which the views agree best on what they see together.

    Robust least squares on the logarithms of smooth colours (Brown and Lowe, 2007, with logarithms); their
    mean is zero, so that the views as a whole stay as bright as they are.

    Args:
        sights: The V views.
        points, normals: [N, 3] points of the surface, some thousands.
        tick: Called after every view and every round; what it raises is let through.

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
        tick()
    pairs = _pairs(weights.mean(2))
    gains = points.new_zeros(count, 3)
    if not len(pairs):
        return gains.exp()
    for _ in range(_ROUNDS):
        gains = _solved(logs, weights, pairs, gains)
        tick()
    return gains.exp()


def _pairs(weights: Tensor) -> Tensor:
    """Views [P, 2] to compare, of weights [V, N]: all that see something together, or some for each view.

    These go evenly from the one that sees most of the same to the one that sees least: neighbours alone would
    let small errors add up on the way round.
    """
    shared = (weights @ weights.T).fill_diagonal_(0).cpu()
    chosen = torch.zeros_like(shared, dtype=torch.bool)
    for view, row in enumerate(shared):
        order = torch.argsort(row, descending=True, stable=True)[: int((row > 0).sum())]
        some = min(len(order), _PARTNERS)
        chosen[view, order[torch.linspace(0, len(order) - 1, some).round().long()]] = True
    return torch.nonzero((chosen | chosen.T).triu()).to(weights.device)


def _solved(logs: Tensor, weights: Tensor, pairs: Tensor, gains: Tensor) -> Tensor:
    """One round: [V, 3] from values and weights [V, N, 3], pairs [P, 2] and the round before's result."""
    parts = [
        _compared(logs, weights, some, gains) for some in pairs.split(max(1, _AT_ONCE // logs[0].numel()))
    ]
    strength, difference = (torch.cat(part) for part in zip(*parts, strict=True))  # [P, 3] each
    one, two = pairs.T
    count = len(logs)
    joint = logs.new_zeros(count, count, 3)
    joint[one, two] = joint[two, one] = strength
    scale = strength.sum(0) / (strength > 0).sum(0).clamp(min=1)
    prior = _PRIOR * scale.clamp(min=1e-9)  # [3]
    matrix = torch.diag_embed((joint.sum(1) + prior).T) - joint.permute(2, 0, 1)  # [3, V, V]
    right = logs.new_zeros(count, 3).index_add_(0, two, difference).index_add_(0, one, -difference)
    found: Tensor = torch.linalg.solve(matrix.double(), right.T.double()).T.to(logs.dtype)
    return found - found.mean(0)


def _compared(logs: Tensor, weights: Tensor, pairs: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
    """How strongly pairs [P, 2] hold together, and how much brighter their firsts are given, [P, 3] each."""
    one, two = pairs.T
    difference = logs[one] - logs[two]  # [P, N, 3]
    residual = difference + (gains[one] - gains[two])[:, None]
    strength = weights[one] * weights[two] / (1 + (residual / _WIDTH).square()).square()
    return strength.sum(1), (strength * difference).sum(1)
