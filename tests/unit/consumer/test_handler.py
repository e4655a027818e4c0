"""The life of one delivery, over a real folder store and a fake broker and engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from consumer import publisher as publisher_module
from consumer import records as records_module
from consumer.delivery import Ending
from consumer.events import SEQ_HEADROOM
from consumer.handler import Handler
from consumer.protocol import Cancelled, Failed, Finished, JobEnd, Progress
from consumer.publisher import EventPublisher
from consumer.records import RecordKeeper
from consumer.settings import Settings
from pipeline.record import read_record, result_location
from pipeline.storage import open_store
from schemas.errors import ErrorCode, ModelError, ReconError, ResourceError
from schemas.events import JobCompleted, JobFailed
from schemas.jobs import Job
from schemas.results import JobRecord
from tests.unit.consumer.miniatures import quality_report
from tests.unit.consumer.worker_fakes import NO_S3, FakeBroker, FakeDelivery, FakeEngine, make_job


class Recorder(RecordKeeper):
    """Writes for real, and into the journal."""

    def __init__(self, journal: list[str]) -> None:
        super().__init__(NO_S3, patience_s=0.001)
        self._journal = journal
        self.fail_from: int | None = None
        self.writes = 0

    async def write(self, job: Job, record: JobRecord) -> None:
        self.writes += 1
        if self.fail_from is not None and self.writes >= self.fail_from:
            raise ResourceError(ErrorCode.STORAGE_UNAVAILABLE)
        await super().write(job, record)
        self._journal.append(f"record {record.state}")


class World:
    """A handler and everything around it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.broker = FakeBroker()
        self.journal = self.broker.journal
        self.records = Recorder(self.journal)
        self.settings = Settings(
            allowed_inputs=folder.as_uri(), allowed_outputs=folder.as_uri(), worker_id="w1", **settings
        )

    async def handle(
        self, body: bytes | Job, end: JobEnd | ReconError | None = None, **fields: Any
    ) -> Ending:
        data = body if isinstance(body, bytes) else body.model_dump_json().encode()
        engine = FakeEngine(lambda job: _end(job, end), self.journal, fields.pop("progress", ()))
        publisher = EventPublisher(self.broker, patience_s=0.0)
        handler = Handler(
            self.settings, broker=self.broker, publisher=publisher, records=self.records, engine=engine
        )
        return await handler.handle(FakeDelivery(data, self.journal, **fields))

    def record(self, job: Job) -> JobRecord | None:
        return read_record(open_store(result_location(job), NO_S3))

    @property
    def seqs(self) -> list[int]:
        return [event.data.seq for event in self.broker.events]


def _end(job: Job, end: JobEnd | ReconError | None) -> JobEnd:
    if isinstance(end, ReconError):
        return Failed(job.job_id, end.info())
    if end is not None:
        return end
    report = quality_report(job)
    store = open_store(result_location(job), NO_S3)
    store.put_bytes("quality.json", report.model_dump_json().encode(), "application/json")
    return Finished(job.job_id, report, str(result_location(job)), "m")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


CRASH = ResourceError(ErrorCode.MODEL_CRASHED, "gone")
DIVERGED = ModelError(ErrorCode.MODEL_DIVERGED, "no surface", step=3)


async def test_a_finished_job_is_recorded_then_announced_then_acknowledged(world: World):
    job = make_job(world.folder)
    assert await world.handle(job) is Ending.COMPLETED
    assert world.journal == [
        "record running",
        "event accepted",
        "event started",
        "run",
        "record completed",
        "event completed",
        "ack",
    ]


async def test_the_record_keeps_what_is_the_jobs_own(world: World):
    job = make_job(world.folder)
    await world.handle(job)
    record = world.record(job)
    assert record is not None
    assert (record.created_at, record.batch_id, record.metadata) == (job.created_at, "batch-1", {"order": 7})
    assert (record.attempt, record.worker_id, record.quality_status) == (1, "w1", "normal")
    assert record.last_seq == world.seqs[-1] == 3


async def test_every_event_echoes_batch_and_metadata(world: World):
    await world.handle(make_job(world.folder))
    assert {event.data.batch_id for event in world.broker.events} == {"batch-1"}
    assert all(event.data.metadata == {"order": 7} for event in world.broker.events)


async def test_a_redelivered_finished_job_repeats_its_event_without_computing(world: World):
    job = make_job(world.folder)
    await world.handle(job)
    world.journal.clear()
    assert await world.handle(job) is Ending.REPEATED
    assert world.journal == ["event completed", "ack"]
    first, second = (event for event in world.broker.events if isinstance(event, JobCompleted))
    assert first == second  # the id included: subscribers de-duplicate by it


async def test_a_redelivered_failed_job_repeats_its_event(world: World):
    job = make_job(world.folder)
    await world.handle(job, DIVERGED)
    assert await world.handle(job) is Ending.REPEATED
    first, second = (event for event in world.broker.events if isinstance(event, JobFailed))
    assert first == second


async def test_a_finished_job_whose_result_was_removed_is_not_computed_again(world: World):
    job = make_job(world.folder)
    await world.handle(job)
    open_store(result_location(job), NO_S3).delete("quality.json")
    world.journal.clear()
    assert await world.handle(job) is Ending.VANISHED
    assert world.journal == ["ack"]


async def test_a_damaged_report_of_a_finished_job_is_no_reason_to_try_again(world: World):
    job = make_job(world.folder)
    await world.handle(job)
    open_store(result_location(job), NO_S3).put_bytes("quality.json", b"{", "application/json")
    world.journal.clear()
    assert await world.handle(job) is Ending.VANISHED
    assert world.journal == ["ack"]


async def test_an_error_that_no_retry_cures_fails_at_once_with_its_details(world: World):
    job = make_job(world.folder)
    assert await world.handle(job, DIVERGED) is Ending.FAILED
    assert world.journal[-3:] == ["record failed", "event failed", "ack"]
    event = world.broker.events[-1]
    assert isinstance(event, JobFailed)
    assert event.data.error == DIVERGED.info()
    assert event.data.output is None
    assert not world.broker.copies


async def test_bad_quality_points_at_what_was_kept(world: World):
    job = make_job(world.folder)
    await world.handle(job, ModelError(ErrorCode.QUALITY_BELOW_THRESHOLD, "PSNR 12 dB"))
    event = world.broker.events[-1]
    assert isinstance(event, JobFailed)
    assert event.data.output == str(result_location(job))


async def test_a_crash_is_retried_until_the_last_attempt_then_dead_lettered(world: World):
    job = make_job(world.folder)
    endings = [await world.handle(job, CRASH) for _ in range(3)]
    assert endings == [Ending.RETRY, Ending.RETRY, Ending.EXHAUSTED]
    assert world.journal[-4:] == ["record failed", "event failed", "copy recon.jobs.dead", "ack"]
    assert world.broker.copies[0][1]["x-recon-reason"] == "MODEL_CRASHED"
    record = world.record(job)
    assert record is not None
    assert (record.state, record.attempt) == ("failed", 3)


async def test_a_retry_is_recorded_announced_and_requeued(world: World):
    job = make_job(world.folder)
    await world.handle(job, CRASH)
    assert world.journal[-3:] == ["record requeued", "event requeued", "requeue"]
    record = world.record(job)
    assert record is not None
    assert record.error == CRASH.info()


async def test_seq_strictly_increases_across_attempts(world: World):
    job = make_job(world.folder)
    for _ in range(3):
        await world.handle(job, CRASH)
    assert world.seqs == sorted(set(world.seqs))
    assert [event.data.attempt for event in world.broker.events] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


async def test_seq_increases_even_behind_a_worker_that_died_without_a_word(world: World):
    """The dead worker may have used any number that it had reserved."""
    job = make_job(world.folder)

    def die(_: Job) -> JobEnd:
        raise SystemExit

    engine = FakeEngine(die, world.journal)
    handler = Handler(
        world.settings,
        broker=world.broker,
        publisher=EventPublisher(world.broker),
        records=world.records,
        engine=engine,
    )
    with pytest.raises(SystemExit):
        await handler.handle(FakeDelivery(job.model_dump_json().encode(), world.journal))
    await world.handle(job)
    assert world.seqs == [1, 2, SEQ_HEADROOM + 1, SEQ_HEADROOM + 2, SEQ_HEADROOM + 3]


async def test_a_job_that_kills_its_workers_is_given_up(world: World):
    """Its attempts were begun, but nobody lived to end one."""
    job = make_job(world.folder)
    await world.handle(job, CRASH)
    record = world.record(job)
    assert record is not None
    lost = record.model_copy(update={"state": "running", "attempt": 3, "error": None})
    await world.records.write(job, lost)
    world.journal.clear()
    assert await world.handle(job) is Ending.EXHAUSTED
    assert "run" not in world.journal
    assert world.journal == ["record failed", "event failed", "copy recon.jobs.dead", "ack"]


async def test_a_cancelled_job_is_final(world: World):
    job = make_job(world.folder)
    assert await world.handle(job, Cancelled(job.job_id, "user")) is Ending.CANCELLED
    assert world.journal[-3:] == ["record cancelled", "event cancelled", "ack"]
    assert await world.handle(job) is Ending.REPEATED


async def test_a_shutdown_requeues_without_an_error(world: World):
    job = make_job(world.folder)
    assert await world.handle(job, Cancelled(job.job_id, "shutdown")) is Ending.SHUTDOWN
    assert world.journal[-4:] == ["record requeued", "event requeued", "copy recon.jobs.nvdiffrec", "ack"]
    assert world.broker.events[-1].data.error is None
    assert await world.handle(job) is Ending.COMPLETED


async def test_no_number_of_shutdowns_uses_up_the_attempts(world: World):
    job = make_job(world.folder)
    await world.handle(job, CRASH)
    for _ in range(world.settings.max_attempts + 2):
        assert await world.handle(job, Cancelled(job.job_id, "shutdown")) is Ending.SHUTDOWN
    assert await world.handle(job) is Ending.COMPLETED
    record = world.record(job)
    assert record is not None
    assert record.attempt == 2
    assert world.seqs == sorted(set(world.seqs))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": "magic"}, "UNKNOWN_MODEL"),
        ({"options": {"seed": -1}}, "INVALID_OPTIONS"),
        ({"options": {"colour": 1}}, "INVALID_OPTIONS"),
        ({"schema_version": "9"}, "UNSUPPORTED_SCHEMA_VERSION"),
        ({"input": "no location"}, "INVALID_MESSAGE"),
        ({"extra": 1}, "INVALID_MESSAGE"),
    ],
)
async def test_a_wrong_message_with_an_id_fails_by_its_own_code_and_is_acknowledged(
    world: World, change, code
):
    job = make_job(world.folder)
    body = json.dumps(job.model_dump(mode="json") | change).encode()
    assert await world.handle(body) is Ending.REFUSED
    assert world.journal == ["event failed", "copy recon.jobs.dead", "ack"]
    event = world.broker.events[0]
    assert isinstance(event, JobFailed)
    assert (event.data.batch_id, event.data.metadata) == ("batch-1", {"order": 7})
    assert (event.data.job_id, event.data.error.code, event.data.attempt) == (job.job_id, code, 0)


async def test_a_message_without_an_id_is_announced_and_dead_lettered(world: World):
    assert await world.handle(b"{ not json") is Ending.UNREADABLE
    assert world.journal == ["event failed", "copy recon.jobs.dead", "ack"]
    assert world.broker.events[0].data.job_id is None
    assert set(world.broker.copies[0][1]) == {"x-recon-reason", "x-recon-error", "x-recon-queue"}


async def test_a_message_that_cannot_be_read_names_no_job_whatever_its_properties_say(world: World):
    # Many clients make up a message id; a job of that id may be running.
    assert await world.handle(b"{ not json", message_id=str(UUID(int=5))) is Ending.UNREADABLE
    assert world.journal == ["event failed", "copy recon.jobs.dead", "ack"]
    assert (world.broker.events[0].subject, world.broker.events[0].data.job_id) == (None, None)


async def test_a_refusal_that_is_delivered_twice_is_one_event(world: World):
    await world.handle(b"{")
    await world.handle(b"{")
    assert len({event.id for event in world.broker.events}) == 1


@pytest.mark.parametrize("state", ["running", "requeued", "completed", "failed"])
@pytest.mark.parametrize("change", [{"options": {"seed": -1}}, {"extra": 1}, {"input": "s3://elsewhere/x"}])
async def test_a_refused_message_does_not_touch_the_job_whose_id_it_bears(
    world: World, state: str, change: dict[str, Any]
):
    job = make_job(world.folder)
    await world.handle(job, DIVERGED)
    record = world.record(job)
    assert record is not None
    record = record.model_copy(update={"state": state})
    await world.records.write(job, record)
    world.journal.clear()
    body = json.dumps(job.model_dump(mode="json") | change).encode()
    assert await world.handle(body) is Ending.INTRUDER
    assert world.journal == ["copy recon.jobs.dead", "ack"]
    assert world.record(job) == record


async def test_a_refusal_waits_while_nobody_can_tell_whose_id_it_bears(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    def away(store: object) -> None:
        raise ResourceError(ErrorCode.STORAGE_UNAVAILABLE)

    monkeypatch.setattr(records_module, "read_record", away)
    body = json.dumps(make_job(world.folder).model_dump(mode="json") | {"extra": 1}).encode()
    assert await world.handle(body) is Ending.NO_STORAGE


async def test_nothing_is_written_to_an_output_that_is_not_allowed(world: World, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    job = make_job(world.folder, output=outside.as_uri())
    assert await world.handle(job) is Ending.REFUSED
    assert world.broker.events[0].data.error.code is ErrorCode.LOCATION_NOT_ALLOWED
    assert list(outside.iterdir()) == []


async def test_a_refused_input_leaves_a_record_where_that_is_allowed(world: World):
    job = make_job(world.folder, input="s3://elsewhere/x")
    assert await world.handle(job) is Ending.FAILED
    record = world.record(job)
    assert record is not None
    assert (record.state, record.attempt) == ("failed", 0)
    assert world.journal == ["record failed", "event failed", "ack"]
    assert await world.handle(job) is Ending.REPEATED
    assert len({event.id for event in world.broker.events}) == 1


async def test_a_job_goes_back_when_its_record_cannot_be_written(world: World):
    world.records.fail_from = 1
    assert await world.handle(make_job(world.folder)) is Ending.NO_STORAGE
    assert world.journal == ["copy recon.jobs.nvdiffrec", "ack"]


async def test_no_outcome_is_announced_that_is_not_on_record(world: World):
    world.records.fail_from = 2
    assert await world.handle(make_job(world.folder)) is Ending.NO_STORAGE
    assert world.journal[-3:] == ["run", "copy recon.jobs.nvdiffrec", "ack"]


async def test_nothing_is_acknowledged_whose_event_was_not_confirmed(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(publisher_module, "RETRY_S", 0.0)

    def refuse_terminal(event: Any) -> None:
        if event.type == "recon.job.completed":
            raise ResourceError(ErrorCode.BROKER_UNAVAILABLE)

    world.broker.on_event = refuse_terminal
    with pytest.raises(ResourceError):
        await world.handle(make_job(world.folder))
    assert world.journal[-1] == "record completed"


async def test_progress_is_published_between_started_and_the_end(world: World):
    job = make_job(world.folder)
    report = Progress(job.job_id, "reconstruct", 0.5, "half", {"psnr_db": 20.0}, 4.0)
    await world.handle(job, progress=(report,))
    types = [event.type.removeprefix("recon.job.") for event in world.broker.events]
    assert types == ["accepted", "started", "progress", "completed"]
    assert world.seqs == [1, 2, 3, 4]


async def test_reading_is_patient_while_the_storage_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records_module, "FIRST_PAUSE_S", 0.001)
    answers: list[Any] = [ResourceError(ErrorCode.STORAGE_UNAVAILABLE)] * 3 + [None]

    def read(store: object) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(records_module, "read_record", read)
    assert await RecordKeeper(NO_S3, patience_s=5.0).read(make_job(tmp_path)) is None
    assert answers == []
