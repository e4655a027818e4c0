"""The weights of reconviagen on this machine: what is needed, what is here, and whether it is right.

The folder of weights holds one folder for each repository, and `weights.lock.json`: for each repository the
revision, and for each file its size and SHA-256. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path

from models.reconviagen.weights_folder import (
    DINOV2,
    TRELLIS,
    VGGT,
    fetch_command,
    missing_weights,
    read_json,
)
from pipeline.weights_lock import LOCK_NAME, Lock, LockedFile, LockedRepository, measure, read_lock
from schemas.errors import ErrorCode, ModelError, ReconError

SUFFIXES = (".json", ".safetensors")
"""What weights consist of. Other files are never fetched: a pickle can run code."""


@dataclass(frozen=True)
class Source:
    """A repository of the Hugging Face hub, and what is taken from it.

    Attributes:
        repository: Owner and name, also the folder's path below the folder of weights.
        revision: The commit that this version of the worker was made for.
        files: Patterns of the files' paths; each must fit a file.
        sha256: Checksums of the revision's files, as far as they are known beforehand.
    """

    repository: str
    revision: str
    files: tuple[str, ...]
    sha256: Mapping[str, str] = field(default_factory=dict)

    def wants(self, path: str) -> bool:
        """Whether a file of the repository is needed."""
        return any(fnmatchcase(path, pattern) for pattern in self.files)

    def lacking(self, paths: Collection[str]) -> list[str]:
        """Patterns that none of some paths fits."""
        return [pattern for pattern in self.files if not any(fnmatchcase(path, pattern) for path in paths)]


def _networks(*names: str) -> tuple[str, ...]:
    return tuple(f"ckpts/{name}{suffix}" for name in names for suffix in SUFFIXES)


SOURCES: tuple[Source, ...] = (
    Source(
        TRELLIS,
        "647659a5ad5fbf67e22793e7b5e2cee4b30c5d13",
        (
            "pipeline.json",
            *_networks(
                "ss_flow_img_dit_L_16l8_fp16",
                "ss_dec_conv3d_16l8_fp16",
                "ss_vggt_cond",
                "slat_flow_img_dit_L_64l8p2_fp16",
                "slat_dec_mesh_swin8_B_64l8m256c_fp16",
                "slat_dec_gs_swin8_B_64l8gs32_fp16",
                "slat_vggt_cond",
            ),
        ),
        {
            "ckpts/slat_vggt_cond.safetensors": (
                "18945872ec1a5fc13b2bfe86f279777c895c015ddff5cabc8f5a6dcd245d862a"
            )
        },
    ),
    Source(
        VGGT,
        "aac569c280b52ccda1c84a81cd0e27e947bc2cf5",
        ("config.json", "model*.safetensors*"),
        {"model.safetensors": "65c4803ef021a4143bbe499faebaef1d1a522d1437b5742b89c85d557db4bba4"},
    ),
    Source(
        DINOV2,
        "e4c89a4e05589de9b3e188688a303d0f3c04d0f3",
        ("config.json", "model*.safetensors*"),
        {
            "config.json": "03eee42f646659a9480f8911a81fdd81efeedd7ff39083c8e36398068daf72f5",
            "model.safetensors": "edccedab2c4e164e80833096de89a32a6e8d7365870499a066a61dbc8894b42b",
        },
    ),
)
"""All that reconviagen needs."""


class State(StrEnum):
    """How a file compares with the lock."""

    PRESENT = "present"  # as far as it was looked at, it is right
    MISSING = "missing"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class FileState:
    """A file that is needed.

    Attributes:
        path: Below the folder of weights; a pattern, where nothing was fetched that says more.
        size: Bytes, as locked; None where that is not known.
        state: Whether it is here.
        problem: What is wrong, for people; empty where nothing is.
    """

    path: str
    size: int | None
    state: State
    problem: str = ""


def inventory(root: Path, sources: Sequence[Source] = SOURCES) -> list[FileState]:
    """Every file that is needed, judged by presence and size.

    Raises:
        ModelError: MODEL_WEIGHTS_INVALID if the lock is damaged.
    """
    return list(_states(root, sources, _judge_size))


def check_weights(
    root: Path,
    sources: Sequence[Source] = SOURCES,
    *,
    fast: bool = False,
    on_file: Callable[[str], None] = lambda path: None,
) -> list[FileState]:
    """Every file that is needed, looked into: presence, size, form and, unless `fast`, SHA-256.

    Args:
        root: The folder of weights.
        sources: What is needed.
        fast: Do not read the files through.
        on_file: Told each file before it is looked at.

    Raises:
        ModelError: MODEL_WEIGHTS_INVALID if the lock is damaged.
    """

    def judge(root: Path, path: str, locked: LockedFile) -> FileState:
        on_file(path)
        state = _judge_size(root, path, locked)
        if state.state is not State.PRESENT:
            return state
        problem = form_problem(root, path)
        if not problem and not fast and measure(root / path).sha256 != locked.sha256:
            problem = "its SHA-256 is not the locked one"
        return FileState(path, locked.size, State.DAMAGED, problem) if problem else state

    return list(_states(root, sources, judge))


def require(root: Path, states: Sequence[FileState]) -> None:
    """Raise for the first file that is not right.

    Raises:
        ModelError: MODEL_WEIGHTS_MISSING, MODEL_WEIGHTS_INVALID.
    """
    for each in states:
        if each.state is State.MISSING:
            raise missing_weights(root, each.path, each.problem)
        if each.state is State.DAMAGED:
            command = fetch_command(root)
            raise ModelError(
                ErrorCode.MODEL_WEIGHTS_INVALID,
                f"{each.path} cannot be used: {each.problem}. Run: {command}",
                file=each.path,
                rule="weights are what the lock says",
                command=command,
            )


def require_revisions(root: Path, sources: Sequence[Source] = SOURCES) -> None:
    """Raise for the first repository that is at another revision than this version of the worker needs.

    Raises:
        ModelError: MODEL_WEIGHTS_MISSING.
    """
    lock = read_lock(root) or Lock()
    for source in sources:
        entry = lock.repositories.get(source.repository)
        if entry is not None and not is_pinned(entry, source):
            command = fetch_command(root)
            raise ModelError(
                ErrorCode.MODEL_WEIGHTS_MISSING,
                f"The weights of {source.repository} are of revision {entry.revision}, and this version "
                f"needs {source.revision}. Run: {command}",
                file=source.repository,
                rule="weights are of the pinned revision, or of one that was asked for",
                command=command,
            )


def weights_problem(root: Path | None, sources: Sequence[Source] = SOURCES) -> ReconError | None:
    """Why reconviagen's weights cannot be served from a folder; None if they can. Cheap: looks at sizes only.

    Args:
        root: The folder of weights, None where there is none.
        sources: What is needed.
    """
    if root is None:
        return ModelError(ErrorCode.MODEL_WEIGHTS_MISSING, "No folder of weights is set.")
    try:
        require(root, inventory(root, sources))
        require_revisions(root, sources)
    except ReconError as error:
        return error
    except OSError as error:
        text = f"The weights in {root} cannot be read: {error.strerror or error}."
        return ModelError(ErrorCode.MODEL_WEIGHTS_INVALID, text, file=str(error.filename or root))
    return None


def is_pinned(entry: LockedRepository, source: Source) -> bool:
    """Whether a repository is at the revision that is wanted: the pinned one, or one that somebody chose."""
    return entry.updated or entry.revision == source.revision


def blocked(root: Path, path: str) -> str:
    """What lies in the place of a file and is none; empty where nothing does.

    Args:
        root: The folder of weights.
        path: Below it.
    """
    place = root / path
    return f"a folder lies in its place, remove it: {place}" if place.is_dir() else ""


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:,.1f} MB"


def form_problem(root: Path, path: str) -> str:
    """What is wrong with a file's form, as far as its beginning tells; empty where nothing is.

    Args:
        root: The folder of weights.
        path: Below it.
    """
    if path.endswith(".json"):
        try:
            read_json(root, path)
        except ModelError as error:
            return error.message
        return ""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(root / path, framework="numpy") as tensors:
            return "" if tensors.keys() else "it holds no tensors"
    except SafetensorError as error:
        return f"it is no safetensors file: {error}"


def _states(
    root: Path, sources: Sequence[Source], judge: Callable[[Path, str, LockedFile], FileState]
) -> Iterator[FileState]:
    lock = read_lock(root) or Lock()
    for source in sources:
        entry = lock.repositories.get(source.repository)
        files = {} if entry is None else entry.files
        for pattern in source.lacking(files):
            copied = any((root / source.repository).glob(pattern))
            problem = f"it is there, but not in {LOCK_NAME}" if copied else "it was not fetched"
            yield FileState(f"{source.repository}/{pattern}", None, State.MISSING, problem)
        for path, locked in files.items():
            yield judge(root, f"{source.repository}/{path}", locked)


def _judge_size(root: Path, path: str, locked: LockedFile) -> FileState:
    try:
        size = (root / path).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return FileState(path, locked.size, State.MISSING, "it is not there")
    if problem := blocked(root, path):
        return FileState(path, locked.size, State.DAMAGED, problem)
    if size != locked.size:
        problem = f"it has {size} bytes, not {locked.size}"
        return FileState(path, locked.size, State.DAMAGED, problem)
    return FileState(path, locked.size, State.PRESENT)
