"""Control messages, published to the queue `recon.control`: the two steps of a cancel."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, TypeAdapter, ValidationError

from schemas.base import SCHEMA_VERSION, Received
from schemas.errors import ErrorCode, InvalidJob
from schemas.jobs import describe, load_json


class CancelRequest(Received):
    """Step one: answered by a `cancel_requested` event with a token."""

    type: Literal["cancel.request"] = "cancel.request"
    schema_version: Literal["1.0"] = Field(SCHEMA_VERSION, description="Version of this message's schema.")
    job_id: UUID = Field(description="The job to cancel.")
    reason: str = Field("", max_length=500, description="For people; echoed in the log.")


class CancelConfirm(Received):
    """Step two: cancels the job if the token is its own and still alive."""

    type: Literal["cancel.confirm"] = "cancel.confirm"
    schema_version: Literal["1.0"] = Field(SCHEMA_VERSION, description="Version of this message's schema.")
    job_id: UUID = Field(description="The job to cancel.")
    token: str = Field(min_length=16, max_length=256, description="From the `cancel_requested` event.")


Control = CancelRequest | CancelConfirm

CONTROL_ADAPTER: TypeAdapter[Control] = TypeAdapter(Annotated[Control, Field(discriminator="type")])


def parse_control(body: bytes) -> Control:
    """Parse and check a control message.

    Raises:
        InvalidJob: INVALID_MESSAGE.
    """
    try:
        return CONTROL_ADAPTER.validate_python(load_json(body))
    except ValidationError as error:
        raise InvalidJob(ErrorCode.INVALID_MESSAGE, describe(error)) from error
    except (ValueError, RecursionError) as error:
        raise InvalidJob(
            ErrorCode.INVALID_MESSAGE, f"The control message is not readable JSON: {error}"
        ) from error
