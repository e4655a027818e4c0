"""Everything an input must pass before it is computed on, for jobs and for `recon submit` alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from models.base import Views
from pipeline.camera_estimation import CAMERA_SOURCE
from pipeline.decode import Tick, decode_views, read_headers
from pipeline.depth_check import check_depths
from pipeline.geometry import uncalibrated
from pipeline.ingest import InputPlan, plan_input
from pipeline.settings import Limits
from pipeline.storage_file import FolderStore
from pipeline.views import LoadedInput, known_camera_source, known_cameras, load_views, posed_views
from schemas.errors import ErrorCode, InvalidJob
from schemas.locations import Location
from schemas.options import Options


@dataclass(frozen=True)
class InputSummary:
    """What an input holds.

    Attributes:
        views: Number of views.
        width, height: Of every view as it is computed on, pixels: the common size after lens distortion is
            undone and sizes are matched, which need not be that of any file.
        depth_views: How many views have a depth map.
        mask_source: `mask_path`, `alpha` or `depth`.
        camera_source: `transforms.json`, `rig:<name>` or `sfm:pycolmap`.
        files, total_bytes: What a worker will download, without transforms.json.
    """

    views: int
    width: int
    height: int
    depth_views: int
    mask_source: str
    camera_source: str
    files: int
    total_bytes: int


def validate_folder(path: Path, options: Options, limits: Limits) -> InputSummary:
    """Check a local folder as a worker checks its download; cameras are left for the worker to estimate.

    Raises:
        InvalidJob, AccessError: as the job would fail.
    """
    store = FolderStore(Location("file", "", str(path.resolve())))
    plan = plan_input(store, options, limits)
    holdout_indices(len(plan.views), options)
    headers = read_headers(path, plan, limits)
    source = known_camera_source(plan, options)
    if source is None:
        geometry = [uncalibrated(header) for header in headers]
        decoded = decode_views(path, plan, headers, geometry, limits, _silent)
    else:
        poses, geometry = known_cameras(plan, headers, options.cameras, limits)
        decoded = decode_views(path, plan, headers, geometry, limits, _silent)
        check_depths(posed_views(plan, decoded, poses, geometry))
    return InputSummary(
        views=len(plan.views),
        width=decoded.masks.shape[2],
        height=decoded.masks.shape[1],
        depth_views=decoded.depth_views,
        mask_source=decoded.mask_source,
        camera_source=source or CAMERA_SOURCE,
        files=len(plan.sizes),
        total_bytes=plan.total_bytes,
    )


def load_checked(
    folder: Path,
    plan: InputPlan,
    options: Options,
    limits: Limits,
    tick: Tick,
    *,
    scratch: Path,
) -> LoadedInput:
    """Decode an input, estimate its cameras if it has none, and hold its parts against each other.

    Args:
        folder: Holds the files under their keys.
        plan: What to read.
        options: The job's.
        limits: Bounds on pixels.
        tick: Progress.
        scratch: An existing folder in which cameras are estimated. What a killed process leaves behind stays
            there, so it is to be one that is cleaned up.

    Raises:
        InvalidJob: as `load_views`; INVALID_OPTIONS where too many views would be held out.
    """
    holdout_indices(len(plan.views), options)
    with TemporaryDirectory(prefix="cameras-", dir=scratch) as work:
        loaded = load_views(folder, plan, options, limits, tick, Path(work))
    check_depths(loaded.views)
    return loaded


def _silent(fraction: float, message: str) -> None:
    """Nobody waits for the progress of a check."""


def holdout_indices(views: int, options: Options) -> list[int]:
    """Which views are kept out of the optimisation: as many as the job asks for, evenly spaced.

    Raises:
        InvalidJob: INVALID_OPTIONS: fewer views than the job requires would be left.
    """
    held, required = options.quality.holdout, options.input.min_views
    if views - held < required:
        rule = f"options.quality.holdout leaves at least {required} views (options.input.min_views)"
        raise InvalidJob(
            ErrorCode.INVALID_OPTIONS,
            f"{held} of {views} views cannot be held out: {rule}.",
            file="images/",
            rule=rule,
            fields=["options.quality.holdout"],
        )
    return [(2 * i + 1) * views // (2 * held) for i in range(held)]


def split_holdout(views: Views, options: Options) -> tuple[Views, Views | None]:
    """The views to optimise on, and those held out; None if the job holds none out.

    Raises:
        InvalidJob: INVALID_OPTIONS.
    """
    held = holdout_indices(len(views), options)
    if not held:
        return views, None
    kept = [index for index in range(len(views)) if index not in set(held)]
    return views.subset(kept), views.subset(held)
