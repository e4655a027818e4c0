"""S3 by boto3. The only module that sees botocore's exceptions; its texts hold no credentials and no URLs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
)
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from pipeline.objects import ObjectInfo, OnBytes, check_key
from pipeline.settings import S3Settings
from pipeline.transfer import CHUNK_BYTES, WholeFile, copy_bounded, not_found, too_large
from schemas.errors import AccessError, ErrorCode, ReconError, ResourceError
from schemas.locations import Location

LOGGER = logging.getLogger(__name__)

T = TypeVar("T")

_MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "NotFound", "404"})
_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "Forbidden", "403", "401", "Unauthorized"})
_BUSY = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException"})
_TRANSPORT = (ConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError)


class S3Store:
    """Objects below a prefix of a bucket.

    Args:
        location: An `s3` location; an empty prefix means the whole bucket.
        settings: How to reach the store.
    """

    def __init__(self, location: Location, settings: S3Settings) -> None:
        self._location = location
        self._bucket = location.bucket
        self._prefix = f"{location.prefix}/" if location.prefix else ""
        self._client = _make_client(settings)
        self._attempts = settings.attempts

    @property
    def location(self) -> Location:
        """The root."""
        return self._location

    def list(self) -> Iterator[ObjectInfo]:
        """Every object below the prefix, in pages of at most 1000."""
        token: str | None = None
        while True:
            page = self._list_page(token)
            for entry in page.get("Contents", []):
                yield ObjectInfo(entry["Key"][len(self._prefix) :], int(entry["Size"]))
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or token is None:
                return

    def get_bytes(self, key: str, *, max_bytes: int) -> bytes:
        """The content of a small object."""

        def read() -> bytes:
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"]
            try:
                data: bytes = body.read(max_bytes + 1)
            finally:
                body.close()
            if len(data) > max_bytes:
                raise too_large(key, max_bytes)
            return data

        return self._call("read", key, read)

    def download(self, key: str, path: Path, *, max_bytes: int, on_bytes: OnBytes | None = None) -> int:
        """Stream an object to `path`; a broken stream starts again from its beginning."""
        reported = 0

        def count(size: int) -> None:
            nonlocal reported
            reported += size
            if on_bytes is not None:
                on_bytes(size)

        def fetch() -> int:
            if reported:
                count(-reported)
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"]
            try:
                with WholeFile(path) as target:
                    return copy_bounded(body.iter_chunks(CHUNK_BYTES), target, key, max_bytes, count)
            finally:
                body.close()

        return self._call("read", key, fetch)

    def upload(self, path: Path, key: str, media_type: str) -> None:
        """Store a file of at most 5 GiB."""

        def send() -> None:
            with path.open("rb") as source:
                self._put(key, source, media_type)

        self._call("write", key, send)
        self._check_size(key, path.stat().st_size)

    def put_bytes(self, key: str, data: bytes, media_type: str) -> None:
        """Store a small object."""
        self._call("write", key, lambda: self._put(key, data, media_type))
        self._check_size(key, len(data))

    def delete(self, key: str) -> None:
        """Remove an object; none there is fine."""
        try:
            self._call(
                "delete", key, lambda: self._client.delete_object(Bucket=self._bucket, Key=self._key(key))
            )
        except AccessError as error:
            if error.code is not ErrorCode.INPUT_NOT_FOUND:
                raise

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _put(self, key: str, body: Any, media_type: str) -> None:
        self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=body, ContentType=media_type)

    def _list_page(self, token: str | None) -> dict[str, Any]:
        arguments: dict[str, str] = {"Bucket": self._bucket, "Prefix": self._prefix}
        if token is not None:
            arguments["ContinuationToken"] = token
        return self._call("list", "", lambda: self._client.list_objects_v2(**arguments))

    def _size(self, key: str) -> int:
        head = self._call(
            "read", key, lambda: self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        )
        return int(head["ContentLength"])

    def _check_size(self, key: str, expected: int) -> None:
        # Some stores write the SDK's chunk framing into the object (boto3#4435): a success proves little.
        stored = self._size(key)
        if stored != expected:
            raise ResourceError(
                ErrorCode.STORAGE_UNAVAILABLE,
                f"The object storage kept {stored} bytes of {key!r} instead of {expected}.",
                file=key,
                rule="what is stored must be what was sent",
            )

    def _call(self, action: str, key: str, function: Callable[[], T]) -> T:
        retrying = Retrying(
            retry=retry_if_exception(_is_transient),
            stop=stop_after_attempt(self._attempts),
            wait=wait_random_exponential(multiplier=0.25, max=5.0),
            before_sleep=_log_retry,
            reraise=True,
        )
        try:
            return retrying(function)
        except (ClientError, BotoCoreError) as error:
            raise self._translate(error, action, key) from error

    def _translate(self, error: ClientError | BotoCoreError, action: str, key: str) -> ReconError:
        reason = _reason(error)
        name = str(self._location.child(key)) if key else str(self._location)
        if reason == "NoSuchBucket" or (reason in _MISSING and not key):
            return not_found(name, "the bucket must exist")
        if reason in _MISSING:
            return not_found(name, "the object must exist")
        if reason in _DENIED:
            return AccessError(
                ErrorCode.LOCATION_NOT_ALLOWED,
                f"The object storage does not let the worker {action} {name!r}.",
                location=name,
                rule=f"the worker needs permission to {action}",
            )
        return ResourceError(
            ErrorCode.STORAGE_UNAVAILABLE,
            f"The object storage could not {action} {name!r} ({reason}).",
            location=name,
            reason=reason,
        )


@lru_cache(maxsize=8)
def _make_client(settings: S3Settings) -> Any:
    config = Config(
        # The newer default of always sending checksums breaks stores other than AWS (boto3#4392).
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if settings.path_style else "auto"},
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        retries={"total_max_attempts": 1, "mode": "standard"},  # tried again here, streams included
        max_pool_connections=16,
    )
    try:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise ResourceError(
            ErrorCode.STORAGE_UNAVAILABLE,
            f"The settings of the object storage cannot be used ({type(error).__name__}).",
        ) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "unknown"))[:64]
    return type(error).__name__


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return _reason(error) in _BUSY or status == 429 or status >= 500
    return isinstance(error, _TRANSPORT)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    LOGGER.warning(
        "object storage: attempt %d failed (%s)", state.attempt_number, _reason(error) if error else "?"
    )
