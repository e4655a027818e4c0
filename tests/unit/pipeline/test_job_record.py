from uuid import UUID

import pytest

from pipeline.record import read_record, result_location, write_record
from pipeline.settings import S3Settings
from pipeline.storage import open_store
from schemas.base import utc_now
from schemas.jobs import NvdiffrecJob
from schemas.results import JobRecord

JOB = NvdiffrecJob(job_id=UUID(int=7), input="s3://recon/in", output="s3://recon/out")


@pytest.fixture
def store(tmp_path):
    return open_store(f"file://{tmp_path}/result", S3Settings())


def record(state: str) -> JobRecord:
    now = utc_now()
    return JobRecord(
        job_id=JOB.job_id,
        model=JOB.model,
        input=JOB.input,
        output=str(result_location(JOB)),
        state=state,
        attempt=1,
        worker_id="w",
        last_seq=3,
        created_at=now,
        accepted_at=now,
    )


def test_the_result_lies_below_the_output_under_the_job_id():
    assert str(result_location(JOB)) == f"s3://recon/out/{JOB.job_id}"
    bare = NvdiffrecJob(job_id=JOB.job_id, input="s3://recon/in", output="s3://recon")
    assert str(result_location(bare)) == f"s3://recon/{JOB.job_id}"


def test_a_record_is_read_back_and_replaced(store):
    assert read_record(store) is None
    write_record(store, record("running"))
    write_record(store, record("completed"))
    found = read_record(store)
    assert found is not None
    assert found.state == "completed"
    assert found.is_terminal


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"state": "completed"}'])
def test_a_damaged_record_counts_as_none(store, content):
    store.put_bytes("job.json", content, "application/json")
    assert read_record(store) is None
