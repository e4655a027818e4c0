"""From a listing to a plan of views, and from the plan to files in the work folder, all within bounds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Lock

from pipeline.cancel import CancelToken
from pipeline.matching import ViewFiles, match_views
from pipeline.objects import ObjectStore, check_distinct, check_key
from pipeline.parallel import run_parallel
from pipeline.settings import Limits
from pipeline.transforms import TRANSFORMS_NAME, Transforms, invalid_cameras, parse_transforms
from schemas.errors import ErrorCode, InvalidJob
from schemas.options import Options

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputPlan:
    """What will be read of an input.

    Attributes:
        views: In order of the frames of transforms.json, else of the file names.
        depth_scale: World units per count of a depth map.
        sizes: Bytes by key, of every file that will be read.
    """

    views: tuple[ViewFiles, ...]
    depth_scale: float
    sizes: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, as listed."""
        return sum(self.sizes.values())


def plan_input(store: ObjectStore, options: Options, limits: Limits) -> InputPlan:
    """List an input and decide what to read; refuses what can be refused without looking at pixels.

    Raises:
        InvalidJob: INPUT_TOO_LARGE, TOO_FEW_VIEWS, VIEW_MISSING, VIEW_MISMATCH, INVALID_CAMERAS,
            INVALID_DEPTH or MASK_MISSING.
        AccessError: INPUT_NOT_FOUND, PATH_NOT_ALLOWED or LOCATION_NOT_ALLOWED.
        ResourceError: STORAGE_UNAVAILABLE.
    """
    listing = _list(store, limits)
    transforms = _read_transforms(store, listing, limits)
    views = match_views(listing, transforms, options, limits, str(store.location))
    used = {key for view in views for key in (view.image, view.depth, view.mask) if key is not None}
    check_distinct(sorted(used))
    sizes = {key: listing[key] for key in sorted(used)}
    _check_sizes(sizes, limits)
    _log_ignored(sorted(set(listing) - used - {TRANSFORMS_NAME}))
    return InputPlan(views, 0.001 if transforms is None else transforms.depth_scale, sizes)


def fetch_input(
    store: ObjectStore,
    plan: InputPlan,
    folder: Path,
    limits: Limits,
    *,
    threads: int,
    cancel: CancelToken,
    report: Callable[[float, str, dict[str, float]], None],
) -> None:
    """Download the files of a plan to `folder`, under their keys.

    Raises:
        InvalidJob: INPUT_TOO_LARGE: more bytes arrived than were listed or are accepted.
        AccessError, ResourceError: as the store.
        JobCancelled: between chunks.
    """
    counter = _ByteCounter(limits.max_input_bytes, cancel)

    def fetch(key: str) -> None:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        store.download(key, path, max_bytes=limits.max_file_bytes, on_bytes=counter)

    def tick() -> None:
        cancel.check()
        report(counter.total / max(plan.total_bytes, 1), f"{counter.total / 1e6:.1f} MB", {})

    run_parallel([partial(fetch, key) for key in plan.sizes], threads, tick)


class _ByteCounter:
    """Counts what arrives on all threads; stops at the bound, or at a cancel."""

    def __init__(self, max_bytes: int, cancel: CancelToken) -> None:
        self._lock = Lock()
        self._max_bytes = max_bytes
        self._cancel = cancel
        self.total = 0

    def __call__(self, size: int) -> None:
        self._cancel.check()
        with self._lock:
            self.total += size
        if self.total > self._max_bytes:
            raise _input_too_large("bytes", self.total, self._max_bytes)


def _list(store: ObjectStore, limits: Limits) -> dict[str, int]:
    listing: dict[str, int] = {}
    for key, size in store.list():
        if key == "" or key.endswith("/"):
            continue  # the markers that consoles write for empty folders
        listing[check_key(key)] = size
        if len(listing) > limits.max_files:
            raise _input_too_large("files", len(listing), limits.max_files)
    return listing


def _read_transforms(store: ObjectStore, listing: dict[str, int], limits: Limits) -> Transforms | None:
    if TRANSFORMS_NAME not in listing:
        return None
    if listing[TRANSFORMS_NAME] > limits.max_json_bytes:
        raise invalid_cameras(
            f"it has {listing[TRANSFORMS_NAME]} bytes", f"at most {limits.max_json_bytes} bytes are read"
        )
    return parse_transforms(store.get_bytes(TRANSFORMS_NAME, max_bytes=limits.max_json_bytes), limits)


def _check_sizes(sizes: dict[str, int], limits: Limits) -> None:
    for key, size in sizes.items():
        if size > limits.max_file_bytes:
            raise _input_too_large("bytes", size, limits.max_file_bytes, file=key)
    total = sum(sizes.values())
    if total > limits.max_input_bytes:
        raise _input_too_large("bytes", total, limits.max_input_bytes)


def _input_too_large(unit: str, actual: int, limit: int, *, file: str | None = None) -> InvalidJob:
    what = "an input" if file is None else "a file"
    rule = f"{what} may have at most {limit} {unit}"
    return InvalidJob(
        ErrorCode.INPUT_TOO_LARGE,
        f"{'The input' if file is None else repr(file)} has {actual} {unit}: {rule}.",
        file=file or "",
        rule=rule,
        limit=limit,
        actual=actual,
    )


def _log_ignored(keys: list[str]) -> None:
    if keys:
        folders = sorted({PurePosixPath(key).parts[0] for key in keys})
        LOGGER.info("%d files of the input are not used, in %s", len(keys), ", ".join(folders[:8]))
