"""Events of an attempt: numbers, throttling, patience."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from consumer import publisher as publisher_module
from consumer.events import JobEvents, terminal_event
from consumer.protocol import Progress
from consumer.publisher import EventPublisher
from consumer.records import new_record
from schemas.base import utc_now
from schemas.errors import ErrorCode, ResourceError
from schemas.events import Event, is_terminal
from tests.unit.consumer.worker_fakes import FakeBroker, make_job


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def stream(folder: Path, broker: FakeBroker, clock: Clock, last_seq: int = 0) -> JobEvents:
    publisher = EventPublisher(broker, patience_s=0.0)
    return JobEvents(
        make_job(folder), publisher, worker_id="w1", attempt=1, last_seq=last_seq, progress_s=1.0, clock=clock
    )


def progress(folder: Path, stage: str, fraction: float) -> Progress:
    return Progress(make_job(folder).job_id, stage, fraction)


async def test_progress_of_one_stage_is_thinned_out(tmp_path: Path):
    broker, clock = FakeBroker(), Clock()
    events = stream(tmp_path, broker, clock)
    for step in range(100):
        clock.now = 100.0 + step * 0.1
        events.progress(progress(tmp_path, "reconstruct", step / 100))
        await asyncio.sleep(0)  # let it be told
    assert len(broker.events) == 10


async def test_a_new_stage_is_told_at_once(tmp_path: Path):
    broker = FakeBroker()
    events = stream(tmp_path, broker, Clock())
    for stage in ("download", "download", "validate", "validate", "reconstruct"):
        events.progress(progress(tmp_path, stage, 0.1))
        await asyncio.sleep(0)  # let it be told
    assert [event.data.stage for event in broker.events] == ["download", "validate", "reconstruct"]


async def test_numbers_go_on_where_the_last_attempt_ended(tmp_path: Path):
    broker = FakeBroker()
    events = stream(tmp_path, broker, Clock(), last_seq=41)
    await events.accepted()
    await events.started(("download",))
    assert [event.data.seq for event in broker.events] == [42, 43]


async def test_lost_progress_disturbs_nobody(tmp_path: Path):
    broker = FakeBroker(failures=1)
    events = stream(tmp_path, broker, Clock())
    events.progress(progress(tmp_path, "download", 0.1))
    await events.end_progress()
    assert broker.events == []


async def test_an_important_event_is_tried_until_it_is_confirmed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(publisher_module, "RETRY_S", 0.0)
    broker = FakeBroker(failures=5)
    events = JobEvents(
        make_job(tmp_path), EventPublisher(broker, patience_s=60.0), worker_id="w", attempt=1, last_seq=0
    )
    await events.accepted()
    assert [event.type for event in broker.events] == ["recon.job.accepted"]


async def test_patience_ends(tmp_path: Path):
    broker = FakeBroker(failures=5)
    with pytest.raises(ResourceError):
        await stream(tmp_path, broker, Clock()).accepted()


@pytest.mark.parametrize("state", ["running", "requeued", "completed", "failed"])
def test_a_record_without_an_outcome_makes_no_terminal_event(tmp_path: Path, state: str):
    record = new_record(make_job(tmp_path), None, "w", utc_now(), state=state, attempt=1, last_seq=1)
    with pytest.raises(ValueError, match="no terminal event"):
        terminal_event(record, None)


def test_a_terminal_event_follows_from_its_record_alone(tmp_path: Path):
    error = ResourceError(ErrorCode.DISK_FULL).info()
    record = new_record(
        make_job(tmp_path),
        None,
        "w",
        utc_now(),
        state="failed",
        attempt=2,
        last_seq=9,
        finished_at=utc_now(),
        error=error,
    )
    event = terminal_event(record, None)
    assert event == terminal_event(record, None)
    assert is_terminal(event)
    assert (event.data.seq, event.data.attempt, event.time) == (9, 2, record.finished_at)


class SlowBroker(FakeBroker):
    """Takes its time, or for ever."""

    gate: asyncio.Event

    async def publish_event(self, event: Event) -> None:
        await self.gate.wait()
        await super().publish_event(event)


async def test_progress_waits_for_nobody_and_only_the_latest_is_told(tmp_path: Path):
    broker = SlowBroker()
    broker.gate = asyncio.Event()
    events = stream(tmp_path, broker, Clock())
    for number in range(50):
        events.progress(progress(tmp_path, f"stage {number}", 0.1))
        await asyncio.sleep(0)
    broker.gate.set()
    await events.end_progress()
    assert [event.data.stage for event in broker.events] == ["stage 0", "stage 49"]
    assert [event.data.seq for event in broker.events] == [1, 2]


async def test_no_progress_is_told_after_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("consumer.events.BEST_EFFORT_S", 0.05)
    broker = SlowBroker()
    broker.gate = asyncio.Event()
    events = stream(tmp_path, broker, Clock())
    for stage in ("download", "validate"):
        events.progress(progress(tmp_path, stage, 0.1))
        await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await events.end_progress()
    broker.gate.set()
    await asyncio.sleep(0.05)
    assert broker.events == []
