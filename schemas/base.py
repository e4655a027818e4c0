"""What every message model shares: strictness, versions, times, bounded free-form metadata."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, PlainSerializer

SCHEMA_VERSION: Literal["1.0"] = "1.0"

MAX_METADATA_KEYS = 64
MAX_METADATA_DEPTH = 4


def _to_utc(value: datetime) -> datetime:
    return value.astimezone(UTC)


def format_time(value: datetime) -> str:
    """RFC 3339 in UTC with a `Z`, as CloudEvents asks."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def utc_now() -> datetime:
    """The current time, aware and in UTC."""
    return datetime.now(UTC)


UtcDateTime = Annotated[
    AwareDatetime, AfterValidator(_to_utc), PlainSerializer(format_time, return_type=str, when_used="json")
]
"""A time with an offset, kept in UTC. A time without an offset is refused: nobody can know what it means."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A float that is neither infinite nor NaN: JSON has no such numbers."""


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(v) for v in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_depth(v) for v in value), default=0)
    return 0


def _check_metadata(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if len(value) > MAX_METADATA_KEYS:
        raise ValueError(f"metadata has {len(value)} keys, at most {MAX_METADATA_KEYS} are echoed")
    if _depth(value) > MAX_METADATA_DEPTH:
        raise ValueError(f"metadata is nested deeper than {MAX_METADATA_DEPTH} levels")
    return value


Metadata = Annotated[dict[str, JsonValue], AfterValidator(_check_metadata)]
"""The producer's own data, echoed unchanged in every event and in the job's record."""


class Received(BaseModel):
    """A message that comes from outside: immutable, and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Published(BaseModel):
    """A message that we write: immutable. Readers ignore fields they do not know, so that it may grow."""

    model_config = ConfigDict(extra="ignore", frozen=True)
