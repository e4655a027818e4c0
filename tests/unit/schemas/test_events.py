import json
from uuid import UUID

import pytest
from pydantic import ValidationError

from schemas.control import parse_control
from schemas.errors import InvalidJob
from schemas.events import JobProgress, ProgressData, is_terminal, parse_event

DATA = {"job_id": UUID(int=1), "worker_id": "w", "attempt": 1, "seq": 7}


def progress(**changes) -> JobProgress:
    return JobProgress(
        source="/recon/workers/w",
        subject=str(UUID(int=1)),
        data=ProgressData(**DATA, stage="quality", **({"fraction": 0.5} | changes)),
    )


def test_an_event_is_a_structured_cloudevent_and_comes_back_the_same():
    event = progress(metrics={"psnr_db": 30.0}, eta_s=4.5)
    text = event.model_dump_json()
    told = json.loads(text)
    # CloudEvents 1.0: required attributes, and attribute names of lower-case letters and digits only
    assert {"id", "source", "specversion", "type"} <= set(told)
    assert (told["specversion"], told["type"]) == ("1.0", "recon.job.progress")
    assert all(name.isalnum() and name == name.lower() for name in told)
    assert told["time"].endswith("Z")
    assert parse_event(text.encode()) == event
    assert not is_terminal(event)


def test_readers_ignore_fields_that_a_later_version_adds():
    told = json.loads(progress().model_dump_json())
    told["data"]["new"] = told["traceparent"] = "x"
    assert parse_event(json.dumps(told).encode()).data.stage == "quality"


@pytest.mark.parametrize(
    "changes", [{"fraction": 1.5}, {"fraction": float("nan")}, {"metrics": {"a": float("inf")}}]
)
def test_figures_that_json_cannot_say_are_refused(changes):
    with pytest.raises(ValidationError):
        progress(**changes)


def test_an_unknown_type_is_no_event():
    told = json.loads(progress().model_dump_json()) | {"type": "recon.job.dreaming"}
    with pytest.raises(ValidationError):
        parse_event(json.dumps(told).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b'{"type": "cancel.request"}',
        b'{"type": "cancel.now", "job_id": "00000000-0000-0000-0000-000000000001"}',
        b'{"type": "cancel.confirm", "job_id": "00000000-0000-0000-0000-000000000001", "token": "short"}',
    ],
)
def test_control_messages_are_checked(body):
    with pytest.raises(InvalidJob) as error:
        parse_control(body)
    assert error.value.code == "INVALID_MESSAGE"


def test_a_cancel_request_is_read():
    read = parse_control(b'{"type": "cancel.request", "job_id": "00000000-0000-0000-0000-000000000001"}')
    assert read.job_id == UUID(int=1)
