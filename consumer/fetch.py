"""Download a result by its manifest and believe nothing: names, sizes and checksums are all checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pipeline.objects import check_distinct, check_key
from pipeline.record import read_record
from pipeline.storage import ObjectStore
from schemas.errors import AccessError, ErrorCode, InvalidJob, ReconError, ResourceError
from schemas.results import MANIFEST_NAME, RECORD_NAME, Artifact, Manifest

MAX_MANIFEST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class FetchProgress:
    """How far a download has come."""

    path: str
    done_bytes: int
    total_bytes: int


def read_manifest(store: ObjectStore) -> Manifest:
    """The manifest of a finished result.

    Raises:
        AccessError: JOB_NOT_FOUND: there is none, so there is no complete result.
        ResourceError: STORAGE_UNAVAILABLE; INTERNAL_ERROR if it cannot be read.
    """
    try:
        data = store.get_bytes(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES)
    except AccessError as error:
        if error.code is not ErrorCode.INPUT_NOT_FOUND:
            raise
        raise AccessError(
            ErrorCode.JOB_NOT_FOUND, f"There is no complete result at {store.location}: it has no manifest."
        ) from error
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise _damaged(MANIFEST_NAME, "a manifest must follow its schema") from error


def fetch_result(
    store: ObjectStore, folder: Path, on_progress: Callable[[FetchProgress], None] = lambda progress: None
) -> Manifest:
    """Download every file of a result and its record into `folder`, the manifest last.

    A file gets its name only once its size and checksum are right.

    Raises:
        AccessError: JOB_NOT_FOUND; PATH_NOT_ALLOWED for a manifest that points out of the folder.
        ResourceError: STORAGE_UNAVAILABLE, or INTERNAL_ERROR for a file that is not what the manifest says.
    """
    manifest = read_manifest(store)
    _check_paths(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    total, done = sum(each.size for each in manifest.files), 0
    for artifact in manifest.files:
        on_progress(FetchProgress(artifact.path, done, total))
        _fetch_file(store, artifact, _target(folder, artifact.path))
        done += artifact.size
    record = read_record(store)
    if record is not None:  # not in the manifest, for it is written later and again
        _target(folder, RECORD_NAME).write_text(record.model_dump_json(indent=1), encoding="utf-8")
    _target(folder, MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    on_progress(FetchProgress(MANIFEST_NAME, done, total))
    return manifest


def _check_paths(manifest: Manifest) -> None:
    paths = [check_key(each.path) for each in manifest.files]
    check_distinct([*paths, MANIFEST_NAME, RECORD_NAME])


def _target(folder: Path, path: str) -> Path:
    """The local path of a file; symbolic links that lie in the folder may not lead out of it."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.resolve().is_relative_to(folder.resolve()):
        rule = "a link must not lead out of the folder"
        raise AccessError(ErrorCode.PATH_NOT_ALLOWED, f"{path!r} is refused: {rule}.", file=path, rule=rule)
    return target


def _fetch_file(store: ObjectStore, artifact: Artifact, target: Path) -> None:
    partial = target.with_name(target.name + ".partial")
    try:
        try:
            size = store.download(artifact.path, partial, max_bytes=artifact.size)
        except InvalidJob as error:
            raise _damaged(artifact.path, f"it must have {artifact.size} bytes; it has more") from error
        if size != artifact.size:
            raise _damaged(artifact.path, f"it must have {artifact.size} bytes; it has {size}")
        if _sha256(partial) != artifact.sha256:
            raise _damaged(artifact.path, "its SHA-256 must be the manifest's")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: str, rule: str) -> ReconError:
    text = f"{path!r} is not what was uploaded: {rule}."
    return ResourceError(ErrorCode.INTERNAL_ERROR, text, file=path, rule=rule)
