"""The error taxonomy: every refusal and failure has one code, one sentence and one class.

    BaseException
    ├── JobCancelled                 a cancel was asked for; no `except Exception` may eat it
    └── Exception
        └── ReconError               code, message, details
            ├── InvalidJob           the message or its input is wrong; no retry can help
            ├── AccessError          a location is not allowed or not there
            ├── ConflictError        the request does not fit the job's state
            ├── ModelError           the reconstruction failed on input that looked right
            └── ResourceError        something around the job failed
                └── EngineDied       the engine process is gone (raised by the control plane only)

Whether a retry may help belongs to the code, not to the class: see `CODES`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from pydantic import Field, JsonValue

from schemas.base import Published


class ErrorCode(StrEnum):
    """Every code that a `failed` event, a job record or the CLI can carry."""

    INVALID_MESSAGE = "INVALID_MESSAGE"
    UNSUPPORTED_SCHEMA_VERSION = "UNSUPPORTED_SCHEMA_VERSION"
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    INVALID_OPTIONS = "INVALID_OPTIONS"
    TOO_FEW_VIEWS = "TOO_FEW_VIEWS"
    VIEW_MISSING = "VIEW_MISSING"
    VIEW_MISMATCH = "VIEW_MISMATCH"
    INVALID_IMAGE = "INVALID_IMAGE"
    UNSUPPORTED_IMAGE_FORMAT = "UNSUPPORTED_IMAGE_FORMAT"
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
    INPUT_TOO_LARGE = "INPUT_TOO_LARGE"
    INVALID_DEPTH = "INVALID_DEPTH"
    INVALID_CAMERAS = "INVALID_CAMERAS"
    MASK_MISSING = "MASK_MISSING"

    LOCATION_NOT_ALLOWED = "LOCATION_NOT_ALLOWED"
    PATH_NOT_ALLOWED = "PATH_NOT_ALLOWED"
    INPUT_NOT_FOUND = "INPUT_NOT_FOUND"
    JOB_NOT_FOUND = "JOB_NOT_FOUND"

    JOB_ALREADY_FINISHED = "JOB_ALREADY_FINISHED"
    CANCEL_TOKEN_INVALID = "CANCEL_TOKEN_INVALID"
    CANCEL_TOKEN_EXPIRED = "CANCEL_TOKEN_EXPIRED"

    CAMERA_ESTIMATION_FAILED = "CAMERA_ESTIMATION_FAILED"
    MODEL_WEIGHTS_MISSING = "MODEL_WEIGHTS_MISSING"
    MODEL_WEIGHTS_INVALID = "MODEL_WEIGHTS_INVALID"
    MODEL_VRAM_OOM = "MODEL_VRAM_OOM"
    MODEL_DIVERGED = "MODEL_DIVERGED"
    MODEL_CRASHED = "MODEL_CRASHED"
    QUALITY_BELOW_THRESHOLD = "QUALITY_BELOW_THRESHOLD"
    TIME_LIMIT_EXCEEDED = "TIME_LIMIT_EXCEEDED"

    STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"
    BROKER_UNAVAILABLE = "BROKER_UNAVAILABLE"
    DISK_FULL = "DISK_FULL"
    HOST_OUT_OF_MEMORY = "HOST_OUT_OF_MEMORY"
    GPU_UNAVAILABLE = "GPU_UNAVAILABLE"
    GPU_TOO_SMALL = "GPU_TOO_SMALL"
    INTERNAL_ERROR = "INTERNAL_ERROR"


class CodeInfo(NamedTuple):
    """What is fixed for one code."""

    http_status: int
    """What an HTTP gateway in front of the worker would answer with."""
    retryable: bool
    """Whether the same job may succeed if it is simply run again."""
    summary: str
    """One sentence for people; an error's own message says more."""


CODES: dict[ErrorCode, CodeInfo] = {
    ErrorCode.INVALID_MESSAGE: CodeInfo(400, False, "The message is not a valid job or control message."),
    ErrorCode.UNSUPPORTED_SCHEMA_VERSION: CodeInfo(
        400, False, "The message's schema version is not one this worker reads."
    ),
    ErrorCode.UNKNOWN_MODEL: CodeInfo(400, False, "The job names a model that does not exist."),
    ErrorCode.INVALID_OPTIONS: CodeInfo(422, False, "The job's options are not valid for its model."),
    ErrorCode.TOO_FEW_VIEWS: CodeInfo(422, False, "The input holds fewer views than the job requires."),
    ErrorCode.VIEW_MISSING: CodeInfo(
        422, False, "The frames of transforms.json and the files of the input do not match up."
    ),
    ErrorCode.VIEW_MISMATCH: CodeInfo(
        422, False, "A mask, a depth map or stated sizes do not fit the image they belong to."
    ),
    ErrorCode.INVALID_IMAGE: CodeInfo(422, False, "An image file is damaged."),
    ErrorCode.UNSUPPORTED_IMAGE_FORMAT: CodeInfo(422, False, "A file is not a PNG, JPEG or WebP image."),
    ErrorCode.IMAGE_TOO_LARGE: CodeInfo(422, False, "An image has more pixels than the worker accepts."),
    ErrorCode.INPUT_TOO_LARGE: CodeInfo(
        422, False, "The input has more files or bytes than the worker accepts."
    ),
    ErrorCode.INVALID_DEPTH: CodeInfo(422, False, "A depth map cannot be used."),
    ErrorCode.INVALID_CAMERAS: CodeInfo(422, False, "The cameras cannot be used."),
    ErrorCode.MASK_MISSING: CodeInfo(422, False, "No mask of the object is given, and none can be derived."),
    ErrorCode.LOCATION_NOT_ALLOWED: CodeInfo(403, False, "The location is not on the worker's allow-list."),
    ErrorCode.PATH_NOT_ALLOWED: CodeInfo(403, False, "A path in the input leaves its prefix."),
    ErrorCode.INPUT_NOT_FOUND: CodeInfo(404, False, "There are no images at the input location."),
    ErrorCode.JOB_NOT_FOUND: CodeInfo(404, False, "No such job is known."),
    ErrorCode.JOB_ALREADY_FINISHED: CodeInfo(409, False, "The job has already finished."),
    ErrorCode.CANCEL_TOKEN_INVALID: CodeInfo(409, False, "The cancel token does not belong to this job."),
    ErrorCode.CANCEL_TOKEN_EXPIRED: CodeInfo(410, False, "The cancel token is too old; request a new one."),
    ErrorCode.CAMERA_ESTIMATION_FAILED: CodeInfo(422, False, "The cameras could not be estimated."),
    ErrorCode.MODEL_WEIGHTS_MISSING: CodeInfo(
        500, False, "The model's weights are not installed on this worker."
    ),
    ErrorCode.MODEL_WEIGHTS_INVALID: CodeInfo(
        500, False, "The model's weights are damaged or are not those of this model."
    ),
    ErrorCode.MODEL_VRAM_OOM: CodeInfo(500, True, "The GPU ran out of memory."),
    ErrorCode.MODEL_DIVERGED: CodeInfo(500, False, "The optimisation did not converge to a surface."),
    ErrorCode.MODEL_CRASHED: CodeInfo(500, True, "The engine process died while it worked on the job."),
    ErrorCode.QUALITY_BELOW_THRESHOLD: CodeInfo(
        422, False, "The reconstruction was made but does not match its input views well enough."
    ),
    ErrorCode.TIME_LIMIT_EXCEEDED: CodeInfo(500, False, "The job ran longer than its time limit."),
    ErrorCode.STORAGE_UNAVAILABLE: CodeInfo(503, True, "The object storage could not be reached."),
    ErrorCode.BROKER_UNAVAILABLE: CodeInfo(503, True, "The message broker could not be reached."),
    ErrorCode.DISK_FULL: CodeInfo(507, True, "The worker's disk is full."),
    ErrorCode.HOST_OUT_OF_MEMORY: CodeInfo(507, True, "The worker ran out of memory."),
    ErrorCode.GPU_UNAVAILABLE: CodeInfo(503, True, "The worker's GPU cannot be used."),
    ErrorCode.GPU_TOO_SMALL: CodeInfo(503, False, "The worker's GPU has too little memory for the model."),
    ErrorCode.INTERNAL_ERROR: CodeInfo(500, True, "The worker failed in a way nobody foresaw."),
}


class ErrorInfo(Published):
    """An error as it travels in events, records and the CLI's JSON output."""

    code: ErrorCode = Field(description="Stable, for programs.")
    message: str = Field(
        description="One or two sentences for people: what is wrong, where, and the rule it broke."
    )
    details: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="The same facts for programs, such as `file`, `rule`, `limit`, `actual`.",
    )
    retryable: bool = Field(description="Whether the same job may succeed if it is run again.")
    http_status: int = Field(description="What an HTTP gateway would answer with.")


class ReconError(Exception):
    """Base of all errors that this project raises on purpose.

    Args:
        code: What happened.
        message: For people; the code's own summary where it is left out.
        details: JSON values for programs. Never secrets, never presigned URLs.
    """

    def __init__(self, code: ErrorCode, message: str | None = None, **details: JsonValue) -> None:
        self.code = code
        self.message = message or CODES[code].summary
        self.details = details
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross the pipe from the engine; the default reduction would lose the keyword details.
        return _rebuild, (type(self), self.code, self.message, self.details)

    @property
    def retryable(self) -> bool:
        """Whether the same job may succeed if it is run again."""
        return CODES[self.code].retryable

    def info(self) -> ErrorInfo:
        """The error as a message."""
        return ErrorInfo(
            code=self.code,
            message=self.message,
            details=self.details,
            retryable=self.retryable,
            http_status=CODES[self.code].http_status,
        )


def _rebuild(
    cls: type[ReconError], code: ErrorCode, message: str, details: dict[str, JsonValue]
) -> ReconError:
    return cls(code, message, **details)


class InvalidJob(ReconError):
    """The message or its input is wrong; no retry can help."""


class AccessError(ReconError):
    """A location is not allowed or not there."""


class ConflictError(ReconError):
    """The request does not fit the job's state."""


class ModelError(ReconError):
    """The reconstruction failed on input that looked right."""


class ResourceError(ReconError):
    """Something around the job failed: storage, memory, disk, GPU."""


class EngineDied(ResourceError):
    """The engine process is gone. Raised by the control plane only."""


class JobCancelled(BaseException):
    """A cancel was asked for. Derives from `BaseException` so that `except Exception` cannot eat it.

    Args:
        reason: Who asked: `user` or `shutdown`.
    """

    def __init__(self, reason: str = "user") -> None:
        self.reason = reason
        super().__init__(reason)
