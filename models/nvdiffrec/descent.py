"""The loop of both phases: step, decay, report, stop."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.base import Callback
from models.nvdiffrec.losses import psnr
from schemas.errors import ErrorCode, ModelError

SHOW_EVERY = 10
"""Steps between two looks at the object, where somebody wants to look."""

_REPORTS = 30  # messages over a descent: each waits for the device
_SETTLED_REPORTS = 8  # that gain less than this over as many before: the images are explained as well as they
_SETTLED_DB = 0.02  # will be

State = dict[str, Tensor]
"""Everything that a descent needs to go on where it was, by name; on the CPU."""


class Descent:
    """An optimiser's way down.

    Args:
        optimizer: Adam, with the parameters. Its learning rates decay exponentially.
        iterations: Number of steps.
        rates: Factors on the learning rates at the first step and behind the last one.
        round_steps: Steps after which every view has been shown: what is said of fewer says nothing of all.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        iterations: int,
        rates: tuple[float, float],
        round_steps: int = 1,
    ) -> None:
        self.done = 0
        self.curve: list[float] = []
        self._optimizer = optimizer
        self._iterations = iterations
        self._rates = rates
        self._round_steps = round_steps
        self._every = max(1, iterations // _REPORTS)
        self._sums: Tensor | None = None  # [2] error and loss since the last report, on the device
        self._initial = [group["lr"] for group in optimizer.param_groups]

    def run(
        self,
        step: Callable[[int], tuple[Tensor, Tensor]],
        *,
        name: str,
        callback: Callback,
        after: Callable[[int], None] | None = None,
    ) -> list[float]:
        """Take the steps that are left, fewer where the images stop improving.

        Args:
            step: Computes the loss and the mean squared error of the colours from the number of steps done,
                and nothing else that changes: so a descent can be left and taken up again.
            name: What is being optimised, for messages.
            callback: Told the fraction after every step; may raise `JobCancelled`.
            after: Called after every step with the number of steps done.

        Returns:
            The curve of the training PSNR, dB; each entry is a mean over as many steps.

        Raises:
            ModelError: MODEL_DIVERGED, where the loss or the error is not finite.
        """
        while self.done < self._iterations and not self._settled():
            self._set_rates()
            loss, error = step(self.done)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            self.done += 1
            now = torch.stack([error.detach(), loss.detach()])
            self._sums = now if self._sums is None else self._sums + now
            if self.done % self._every:
                callback(self.done / self._iterations, name, {})
            else:
                self._report(name)
                message = f"{name}: step {self.done} of {self._iterations}"
                callback(self.done / self._iterations, message, {"psnr_db": self.curve[-1]})
            if after is not None:
                after(self.done)
        callback(1.0, "", {})
        return self.curve

    def state(self) -> State:
        """A copy of all that the next step depends on."""
        curve = torch.tensor(self.curve, dtype=torch.float64)
        found: State = {"done": torch.tensor(self.done), "curve": curve}
        if self._sums is not None:
            found["sums"] = self._sums
        for index, parameter in enumerate(self._parameters()):
            found[f"parameter/{index}"] = parameter.detach()
            for key, value in self._optimizer.state.get(parameter, {}).items():
                found[f"adam/{index}/{key}"] = value
        return {name: tensor.cpu().clone() for name, tensor in found.items()}

    def restore(self, state: State) -> None:
        """Go on from a state of a descent with the same parameters."""
        self.done = int(state["done"])
        self.curve = state["curve"].tolist()
        self._sums = state["sums"].to(self._parameters()[0].device) if "sums" in state else None
        for index, parameter in enumerate(self._parameters()):
            with torch.no_grad():
                parameter.copy_(state[f"parameter/{index}"])
            prefix = f"adam/{index}/"
            self._optimizer.state[parameter] = {
                name.removeprefix(prefix): value.to(parameter.device)
                for name, value in state.items()
                if name.startswith(prefix)
            }

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _set_rates(self) -> None:
        first, last = self._rates
        factor = first * (last / first) ** (self.done / self._iterations)
        for group, initial in zip(self._optimizer.param_groups, self._initial, strict=True):
            group["lr"] = initial * factor

    def _settled(self) -> bool:
        window = _SETTLED_REPORTS
        if len(self.curve) < 2 * window or self._every == 1 or window * self._every < 2 * self._round_steps:
            return False
        before, recent = self.curve[-2 * window : -window], self.curve[-window:]
        return sum(recent) < sum(before) + window * _SETTLED_DB

    def _report(self, name: str) -> None:
        assert self._sums is not None
        error, loss = (self._sums / self._every).tolist()
        self._sums = None
        if not (math.isfinite(error) and math.isfinite(loss)):
            raise ModelError(ErrorCode.MODEL_DIVERGED, f"The optimisation of the {name} diverged.")
        self.curve.append(psnr(error))
