"""The worker's own loop, with everything around it faked."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from consumer.delivery import Ending
from consumer.settings import Settings
from consumer.worker import Worker
from tests.unit.consumer.worker_fakes import FakeDelivery, make_job


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


async def test_the_worker_pauses_while_the_storage_is_away(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    async def handle(delivery: Any) -> Ending:
        return Ending.NO_STORAGE

    monkeypatch.setattr(worker._handler, "handle", handle)
    began = time.monotonic()
    await worker._handle(FakeDelivery(b"", []))  # type: ignore[arg-type]
    assert time.monotonic() - began > 0.15
