"""Status events made from records and refusals, and the stream of one attempt's events with its `seq`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid5

from consumer.delivery import Refusal
from consumer.protocol import Progress
from consumer.publisher import BEST_EFFORT_S, EventPublisher
from schemas.base import utc_now
from schemas.errors import ErrorInfo
from schemas.events import (
    AcceptedData,
    CancelledData,
    CompletedData,
    FailedData,
    JobAccepted,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobProgress,
    JobRequeued,
    JobStarted,
    ProgressData,
    RequeuedData,
    StartedData,
)
from schemas.jobs import Job
from schemas.quality import MeanMetrics
from schemas.results import MANIFEST_NAME, JobRecord

LOGGER = logging.getLogger(__name__)

# Ids of terminal events derive from the job, so that an event which is published again keeps its id.
_NAMESPACE = UUID("5f0c4f1e-6a7b-5c52-9f5e-0d5b8f6c1a3d")

SEQ_HEADROOM = 1_000_000
"""Numbers that an attempt reserves in the record before it speaks: more events than a day of progress has.
If the worker dies, the next attempt begins behind them without knowing how many were used."""


def source(worker_id: str) -> str:
    """The CloudEvents source of a worker."""
    return f"/recon/workers/{worker_id}"


def terminal_event(record: JobRecord, quality: MeanMetrics | None) -> JobCompleted | JobFailed | JobCancelled:
    """The event that a terminal record stands for: the same one, id included, whenever it is made.

    Args:
        record: In a terminal state.
        quality: Means over the input views; needed for a completed job.

    Raises:
        ValueError: the record is not terminal, or its error or quality is missing.
    """
    data: dict[str, Any] = {
        "job_id": record.job_id,
        "batch_id": record.batch_id,
        "metadata": record.metadata,
        "worker_id": record.worker_id,
        "attempt": record.attempt,
        "seq": max(1, record.last_seq),
    }
    envelope: dict[str, Any] = {
        "id": str(uuid5(_NAMESPACE, f"{record.job_id}/terminal")),
        "source": source(record.worker_id),
        "subject": str(record.job_id),
        "time": record.finished_at or utc_now(),
    }
    match record.state:
        case "completed" if quality is not None and record.quality_status is not None:
            began = record.started_at or record.accepted_at
            completed = CompletedData(
                **data,
                output=record.output,
                manifest=f"{record.output}/{MANIFEST_NAME}",
                status=record.quality_status,
                quality=quality,
                duration_s=max(0.0, (envelope["time"] - began).total_seconds()),
            )
            return JobCompleted(**envelope, data=completed)
        case "failed" if record.error is not None:
            kept = record.output if record.quality_status is not None else None
            return JobFailed(**envelope, data=FailedData(**data, error=record.error, output=kept))
        case "cancelled":
            return JobCancelled(**envelope, data=CancelledData(**data))
    raise ValueError(f"a record in state {record.state!r} makes no terminal event")


def refusal_event(refusal: Refusal, worker_id: str) -> JobFailed:
    """The event of a message that was refused before its first attempt, without a record."""
    subject = None if refusal.job_id is None else str(refusal.job_id)
    data = FailedData(
        job_id=refusal.job_id,
        batch_id=refusal.batch_id,
        metadata=dict(refusal.metadata),
        worker_id=worker_id,
        attempt=0,
        seq=1,
        error=refusal.error,
    )
    return JobFailed(
        id=str(uuid5(_NAMESPACE, f"{subject}/refused/{refusal.digest}")),
        source=source(worker_id),
        subject=subject,
        data=data,
    )


class JobEvents:
    """The events of one attempt, numbered and, where that does no harm, thinned out.

    Args:
        job: The job.
        publisher: Takes the events.
        worker_id: Who speaks.
        attempt: Number of this attempt.
        last_seq: The last number that earlier attempts may have used.
        progress_s: Least time between two progress events of one stage.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        job: Job,
        publisher: EventPublisher,
        *,
        worker_id: str,
        attempt: int,
        last_seq: int,
        progress_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._publisher = publisher
        self._worker_id = worker_id
        self._attempt = attempt
        self._seq = last_seq
        self._progress_s = progress_s
        self._clock = clock
        self._last_progress: tuple[str, float] | None = None  # stage and time
        self._latest: Progress | None = None  # what is to be said next
        self._speaker: asyncio.Task[None] | None = None

    def next_seq(self) -> int:
        """Use up one number."""
        self._seq += 1
        return self._seq

    async def accepted(self) -> None:
        """Say that a worker took the job; confirmed."""
        data = AcceptedData(**self._data(), model=self._job.model)
        await self._publisher.confirmed(JobAccepted(**self._envelope(), data=data))

    async def started(self, stages: Sequence[str]) -> None:
        """Say that the engine begins to compute; confirmed."""
        data = StartedData(**self._data(), model=self._job.model, stages=list(stages))
        await self._publisher.confirmed(JobStarted(**self._envelope(), data=data))

    def progress(self, progress: Progress) -> None:
        """Say how far the job has come, if it is time to; best effort, and without waiting.

        What cannot be said before the next report comes is dropped in favour of that.
        """
        now = self._clock()
        if self._last_progress is not None:
            stage, said = self._last_progress
            if stage == progress.stage and now - said < self._progress_s:
                return
        self._last_progress = (progress.stage, now)
        self._latest = progress
        if self._speaker is None or self._speaker.done():
            self._speaker = asyncio.create_task(self._speak())

    async def end_progress(self) -> None:
        """Let no progress be told from here on; what is on its way gets a moment."""
        if self._speaker is None:
            return
        try:
            await asyncio.wait({self._speaker}, timeout=BEST_EFFORT_S)
        finally:
            self._latest = None
            self._speaker.cancel()
            (outcome,) = await asyncio.gather(self._speaker, return_exceptions=True)
        if isinstance(outcome, Exception):
            LOGGER.error("Progress could not be told.", exc_info=outcome)

    async def _speak(self) -> None:
        while self._latest is not None:
            progress, self._latest = self._latest, None
            data = ProgressData(
                **self._data(),
                stage=progress.stage,
                fraction=min(max(progress.fraction, 0.0), 1.0),
                message=progress.message,
                metrics=progress.metrics,
                eta_s=progress.eta_s,
            )
            await self._publisher.best_effort(JobProgress(**self._envelope(), data=data))

    def requeued(self, error: ErrorInfo | None) -> JobRequeued:
        """The event that ends this attempt without an outcome."""
        return JobRequeued(**self._envelope(), data=RequeuedData(**self._data(), error=error))

    def _data(self) -> dict[str, Any]:
        return {
            "job_id": self._job.job_id,
            "batch_id": self._job.batch_id,
            "metadata": self._job.metadata,
            "worker_id": self._worker_id,
            "attempt": self._attempt,
            "seq": self.next_seq(),
        }

    def _envelope(self) -> dict[str, Any]:
        return {"source": source(self._worker_id), "subject": str(self._job.job_id)}
