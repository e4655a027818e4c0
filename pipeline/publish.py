"""Upload a result: every file with its checksum, the manifest last, because it marks the result complete."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.objects import ObjectStore
from pipeline.parallel import run_parallel
from schemas.base import utc_now
from schemas.jobs import Job
from schemas.quality import Status
from schemas.results import MANIFEST_NAME, Artifact, Manifest

LOG_KEY = "logs/job.log"
ZIP_NAME = "result.zip"

MEDIA_TYPES = {
    ".glb": "model/gltf-binary",
    ".obj": "model/obj",
    ".mtl": "model/mtl",
    ".ply": "application/octet-stream",  # PLY has no registered media type
    ".png": "image/png",
    ".webp": "image/webp",
    ".hdr": "image/vnd.radiance",
    ".json": "application/json",
    ".html": "text/html; charset=utf-8",
    ".log": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".zip": "application/zip",
}


def publish(
    store: ObjectStore,
    folder: Path,
    job: Job,
    status: Status,
    *,
    threads: int,
    report: Callable[[float, str, dict[str, float]], None],
) -> Manifest:
    """Upload every file of a folder, then `manifest.json`.

    A manifest of an earlier attempt is removed first, so that none ever describes files half overwritten.

    Args:
        store: The result location.
        folder: Its files are the result.
        job: The job.
        status: Verdict, for the manifest.
        threads: Files uploaded at the same time.
        report: Progress; may raise JobCancelled, and no manifest is written then.

    Raises:
        AccessError, ResourceError: as the store.
    """
    store.delete(MANIFEST_NAME)
    if job.options.outputs.zip:
        _pack(folder)
    artifacts = [_describe(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
    done: list[str] = []

    def upload(artifact: Artifact) -> None:
        store.upload(folder / artifact.path, artifact.path, artifact.media_type)
        done.append(artifact.path)

    def tick() -> None:
        report(len(done) / (len(artifacts) + 1), f"{len(done)} of {len(artifacts)} files", {})

    run_parallel([partial(upload, artifact) for artifact in artifacts], threads, tick)
    manifest = Manifest(
        job_id=job.job_id,
        created_at=utc_now(),
        quality_status=status,
        files=sorted(artifacts, key=lambda artifact: artifact.path),
    )
    text = manifest.model_dump_json(indent=1)
    store.put_bytes(MANIFEST_NAME, text.encode("utf-8"), MEDIA_TYPES[".json"])
    return manifest


def keep_log(store: ObjectStore, log_file: Path) -> None:
    """Upload the log of an attempt that failed; its result is not complete, whatever lay there before.

    Raises:
        AccessError, ResourceError: as the store.
    """
    store.delete(MANIFEST_NAME)
    store.upload(log_file, LOG_KEY, MEDIA_TYPES[".log"])


def _describe(folder: Path, path: Path) -> Artifact:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(
        path=path.relative_to(folder).as_posix(),
        size=path.stat().st_size,
        sha256=digest,
        media_type=MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream"),
    )


def _pack(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ZIP_NAME)
    with zipfile.ZipFile(folder / ZIP_NAME, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.relative_to(folder).as_posix())
