"""Runs both implementations of a network and says how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.parity.pair import Outputs, Pair
from benchmarks.parity.weights import differences, randomize, renamed

LIMITS = {"float32": 1e-4, "half": 2e-2}


@dataclass(frozen=True)
class Row:
    """One output of one network.

    Attributes:
        network, output: Which.
        precision: "float32" or "half".
        error: Largest of two relative errors of ours: the largest difference over the largest value, and the
            root mean square of the difference over that of the values.
        rounding: The same error of upstream's own half precision against its float32; None in float32.
        limit: What `error` may be.
    """

    network: str
    output: str
    precision: str
    error: float
    rounding: float | None
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its limit; a value that is not finite is not."""
        return self.error <= self.limit


@dataclass(frozen=True)
class Names:
    """How the state dicts of one network compare.

    Attributes:
        network: Which.
        tensors: Number of ours.
        parameters: Number of values in them.
        differences: Names and shapes that differ.
    """

    network: str
    tensors: int
    parameters: int
    differences: list[str]

    @property
    def passed(self) -> bool:
        """Whether names and shapes are identical after the renaming."""
        return not self.differences


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """See `Row.error`; infinite where shapes differ or a value is not finite."""
    if found.shape != wanted.shape or not bool(found.isfinite().all()):
        return float("inf")
    found, wanted = found.double(), wanted.double()
    difference = found - wanted
    largest = difference.abs().max() / wanted.abs().max()
    return max(float(largest), float(difference.norm() / wanted.norm()))


def compare_names(pair: Pair) -> Names:
    """Builds both at full size without memory, compares their state dicts and loads strictly."""
    with torch.device("meta"), _RealNumbers():
        theirs, ours = build_both(pair)
    found = differences(theirs, ours, pair.renaming)
    if not found:
        ours.load_state_dict(renamed(theirs.state_dict(), pair.renaming), strict=True, assign=True)
    state = ours.state_dict()
    return Names(pair.name, len(state), sum(tensor.numel() for tensor in state.values()), sorted(found))


@torch.no_grad()
def compare_values(pair: Pair, *, half: bool) -> list[Row]:
    """Runs both on the same random weights and inputs, in float32 and, if asked, in half precision."""
    device = pair.upstream.device
    with device:
        theirs, ours = build_both(pair)
    randomize(theirs)
    ours.load_state_dict(renamed(theirs.state_dict(), pair.renaming))
    inputs = pair.inputs()
    with pair.upstream.running():
        exact = pair.run_theirs(theirs, inputs, half=False)
    rows = _rows(pair, "float32", pair.run_ours(ours, inputs), exact, None)
    if half:
        with device, pair.upstream.running():
            rounded = pair.theirs(half=True).eval().to(device)
        rounded.load_state_dict(theirs.state_dict())
        del theirs
        with pair.upstream.running():
            outputs = pair.run_theirs(rounded, inputs, half=True)
        rows += _rows(pair, "half", _in_half(pair, ours, inputs), outputs, exact)
    return rows


def build_both(pair: Pair) -> tuple[nn.Module, nn.Module]:
    """Upstream's module and ours in float32, on torch's default device."""
    with pair.upstream.running():
        theirs = pair.theirs(half=False).eval()  # some of its buffers do not heed the default device
    return theirs.to(torch.get_default_device()), pair.ours().eval()


class _RealNumbers(TorchFunctionMode):
    """Keeps on the CPU what VGGT's constructor reads one by one: its rates of stochastic depth."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        where = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **(kwargs or {}), **where)


def _in_half(pair: Pair, ours: nn.Module, inputs: dict[str, Tensor]) -> Outputs:
    ours.to_precision(pair.half)  # type: ignore[operator]
    return pair.run_ours(ours, inputs)


def _rows(pair: Pair, precision: str, ours: Outputs, theirs: Outputs, exact: Outputs | None) -> list[Row]:
    if not theirs or ours.keys() != theirs.keys():
        raise ValueError(f"{pair.name}: ours gives {sorted(ours)}, upstream {sorted(theirs)}")
    return [
        Row(
            pair.name,
            output,
            precision,
            relative_error(ours[output], wanted),
            None if exact is None else relative_error(wanted, exact[output]),
            LIMITS[precision],
        )
        for output, wanted in theirs.items()
    ]
