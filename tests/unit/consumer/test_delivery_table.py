"""The table from outcome to acknowledgement, stated a second time: a change there must be meant."""

from __future__ import annotations

import json

import pytest

from consumer.delivery import TABLE, Ending, Refusal, Settlement, dead_letter_headers, open_delivery
from schemas.errors import ErrorCode, InvalidJob
from schemas.results import TERMINAL_STATES
from tests.unit.consumer.worker_fakes import FakeDelivery, make_job

EXPECTED = {
    # ending: record, event, dead letter, settlement
    "completed": ("completed", "completed", False, "ack"),
    "failed": ("failed", "failed", False, "ack"),
    "exhausted": ("failed", "failed", True, "ack"),
    "cancelled": ("cancelled", "cancelled", False, "ack"),
    "retry": ("requeued", "requeued", False, "requeue"),
    "shutdown": ("requeued", "requeued", False, "republish"),
    "refused": (None, "failed", True, "ack"),
    "unreadable": (None, "failed", True, "ack"),
    "intruder": (None, None, True, "ack"),
    "repeated": (None, "terminal", False, "ack"),
    "vanished": (None, None, False, "ack"),
    "no_storage": (None, None, False, "republish"),
}


def test_the_table_says_what_is_documented():
    assert {ending.value: tuple(rule) for ending, rule in TABLE.items()} == EXPECTED


def test_every_ending_has_a_rule():
    assert set(TABLE) == set(Ending)


@pytest.mark.parametrize("ending", Ending)
def test_a_terminal_record_is_always_announced_and_acknowledged(ending: Ending):
    rule = TABLE[ending]
    if rule.record in TERMINAL_STATES:
        assert rule.event == rule.record
        assert rule.settlement is Settlement.ACK


@pytest.mark.parametrize("ending", Ending)
def test_nothing_undecided_is_thrown_away(ending: Ending):
    rule = TABLE[ending]
    if rule.record == "requeued" or ending is Ending.NO_STORAGE:
        assert rule.settlement is not Settlement.ACK


def _open(body: bytes, message_id: str | None = None):
    return open_delivery(FakeDelivery(body, [], message_id=message_id), ("s3://inbox",), ("s3://outbox",))


def test_a_job_is_opened():
    job = make_job("s3://inbox", output="s3://outbox/x")
    assert _open(job.model_dump_json().encode()) == job


@pytest.mark.parametrize(
    ("fields", "code", "output_allowed"),
    [
        ({"input": "s3://other/a", "output": "s3://outbox/b"}, ErrorCode.LOCATION_NOT_ALLOWED, True),
        ({"input": "s3://inbox/a", "output": "s3://other/b"}, ErrorCode.LOCATION_NOT_ALLOWED, False),
        ({"input": "s3://xxx/a", "output": "s3://yyy/b"}, ErrorCode.LOCATION_NOT_ALLOWED, False),
        ({"input": "s3://inbox2/a", "output": "s3://outbox/b"}, ErrorCode.LOCATION_NOT_ALLOWED, True),
        ({"input": "file:///etc", "output": "s3://outbox/b"}, ErrorCode.LOCATION_NOT_ALLOWED, True),
    ],
)
def test_locations_are_checked_before_anything_is_touched(fields, code, output_allowed):
    job = make_job("s3://inbox", **fields)
    refusal = _open(job.model_dump_json().encode())
    assert isinstance(refusal, Refusal)
    assert (refusal.error.code, refusal.result is not None) == (code, output_allowed)
    assert (refusal.batch_id, refusal.metadata) == ("batch-1", {"order": 7})


def test_the_message_properties_name_no_job():
    job_id = str(make_job("s3://inbox").job_id)
    assert _open(b"{", message_id=job_id).job_id is None
    body = f'{{"job_id": "{job_id}", "model": "magic"}}'.encode()
    refusal = _open(body, message_id="6b1c4b3e-0000-4000-8000-000000000000")
    assert str(refusal.job_id) == job_id
    assert refusal.error.code is ErrorCode.UNKNOWN_MODEL


@pytest.mark.parametrize(
    ("fields", "output", "batch_id", "metadata"),
    [
        ({}, "s3://outbox/b", "batch-1", {"order": 7}),
        ({"output": "s3://other/b"}, None, "batch-1", {"order": 7}),
        ({"output": "no location"}, None, "batch-1", {"order": 7}),
        ({"output": 7}, None, "batch-1", {"order": 7}),
        ({"batch_id": "x" * 200}, "s3://outbox/b", None, {"order": 7}),
        ({"batch_id": 7, "metadata": []}, "s3://outbox/b", None, {}),
        ({"metadata": {str(key): 1 for key in range(65)}}, "s3://outbox/b", "batch-1", {}),
    ],
)
def test_of_a_wrong_message_its_right_fields_are_kept(fields, output, batch_id, metadata):
    job = make_job("s3://inbox", output="s3://outbox/b").model_dump(mode="json")
    refusal = _open(json.dumps(job | {"model": "magic"} | fields).encode())
    expected = None if output is None else f"{output}/{job['job_id']}"
    assert (None if refusal.result is None else str(refusal.result)) == expected
    assert (refusal.batch_id, refusal.metadata) == (batch_id, metadata)


def test_dead_letters_say_why_and_wherefrom_within_bounds():
    error = InvalidJob(ErrorCode.INVALID_MESSAGE, "x" * 10_000).info()
    headers = dead_letter_headers(error, "recon.jobs.nvdiffrec")
    assert headers["x-recon-reason"] == "INVALID_MESSAGE"
    assert headers["x-recon-queue"] == "recon.jobs.nvdiffrec"
    assert len(headers["x-recon-error"]) == 1000
