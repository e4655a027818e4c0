"""One job on one machine: the worker's pipeline over folders, without broker and S3."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from consumer.engine import make_pipeline, translate
from consumer.protocol import EnginePipeline
from consumer.records import new_record, parse_quality, read_quality_bytes
from pipeline.cancel import CancelToken
from pipeline.progress import ProgressReport
from pipeline.record import result_location, write_record
from pipeline.settings import PipelineSettings
from pipeline.storage import open_store
from schemas.base import utc_now
from schemas.errors import ErrorCode, JobCancelled, ReconError
from schemas.jobs import Job
from schemas.quality import QualityReport
from schemas.results import JobRecord

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalResult:
    """What became of the job."""

    record: JobRecord
    quality: QualityReport | None


def run_local(
    job: Job,
    settings: PipelineSettings,
    *,
    worker_id: str,
    emit: Callable[[ProgressReport], None],
    factory: Callable[[PipelineSettings], EnginePipeline] = make_pipeline,
    now: Callable[[], datetime] = utc_now,
) -> LocalResult:
    """Run a job in this process; Ctrl-C cancels it, a second one ends the process.

    Returns:
        The record as it was written, and the quality report if there is one.
    """
    store = open_store(result_location(job), settings.s3)
    accepted = now()

    def record(state: str, **fields: Any) -> JobRecord:
        made = new_record(
            job, None, worker_id, accepted, state=state, attempt=1, last_seq=0, started_at=accepted, **fields
        )
        write_record(store, made)
        return made

    def failed(error: ReconError) -> LocalResult:
        # A result of bad quality was written all the same, for inspection.
        bad = error.code is ErrorCode.QUALITY_BELOW_THRESHOLD
        quality = parse_quality(read_quality_bytes(store)) if bad else None
        status = "failure" if bad else None
        return LocalResult(
            record("failed", finished_at=now(), error=error.info(), quality_status=status), quality
        )

    record("running")
    try:
        with _cancel_on_interrupt() as cancel:
            pipeline = factory(settings)
            pipeline.load()
            outcome = pipeline.run(job, cancel=cancel, emit=emit)
    except JobCancelled:
        return LocalResult(record("cancelled", finished_at=now()), None)
    except ReconError as error:
        return failed(error)
    except Exception as error:
        LOGGER.exception("The job failed in an unforeseen way.")
        return failed(translate(error))
    quality = outcome.quality
    return LocalResult(record("completed", finished_at=now(), quality_status=quality.status), quality)


@contextmanager
def _cancel_on_interrupt() -> Iterator[CancelToken]:
    token = CancelToken()

    def first(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        token.cancel("user")

    old = signal.signal(signal.SIGINT, first)
    try:
        yield token
    finally:
        signal.signal(signal.SIGINT, old)
