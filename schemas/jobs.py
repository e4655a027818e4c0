"""The job message: what a producer publishes to `recon.jobs` with routing key `job.<model>`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from pydantic import Field, TypeAdapter, ValidationError

from schemas.base import SCHEMA_VERSION, Metadata, Received, UtcDateTime, utc_now
from schemas.errors import ErrorCode, InvalidJob
from schemas.locations import LocationStr
from schemas.options import NvdiffrecOptions, ReconviagenOptions

ModelName = Literal["nvdiffrec", "reconviagen"]
MODELS: tuple[ModelName, ...] = ("nvdiffrec", "reconviagen")

MAX_MESSAGE_BYTES = 256 * 1024
MAX_JSON_DEPTH = 32


class BaseJob(Received):
    """The fields that jobs of every model share."""

    schema_version: Literal["1.0"] = Field(SCHEMA_VERSION, description="Version of this message's schema.")
    job_id: UUID = Field(default_factory=uuid4, description="The idempotency key, chosen by the producer.")
    input: LocationStr = Field(
        description="Prefix that holds `images/` and, optionally, depth, masks, cameras."
    )
    output: LocationStr = Field(description="Prefix below which `<job_id>/` is written.")
    batch_id: str | None = Field(None, max_length=128, description="Groups jobs; echoed in every event.")
    metadata: Metadata = Field(
        default_factory=dict, description="The producer's own data; echoed in every event."
    )
    created_at: UtcDateTime = Field(default_factory=utc_now, description="When the producer made the job.")
    time_limit_s: float = Field(
        3600.0, gt=0, le=86400, description="Longest time one attempt may run, seconds."
    )


class NvdiffrecJob(BaseJob):
    """A job for `nvdiffrec`."""

    model: Literal["nvdiffrec"] = "nvdiffrec"
    options: NvdiffrecOptions = NvdiffrecOptions()


class ReconviagenJob(BaseJob):
    """A job for `reconviagen`."""

    model: Literal["reconviagen"] = "reconviagen"
    options: ReconviagenOptions = ReconviagenOptions()


Job = NvdiffrecJob | ReconviagenJob

JOB_ADAPTER: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="model")])


def routing_key(model: ModelName) -> str:
    """The routing key with which a job for `model` is published."""
    return f"job.{model}"


def load_json(body: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES, max_depth: int = MAX_JSON_DEPTH) -> Any:
    """Parse JSON from outside, bounded in size and depth; `NaN` and `Infinity` are refused.

    Raises:
        ValueError: with a sentence that says which bound or rule was broken.
    """
    if len(body) > max_bytes:
        raise ValueError(f"JSON of {len(body)} bytes, at most {max_bytes} are read")
    text = body.decode("utf-8")
    # Brackets inside strings count too; that only makes the bound stricter, and it needs no parser.
    depth = deepest = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    if deepest > max_depth:
        raise ValueError(f"JSON is nested {deepest} levels deep, at most {max_depth} are read")
    data = json.loads(text, parse_constant=_refuse_constant)
    # A lone surrogate parses but can never be written again: refuse it here (UnicodeEncodeError).
    json.dumps(data, ensure_ascii=False).encode("utf-8")
    return data


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def describe(error: ValidationError) -> str:
    """The first problem of a validation error in one sentence, with the place where it is."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"] if part not in MODELS) or "message"
    more = error.error_count() - 1
    what = "there is nothing of that name here" if first["type"] == "extra_forbidden" else first["msg"]
    return f"{place}: {what}" + (f" (and {more} more)" if more else "")


def parse_job(body: bytes) -> Job:
    """Parse and check a job message.

    Raises:
        InvalidJob: INVALID_MESSAGE, UNSUPPORTED_SCHEMA_VERSION, UNKNOWN_MODEL or INVALID_OPTIONS.
    """
    try:
        data = load_json(body)
    except (ValueError, RecursionError) as error:
        raise InvalidJob(ErrorCode.INVALID_MESSAGE, f"The job is not readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise InvalidJob(ErrorCode.INVALID_MESSAGE, "The job must be a JSON object.")
    version = data.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise InvalidJob(
            ErrorCode.UNSUPPORTED_SCHEMA_VERSION,
            f"schema_version {str(version)[:20]!r} is not supported; this worker reads {SCHEMA_VERSION!r}.",
            supported=[SCHEMA_VERSION],
        )
    if data.get("model") not in MODELS:
        name = str(data.get("model"))[:64]
        raise InvalidJob(
            ErrorCode.UNKNOWN_MODEL,
            f"model {name!r} does not exist; choose one of {', '.join(MODELS)}.",
            model=name,
            models=list(MODELS),
        )
    try:
        return JOB_ADAPTER.validate_python(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        in_options = all("options" in problem["loc"][:2] for problem in problems)
        code = ErrorCode.INVALID_OPTIONS if in_options else ErrorCode.INVALID_MESSAGE
        fields = [".".join(map(str, problem["loc"][1:])) for problem in problems[:20]]
        raise InvalidJob(code, describe(error), fields=list(fields)) from error


def read_job_id(body: bytes) -> UUID | None:
    """The job id of a message that may be invalid otherwise, so that its failure can be reported."""
    try:
        return UUID(load_json(body)["job_id"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
