"""The stages of a job, in order, and their share of its time. Imports nothing heavy: events name them."""

from __future__ import annotations

from schemas.jobs import ModelName

WEIGHTS: dict[ModelName, dict[str, float]] = {
    "nvdiffrec": {
        "download": 1.0,
        "validate": 1.0,
        "reconstruct": 90.0,
        "export": 1.0,
        "quality": 1.0,
        "preview": 5.0,
        "upload": 1.0,
    },
    "reconviagen": {
        "download": 1.0,
        "validate": 1.0,
        "reconstruct": 85.0,
        "export": 2.0,
        "quality": 2.0,
        "preview": 7.0,
        "upload": 2.0,
    },
}
"""Typical share of a job's time, percent. They shape the progress bar only; timings are measured."""

ESTIMATING = 30.0
"""Weight of `validate` where it estimates cameras: minutes, where it else takes a second."""


def stage_weights(model: ModelName, *, previews: bool = True, estimating: bool = False) -> dict[str, float]:
    """The stages that a job will pass, in order, with their weights.

    Args:
        model: The job's.
        previews: Whether the job wants previews; the stage is left out otherwise.
        estimating: Whether cameras have to be estimated, which is known once the input has been listed.
    """
    weights = WEIGHTS[model] | {"validate": ESTIMATING} if estimating else WEIGHTS[model]
    return {name: weight for name, weight in weights.items() if previews or name != "preview"}
