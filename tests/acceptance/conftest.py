"""The whole program as an operator runs it: real broker, real storage, `recon` in processes of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import pytest

from examples.local_services import RabbitMQ, S3Server, stop_process
from schemas.events import Event, WorkerOnline, is_terminal, parse_event

ROOT = Path(__file__).resolve().parents[2]
BROKER_TIMEOUT_S = 20


class BrokerThread:
    """AMQP for synchronous tests: an event loop in a thread, and every status event it has heard.

    Speaks to the broker by itself rather than through our client, so that it tests what others would see.
    """

    def __init__(self, amqp_url: str, status_exchange: str) -> None:
        self.events: list[Event] = []
        self._heard = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._connection, self._channel = self._call(self._connect(amqp_url, status_exchange))

    def close(self) -> None:
        self._call(self._connection.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(BROKER_TIMEOUT_S)
        self._loop.close()

    def publish(self, exchange: str, routing_key: str, body: bytes) -> None:
        """Publish with confirm; an unroutable message is an error."""
        self._call(self._publish(exchange, routing_key, body))

    def take(self, queue: str) -> aio_pika.abc.AbstractIncomingMessage | None:
        """Take one message from a queue, acknowledged; None if it is empty."""
        return self._call(self._take(queue))

    def count(self, queue: str) -> int:
        """Messages that are ready in a queue; those in a worker's hands are not counted."""
        return self._call(self._count(queue))

    def wait_for(self, match: Callable[[Event], bool], timeout_s: float) -> Event:
        """The first event, past or future, that matches."""
        with self._heard:
            found = self._heard.wait_for(lambda: next(filter(match, self.events), None), timeout_s)
        if found is None:
            heard = [f"{event.type} {event.subject}" for event in self.events]
            raise TimeoutError(f"no such event in {timeout_s:.0f} s; heard: {heard}")
        return found

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(BROKER_TIMEOUT_S)

    async def _connect(self, amqp_url: str, status_exchange: str) -> tuple[Any, Any]:
        connection = await aio_pika.connect(amqp_url)
        channel = await connection.channel()
        exchange = await channel.declare_exchange(status_exchange, "fanout", durable=True)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange)
        await queue.consume(self._on_event, no_ack=True)
        return connection, channel

    async def _on_event(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        event = parse_event(message.body)
        with self._heard:
            self.events.append(event)
            self._heard.notify_all()

    async def _publish(self, exchange: str, routing_key: str, body: bytes) -> None:
        target = await self._channel.get_exchange(exchange, ensure=False)
        message = aio_pika.Message(
            body,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id="no-uuid",  # left out, aio-pika makes one up, and a broken message's event carries it
        )
        await target.publish(message, routing_key=routing_key, mandatory=True)

    async def _take(self, name: str) -> aio_pika.abc.AbstractIncomingMessage | None:
        queue = await self._channel.get_queue(name, ensure=False)
        message = await queue.get(fail=False)
        if message is not None:
            await message.ack()
        return message

    async def _count(self, name: str) -> int:
        queue = await self._channel.declare_queue(name, passive=True)
        return queue.declaration_result.message_count


class System:
    """Broker, storage and one worker, with names of their own, so that no other test can interfere."""

    def __init__(self, rabbitmq: RabbitMQ, s3: S3Server, folder: Path, settings: Mapping[str, str]) -> None:
        name = f"acceptance-{uuid4().hex[:8]}"
        self.bucket = name
        self.storage = s3.client()
        self.storage.create_bucket(Bucket=name)
        self.folder = folder
        self.jobs, self.dead = f"{name}.jobs", f"{name}.dead"
        self.queue = f"{self.jobs}.nvdiffrec"
        self.inputs, self.results = f"s3://{name}/inputs", f"s3://{name}/results"
        self.environment = _without_settings() | {
            "PYTHONPATH": str(ROOT),
            "RECON_AMQP_URL": rabbitmq.amqp_url,
            "RECON_JOBS_EXCHANGE": self.jobs,
            "RECON_STATUS_EXCHANGE": f"{name}.status",
            "RECON_DEAD_QUEUE": self.dead,
            "RECON_CONTROL_QUEUE": f"{name}.control",
            "RECON_S3_ENDPOINT": s3.endpoint_url,
            "RECON_S3_ACCESS_KEY": s3.access_key,
            "RECON_S3_SECRET_KEY": s3.secret_key,
            "RECON_ALLOWED_INPUTS": f"s3://{name}",
            "RECON_ALLOWED_OUTPUTS": f"s3://{name}",
            "RECON_INPUT_PREFIX": self.inputs,
            "RECON_OUTPUT_PREFIX": self.results,
            "RECON_WORK_ROOT": str(folder / "work"),
            "RECON_DEVICE": "cpu",
            **settings,
        }
        self.broker = BrokerThread(rabbitmq.amqp_url, f"{name}.status")
        self.worker_log = folder / "worker.log"
        self.worker: subprocess.Popen[bytes] | None = None

    @property
    def events(self) -> list[Event]:
        return self.broker.events

    def recon(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a `recon` command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "consumer", *arguments],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    @contextmanager
    def running_worker(self) -> Iterator[None]:
        """A worker that is online in the block and stopped in order after it."""
        with self.worker_log.open("wb") as log:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "consumer", "worker"],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self.broker.wait_for(lambda event: isinstance(event, WorkerOnline), 120)
            yield
        finally:
            stop_process(self.worker, 60)

    def upload(self, files: Mapping[str, bytes]) -> str:
        """Put files below a fresh input prefix and name its location."""
        prefix = f"inputs/{uuid4().hex[:12]}"
        for name, body in files.items():
            self.storage.put_object(Bucket=self.bucket, Key=f"{prefix}/{name}", Body=body)
        return f"s3://{self.bucket}/{prefix}"

    def submit_raw(self, message: bytes | Mapping[str, object], model: str = "nvdiffrec") -> None:
        """Publish a message as any producer could, checked by nobody, where a model's jobs go."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.broker.publish(self.jobs, f"job.{model}", body)

    def end_of(self, job_id: UUID | str, timeout_s: float = 60) -> Event:
        """Wait for the terminal event of a job."""
        return self.broker.wait_for(
            lambda event: is_terminal(event) and event.subject == str(job_id), timeout_s
        )

    def events_of(self, job_id: UUID | str) -> list[Event]:
        """What was heard of a job so far, in order."""
        return [event for event in self.events if event.subject == str(job_id)]

    def wait_until_empty(self, queue: str, timeout_s: float = 20) -> bool:
        """Whether a queue runs empty in time: its count lags behind by a moment."""
        deadline = time.monotonic() + timeout_s
        while self.broker.count(queue) and time.monotonic() < deadline:
            time.sleep(0.2)
        return self.broker.count(queue) == 0

    def log_tail(self, lines: int = 60) -> str:
        """The end of the worker's log."""
        return "\n".join(self.worker_log.read_text(errors="replace").splitlines()[-lines:])


def _without_settings() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("RECON_", "AWS_"))}


@pytest.fixture(scope="module")
def worker_settings() -> dict[str, str]:
    """Settings of the worker beside those of its services; a module may have its own."""
    return {}


@pytest.fixture(scope="module")
def system(
    rabbitmq: RabbitMQ,
    s3: S3Server,
    tmp_path_factory: pytest.TempPathFactory,
    worker_settings: dict[str, str],
) -> Iterator[System]:
    """Broker, storage and one running worker for the tests of a module."""
    system = System(rabbitmq, s3, tmp_path_factory.mktemp("system"), worker_settings)
    try:
        with system.running_worker():
            yield system
    finally:
        system.broker.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Show the worker's log beside a failure."""
    report = yield
    system = getattr(item, "funcargs", {}).get("system")
    if report.failed and system is not None:
        report.sections.append(("Log of the worker", system.log_tail()))
    return report
