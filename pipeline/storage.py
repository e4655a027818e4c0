"""Open object stores: S3 by boto3, `file://` by folder. The allow-list is checked here too."""

from __future__ import annotations

from pathlib import Path

from pipeline.objects import ObjectInfo, ObjectStore, OnBytes, check_key
from pipeline.settings import S3Settings
from pipeline.storage_file import FolderStore
from pipeline.storage_s3 import S3Store
from schemas.errors import AccessError, ErrorCode
from schemas.locations import Location, parse_location

__all__ = ["ObjectInfo", "ObjectStore", "OnBytes", "check_allowed", "check_key", "open_store"]


def open_store(location: str | Location, s3: S3Settings) -> ObjectStore:
    """The store rooted at `location`. Nothing is contacted yet.

    Raises:
        AccessError: LOCATION_NOT_ALLOWED: the text is not a location.
        ResourceError: STORAGE_UNAVAILABLE: the settings cannot make a client.
    """
    parsed = _parse(location) if isinstance(location, str) else location
    if parsed.scheme == "file":
        return FolderStore(parsed)
    return S3Store(parsed, s3)


def check_allowed(location: str, allowed: tuple[str, ...]) -> None:
    """Refuse a location that lies below none of the allowed ones.

    Prefixes match whole segments: `s3://recon/in` admits `s3://recon/in/a`, not `s3://recon/inputs`.
    `file://` locations are compared after symbolic links were followed.

    Raises:
        AccessError: LOCATION_NOT_ALLOWED.
    """
    target = _parse(location)
    if not any(_is_below(target, _parse(entry)) for entry in allowed):
        rule = "locations must lie below an entry of the worker's allow-list"
        raise AccessError(
            ErrorCode.LOCATION_NOT_ALLOWED,
            f"{location[:200]!r} is not on the worker's allow-list.",
            location=location[:200],
            rule=rule,
        )


def _parse(text: str) -> Location:
    try:
        return parse_location(text)
    except ValueError as error:
        raise AccessError(
            ErrorCode.LOCATION_NOT_ALLOWED,
            f"{text[:200]!r} is not a location: {error}.",
            location=text[:200],
            rule=str(error),
        ) from error


def _is_below(target: Location, allowed: Location) -> bool:
    if target.scheme != allowed.scheme or target.bucket != allowed.bucket:
        return False
    if target.scheme == "file":
        return Path(target.prefix).resolve().is_relative_to(Path(allowed.prefix).resolve())
    parts = [part for part in allowed.prefix.split("/") if part]
    return target.prefix.split("/")[: len(parts)] == parts
