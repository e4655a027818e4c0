"""The lock of the folder of weights: what was fetched, so that everything later can be measured by it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.reconviagen.weights_folder import fetch_command, read_json
from schemas.errors import ErrorCode, ModelError
from schemas.jobs import describe

LOCK_NAME = "weights.lock.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LockedFile(_Strict):
    """A file as it was fetched."""

    size: int = Field(ge=0, description="Bytes.")
    sha256: Sha256


class LockedRepository(_Strict):
    """A repository as it was fetched."""

    revision: str = Field(min_length=1, description="The commit.")
    updated: bool = Field(
        False, description="Whether somebody asked for another revision than the pinned one."
    )
    files: dict[str, LockedFile]


class Lock(_Strict):
    """What lies in the folder of weights, as it was when it was fetched."""

    version: int = Field(1, ge=1, le=1)
    repositories: dict[str, LockedRepository] = Field(default_factory=dict)

    def with_repository(self, name: str, entry: LockedRepository) -> Lock:
        """The lock with one repository's entry set."""
        return Lock(repositories={**self.repositories, name: entry})


def read_lock(root: Path) -> Lock | None:
    """The folder's lock, None where nothing was fetched yet.

    Raises:
        ModelError: MODEL_WEIGHTS_INVALID if it is damaged.
    """
    if not (root / LOCK_NAME).exists():
        return None
    try:
        lock = Lock.model_validate(read_json(root, LOCK_NAME))
    except ModelError as error:
        raise _damaged(root, error.message) from error
    except ValidationError as error:
        raise _damaged(root, describe(error)) from error
    except IsADirectoryError as error:
        raise _damaged(root, "it is a folder") from error
    for name, entry in lock.repositories.items():
        for path in (name, *(f"{name}/{file}" for file in entry.files)):
            if path.startswith("/") or ".." in path.split("/"):
                raise _damaged(root, f"it names {path!r}, and paths may not leave the folder")
    return lock


def _damaged(root: Path, problem: str) -> ModelError:
    """The error for a lock that cannot be used. Without it, large files that are right are still kept."""
    command = fetch_command(root)
    repair = f"Remove {root / LOCK_NAME} and run: {command}"
    return ModelError(
        ErrorCode.MODEL_WEIGHTS_INVALID,
        f"The lock of the weights is damaged: {problem.rstrip('.')}. {repair}",
        file=LOCK_NAME,
        rule="the lock follows its schema, and names files of its folder",
        command=command,
    )


def write_lock(root: Path, lock: Lock) -> None:
    """Write the folder's lock, at once or not at all."""
    partial = root / f"{LOCK_NAME}.partial"
    partial.write_text(lock.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial.replace(root / LOCK_NAME)


def measure(path: Path) -> LockedFile:
    """Size and SHA-256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return LockedFile(size=path.stat().st_size, sha256=digest)
