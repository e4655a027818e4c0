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

ESTIMATING = 30.0
"""Weight of `validate` where it estimates cameras: minutes, where it else takes a second."""

STAGE_NAMES: tuple[str, ...] = tuple(WEIGHTS)


def stage_weights(*, previews: bool = True, estimating: bool = False) -> dict[str, float]:
    """The stages that a job will pass, in order, with their weights.

    Args:
        previews: Whether the job wants previews; the stage is left out otherwise.
        estimating: Whether cameras have to be estimated, which is known once the input has been listed.
    """
    weights = WEIGHTS | {"validate": ESTIMATING} if estimating else WEIGHTS
    return {name: weight for name, weight in weights.items() if previews or name != "preview"}
