"""The loop of both phases: step, decay, report."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.base import Callback
from models.nvdiffrec.losses import psnr
from schemas.errors import ErrorCode, ModelError

_REPORTS = 100  # messages over a phase: each waits for the device


def descend(
    optimizer: torch.optim.Optimizer,
    step: Callable[[], tuple[Tensor, Tensor]],
    *,
    iterations: int,
    final_rate: float,
    name: str,
    callback: Callback,
) -> list[float]:
    """Run an optimiser; its rates decay exponentially to `final_rate` times their start.

    Args:
        optimizer: Holds the parameters.
        step: Computes the loss and the mean squared error of the colours.
        iterations: Number of steps.
        final_rate: Share of the learning rates that is left at the end.
        name: What is being optimised, for messages.
        callback: Told the fraction after every step; may raise `JobCancelled`.

    Returns:
        The curve of the training PSNR, dB, at equally spaced steps.

    Raises:
        ModelError: MODEL_DIVERGED, where the error is not a number.
    """
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, final_rate ** (1 / iterations))
    every = max(1, iterations // _REPORTS)
    curve: list[float] = []
    for done in range(1, iterations + 1):
        loss, error = step()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (done - 1) % every and done < iterations:
            callback(done / iterations, "", {})
            continue
        curve.append(_finite_psnr(error, name))
        callback(done / iterations, f"{name}: step {done} of {iterations}", {"psnr_db": curve[-1]})
    return curve


def _finite_psnr(error: Tensor, name: str) -> float:
    value = float(error)
    if value != value:
        raise ModelError(ErrorCode.MODEL_DIVERGED, f"The error of the {name} became not a number.")
    return psnr(value)
