"""Everything an input must pass before it is computed on, for jobs and for `recon submit` alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from models.base import PosedViews, Views
from pipeline.camera_source import source_of_cameras
from pipeline.decode import Tick, read_headers
from pipeline.depth_check import check_depths
from pipeline.holdout import check_holdout, holdout_indices
from pipeline.ingest import InputPlan, plan_input
from pipeline.settings import Limits
from pipeline.storage_file import FolderStore
from pipeline.views import LoadedInput, decoded_views, load_views
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
        camera_source: See `pipeline.camera_source`.
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
    """Check a local folder as a worker checks its download; cameras are left for the worker to find.

    Raises:
        InvalidJob, AccessError: as the job would fail.
    """
    store = FolderStore(Location("file", "", str(path.resolve())))
    plan = plan_input(store, options, limits)
    check_holdout(plan, options)
    headers = read_headers(path, plan, limits)
    views, decoded = decoded_views(path, plan, headers, options, limits, _silent)
    _check_depths(views)
    return InputSummary(
        views=len(plan.views),
        width=decoded.masks.shape[2],
        height=decoded.masks.shape[1],
        depth_views=decoded.depth_views,
        mask_source=decoded.mask_source,
        camera_source=source_of_cameras(plan, options),
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
        InvalidJob: as `load_views`.
    """
    with TemporaryDirectory(prefix="cameras-", dir=scratch) as work:
        loaded = load_views(folder, plan, options, limits, tick, Path(work))
    _check_depths(loaded.views)
    return loaded


def _check_depths(views: Views) -> None:
    """Depth maps can be held against each other only through cameras."""
    if isinstance(views, PosedViews):
        check_depths(views)


def _silent(fraction: float, message: str) -> None:
    """Nobody waits for the progress of a check."""


def split_holdout(views: Views, options: Options) -> tuple[Views, PosedViews | None]:
    """The views to optimise on, and those held out; None if the job holds none out.

    Raises:
        InvalidJob: INVALID_OPTIONS.
        ModelError: INVALID_CAMERAS: views without cameras cannot be held out.
    """
    held = holdout_indices(len(views), options)
    if not held:
        return views, None
    kept = [index for index in range(len(views)) if index not in set(held)]
    return views.subset(kept), views.posed().subset(held)
