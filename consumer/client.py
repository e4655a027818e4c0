"""The client library: upload, submit, watch, fetch. The `recon` command uses nothing else.

async with Client(load_settings()) as client:
    job = client.new_job("s3://recon/inputs/spot", options={"seed": 1})
    async with client.watch(job.job_id) as events:
        await client.submit(job)
        async for event in events:
            print(event.type)
    await client.fetch(job.job_id, Path("result"))
"""

from __future__ import annotations

import asyncio
import json
import logging
import mimetypes
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import UUID, uuid4

from consumer.connection import Broker
from consumer.events import terminal_event
from consumer.fetch import FetchProgress, fetch_result
from consumer.records import parse_quality, read_quality_bytes
from consumer.settings import Settings
from pipeline.record import read_record
from pipeline.storage import ObjectStore, open_store
from schemas.base import SCHEMA_VERSION, format_time, utc_now
from schemas.errors import AccessError, ErrorCode, ReconError
from schemas.events import Event, JobEvent, JobProgress, WorkerOffline, WorkerOnline, is_terminal
from schemas.jobs import Job, ModelName, parse_job
from schemas.locations import Location, parse_location
from schemas.quality import QualityReport
from schemas.results import JobRecord, Manifest

LOGGER = logging.getLogger(__name__)

SILENCE_S = 15.0
"""After so long without an event of its job, a watch reads the record: the exchange stores nothing."""

UPLOAD_THREADS = 4

OnUpload = Callable[[str, int, int], None]
"""Called with the key, the bytes done and the bytes in all."""


class Client:
    """Talks to broker and storage on behalf of a producer or a subscriber. An async context manager.

    Args:
        settings: Where both are, and where results lie by default.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._broker = Broker(settings, name="recon client")
        self._connected = False

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._broker.close()

    # --- Producing

    def new_job(
        self,
        input_location: str,
        *,
        model: ModelName = "nvdiffrec",
        output: str | None = None,
        options: Mapping[str, Any] | None = None,
        batch_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        job_id: UUID | None = None,
        time_limit_s: float | None = None,
    ) -> Job:
        """A checked job message. Values of options may be text: they take the type that the schema says.

        Raises:
            InvalidJob: as the worker would refuse it.
        """
        message: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "job_id": str(job_id or uuid4()),
            "input": input_location,
            "output": output or self._settings.output_prefix,
            "model": model,
            "options": dict(options or {}),
            "batch_id": batch_id,
            "metadata": dict(metadata or {}),
            "created_at": format_time(utc_now()),
        }
        if time_limit_s is not None:
            message["time_limit_s"] = time_limit_s
        return parse_job(json.dumps(message).encode())

    def input_location(self, job_id: UUID) -> str:
        """Where a folder for this job is uploaded to."""
        return f"{self._settings.input_prefix.rstrip('/')}/{job_id}"

    async def upload(
        self, folder: Path, location: str, on_progress: OnUpload = lambda key, done, total: None
    ) -> int:
        """Upload a folder's files, hidden ones left out; returns their number.

        Raises:
            AccessError: the folder or the location cannot be used.
            ResourceError: STORAGE_UNAVAILABLE.
        """
        source = open_store(Location("file", "", str(folder.resolve())), self._settings.s3())
        target = open_store(location, self._settings.s3())
        files = [each for each in await asyncio.to_thread(lambda: list(source.list())) if _visible(each.key)]
        total, done = sum(each.size for each in files), 0
        gate = asyncio.Semaphore(UPLOAD_THREADS)

        async def upload_one(key: str, size: int) -> None:
            nonlocal done
            media_type = mimetypes.guess_type(key)[0] or "application/octet-stream"
            async with gate:
                await asyncio.to_thread(target.upload, folder / key, key, media_type)
            done += size
            on_progress(key, done, total)

        async with _first_error(), asyncio.TaskGroup() as group:
            for each in files:
                group.create_task(upload_one(each.key, each.size))
        return len(files)

    async def submit(self, job: Job) -> None:
        """Publish a job; returns once it is safe in its queue.

        Raises:
            ResourceError: BROKER_UNAVAILABLE; also when no queue takes the job.
        """
        await (await self._connect()).publish_job(job)

    # --- Following

    @asynccontextmanager
    async def watch(self, job_id: UUID, *, output: str | None = None) -> AsyncIterator[Watch]:
        """Follow a job: subscribed from here on, whether the job is submitted yet or not.

        Raises:
            ResourceError: BROKER_UNAVAILABLE.
        """
        inbox: asyncio.Queue[JobEvent] = asyncio.Queue()

        def receive(event: Event) -> None:
            # Here, so that other jobs' events do not pass for a sign of life of this one.
            if not isinstance(event, WorkerOnline | WorkerOffline) and event.data.job_id == job_id:
                inbox.put_nowait(event)

        end = await (await self._connect()).subscribe(receive)
        try:
            # Only after the subscription: what happens in between is then seen twice rather than never.
            find_end = partial(self._final_event, job_id, output)
            yield Watch(inbox, find_end, await find_end())
        finally:
            await end()

    async def record(self, job_id: UUID, *, output: str | None = None) -> JobRecord:
        """The record of a job.

        Raises:
            AccessError: JOB_NOT_FOUND.
            ResourceError: STORAGE_UNAVAILABLE.
        """
        store = self._result(job_id, output)
        record = await asyncio.to_thread(read_record, store)
        if record is None:
            text = f"No record of job {job_id} at {store.location}. Is the output prefix right?"
            raise AccessError(ErrorCode.JOB_NOT_FOUND, text, job_id=str(job_id))
        return record

    async def quality(self, job_id: UUID, *, output: str | None = None) -> QualityReport:
        """The quality report of a job.

        Raises:
            AccessError: INPUT_NOT_FOUND: there is none.
            ResourceError: STORAGE_UNAVAILABLE.
        """
        return parse_quality(await asyncio.to_thread(read_quality_bytes, self._result(job_id, output)))

    # --- Fetching

    async def fetch(
        self,
        job_id: UUID,
        folder: Path,
        *,
        output: str | None = None,
        on_progress: Callable[[FetchProgress], None] = lambda progress: None,
    ) -> Manifest:
        """Download a result and check every file against the manifest.

        Raises:
            AccessError: JOB_NOT_FOUND; PATH_NOT_ALLOWED.
            ResourceError: STORAGE_UNAVAILABLE; INTERNAL_ERROR for a damaged file.
        """
        return await asyncio.to_thread(fetch_result, self._result(job_id, output), folder, on_progress)

    def _result(self, job_id: UUID, output: str | None) -> ObjectStore:
        root = parse_location(self._settings.output_prefix) if output is None else _location(output)
        return open_store(root.child(str(job_id)), self._settings.s3())

    async def _connect(self) -> Broker:
        if not self._connected:
            await self._broker.connect()
            self._connected = True
        return self._broker

    async def _final_event(self, job_id: UUID, output: str | None) -> JobEvent | None:
        """The terminal event that the record stands for; None while the job has no outcome.

        Events suffice for those who may not read the storage: failing to read it is not an error here.
        """
        try:
            record = await self.record(job_id, output=output)
            if not record.is_terminal:
                return None
            quality = None
            if record.state == "completed":
                quality = (await self.quality(job_id, output=output)).input_views
            return terminal_event(record, quality)
        except (ReconError, ValueError) as error:
            LOGGER.debug("No outcome on record: %s", error)
            return None


class Watch:
    """The events of one job as they come, each once, the terminal one last.

    Attributes:
        finished: The terminal event, where the job had ended before the watch began.
    """

    def __init__(
        self,
        inbox: asyncio.Queue[JobEvent],
        find_end: Callable[[], Awaitable[JobEvent | None]],
        finished: JobEvent | None,
    ) -> None:
        self.finished = finished
        self._inbox = inbox
        self._find_end = find_end
        self._ended = False
        self._seen: set[str] = set()
        self._seq = 0

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> JobEvent:
        if self._ended:
            raise StopAsyncIteration
        event = self.finished
        while event is None:
            event = await self._next()
        self._ended = is_terminal(event)
        return event

    async def _next(self) -> JobEvent | None:
        try:
            event = await asyncio.wait_for(self._inbox.get(), SILENCE_S)
        except TimeoutError:
            return await self._find_end()
        if event.id in self._seen or (isinstance(event, JobProgress) and event.data.seq <= self._seq):
            return None
        self._seen.add(event.id)
        self._seq = max(self._seq, event.data.seq)
        return event


def _visible(key: str) -> bool:
    return not any(part.startswith(".") for part in key.split("/"))


def _location(text: str) -> Location:
    try:
        return parse_location(text)
    except ValueError as error:
        raise AccessError(ErrorCode.LOCATION_NOT_ALLOWED, f"{text!r} is not a location: {error}.") from error


@asynccontextmanager
async def _first_error() -> AsyncIterator[None]:
    """Of a group of errors, the first: one upload's failure is everybody's."""
    try:
        yield
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
