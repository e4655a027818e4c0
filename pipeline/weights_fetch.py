"""Download the weights of reconviagen from the Hugging Face hub: resumable, and believed only when checked.

A repository's files are downloaded below `<root>/.fetch/`, where an interrupted download goes on later. When
all are there and right they take their places, and the lock names them.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from models.reconviagen.weights_folder import inside, invalid_weights
from pipeline.weights import SOURCES, SUFFIXES, Source, form_problem, is_pinned
from pipeline.weights_lock import Lock, LockedFile, LockedRepository, measure, read_lock, write_lock
from schemas.errors import AccessError, ErrorCode, ReconError, ResourceError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOGGER = logging.getLogger(__name__)

STAGING = ".fetch"
BRANCH = "main"
"""What `update` takes instead of the pinned revision."""

SPARE_BYTES = 256 * 1024 * 1024
"""Room that a download leaves on the disk."""

Progress = Callable[[str, int, int], None]
"""Told a file's path, bytes done and bytes in all, both of everything that is being fetched."""


@dataclass(frozen=True)
class _Remote:
    """A file on the hub; its SHA-256 is None where nobody knows it beforehand."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class _Plan:
    """What is to be done about one repository."""

    source: Source
    revision: str
    updated: bool
    files: tuple[_Remote, ...]
    kept: dict[str, LockedFile]  # files in their places that are right

    @property
    def wanted(self) -> tuple[_Remote, ...]:
        """Files that have to be downloaded."""
        return tuple(each for each in self.files if each.path not in self.kept)


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

    root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        lock = read_lock(root) or Lock()
        api = HfApi(endpoint=endpoint)
        plans = [plan for source in sources if (plan := _plan(api, root, source, lock, update))]
        counter = _Counter(root, plans, on_progress)
        counter.check_room()
        for plan in plans:
            say(_announcement(plan))
            entry = _fetch(api, root, plan, counter)
            lock = lock.with_repository(plan.source.repository, entry)
            write_lock(root, lock)
        shutil.rmtree(root / STAGING, ignore_errors=True)
    return lock


# --- Planning


def _plan(api: HfApi, root: Path, source: Source, lock: Lock, update: bool) -> _Plan | None:
    entry = lock.repositories.get(source.repository)
    if entry is not None and not update and is_pinned(entry, source):
        locked = [_Remote(path, each.size, each.sha256) for path, each in entry.files.items()]
        if len(_kept(root, source, locked)) == len(locked) and not source.lacking(entry.files):
            return None
        revision, expected, updated = entry.revision, _checksums(entry), entry.updated
    elif update:
        revision, expected, updated = BRANCH, {}, True
    else:
        revision, expected, updated = source.revision, dict(source.sha256), False
    commit, remote = _listing(api, source, revision)
    files = tuple(_expected(source, each, expected) for each in remote)
    return _Plan(source, commit, updated and commit != source.revision, files, _kept(root, source, files))


def _announcement(plan: _Plan) -> str:
    size = sum(each.size for each in plan.wanted)
    pinned = "" if plan.revision == plan.source.revision else ", not the pinned one"
    return (
        f"{plan.source.repository}: {len(plan.wanted)} files, {size / 1e9:.2f} GB, "
        f"of revision {plan.revision}{pinned}"
    )


def _checksums(entry: LockedRepository) -> dict[str, str]:
    return {path: each.sha256 for path, each in entry.files.items()}


def _expected(source: Source, remote: _Remote, expected: dict[str, str]) -> _Remote:
    known = expected.get(remote.path, remote.sha256)
    if remote.sha256 is not None and known != remote.sha256:
        raise _unlike(f"{source.repository}/{remote.path}", "the hub offers another file than the one locked")
    return _Remote(remote.path, remote.size, known)


def _listing(api: HfApi, source: Source, revision: str) -> tuple[str, list[_Remote]]:
    """The commit that a revision is, and the files of it that are wanted."""
    with _hub_errors(source.repository):
        info = api.model_info(source.repository, revision=revision, files_metadata=True)
    found = []
    for sibling in info.siblings or []:
        if not source.wants(sibling.rfilename):
            continue
        path = f"{source.repository}/{sibling.rfilename}"
        inside(source.repository, sibling.rfilename)
        if not sibling.rfilename.endswith(SUFFIXES):
            raise invalid_weights(path, "is refused", f"only {' and '.join(SUFFIXES)} files are fetched")
        if sibling.size is None:
            raise invalid_weights(path, "has no size on the hub", "the hub tells each file's size")
        checksum = None if sibling.lfs is None else sibling.lfs.sha256
        found.append(_Remote(sibling.rfilename, sibling.size, checksum))
    lacking = source.lacking([each.path for each in found])
    if lacking or info.sha is None:
        text = f"{source.repository} has no {', '.join(lacking) or 'commit'} at revision {revision}."
        raise AccessError(ErrorCode.INPUT_NOT_FOUND, text, file=source.repository)
    return info.sha, found


def _kept(root: Path, source: Source, files: Sequence[_Remote]) -> dict[str, LockedFile]:
    kept = {}
    for each in files:
        path = root / source.repository / each.path
        if each.sha256 is None or not path.is_file() or path.stat().st_size != each.size:
            continue
        measured = measure(path)
        if measured.sha256 == each.sha256:
            kept[each.path] = measured
    return kept


# --- Downloading


class _Counter:
    """Bytes done of all downloads, those of an earlier, interrupted fetch included."""

    def __init__(self, root: Path, plans: Sequence[_Plan], report: Progress) -> None:
        self._root = root
        self._report = report
        self._total = sum(each.size for plan in plans for each in plan.wanted)
        self._here = sum(
            path.stat().st_size for path in (root / STAGING).rglob("*") if path.is_file()
        )  # at most too much, from a revision that nobody wants any longer
        self._finished = 0

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
        self._report(path, self._finished + done, self._total)

    def finish(self, path: str, size: int) -> None:
        """The current file is done."""
        self._finished += size
        self.at(path, 0)


def _fetch(api: HfApi, root: Path, plan: _Plan, counter: _Counter) -> LockedRepository:
    repository = plan.source.repository
    staging = root / STAGING / repository / plan.revision
    locked = dict(plan.kept)
    for each in plan.wanted:
        target = staging / each.path
        if not target.is_file():
            _download(api, plan, each, target, counter)
        locked[each.path] = _verified(staging, repository, each)
        counter.finish(each.path, each.size)
    for each in plan.wanted:
        place = root / repository / each.path
        place.parent.mkdir(parents=True, exist_ok=True)
        (staging / each.path).replace(place)
    files = {path: locked[path] for path in sorted(locked)}
    return LockedRepository(revision=plan.revision, updated=plan.updated, files=files)


def _download(api: HfApi, plan: _Plan, remote: _Remote, target: Path, counter: _Counter) -> None:
    """Download a file to `<target>.part` from where that ends, then give it its name."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get

    repository = plan.source.repository
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(repository, remote.path, revision=plan.revision, endpoint=api.endpoint)
    with part.open("ab") as stream, _hub_errors(f"{repository}/{remote.path}"):
        if stream.tell() > remote.size:
            stream.truncate(0)
        http_get(
            url,
            _Counted(stream, lambda done: counter.at(remote.path, done)),  # type: ignore[arg-type]
            resume_size=stream.tell(),
            headers=_headers(api),
            expected_size=remote.size,
            tqdm_class=_silent(),
        )
    part.replace(target)


class _Counted:
    """A file that tells how long it has become."""

    def __init__(self, stream: BinaryIO, told: Callable[[int], None]) -> None:
        self._stream = stream
        self._told = told

    def write(self, data: bytes) -> int:
        written = self._stream.write(data)
        self._told(self._stream.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _headers(api: HfApi) -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers: dict[str, str] = build_hf_headers(token=api.token)
    return headers


def _silent() -> Any:
    """A progress bar that shows nothing: progress has its own way here."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

    return Silent


def _verified(staging: Path, repository: str, remote: _Remote) -> LockedFile:
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
def _hub_errors(what: str) -> Iterator[None]:
    """Translate what huggingface_hub and the network raise."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.GatedRepoError, errors.DisabledRepoError) as error:
        text = f"The hub does not give {what} to this user: accept its terms there, and set HF_TOKEN."
        raise AccessError(ErrorCode.LOCATION_NOT_ALLOWED, text, file=what) from error
    except errors.RevisionNotFoundError as error:
        text = f"The hub no longer has the pinned revision of {what}; --update takes its newest one."
        raise AccessError(ErrorCode.INPUT_NOT_FOUND, text, file=what) from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        text = f"The hub has no {what}, or shows it only to some: set HF_TOKEN."
        raise AccessError(ErrorCode.INPUT_NOT_FOUND, text, file=what) from error
    except errors.OfflineModeIsEnabled as error:
        text = f"{what} cannot be fetched: HF_HUB_OFFLINE is set."
        raise ResourceError(ErrorCode.STORAGE_UNAVAILABLE, text, file=what) from error
    except ReconError:
        raise
    except Exception as error:  # the HTTP client's errors have no base of their own across its versions
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of this machine's disk
        text = f"{what} could not be fetched; the same command goes on where this one stopped. {error}"
        raise ResourceError(ErrorCode.STORAGE_UNAVAILABLE, text, file=what) from error


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
