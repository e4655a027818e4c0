"""What an object store is, and which keys are fit to become paths."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from schemas.errors import AccessError, ErrorCode
from schemas.locations import Location

MAX_KEY_LENGTH = 512

MAX_SEGMENT_LENGTH = 255
"""Bytes of one name between slashes: what the file systems of Linux, macOS and Windows take."""

TEMPORARY_PREFIX = ".recon-part-"
"""How the names of files that are still being written start; no key may hold such a name."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

OnBytes = Callable[[int], None]
"""Called after every chunk with its size in bytes; it may raise, for a cancel.

A download that starts again first takes back what it reported, as one negative size: the sum never counts a
byte twice.
"""


class ObjectInfo(NamedTuple):
    """One object: its key below the store's root, and its size in bytes."""

    key: str
    size: int


class ObjectStore(Protocol):
    """Objects below one location. Keys are relative to it and use forward slashes.

    Every method raises AccessError (INPUT_NOT_FOUND for a missing object or bucket, LOCATION_NOT_ALLOWED
    where access is denied, PATH_NOT_ALLOWED for a key that leaves the location) or ResourceError
    (STORAGE_UNAVAILABLE). Methods may be called from several threads.
    """

    @property
    def location(self) -> Location:
        """The root."""

    def list(self) -> Iterator[ObjectInfo]:
        """Every object below the root, page by page; keys are not checked yet."""

    def get_bytes(self, key: str, *, max_bytes: int) -> bytes:
        """The content of a small object.

        Raises:
            InvalidJob: INPUT_TOO_LARGE, as soon as more than `max_bytes` have arrived.
        """

    def download(self, key: str, path: Path, *, max_bytes: int, on_bytes: OnBytes | None = None) -> int:
        """Write an object to `path`, which appears only once it is whole; returns its bytes.

        Raises:
            InvalidJob: INPUT_TOO_LARGE, as soon as more than `max_bytes` have arrived.
        """

    def upload(self, path: Path, key: str, media_type: str) -> None:
        """Store a file and check the size that the store then reports."""

    def put_bytes(self, key: str, data: bytes, media_type: str) -> None:
        """Store a small object and check the size that the store then reports."""

    def delete(self, key: str) -> None:
        """Remove an object; none there is fine."""


def check_key(key: str) -> str:
    """A key from outside, if it is a plain relative path with forward slashes.

    Raises:
        AccessError: PATH_NOT_ALLOWED, with the rule it broke.
    """
    rule = _broken_rule(key)
    if rule is not None:
        shown = key[:200].encode("unicode_escape").decode("ascii")
        raise AccessError(
            ErrorCode.PATH_NOT_ALLOWED, f"The path {shown!r} is refused: {rule}.", file=shown, rule=rule
        )
    return key


def _broken_rule(key: str) -> str | None:
    rules: tuple[tuple[bool, str], ...] = (
        (key == "", "a path must not be empty"),
        (len(key.encode("utf-8", "replace")) > MAX_KEY_LENGTH, f"a path has at most {MAX_KEY_LENGTH} bytes"),
        (
            any(len(part.encode("utf-8", "replace")) > MAX_SEGMENT_LENGTH for part in key.split("/")),
            f"a name in a path has at most {MAX_SEGMENT_LENGTH} bytes",
        ),
        (_CONTROL.search(key) is not None, "a path must not hold control characters"),
        (any("\ud800" <= c <= "\udfff" for c in key), "a path must be valid Unicode"),
        ("\\" in key, "a path uses forward slashes"),
        (key.startswith(("/", "~")), "a path must be relative to the input prefix"),
        (_SCHEME.match(key) is not None, "a path must not name a drive or a scheme"),
        (any(part == ".." for part in key.split("/")), "a path must not leave the input prefix by '..'"),
        (any(part in ("", ".") for part in key.split("/")), "a path must not hold empty or '.' segments"),
        (
            any(part.casefold().startswith(TEMPORARY_PREFIX) for part in key.split("/")),
            f"names that start with '{TEMPORARY_PREFIX}' belong to files that are still being written",
        ),
    )
    return next((rule for broken, rule in rules if broken), None)


def check_distinct(keys: Iterable[str]) -> None:
    """Refuse keys that cannot lie side by side in one folder on every file system.

    Raises:
        AccessError: PATH_NOT_ALLOWED: two keys differ only in case or Unicode form, or one is a folder of
            another.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for key in keys:
        folded = unicodedata.normalize("NFC", key).casefold()
        parts = folded.split("/")
        parents = ["/".join(parts[:i]) for i in range(1, len(parts))]
        other = files.get(folded) or folders.get(folded)
        other = other or next((files[parent] for parent in parents if parent in files), None)
        if other is not None:
            rule = "names must stay distinct on every file system"
            raise AccessError(
                ErrorCode.PATH_NOT_ALLOWED, f"{key!r} collides with {other!r}: {rule}.", file=key, rule=rule
            )
        files[folded] = key
        for parent in parents:
            folders.setdefault(parent, key)
