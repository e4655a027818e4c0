"""Job records from asyncio: in threads, and patient while the storage is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from pydantic import ValidationError

from pipeline.record import read_record, result_location, write_record
from pipeline.settings import S3Settings
from pipeline.storage import ObjectStore, open_store
from schemas.errors import ErrorCode, ReconError, ResourceError
from schemas.jobs import Job
from schemas.locations import Location
from schemas.quality import MeanMetrics, QualityReport
from schemas.results import JobRecord

LOGGER = logging.getLogger(__name__)

QUALITY_NAME = "quality.json"
MAX_QUALITY_BYTES = 64 * 1024 * 1024

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0

T = TypeVar("T")


def new_record(
    job: Job, previous: JobRecord | None, worker_id: str, now: datetime, **fields: Any
) -> JobRecord:
    """A record of this job; what is the job's own is copied from it, never made up.

    Args:
        job: The job.
        previous: The record so far.
        worker_id: Who writes.
        now: The time, where no earlier one is on record.
        fields: The remaining fields of the record.
    """
    return JobRecord(
        job_id=job.job_id,
        model=job.model,
        input=job.input,
        output=str(result_location(job)),
        batch_id=job.batch_id,
        metadata=job.metadata,
        worker_id=worker_id,
        created_at=job.created_at,
        accepted_at=now if previous is None else previous.accepted_at,
        **fields,
    )


class RecordKeeper:
    """Reads and writes the records of jobs.

    Args:
        s3: How to reach the storage.
        patience_s: How long an unreachable storage is retried.
        clock: Monotonic seconds.
    """

    def __init__(
        self, s3: S3Settings, *, patience_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._s3 = s3
        self._patience_s = patience_s
        self._clock = clock

    async def read(self, job: Job) -> JobRecord | None:
        """The job's record; None if it has none.

        Raises:
            AccessError: the output cannot be read.
            ResourceError: STORAGE_UNAVAILABLE, after the whole patience.
        """
        return await self.read_at(result_location(job), job.job_id)

    async def read_at(self, result: Location, job_id: UUID) -> JobRecord | None:
        """The record of the job with this id at the place of its result; raises as `read` does."""
        record = await self._patiently(lambda: read_record(open_store(result, self._s3)))
        return record if record is None or record.job_id == job_id else None

    async def write(self, job: Job, record: JobRecord) -> None:
        """Write the job's record.

        Raises:
            AccessError: the output cannot be written.
            ResourceError: STORAGE_UNAVAILABLE, after the whole patience.
        """
        await self._patiently(lambda: write_record(self._store(job), record))

    async def read_quality(self, job: Job) -> MeanMetrics:
        """The means over the input views from the `quality.json` of a finished job.

        Raises:
            AccessError: INPUT_NOT_FOUND: the result has been removed.
            ResourceError: STORAGE_UNAVAILABLE, after the whole patience.
        """
        data = await self._patiently(lambda: read_quality_bytes(self._store(job)))
        return parse_quality(data).input_views

    def _store(self, job: Job) -> ObjectStore:
        return open_store(result_location(job), self._s3)

    async def _patiently(self, work: Callable[[], T]) -> T:
        deadline = self._clock() + self._patience_s
        pause = FIRST_PAUSE_S
        while True:
            try:
                return await asyncio.to_thread(work)
            except ReconError as error:
                if not error.retryable or self._clock() + pause > deadline:
                    raise
                LOGGER.warning("The storage is away; trying again in %g s: %s", pause, error.message)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)


def read_quality_bytes(store: ObjectStore) -> bytes:
    """The `quality.json` of a result."""
    return store.get_bytes(QUALITY_NAME, max_bytes=MAX_QUALITY_BYTES)


def parse_quality(data: bytes) -> QualityReport:
    """A quality report from its JSON.

    Raises:
        ResourceError: INTERNAL_ERROR: it is none.
    """
    try:
        return QualityReport.model_validate_json(data)
    except ValidationError as error:
        raise ResourceError(ErrorCode.INTERNAL_ERROR, f"{QUALITY_NAME} cannot be read.") from error
