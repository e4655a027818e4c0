"""Progress of a part as progress of the whole."""

from __future__ import annotations

from models.base import Callback


def part(callback: Callback, first: float, last: float) -> Callback:
    """A callback for a part of the whole, which runs from `first` to `last`."""

    def report(fraction: float, message: str, metrics: dict[str, float]) -> None:
        callback(first + (last - first) * fraction, message, metrics)

    return report
