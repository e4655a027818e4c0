"""`file://` locations: objects are files below one folder. No link may lead out of it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.objects import TEMPORARY_PREFIX, ObjectInfo, OnBytes, check_key
from pipeline.transfer import CHUNK_BYTES, DISK_FULL_ERRNOS, WholeFile, copy_bounded, not_found, too_large
from schemas.errors import AccessError, ErrorCode, ResourceError
from schemas.locations import Location

_DENIED_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class FolderStore:
    """Objects as files below a folder.

    Args:
        location: A `file` location; the folder need not exist until something is read.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._root = Path(location.prefix)

    @property
    def location(self) -> Location:
        """The root."""
        return self._location

    def list(self) -> Iterator[ObjectInfo]:
        """Every regular file below the root, in sorted order of folders; none that is still being written."""
        if not self._root.is_dir():
            raise not_found(str(self._location), "the folder must exist")
        for folder, names, files in os.walk(self._root):
            names.sort()
            for name in names:
                self._inside(Path(folder) / name)
            for name in sorted(name for name in files if not name.startswith(TEMPORARY_PREFIX)):
                path = self._inside(Path(folder) / name)
                if path.is_file():
                    key = (Path(folder) / name).relative_to(self._root).as_posix()
                    yield ObjectInfo(key, path.stat().st_size)

    def get_bytes(self, key: str, *, max_bytes: int) -> bytes:
        """The content of a small object."""
        with self._open(key) as source:
            data = source.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise too_large(key, max_bytes)
        return data

    def download(self, key: str, path: Path, *, max_bytes: int, on_bytes: OnBytes | None = None) -> int:
        """Copy an object to `path`."""
        with self._open(key) as source, WholeFile(path) as target:
            return copy_bounded(iter(lambda: source.read(CHUNK_BYTES), b""), target, key, max_bytes, on_bytes)

    def upload(self, path: Path, key: str, media_type: str) -> None:
        """Copy a file into the folder."""
        with path.open("rb") as source, _translated("write", key), self._create(key) as target:
            shutil.copyfileobj(source, target, CHUNK_BYTES)

    def put_bytes(self, key: str, data: bytes, media_type: str) -> None:
        """Write a small object."""
        with _translated("write", key), self._create(key) as target:
            target.write(data)

    def delete(self, key: str) -> None:
        """Remove an object; none there is fine."""
        with _translated("delete", key):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._inside(self._root / check_key(key))

    def _inside(self, path: Path) -> Path:
        resolved = path.resolve()
        if not resolved.is_relative_to(self._root.resolve()):
            key = path.relative_to(self._root).as_posix()
            rule = "a link must not lead out of the folder"
            raise AccessError(ErrorCode.PATH_NOT_ALLOWED, f"{key!r} is refused: {rule}.", file=key, rule=rule)
        return resolved

    def _open(self, key: str) -> BinaryIO:
        path = self._path(key)
        with _translated("read", key):
            if not path.is_file():
                raise not_found(key, "the file must exist")
            return path.open("rb")

    def _create(self, key: str) -> WholeFile:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return WholeFile(path)


@contextmanager
def _translated(action: str, key: str) -> Iterator[None]:
    """What the file system refuses inside of the block, in the taxonomy; a full disk passes as it is."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise
        if error.errno in _DENIED_ERRNOS:
            raise AccessError(
                ErrorCode.LOCATION_NOT_ALLOWED,
                f"The worker may not {action} {key!r}.",
                file=key,
                rule=f"the worker needs permission to {action}",
            ) from error
        reason = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise ResourceError(
            ErrorCode.STORAGE_UNAVAILABLE,
            f"The folder could not {action} {key!r} ({reason}).",
            file=key,
            reason=reason,
        ) from error
