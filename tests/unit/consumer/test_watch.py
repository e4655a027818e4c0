"""Watching a job, with the broker and the record faked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from consumer.client import Client
from consumer.events import JobEvents, terminal_event
from consumer.publisher import EventPublisher
from consumer.records import new_record
from consumer.settings import Settings
from schemas.base import utc_now
from schemas.events import Event, JobEvent, is_terminal
from schemas.jobs import Job
from tests.unit.consumer.worker_fakes import FakeBroker, make_job


class Broker:
    """Hands every event to the subscriber."""

    async def subscribe(self, on_event: Callable[[Event], None]) -> Callable[[], Awaitable[None]]:
        self.tell = on_event

        async def end() -> None:
            pass

        return end


async def events_of(job: Job) -> list[Event]:
    broker = FakeBroker()
    events = JobEvents(job, EventPublisher(broker), worker_id="w", attempt=1, last_seq=0)
    await events.accepted()
    await events.started(("download",))
    return broker.events


async def test_the_end_is_found_although_other_jobs_go_on_and_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("consumer.client.SILENCE_S", 0.3)
    job, other = make_job(tmp_path), make_job(tmp_path)
    record = new_record(
        job, None, "w", utc_now(), state="cancelled", attempt=1, last_seq=3, finished_at=utc_now()
    )
    ended = asyncio.Event()

    async def final_event(self: Client, job_id: UUID, output: str | None) -> JobEvent | None:
        return terminal_event(record, None) if ended.is_set() else None

    broker = Broker()

    async def connect(self: Client) -> Any:
        return broker

    monkeypatch.setattr(Client, "_final_event", final_event)
    monkeypatch.setattr(Client, "_connect", connect)

    async def chatter() -> None:
        (event, _) = await events_of(other)
        while True:
            broker.tell(event)
            await asyncio.sleep(0.02)

    async with Client(Settings()) as client, client.watch(job.job_id) as events:
        for event in await events_of(job):
            broker.tell(event)
        noise = asyncio.ensure_future(chatter())
        ended.set()
        async with asyncio.timeout(3):
            seen = [event async for event in events]
        noise.cancel()
    assert [event.data.job_id for event in seen] == [job.job_id] * 3
    assert is_terminal(seen[-1])
