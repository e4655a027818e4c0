"""Parts of moving bytes that both kinds of store share: bounds, whole files, the sentences of refusals."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from pipeline.objects import TEMPORARY_PREFIX, OnBytes
from schemas.errors import AccessError, ErrorCode, InvalidJob

CHUNK_BYTES = 1024 * 1024
DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


class WholeFile:
    """Context manager: a file that takes its name only once it is completely written.

    Until then it lies beside it under a short name of its own, which no key can take.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{TEMPORARY_PREFIX}{uuid4().hex}")
        self._file: BinaryIO | None = None

    def __enter__(self) -> BinaryIO:
        self._file = self._partial.open("xb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._file is not None
        try:
            self._file.close()
            if kind is None:
                self._partial.replace(self._path)
        finally:
            with suppress(OSError):
                self._partial.unlink(missing_ok=True)


def copy_bounded(
    chunks: Iterable[bytes], target: BinaryIO, key: str, max_bytes: int, on_bytes: OnBytes | None
) -> int:
    """Write chunks to a file; returns their bytes.

    Raises:
        InvalidJob: INPUT_TOO_LARGE, once more than `max_bytes` have arrived, whatever was announced.
    """
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > max_bytes:
            raise too_large(key, max_bytes)
        target.write(chunk)
        if on_bytes is not None:
            on_bytes(len(chunk))
    return total


def too_large(key: str, max_bytes: int) -> InvalidJob:
    """The refusal of a file that is larger than its bound."""
    rule = f"a file may have at most {max_bytes} bytes"
    return InvalidJob(
        ErrorCode.INPUT_TOO_LARGE, f"{key!r} is too large: {rule}.", file=key, rule=rule, limit=max_bytes
    )


def not_found(key: str, rule: str) -> AccessError:
    """The refusal of a read of something that is not there."""
    return AccessError(ErrorCode.INPUT_NOT_FOUND, f"{key!r} was not found: {rule}.", file=key, rule=rule)
