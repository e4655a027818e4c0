"""Which views are kept out of the optimisation. Imports nothing heavy: `recon submit` asks too."""

from __future__ import annotations

from pipeline.camera_source import MODEL, source_of_cameras
from pipeline.ingest import InputPlan
from schemas.errors import ErrorCode, InvalidJob
from schemas.options import Options


def holdout_indices(views: int, options: Options) -> list[int]:
    """Which of so many views are held out: as many as the job asks for, evenly spaced.

    Raises:
        InvalidJob: INVALID_OPTIONS: fewer views than the job requires would be left.
    """
    held, required = options.quality.holdout, options.input.min_views
    if views - held < required:
        raise _refusal(
            f"{held} of {views} views cannot be held out",
            f"options.quality.holdout leaves at least {required} views (options.input.min_views)",
        )
    return [(2 * i + 1) * views // (2 * held) for i in range(held)]


def check_holdout(plan: InputPlan, options: Options) -> None:
    """Refuse to hold out views that cannot be spared, or whose cameras nobody would find.

    Raises:
        InvalidJob: INVALID_OPTIONS.
    """
    held = holdout_indices(len(plan.views), options)
    if held and source_of_cameras(plan, options) == MODEL:
        raise _refusal(
            "The cameras of views that the model does not see would stay unknown",
            "options.quality.holdout needs cameras where the model finds them itself: give transforms.json "
            "or options.cameras.rig",
        )


def _refusal(found: str, rule: str) -> InvalidJob:
    return InvalidJob(
        ErrorCode.INVALID_OPTIONS,
        f"{found}: {rule}.",
        file="images/",
        rule=rule,
        fields=["options.quality.holdout"],
    )
