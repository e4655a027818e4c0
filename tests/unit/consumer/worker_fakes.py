"""In-memory stand-ins for broker, engine and delivery, with one journal of what was done in which order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from consumer.protocol import JobEnd, Progress
from consumer.supervisor import OnProgress
from pipeline.settings import S3Settings
from schemas.errors import ErrorCode, ResourceError
from schemas.events import Event
from schemas.jobs import Job, parse_job

NO_S3 = S3Settings(None, "us-east-1", None, None)


@dataclass
class FakeBroker:
    """Takes events and copies."""

    journal: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    copies: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    failures: int = 0
    on_event: Callable[[Event], None] = lambda event: None

    async def publish_event(self, event: Event) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise ResourceError(ErrorCode.BROKER_UNAVAILABLE)
        self.on_event(event)
        self.journal.append(f"event {event.type.removeprefix('recon.job.')}")
        self.events.append(event)

    async def publish_copy(self, delivery: Any, queue: str, headers: Mapping[str, str] | None = None) -> None:
        self.journal.append(f"copy {queue}")
        self.copies.append((queue, dict(headers or {})))


@dataclass
class FakeDelivery:
    body: bytes
    journal: list[str]
    queue: str = "recon.jobs.nvdiffrec"
    message_id: str | None = None
    headers: Mapping[str, object] = field(default_factory=dict)

    async def ack(self) -> None:
        self.journal.append("ack")

    async def requeue(self) -> None:
        self.journal.append("requeue")


@dataclass
class FakeEngine:
    """Answers every job with what the test planned."""

    plan: Callable[[Job], JobEnd]
    journal: list[str]
    progress: tuple[Progress, ...] = ()

    async def run(self, job: Job, on_progress: OnProgress) -> JobEnd:
        self.journal.append("run")
        for each in self.progress:
            on_progress(each)
        return self.plan(job)


def make_job(folder: Path | str, **fields: Any) -> Job:
    """A job whose input and output lie below a folder or a prefix."""
    root = folder.as_uri() if isinstance(folder, Path) else folder
    message = {
        "job_id": str(uuid4()),
        "model": "nvdiffrec",
        "input": f"{root}/in",
        "output": f"{root}/out",
        "batch_id": "batch-1",
        "metadata": {"order": 7},
        "created_at": "2026-01-02T03:04:05Z",
    }
    return parse_job(json.dumps(message | fields).encode())
