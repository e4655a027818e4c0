"""Download the weights of reconviagen from the Hugging Face hub: resumable, and believed only when checked.

A repository's files are downloaded below `<root>/.fetch/`, where an interrupted download goes on later. When
all are there and right they take their places, and the lock names them.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from models.reconviagen.weights_folder import invalid_weights
from pipeline.transfer import DISK_FULL_ERRNOS
from pipeline.weights import SOURCES, Source, blocked, form_problem, is_pinned, megabytes
from pipeline.weights_hub import Remote, download, listing
from pipeline.weights_lock import Lock, LockedFile, LockedRepository, measure, read_lock, write_lock
from schemas.errors import ErrorCode, ReconError, ResourceError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

STAGING = ".fetch"
BRANCH = "main"
"""What `update` takes instead of the pinned revision."""

SPARE_BYTES = 256 * 1024 * 1024
"""Room that a download leaves on the disk."""

Progress = Callable[[str, int, int], None]
"""Told a file's path, bytes done and bytes in all, both of everything that is being fetched."""


@dataclass(frozen=True)
class _Plan:
    """What is to be done about one repository."""

    source: Source
    revision: str
    updated: bool
    files: tuple[Remote, ...]
    kept: dict[str, LockedFile]  # files in their places that are right

    @property
    def wanted(self) -> tuple[Remote, ...]:
        """Files that have to be downloaded."""
        return tuple(each for each in self.files if each.path not in self.kept)

    def staging(self, root: Path) -> Path:
        """Folder where its files are downloaded."""
        return root / STAGING / self.source.repository / self.revision


def fetch_weights(
    root: Path,
    sources: Sequence[Source] = SOURCES,
    *,
    update: bool = False,
    endpoint: str | None = None,
    on_progress: Progress = lambda path, done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Lock:
    """Bring the folder of weights up to its lock or, where there is none, to the pinned revisions.

    What is complete stays as it is and costs no request.

    Args:
        root: The folder of weights.
        sources: What is needed.
        update: Take the newest revisions, and whatever they hold, and lock those.
        endpoint: The hub's address; huggingface_hub's own settings if None, as are tokens.
        on_progress: Told how far the downloads have come.
        say: Told what people should know.

    Returns:
        The new lock.

    Raises:
        AccessError: INPUT_NOT_FOUND, LOCATION_NOT_ALLOWED: no such repository or revision, or no right to it.
        ModelError: MODEL_WEIGHTS_INVALID: a file is not what lock, pins and hub say, or holds no weights.
        ResourceError: STORAGE_UNAVAILABLE, DISK_FULL.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)

    def planned(lock: Lock) -> list[_Plan]:
        return [plan for source in sources if (plan := _plan(api, root, source, lock, update, say))]

    lock = read_lock(root) or Lock()
    plans = planned(lock)
    if not plans:
        return lock  # nothing was written: a complete folder may be one that can only be read
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        if (found := read_lock(root) or Lock()) != lock:  # another fetch has ended meanwhile
            lock, plans = found, planned(found)
        _forget_other_revisions(root, plans)
        counter = _Counter(root, plans, on_progress)
        counter.check_room()
        with _disk_errors(root, counter):
            for plan in plans:
                say(_announcement(plan))
                entry = _fetch(api, root, plan, counter, say)
                lock = lock.with_repository(plan.source.repository, entry)
                write_lock(root, lock)
        shutil.rmtree(root / STAGING, ignore_errors=True)
    return lock


# --- Planning


def _plan(
    api: HfApi, root: Path, source: Source, lock: Lock, update: bool, say: Callable[[str], None]
) -> _Plan | None:
    entry = lock.repositories.get(source.repository)
    if entry is not None and not update and is_pinned(entry, source):
        locked = [Remote(path, each.size, each.sha256) for path, each in entry.files.items()]
        if len(_kept(root, source, locked, say)) == len(locked) and not source.lacking(entry.files):
            return None
        revision, expected, updated = entry.revision, _checksums(entry), entry.updated
    elif update:
        revision, expected, updated = BRANCH, {}, True
    else:
        revision, expected, updated = source.revision, dict(source.sha256), False
    commit, remote = listing(api, source, revision)
    files = tuple(_expected(source, each, expected) for each in remote)
    kept = _kept(root, source, files, say)
    return _Plan(source, commit, updated and commit != source.revision, files, kept)


def _announcement(plan: _Plan) -> str:
    size = sum(each.size for each in plan.wanted)
    pinned = "" if plan.revision == plan.source.revision else ", not the pinned one"
    return (
        f"{plan.source.repository}: {len(plan.wanted)} files, {size / 1e9:.2f} GB, "
        f"of revision {plan.revision}{pinned}"
    )


def _checksums(entry: LockedRepository) -> dict[str, str]:
    return {path: each.sha256 for path, each in entry.files.items()}


def _expected(source: Source, remote: Remote, expected: dict[str, str]) -> Remote:
    known = expected.get(remote.path, remote.sha256)
    if remote.sha256 is not None and known != remote.sha256:
        raise _unlike(f"{source.repository}/{remote.path}", "the hub offers another file than the one locked")
    return Remote(remote.path, remote.size, known)


def _kept(
    root: Path, source: Source, files: Sequence[Remote], say: Callable[[str], None]
) -> dict[str, LockedFile]:
    """Files in their places that are what they should be, by size and SHA-256."""
    kept = {}
    for each in files:
        label = f"{source.repository}/{each.path}"
        path = root / label
        if problem := blocked(root, label):
            raise invalid_weights(label, f"cannot be fetched: {problem}", "the place of a file is free")
        if each.sha256 is None or not path.is_file() or path.stat().st_size != each.size:
            continue
        say(f"checking {label} ({megabytes(each.size)})")
        measured = measure(path)
        if measured.sha256 == each.sha256:
            kept[each.path] = measured
    return kept


def _forget_other_revisions(root: Path, plans: Sequence[_Plan]) -> None:
    """Remove what interrupted fetches left behind of revisions that nobody wants any longer."""
    wanted = {plan.staging(root) for plan in plans}
    for folder in (root / STAGING).glob("*/*/*"):  # owner, name, revision
        if folder not in wanted:
            shutil.rmtree(folder)


# --- Downloading


class _Counter:
    """Bytes done of all downloads, those of an earlier, interrupted fetch included."""

    def __init__(self, root: Path, plans: Sequence[_Plan], report: Progress) -> None:
        self._root = root
        self._report = report
        self._total = sum(each.size for plan in plans for each in plan.wanted)
        self._here = sum(path.stat().st_size for path in (root / STAGING).rglob("*") if path.is_file())
        self._finished = 0
        self._done = 0

    @property
    def missing(self) -> int:
        """Bytes that are still to be downloaded."""
        return self._total - self._done

    def check_room(self) -> None:
        """See beforehand whether the disk holds it all.

        Raises:
            ResourceError: DISK_FULL.
        """
        free = shutil.disk_usage(self._root).free
        needed = self._total - self._here + SPARE_BYTES
        if self._total and free < needed:
            raise ResourceError(
                ErrorCode.DISK_FULL,
                f"The weights need {needed / 1e9:.1f} GB more in {self._root}; {free / 1e9:.1f} GB are free.",
                limit=free,
                actual=needed,
            )

    def at(self, path: str, done: int) -> None:
        """Report bytes of the current file."""
        self._done = self._finished + done
        self._report(path, self._done, self._total)

    def finish(self, path: str, size: int) -> None:
        """The current file is done."""
        self._finished += size
        self.at(path, 0)


def _fetch(
    api: HfApi, root: Path, plan: _Plan, counter: _Counter, say: Callable[[str], None]
) -> LockedRepository:
    repository = plan.source.repository
    staging = plan.staging(root)
    locked = dict(plan.kept)
    for each in plan.wanted:
        target = staging / each.path
        say(f"downloading and checking {repository}/{each.path} ({megabytes(each.size)})")
        if not target.is_file():
            told = partial(counter.at, each.path)
            download(api, repository, plan.revision, each, target, told)
        locked[each.path] = _verified(staging, repository, each)
        counter.finish(each.path, each.size)
    for each in plan.wanted:
        place = root / repository / each.path
        place.parent.mkdir(parents=True, exist_ok=True)
        (staging / each.path).replace(place)
    files = {path: locked[path] for path in sorted(locked)}
    return LockedRepository(revision=plan.revision, updated=plan.updated, files=files)


def _verified(staging: Path, repository: str, remote: Remote) -> LockedFile:
    """A downloaded file's measures, if it is what it should be; else it is removed."""
    target = staging / remote.path
    label = f"{repository}/{remote.path}"
    measured = measure(target)
    problem: ReconError | None = None
    if measured.size != remote.size or remote.sha256 not in (None, measured.sha256):
        problem = _unlike(label, f"what arrived has SHA-256 {measured.sha256}, not {remote.sha256}")
    elif form := form_problem(staging, remote.path):
        problem = invalid_weights(label, f"is refused: {form}", "weights are JSON and safetensors")
    if problem is not None:
        target.unlink()
        raise problem
    return measured


# --- Errors


def _unlike(file: str, problem: str) -> ReconError:
    text = f"is refused: {problem}; `recon weights fetch --update` accepts new files"
    return invalid_weights(file, text, "files are those of the lock, of the pins and of the hub")


@contextmanager
def _disk_errors(root: Path, counter: _Counter) -> Iterator[None]:
    """Say what a disk that is full in the middle of a download still has to hold."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        raise ResourceError(
            ErrorCode.DISK_FULL,
            f"The disk of {root} is full; {counter.missing / 1e9:.2f} GB of weights are missing. Make room: "
            "the same command goes on where this one stopped.",
            limit=shutil.disk_usage(root).free,
            actual=counter.missing,
        ) from error


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One fetch a folder: two would write into one file."""
    staging = root / STAGING
    staging.mkdir(exist_ok=True)
    with (root / f"{STAGING}.lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = f"Another `recon weights fetch` is at work in {root}."
            raise ResourceError(ErrorCode.STORAGE_UNAVAILABLE, text) from None
        yield
