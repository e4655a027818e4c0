"""From the bytes of a delivery to a checked job, and THE table from outcome to acknowledgement.

Order of what the table asks for, always: record, event (confirmed), dead-letter copy (confirmed), settlement.
So a crash in between repeats work or an event, but loses nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, Protocol
from uuid import UUID

from pipeline.storage import check_allowed
from schemas.errors import AccessError, ErrorInfo, InvalidJob
from schemas.jobs import Job, parse_job, read_job_id
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
    """Before the first attempt, and there is no place where a record may be written."""
    UNREADABLE = "unreadable"
    """As before, and the message itself does not even say which job it is."""
    REPEATED = "repeated"
    """The outcome was decided before; its event is published again."""
    VANISHED = "vanished"
    """As before, but the result has since been removed, so that there is nothing left to repeat."""
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
        Ending.REFUSED: Rule(None, "failed", False, Settlement.ACK),
        Ending.UNREADABLE: Rule(None, "failed", True, Settlement.ACK),
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
        output_allowed: Whether a record may be written at the job's output.
        readable: Whether the message itself says which job it is. If not, the id is that of the AMQP
            properties, if any, and the message is kept for people to look at.
    """

    job_id: UUID | None
    error: ErrorInfo
    digest: str
    job: Job | None = field(default=None, repr=False)
    output_allowed: bool = False
    readable: bool = True


def open_delivery(
    delivery: Delivery, allowed_inputs: tuple[str, ...], allowed_outputs: tuple[str, ...]
) -> Job | Refusal:
    """The job of a delivery, checked as far as that is possible without touching any storage."""
    digest = hashlib.sha256(delivery.body).hexdigest()
    try:
        job = parse_job(delivery.body)
    except InvalidJob as error:
        job_id = read_job_id(delivery.body)
        readable = job_id is not None
        return Refusal(job_id or _uuid(delivery.message_id), error.info(), digest, readable=readable)
    try:
        check_allowed(job.output, allowed_outputs)
    except AccessError as error:
        return Refusal(job.job_id, error.info(), digest, job)
    try:
        check_allowed(job.input, allowed_inputs)
    except AccessError as error:
        return Refusal(job.job_id, error.info(), digest, job, output_allowed=True)
    return job


def dead_letter_headers(error: ErrorInfo, queue: str) -> dict[str, str]:
    """Why a message lies in the dead-letter queue, and where it came from."""
    return {
        HEADER_REASON: str(error.code),
        HEADER_ERROR: error.message[:MAX_HEADER_TEXT],
        HEADER_QUEUE: queue,
    }


def _uuid(text: str | None) -> UUID | None:
    """A UUID in its canonical form with hyphens. Client libraries (aiormq) put 32 random hexadecimal digits
    into a `message_id` that was left out; those name no job, and must not pass for one.
    """
    try:
        found = None if text is None else UUID(text)
    except ValueError:
        return None
    return found if found is not None and str(found) == str(text).lower() else None
