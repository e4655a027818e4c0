"""Learning-rate schedule and reporting rhythm of both phases."""

from __future__ import annotations

import torch


def decay(optimizer: torch.optim.Optimizer, final: float, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Exponential decay of all rates to `final` times their start over `steps` steps."""
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, final ** (1 / max(steps, 1)))


def report_every(steps: int, reports: int) -> int:
    """Steps between two reports, so that about `reports` of them are made."""
    return max(1, steps // reports)
