"""The similarity between two sets of corresponding points."""

from __future__ import annotations

import torch
from torch import Tensor


def fit_similarity(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The similarity `x -> scale * rotation @ x + translation` that best brings `source` onto `target`.

    Args:
        source, target: Corresponding points [N, 3], not all on one line.

    Returns:
        Scale [], rotation [3, 3] (no reflection) and translation [3], by least squares.

    Reference: Umeyama, 1991.
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = source - source_mean, target - target_mean
    left, values, right = torch.linalg.svd(b.T @ a)
    sign = torch.ones_like(values)
    sign[2] = torch.sign(torch.linalg.det(left @ right))
    rotation = left @ torch.diag(sign) @ right
    scale = (values * sign).sum() / a.square().sum()
    return scale, rotation, target_mean - scale * rotation @ source_mean
