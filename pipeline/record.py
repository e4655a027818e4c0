"""`job.json`: the job's record beside its result, which outlives the worker."""

from __future__ import annotations

import logging

from pydantic import ValidationError

from pipeline.objects import ObjectStore
from schemas.errors import AccessError, ErrorCode
from schemas.jobs import Job
from schemas.locations import Location, parse_location
from schemas.results import RECORD_NAME, JobRecord

LOGGER = logging.getLogger(__name__)

MAX_RECORD_BYTES = 1024 * 1024


def result_location(job: Job) -> Location:
    """Where the job's result lies: `<output>/<job_id>`. The job id makes every key of it idempotent."""
    return parse_location(job.output).child(str(job.job_id))


def read_record(store: ObjectStore) -> JobRecord | None:
    """The record at a result location; None if there is none yet.

    A record that cannot be read counts as none: running a job again is safe, never running it is not.

    Raises:
        AccessError: LOCATION_NOT_ALLOWED.
        ResourceError: STORAGE_UNAVAILABLE.
    """
    try:
        data = store.get_bytes(RECORD_NAME, max_bytes=MAX_RECORD_BYTES)
    except AccessError as error:
        if error.code is ErrorCode.INPUT_NOT_FOUND:
            return None
        raise
    try:
        return JobRecord.model_validate_json(data)
    except ValidationError:
        LOGGER.warning("%s: the record cannot be read and is replaced", store.location)
        return None


def write_record(store: ObjectStore, record: JobRecord) -> None:
    """Write the record; it replaces an older one.

    Raises:
        AccessError: LOCATION_NOT_ALLOWED, INPUT_NOT_FOUND (no such bucket).
        ResourceError: STORAGE_UNAVAILABLE.
    """
    store.put_bytes(RECORD_NAME, record.model_dump_json(indent=1).encode("utf-8"), "application/json")
