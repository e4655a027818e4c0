"""The worker's own loop, with everything around it faked."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from consumer.delivery import Ending
from consumer.settings import Settings
from consumer.supervisor import EngineState
from consumer.worker import Worker
from schemas.errors import ErrorCode, ModelError, ResourceError
from tests.unit.consumer.worker_fakes import FakeBroker, FakeDelivery, make_job


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    made = Worker(Settings(reconnect_s=0.2))

    async def ready() -> None:
        pass

    monkeypatch.setattr(made.engine, "ensure_ready", ready)
    return made


async def test_a_job_taken_in_the_moment_of_a_stop_is_given_back_unbegun(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    journal: list[str] = []

    async def take(queues: Any) -> FakeDelivery:
        worker.stop()
        return FakeDelivery(make_job(tmp_path).model_dump_json().encode(), journal)

    async def handle(delivery: Any) -> None:
        journal.append("handled")

    monkeypatch.setattr(worker._broker, "take", take)
    monkeypatch.setattr(worker._handler, "handle", handle)
    await worker._work()
    assert worker._ending is not None
    worker._ending.cancel()
    assert journal == ["requeue"]


async def test_a_worker_that_cannot_take_jobs_is_not_well_until_it_can(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
):
    """An open connection is not enough: the queues may be gone, or the user may not read them."""
    told: list[str] = []

    async def take(queues: Any) -> None:
        told.append(worker.health().status)
        if len(told) == 1:
            raise ResourceError(ErrorCode.BROKER_UNAVAILABLE, "The broker failed: access refused")
        if len(told) == 3:
            worker.stop()

    worker.ready.set()
    worker.engine._state = EngineState.READY
    monkeypatch.setattr(type(worker._broker), "is_connected", property(lambda self: True))
    monkeypatch.setattr(worker._broker, "take", take)
    await worker._work()
    assert worker._ending is not None
    worker._ending.cancel()
    assert told == ["ok", "degraded", "ok"]


async def test_a_worker_whose_engine_fails_for_good_says_that_it_goes(monkeypatch: pytest.MonkeyPatch):
    worker = Worker(Settings(reconnect_s=0.2, health_port=0))
    broker = FakeBroker()

    async def nothing() -> None:
        pass

    async def ready() -> None:
        if worker.ready.is_set():
            raise ModelError(ErrorCode.MODEL_WEIGHTS_MISSING, "Run: recon weights fetch")

    monkeypatch.setattr(worker._broker, "connect", nothing)
    monkeypatch.setattr(worker._broker, "publish_event", broker.publish_event)
    monkeypatch.setattr(worker.engine, "ensure_ready", ready)
    with pytest.raises(ModelError):
        await worker.run()
    assert [event.type for event in broker.events] == ["recon.worker.online", "recon.worker.offline"]


async def test_the_worker_pauses_while_the_storage_is_away(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    async def handle(delivery: Any) -> Ending:
        return Ending.NO_STORAGE

    monkeypatch.setattr(worker._handler, "handle", handle)
    began = time.monotonic()
    await worker._handle(FakeDelivery(b"", []))  # type: ignore[arg-type]
    assert time.monotonic() - began > 0.15
