"""From the bytes of a delivery to a checked job, and THE table from outcome to acknowledgement.

Order of what the table asks for, always: record, event (confirmed), dead-letter copy (confirmed), settlement.
So a crash in between repeats work or an event, but loses nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from pydantic import ValidationError

from pipeline.record import result_location
from pipeline.storage import check_allowed
from schemas.errors import AccessError, ErrorInfo, InvalidJob
from schemas.jobs import BaseJob, Job, load_json, parse_job, read_job_id
from schemas.locations import Location, parse_location
from schemas.results import JobState

HEADER_REASON = "x-recon-reason"
HEADER_ERROR = "x-recon-error"
HEADER_QUEUE = "x-recon-queue"

MAX_HEADER_TEXT = 1000  # characters: AMQP headers share one frame


class Delivery(Protocol):
    """One unacknowledged message."""

    @property
    def body(self) -> bytes:
        """The message."""

    @property
    def queue(self) -> str:
        """Name of the queue that it came from."""

    @property
    def message_id(self) -> str | None:
        """The AMQP property `message_id`."""

    @property
    def headers(self) -> Mapping[str, object]:
        """The AMQP headers."""

    async def ack(self) -> None:
        """The outcome is durable; forget the message."""

    async def requeue(self) -> None:
        """Give the message back to its queue."""


class Settlement(StrEnum):
    """What becomes of the message itself."""

    ACK = "ack"
    REQUEUE = "requeue"
    """By `basic.nack`. RabbitMQ before 4.3 counts it, so only for what our own count of attempts bounds."""
    REPUBLISH = "republish"
    """A copy to the end of the queue, confirmed, then ack: counts nowhere, so it may be done without end."""


class Ending(StrEnum):
    """Every way in which the handling of a delivery can end."""

    COMPLETED = "completed"
    FAILED = "failed"
    """By an error that no retry can cure."""
    EXHAUSTED = "exhausted"
    """By an error that a retry might have cured, at the last attempt."""
    CANCELLED = "cancelled"
    RETRY = "retry"
    """An error that a retry may cure; attempts are left."""
    SHUTDOWN = "shutdown"
    """The worker stops before the job is done; the attempt does not count."""
    REFUSED = "refused"
    """Before the first attempt, and there is no record: message or output location are not valid."""
    UNREADABLE = "unreadable"
    """As before, and the message does not even say which job it is."""
    INTRUDER = "intruder"
    """Refused, and it bears the id of another job, whose outcome it must not touch."""
    REPEATED = "repeated"
    """The outcome was decided before; its event is published again."""
    VANISHED = "vanished"
    """As before, but the result was removed or damaged since, so that there is nothing left to repeat."""
    NO_STORAGE = "no_storage"
    """The record can be neither read nor written."""


class Rule(NamedTuple):
    """What an ending demands."""

    record: JobState | None
    """State that `job.json` gets; None leaves it as it is."""
    event: str | None
    """Event that is published with confirm, without the prefix `recon.job.`."""
    dead_letter: bool
    """Whether a copy goes to the dead-letter queue, with the reason in its headers."""
    settlement: Settlement


TABLE: Mapping[Ending, Rule] = MappingProxyType(
    {
        Ending.COMPLETED: Rule("completed", "completed", False, Settlement.ACK),
        Ending.FAILED: Rule("failed", "failed", False, Settlement.ACK),
        Ending.EXHAUSTED: Rule("failed", "failed", True, Settlement.ACK),
        Ending.CANCELLED: Rule("cancelled", "cancelled", False, Settlement.ACK),
        Ending.RETRY: Rule("requeued", "requeued", False, Settlement.REQUEUE),
        Ending.SHUTDOWN: Rule("requeued", "requeued", False, Settlement.REPUBLISH),
        Ending.REFUSED: Rule(None, "failed", True, Settlement.ACK),
        Ending.UNREADABLE: Rule(None, "failed", True, Settlement.ACK),
        Ending.INTRUDER: Rule(None, None, True, Settlement.ACK),
        Ending.REPEATED: Rule(None, "terminal", False, Settlement.ACK),
        Ending.VANISHED: Rule(None, None, False, Settlement.ACK),
        Ending.NO_STORAGE: Rule(None, None, False, Settlement.REPUBLISH),
    }
)


@dataclass(frozen=True)
class Refusal:
    """A message that will never be computed.

    Attributes:
        job_id: None where not even that could be read.
        error: Why.
        digest: Of the message, so that a redelivery repeats the same event.
        job: The job, where the message was a valid one.
        result: Where the job's record lies; None where the message does not say so, or that is not allowed.
        batch_id: As in the message, where it is valid.
        metadata: As in the message, where it is valid.
    """

    job_id: UUID | None
    error: ErrorInfo
    digest: str
    job: Job | None = field(default=None, repr=False)
    result: Location | None = None
    batch_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def open_delivery(
    delivery: Delivery, allowed_inputs: tuple[str, ...], allowed_outputs: tuple[str, ...]
) -> Job | Refusal:
    """The job of a delivery, checked as far as that is possible without touching any storage."""
    digest = hashlib.sha256(delivery.body).hexdigest()
    try:
        job = parse_job(delivery.body)
    except InvalidJob as error:
        return _refuse_invalid(delivery.body, error.info(), digest, allowed_outputs)
    result: Location | None = None
    try:
        check_allowed(job.output, allowed_outputs)
        result = result_location(job)
        check_allowed(job.input, allowed_inputs)
    except AccessError as error:
        return Refusal(job.job_id, error.info(), digest, job, result, job.batch_id, job.metadata)
    return job


def _refuse_invalid(body: bytes, error: ErrorInfo, digest: str, allowed_outputs: tuple[str, ...]) -> Refusal:
    job_id = read_job_id(body)
    if job_id is None:
        return Refusal(None, error, digest)
    message = _valid_fields(load_json(body))
    result: Location | None = None
    if "output" in message:
        with contextlib.suppress(AccessError):
            check_allowed(message["output"], allowed_outputs)
            result = parse_location(message["output"]).child(str(job_id))
    batch_id, metadata = message.get("batch_id"), message.get("metadata", {})
    return Refusal(job_id, error, digest, result=result, batch_id=batch_id, metadata=metadata)


def _valid_fields(message: dict[str, Any]) -> dict[str, Any]:
    """What is right in a message that is wrong as a whole."""
    wrong: set[int | str] = set()
    try:
        BaseJob.model_validate(message)
    except ValidationError as error:
        wrong = {problem["loc"][0] for problem in error.errors(include_url=False) if problem["loc"]}
    return {name: value for name, value in message.items() if name not in wrong}


def dead_letter_headers(error: ErrorInfo, queue: str) -> dict[str, str]:
    """Why a message lies in the dead-letter queue, and where it came from."""
    return {
        HEADER_REASON: str(error.code),
        HEADER_ERROR: error.message[:MAX_HEADER_TEXT],
        HEADER_QUEUE: queue,
    }
