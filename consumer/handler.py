"""The life of one delivery: judge the message, run the job, then do what the table says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from consumer.delivery import (
    TABLE,
    Delivery,
    Ending,
    Refusal,
    Settlement,
    dead_letter_headers,
    open_delivery,
)
from consumer.events import SEQ_HEADROOM, JobEvents, refusal_event, terminal_event
from consumer.log import job_id_context
from consumer.protocol import Cancelled, Failed, Finished, JobEnd
from consumer.publisher import EventPublisher
from consumer.records import RecordKeeper, new_record
from consumer.settings import Settings
from consumer.supervisor import SHUTDOWN, OnProgress
from pipeline.settings import PipelineSettings
from pipeline.stages import stage_weights
from schemas.base import utc_now
from schemas.errors import ErrorCode, ErrorInfo, ReconError, ResourceError
from schemas.events import JobEvent
from schemas.jobs import Job
from schemas.quality import MeanMetrics
from schemas.results import JobRecord

LOGGER = logging.getLogger(__name__)


class Engine(Protocol):
    """The part of the supervisor that a delivery needs."""

    async def run(self, job: Job, on_progress: OnProgress) -> JobEnd:
        """Run one job to its end."""


class CopySink(Protocol):
    """The part of the broker that a delivery needs beside its own acknowledgement."""

    async def publish_copy(
        self, delivery: Delivery, queue: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish a copy of a delivery straight to a queue and wait for the confirmation."""


@dataclass(frozen=True)
class Verdict:
    """How the handling of a delivery ended, with what the table's rule needs."""

    ending: Ending
    job: Job | None = None
    record: JobRecord | None = None
    event: JobEvent | None = None
    error: ErrorInfo | None = None


@dataclass
class Attempt:
    """One attempt at one job.

    Attributes:
        job: The job.
        record: The record as last written, or as found if this attempt never began.
        events: The events of this attempt.
    """

    job: Job
    record: JobRecord
    events: JobEvents


class Handler:
    """Handles one delivery at a time.

    Args:
        settings: Limits, names and patience.
        broker: Takes copies of messages.
        publisher: Takes events.
        records: Keeps the records.
        engine: Runs the jobs.
        now: The time.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        broker: CopySink,
        publisher: EventPublisher,
        records: RecordKeeper,
        engine: Engine,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._allowed: PipelineSettings = settings.pipeline()
        self._broker = broker
        self._publisher = publisher
        self._records = records
        self._engine = engine
        self._now = now

    async def handle(self, delivery: Delivery) -> Ending:
        """Handle one delivery to its settlement.

        Raises:
            ResourceError: BROKER_UNAVAILABLE: not settled; the broker will deliver it again.
        """
        opened = open_delivery(delivery, self._allowed.allowed_inputs, self._allowed.allowed_outputs)
        with job_id_context(opened.job_id or "-"):
            verdict = await self._judge(opened)
            ending = await self._settle(delivery, verdict)
            LOGGER.info("%s", ending, extra={"action": ending.value, "queue": delivery.queue})
            return ending

    # --- Judging

    async def _judge(self, opened: Job | Refusal) -> Verdict:
        if isinstance(opened, Refusal):
            return await self._judge_refusal(opened)
        job = opened
        try:
            previous = await self._records.read(job)
            if previous is not None and previous.is_terminal:
                return await self._repeated(job, previous)
            attempt = self._next_attempt(job, previous)
            if previous is not None and previous.attempt >= self._settings.max_attempts:
                return self._worn_out(attempt, previous)
            await self._records.write(job, attempt.record)
        except ReconError as error:
            return self._without_record(job, error)
        return await self._run(attempt)

    async def _judge_refusal(self, refusal: Refusal) -> Verdict:
        LOGGER.warning("Refused: %s: %s", refusal.error.code, refusal.error.message)
        if refusal.job_id is None or refusal.result is None:
            return self._refused(refusal)
        job = refusal.job
        try:
            previous = await self._records.read_at(refusal.result, refusal.job_id)
            if previous is not None and (job is None or previous.input != job.input):
                return Verdict(Ending.INTRUDER, error=refusal.error)
            if job is None:
                return self._refused(refusal)
            if previous is not None and previous.is_terminal:
                return await self._repeated(job, previous)
        except ReconError as error:
            return self._without_record(refusal, error)
        return self._ended(self._next_attempt(job, previous, begins=False), Ending.FAILED, refusal.error)

    def _refused(self, refusal: Refusal) -> Verdict:
        ending = Ending.UNREADABLE if refusal.job_id is None else Ending.REFUSED
        event = refusal_event(refusal, self._settings.worker_id)
        return Verdict(ending, event=event, error=refusal.error)

    def _without_record(self, what: Job | Refusal, error: ReconError) -> Verdict:
        """The storage is away, or will never let us write there."""
        LOGGER.error("There is no access to the record: %s", error)
        if error.code is ErrorCode.STORAGE_UNAVAILABLE:
            return Verdict(Ending.NO_STORAGE)
        if isinstance(what, Refusal):
            return self._refused(what)
        digest, fields = "no-record", (what.batch_id, what.metadata)
        return self._refused(Refusal(what.job_id, error.info(), digest, what, None, *fields))

    async def _repeated(self, job: Job, record: JobRecord) -> Verdict:
        LOGGER.info("Already %s; repeating the event.", record.state)
        quality: MeanMetrics | None = None
        if record.state == "completed":
            try:
                quality = await self._records.read_quality(job)
            except ReconError as error:
                if error.code is ErrorCode.STORAGE_UNAVAILABLE:
                    raise
                LOGGER.warning("The result is gone or damaged; there is nothing to repeat: %s", error)
                return Verdict(Ending.VANISHED, job)
        return Verdict(Ending.REPEATED, job, event=terminal_event(record, quality))

    def _worn_out(self, attempt: Attempt, previous: JobRecord) -> Verdict:
        """Every attempt was begun and none was ended: the workers themselves died."""
        text = f"The job was begun {previous.attempt} times and never came to an end."
        error = previous.error or ResourceError(ErrorCode.MODEL_CRASHED, text).info()
        return self._ended(attempt, Ending.EXHAUSTED, error, attempt_number=previous.attempt)

    # --- One attempt

    def _next_attempt(self, job: Job, previous: JobRecord | None, *, begins: bool = True) -> Attempt:
        done, last_seq = (0, 0) if previous is None else (previous.attempt, previous.last_seq)
        number = done + 1 if begins else done
        record = new_record(
            job,
            previous,
            self._settings.worker_id,
            self._now(),
            state="running",
            attempt=number,
            last_seq=last_seq + SEQ_HEADROOM,
            started_at=self._now() if begins else None,
            error=None if previous is None else previous.error,
        )
        events = JobEvents(
            job,
            self._publisher,
            worker_id=self._settings.worker_id,
            attempt=number,
            last_seq=last_seq,
            progress_s=self._settings.progress_s,
        )
        return Attempt(job, record, events)

    async def _run(self, attempt: Attempt) -> Verdict:
        job, number = attempt.job, attempt.record.attempt
        LOGGER.info("Attempt %d begins.", number, extra={"action": "accepted", "attempt": number})
        await attempt.events.accepted()
        await attempt.events.started(tuple(stage_weights(job.model, previews=job.options.outputs.previews)))
        try:
            end = await self._engine.run(job, attempt.events.progress)
        finally:
            await attempt.events.end_progress()
        match end:
            case Finished() as finished:
                return self._completed(attempt, finished)
            case Cancelled(_, reason):
                return self._cancelled(attempt, reason)
            case Failed(_, error):
                return self._failed(attempt, error)

    def _completed(self, attempt: Attempt, finished: Finished) -> Verdict:
        return self._ended(
            attempt,
            Ending.COMPLETED,
            None,
            quality=finished.quality.input_views,
            status=finished.quality.status,
        )

    def _cancelled(self, attempt: Attempt, reason: str) -> Verdict:
        if reason == SHUTDOWN:
            # Not the job's doing: it gets the attempt back. `seq` goes on all the same.
            return self._again(attempt, Ending.SHUTDOWN, None, attempts=attempt.record.attempt - 1)
        return self._ended(attempt, Ending.CANCELLED, None)

    def _failed(self, attempt: Attempt, error: ErrorInfo) -> Verdict:
        LOGGER.warning("Attempt %d failed: %s: %s", attempt.record.attempt, error.code, error.message)
        if error.retryable and attempt.record.attempt < self._settings.max_attempts:
            return self._again(attempt, Ending.RETRY, error, attempts=attempt.record.attempt)
        # A result of bad quality was uploaded all the same, for inspection.
        status = "failure" if error.code is ErrorCode.QUALITY_BELOW_THRESHOLD else None
        return self._ended(
            attempt, Ending.EXHAUSTED if error.retryable else Ending.FAILED, error, status=status
        )

    def _again(self, attempt: Attempt, ending: Ending, error: ErrorInfo | None, *, attempts: int) -> Verdict:
        event = attempt.events.requeued(error)
        record = attempt.record.model_copy(
            update={
                "state": TABLE[ending].record,
                "attempt": attempts,
                "last_seq": event.data.seq,
                "error": error,
            }
        )
        return Verdict(ending, attempt.job, record, event, error)

    def _ended(
        self,
        attempt: Attempt,
        ending: Ending,
        error: ErrorInfo | None,
        *,
        quality: MeanMetrics | None = None,
        status: str | None = None,
        attempt_number: int | None = None,
    ) -> Verdict:
        """A terminal record, and the event that follows from it."""
        record = attempt.record.model_copy(
            update={
                "state": TABLE[ending].record,
                "attempt": attempt.record.attempt if attempt_number is None else attempt_number,
                "last_seq": attempt.events.next_seq(),
                "finished_at": self._now(),
                "quality_status": status,
                "error": error,
            }
        )
        return Verdict(ending, attempt.job, record, terminal_event(record, quality), error)

    # --- Settling

    async def _settle(self, delivery: Delivery, verdict: Verdict) -> Ending:
        """Do what the table says, in its order."""
        rule = TABLE[verdict.ending]
        if rule.record is not None:
            assert verdict.job is not None
            assert verdict.record is not None
            try:
                await self._records.write(verdict.job, verdict.record)
            except ReconError as error:
                return await self._settle(delivery, self._without_record(verdict.job, error))
        if rule.event is not None:
            assert verdict.event is not None
            await self._publisher.confirmed(verdict.event)
        if rule.dead_letter:
            assert verdict.error is not None
            headers = dead_letter_headers(verdict.error, delivery.queue)
            await self._broker.publish_copy(delivery, self._settings.dead_queue, headers)
        match rule.settlement:
            case Settlement.ACK:
                await delivery.ack()
            case Settlement.REQUEUE:
                await delivery.requeue()
            case Settlement.REPUBLISH:
                await self._broker.publish_copy(delivery, delivery.queue)
                await delivery.ack()
        return verdict.ending
