"""The stages of a job, in order, and their share of its time. Imports nothing heavy: events name them."""

from __future__ import annotations

WEIGHTS: dict[str, float] = {
    "download": 1.0,
    "validate": 1.0,
    "reconstruct": 90.0,
    "export": 1.0,
    "quality": 1.0,
    "preview": 5.0,
    "upload": 1.0,
}
"""Typical share of a job's time, percent. They shape the progress bar only; timings are measured."""

STAGE_NAMES: tuple[str, ...] = tuple(WEIGHTS)


def stage_weights(*, previews: bool = True) -> dict[str, float]:
    """The stages that a job will pass, in order, with their weights.

    Args:
        previews: Whether the job wants previews; the stage is left out otherwise.
    """
    return {name: weight for name, weight in WEIGHTS.items() if previews or name != "preview"}
