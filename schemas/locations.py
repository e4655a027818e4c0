"""Where inputs and results lie: `s3://bucket/prefix`, or `file:///folder` for work on one machine."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field

MAX_LOCATION_LENGTH = 1024  # S3 keys end at 1024 bytes

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Location(NamedTuple):
    """A parsed location. For `file`, `bucket` is empty and `prefix` is an absolute path."""

    scheme: str
    bucket: str
    prefix: str

    def child(self, name: str) -> Location:
        """The location of `name` below this one."""
        return self._replace(prefix=f"{self.prefix.rstrip('/')}/{name}" if self.prefix else name)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}{'/' if self.bucket else ''}{self.prefix}"


def parse_location(text: str) -> Location:
    """Parse a location.

    Raises:
        ValueError: not a location, or one that could be read in two ways (`..`, empty or `.` segments,
            control characters, backslashes, a query or a fragment).
    """
    if len(text.encode()) > MAX_LOCATION_LENGTH:
        raise ValueError(f"location is longer than {MAX_LOCATION_LENGTH} bytes")
    if _CONTROL.search(text) or "\\" in text:
        raise ValueError("location holds a control character or a backslash")
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("s3", "file"):
        raise ValueError("location must start with s3:// or file://")
    if scheme == "file":
        path = unquote(urlsplit(text).path)
        if rest[:1] != "/" or _unsafe_segments(path.strip("/")) or _CONTROL.search(path):
            raise ValueError("file location must be an absolute path without . or .. segments")
        return Location("file", "", path.rstrip("/") or "/")
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"{bucket[:70]!r} is not a bucket name")
    prefix = prefix.strip("/")
    if prefix and _unsafe_segments(prefix):
        raise ValueError("prefix must not hold empty, . or .. segments")
    return Location("s3", bucket, prefix)


def _unsafe_segments(path: str) -> bool:
    return path != "" and any(part in ("", ".", "..") for part in path.split("/"))


def _check(text: str) -> str:
    parse_location(text)
    return text


LocationStr = Annotated[
    str, AfterValidator(_check), Field(max_length=MAX_LOCATION_LENGTH, examples=["s3://recon/inputs/spot"])
]
"""The text form of a location, checked."""
