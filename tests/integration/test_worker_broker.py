"""The control plane against a real RabbitMQ and a real S3 server, with miniature pipelines in the engine."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import aiohttp
import pytest

from consumer.client import Client
from consumer.connection import Broker
from consumer.settings import Settings
from consumer.worker import Worker
from pipeline.settings import S3Settings
from schemas.errors import ErrorCode
from schemas.events import Event, JobEvent, WorkerOnline, is_terminal, parse_event
from schemas.health import Health
from schemas.jobs import MODELS, Job
from tests.ports import free_port
from tests.unit.consumer.miniatures import Miniature, WithoutWeights

pytestmark = [pytest.mark.broker, pytest.mark.storage]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 40.0


class Setup:
    """Settings of their own for each test, and eyes on everything that the broker sees."""

    def __init__(self, rabbitmq: Any, s3: Any, bucket: str, tmp_path: Path) -> None:
        self.name = f"t{uuid4().hex[:8]}"
        self.bucket = bucket
        self.folder = tmp_path
        self.environment = {
            "RECON_AMQP_URL": rabbitmq.amqp_url,
            "RECON_S3_ENDPOINT": s3.endpoint_url,
            "RECON_S3_ACCESS_KEY": s3.access_key,
            "RECON_S3_SECRET_KEY": s3.secret_key,
            "RECON_ALLOWED_INPUTS": f"s3://{bucket}",
            "RECON_ALLOWED_OUTPUTS": f"s3://{bucket}",
            "RECON_INPUT_PREFIX": f"s3://{bucket}/inputs",
            "RECON_OUTPUT_PREFIX": f"s3://{bucket}/results",
            "RECON_JOBS_EXCHANGE": self.name,
            "RECON_STATUS_EXCHANGE": f"{self.name}.status",
            "RECON_DEAD_QUEUE": f"{self.name}.dead",
            "RECON_CONTROL_QUEUE": f"{self.name}.control",
            "RECON_POLL_S": "0.05",
            "RECON_RECONNECT_S": "0.3",
            "RECON_PROGRESS_S": "0.2",
            "RECON_CANCEL_GRACE_S": "1",
            "RECON_SHUTDOWN_GRACE_S": "0.5",
            "RECON_STORAGE_PATIENCE_S": "0.5",
            "RECON_BROKER_PATIENCE_S": "20",
            "RECON_WORK_ROOT": str(tmp_path / "work"),
            "RECON_HEALTH_PORT": "0",
        }

    def settings(self, **changes: Any) -> Settings:
        values = {key.removeprefix("RECON_").lower(): value for key, value in self.environment.items()}
        return Settings(**(values | changes))

    @asynccontextmanager
    async def worker(
        self, kind: Callable[[S3Settings], Miniature] = Miniature, **changes: Any
    ) -> AsyncIterator[Worker]:
        settings = self.settings(**changes)
        worker = Worker(settings, factory=functools.partial(kind, settings.s3()))
        running = asyncio.ensure_future(worker.run())
        ready = asyncio.ensure_future(worker.ready.wait())
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S)
        assert ready.done(), "the worker did not become ready"
        try:
            yield worker
        finally:
            worker.stop()
            await asyncio.wait_for(running, PATIENCE_S)

    def job(self, client: Client, do: str = "nothing", **fields: Any) -> Job:
        keys = ("time_limit_s", "options", "output", "job_id", "model")
        special = {key: fields.pop(key) for key in keys if key in fields}
        metadata = {"do": do, "counter": str(self.folder / "counter"), **fields}
        return client.new_job(f"s3://{self.bucket}/in", metadata=metadata, **special)

    @property
    def computations(self) -> list[str]:
        counter = self.folder / "counter"
        return [line.split()[1] for line in counter.read_text().splitlines()] if counter.exists() else []


class Eyes:
    """Raw access to the broker, independent of the code under test."""

    def __init__(self, setup: Setup, channel: Any) -> None:
        self.setup = setup
        self.channel = channel
        self.events: list[Event] = []
        self._changed = asyncio.Condition()

    async def listen(self) -> None:
        queue = await self.channel.declare_queue(exclusive=True)
        await queue.bind(f"{self.setup.name}.status")

        async def on_message(message: Any) -> None:
            async with self._changed:
                self.events.append(parse_event(message.body))
                self._changed.notify_all()

        await queue.consume(on_message, no_ack=True)

    async def until(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        async with self._changed, asyncio.timeout(timeout_s):
            await self._changed.wait_for(condition)

    def of(self, job_id: UUID | None) -> list[JobEvent]:
        return [each for each in self.events if hasattr(each.data, "job_id") and each.data.job_id == job_id]

    def types(self, job_id: UUID | None) -> list[str]:
        types = [each.type.removeprefix("recon.job.") for each in self.of(job_id)]
        return [each for each in types if each != "progress"]

    async def terminal(self, job_id: UUID | None, count: int = 1, timeout_s: float = PATIENCE_S) -> JobEvent:
        await self.until(lambda: sum(map(is_terminal, self.of(job_id))) >= count, timeout_s)
        return next(each for each in self.of(job_id) if is_terminal(each))

    async def publish_raw(self, body: bytes, **properties: Any) -> None:
        exchange = await self.channel.get_exchange(self.setup.name, ensure=False)
        await exchange.publish(aio_pika.Message(body, **properties), "job.nvdiffrec")

    async def waiting(self, queue: str = "nvdiffrec") -> int:
        """Messages that wait in a queue; those that a worker holds do not count."""
        name = f"{self.setup.name}.{queue}"
        declared = await self.channel.declare_queue(name, passive=True)
        return int(declared.declaration_result.message_count)

    async def until_waiting(self, count: int, queue: str = "nvdiffrec") -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.waiting(queue) != count:
                await asyncio.sleep(0.05)

    async def dead_letter(self) -> Any:
        queue = await self.channel.declare_queue(f"{self.setup.name}.dead", passive=True)
        async with asyncio.timeout(PATIENCE_S):
            while (message := await queue.get(no_ack=True, fail=False)) is None:
                await asyncio.sleep(0.05)
        return message


@pytest.fixture
def setup(rabbitmq: Any, s3: Any, bucket: str, tmp_path: Path) -> Setup:
    return Setup(rabbitmq, s3, bucket, tmp_path)


@pytest.fixture
async def client(setup: Setup) -> AsyncIterator[Client]:
    async with Client(setup.settings()) as client:
        yield client


@pytest.fixture
async def eyes(setup: Setup) -> AsyncIterator[Eyes]:
    broker = Broker(setup.settings())  # declares the topology
    await broker.connect()
    await broker.close()
    connection = await aio_pika.connect(setup.settings().amqp_url.get_secret_value())
    eyes = Eyes(setup, await connection.channel())
    await eyes.listen()
    yield eyes
    await connection.close()


async def test_a_job_goes_all_the_way(setup: Setup, client: Client, eyes: Eyes):
    job = setup.job(client, "sleep", seconds=0.5)
    await client.submit(job)  # before any worker is there
    async with setup.worker():
        await eyes.terminal(job.job_id)
        await eyes.until_waiting(0)
    assert eyes.types(job.job_id) == ["accepted", "started", "completed"]
    seqs = [event.data.seq for event in eyes.of(job.job_id)]
    assert seqs == list(range(1, len(seqs) + 1))
    record = await client.record(job.job_id)
    assert (record.state, record.created_at, record.last_seq) == ("completed", job.created_at, seqs[-1])
    workers = [event.type for event in eyes.events if "worker" in event.type]
    assert workers == ["recon.worker.online", "recon.worker.offline"]
    assert await eyes.waiting() == await eyes.waiting("dead") == 0


async def test_heartbeats_survive_half_a_minute_of_computation_that_holds_the_gil(
    setup: Setup, client: Client, eyes: Eyes
):
    """A lost connection would show as a second delivery, hence as a second acceptance."""
    job = setup.job(client, "hold the GIL", seconds=30)
    async with setup.worker(heartbeat_s=5) as worker:
        connection = worker._broker._connection
        assert connection is not None
        assert connection.transport is not None
        assert connection.transport.connection.connection_tune.heartbeat == 5
        lost: list[object] = []
        connection.close_callbacks.add(lambda *reason: lost.append(reason))
        await client.submit(job)
        await eyes.terminal(job.job_id, timeout_s=60)
        await eyes.until_waiting(0)
        assert lost == []
    assert eyes.types(job.job_id) == ["accepted", "started", "completed"]
    assert len(setup.computations) == 1
    assert await eyes.waiting() == 0


async def test_a_second_job_is_not_taken_while_the_first_runs(setup: Setup, client: Client, eyes: Eyes):
    first, second = setup.job(client, "sleep", seconds=2), setup.job(client)
    async with setup.worker():
        await client.submit(first)
        await eyes.until(lambda: "started" in eyes.types(first.job_id))
        await client.submit(second)
        for _ in range(10):
            assert await eyes.waiting() == 1
            await asyncio.sleep(0.1)
        await eyes.terminal(second.job_id)
    order = [
        (each.type.split(".")[-1], each.data.job_id) for each in eyes.events if hasattr(each.data, "job_id")
    ]
    assert order.index(("completed", first.job_id)) < order.index(("accepted", second.job_id))


async def test_queues_of_two_models_take_turns_and_never_more_than_one_job_is_held(
    setup: Setup, client: Client, eyes: Eyes
):
    models = ("nvdiffrec", "reconviagen")
    jobs = [setup.job(client, "sleep", seconds=0.3, model=models[i // 3]) for i in range(6)]
    for job in jobs:
        await client.submit(job)
    held = []
    async with setup.worker():
        for decided in range(len(jobs)):
            await eyes.until(lambda: len(_of_kind(eyes, "started")) > decided)  # noqa: B023
            waiting = sum([await eyes.waiting(model) for model in models])
            if len(_of_kind(eyes, "completed")) == decided:  # else the next one may rightly be taken by now
                held.append(len(jobs) - decided - waiting)
            await eyes.until(lambda: len(_of_kind(eyes, "completed")) > decided)  # noqa: B023
        await eyes.until_waiting(0)
    assert len(held) >= 3
    assert set(held) == {1}
    order = [(each.type, each.data.job_id) for each in eyes.events if hasattr(each.data, "job_id")]
    order = [pair for pair in order if pair[0] in ("recon.job.accepted", "recon.job.completed")]
    assert [kind.split(".")[-1] for kind, _ in order] == ["accepted", "completed"] * 6
    of_model = {job.job_id: job.model for job in jobs}
    assert [of_model[job_id] for kind, job_id in order[::2]] == list(models) * 3


async def test_a_model_that_cannot_be_served_keeps_its_jobs_waiting(setup: Setup, client: Client, eyes: Eyes):
    job, other = setup.job(client, model="reconviagen"), setup.job(client)
    await client.submit(job)
    async with setup.worker(WithoutWeights):
        await client.submit(other)
        await eyes.terminal(other.job_id)
        await asyncio.sleep(1)
        assert await eyes.waiting("reconviagen") == 1
    online = next(each for each in eyes.events if isinstance(each, WorkerOnline))
    assert online.data.models == ["nvdiffrec"]
    reason = online.data.unavailable["reconviagen"]
    assert (reason.code, reason.message) == (ErrorCode.MODEL_WEIGHTS_MISSING, "Run: recon weights fetch")
    assert eyes.of(job.job_id) == []
    async with setup.worker():
        await eyes.terminal(job.job_id)
        await eyes.until_waiting(0, "reconviagen")
    assert eyes.types(job.job_id) == ["accepted", "started", "completed"]


class Arriving(Miniature):
    """Weights that come while the worker is running: the next engine finds them."""

    def __init__(self, flag: Path, s3: S3Settings) -> None:
        super().__init__(s3)
        self.models = MODELS if flag.exists() else ("nvdiffrec",)


async def test_a_new_engine_that_can_serve_more_is_announced(setup: Setup, client: Client, eyes: Eyes):
    flag = setup.folder / "weights"
    waits, crashes = setup.job(client, model="reconviagen"), setup.job(client, "signal", signal="SIGKILL")
    await client.submit(waits)
    async with setup.worker(functools.partial(Arriving, flag), max_attempts=1):
        flag.touch()
        await client.submit(crashes)
        await eyes.terminal(waits.job_id)
    told = [each.data.models for each in eyes.events if isinstance(each, WorkerOnline)]
    assert told == [["nvdiffrec"], list(MODELS)]


def _of_kind(eyes: Eyes, kind: str) -> list[Event]:
    return [each for each in eyes.events if each.type == f"recon.job.{kind}"]


async def test_a_finished_job_that_comes_again_is_not_computed_again(
    setup: Setup, client: Client, eyes: Eyes
):
    job = setup.job(client)
    async with setup.worker():
        await client.submit(job)
        await eyes.terminal(job.job_id)
        await client.submit(job)
        await eyes.terminal(job.job_id, count=2)
        await eyes.until_waiting(0)
    first, second = (event for event in eyes.of(job.job_id) if is_terminal(event))
    assert first == second
    assert len(setup.computations) == 1


def _changed(job: Job, **changes: Any) -> bytes:
    return json.dumps(job.model_dump(mode="json") | changes).encode()


async def test_bad_messages_get_their_own_codes_and_the_worker_goes_on(
    setup: Setup, client: Client, eyes: Eyes
):
    jobs = {
        ErrorCode.UNKNOWN_MODEL: {"model": "magic"},
        ErrorCode.INVALID_OPTIONS: {"options": {"geometry_iterations": -1}},
        ErrorCode.LOCATION_NOT_ALLOWED: {"input": "s3://somebody-else/x"},
        ErrorCode.UNSUPPORTED_SCHEMA_VERSION: {"schema_version": "7"},
    }
    good, expected = setup.job(client), {}
    async with setup.worker():
        for code, changes in jobs.items():
            job = setup.job(client)
            expected[job.job_id] = code
            await eyes.publish_raw(_changed(job, **changes))
        await eyes.publish_raw(b"{ broken", message_id=str(uuid4()))
        await eyes.publish_raw(b"\xff\x00 not even text")
        await client.submit(good)
        await eyes.terminal(good.job_id)
        await eyes.until_waiting(0)
    for job_id, code in expected.items():
        event = await eyes.terminal(job_id)
        assert event.data.error.code is code
    await eyes.terminal(None, count=2)
    assert {each.data.error.code for each in eyes.of(None)} == {ErrorCode.INVALID_MESSAGE}
    dead = [await eyes.dead_letter() for _ in range(5)]
    assert [each.body for each in dead[-2:]] == [b"{ broken", b"\xff\x00 not even text"]
    # The one with a wrong input has a record, which suffices.
    codes = ["UNKNOWN_MODEL", "INVALID_OPTIONS", "UNSUPPORTED_SCHEMA_VERSION", *2 * ["INVALID_MESSAGE"]]
    assert [each.headers["x-recon-reason"] for each in dead] == codes
    assert {each.headers["x-recon-queue"] for each in dead} == {f"{setup.name}.nvdiffrec"}
    assert await eyes.waiting("dead") == 0
    assert setup.computations == [str(good.job_id)]


async def test_a_crashed_engine_costs_one_attempt(setup: Setup, client: Client, eyes: Eyes):
    job = setup.job(client, "signal once", flag=str(setup.folder / "flag"))
    async with setup.worker():
        await client.submit(job)
        await eyes.terminal(job.job_id)
    assert eyes.types(job.job_id) == ["accepted", "started", "requeued", "accepted", "started", "completed"]
    requeued = next(each for each in eyes.of(job.job_id) if each.type == "recon.job.requeued")
    assert requeued.data.error.code is ErrorCode.MODEL_CRASHED
    seqs = [event.data.seq for event in eyes.of(job.job_id)]
    assert seqs == sorted(set(seqs))


async def test_a_job_that_always_crashes_ends_in_the_dead_letters_and_harms_no_other(
    setup: Setup, client: Client, eyes: Eyes
):
    bad, good = setup.job(client, "signal", signal="SIGKILL"), setup.job(client)
    async with setup.worker(max_attempts=2):
        await client.submit(bad)
        await client.submit(good)
        await eyes.terminal(bad.job_id)
        await eyes.terminal(good.job_id)
        await eyes.until_waiting(0)
    expected = ["accepted", "started", "requeued", "accepted", "started", "failed"]
    assert eyes.types(bad.job_id) == expected
    assert eyes.types(good.job_id) == ["accepted", "started", "completed"]
    dead = await eyes.dead_letter()
    assert json.loads(dead.body)["job_id"] == str(bad.job_id)
    assert dead.headers["x-recon-reason"] == "MODEL_CRASHED"
    assert (await client.record(bad.job_id)).attempt == 2


async def test_a_job_beyond_its_time_limit_fails_once(setup: Setup, client: Client, eyes: Eyes):
    job = setup.job(client, "ignore cancel", seconds=60, time_limit_s=0.5)
    async with setup.worker():
        await client.submit(job)
        event = await eyes.terminal(job.job_id)
    assert event.data.error.code is ErrorCode.TIME_LIMIT_EXCEEDED
    assert eyes.types(job.job_id) == ["accepted", "started", "failed"]


@pytest.mark.parametrize("do", ["sleep", "ignore cancel"])
async def test_a_shutdown_gives_the_running_job_back(setup: Setup, client: Client, eyes: Eyes, do: str):
    job = setup.job(client, do, seconds=60)
    async with setup.worker():
        await client.submit(job)
        await eyes.until(lambda: "started" in eyes.types(job.job_id))
    assert eyes.types(job.job_id) == ["accepted", "started", "requeued"]
    await eyes.until_waiting(1)
    assert (await client.record(job.job_id)).state == "requeued"


async def test_a_shutdown_lets_a_short_job_finish(setup: Setup, client: Client, eyes: Eyes):
    job = setup.job(client, "sleep", seconds=1)
    async with setup.worker(shutdown_grace_s=20):
        await client.submit(job)
        await eyes.until(lambda: "started" in eyes.types(job.job_id))
    assert eyes.types(job.job_id) == ["accepted", "started", "completed"]
    assert await eyes.waiting() == 0


async def test_a_job_waits_in_its_queue_while_the_storage_is_away(setup: Setup, client: Client, eyes: Eyes):
    job = setup.job(client)
    async with setup.worker(s3_endpoint="http://127.0.0.1:1", storage_patience_s=0.1):
        await client.submit(job)
        await asyncio.sleep(2)
    await eyes.until_waiting(1)
    async with setup.worker():
        await eyes.terminal(job.job_id)
    assert eyes.types(job.job_id) == ["accepted", "started", "completed"]


async def test_a_worker_outlives_its_connection(setup: Setup, client: Client, eyes: Eyes):
    """The connection is cut in the middle of a job: the job is delivered again, and computed once."""
    job, later = setup.job(client, "sleep", seconds=2), setup.job(client)
    async with setup.worker() as worker:
        await client.submit(job)
        await eyes.until(lambda: "started" in eyes.types(job.job_id))
        connection = worker._broker._connection
        assert connection is not None
        assert connection.transport is not None
        await connection.transport.connection.close()
        async with asyncio.timeout(5):
            while worker.health().broker_connected:
                await asyncio.sleep(0.01)
        assert worker.health().status == "degraded"
        await eyes.terminal(job.job_id)
        await client.submit(later)
        await eyes.terminal(later.job_id)
        await eyes.until_waiting(0)
        assert worker.health().status == "ok"
    assert setup.computations == [str(job.job_id), str(later.job_id)]
    assert len({each.id for each in eyes.of(job.job_id) if is_terminal(each)}) == 1


async def test_a_deleted_queue_is_declared_again(setup: Setup, client: Client, eyes: Eyes):
    """What RabbitMQ does to a consumer then (a silent `basic.cancel`) cannot make this worker deaf."""
    async with setup.worker():
        underlay = await eyes.channel.get_underlay_channel()
        await underlay.queue_delete(f"{setup.name}.nvdiffrec")
        await asyncio.sleep(1)
        job = setup.job(client)
        await client.submit(job)
        await eyes.terminal(job.job_id)


async def test_sigterm_ends_the_command_in_order(setup: Setup, eyes: Eyes):
    """The real command with the real pipeline, idle: online, then SIGTERM, then offline and exit code 0.

    It serves what this machine can, and says why not the rest: in the event, over HTTP and in its log.
    """
    port = free_port()
    own = {"RECON_WORKER_ID": "w9", "RECON_LOG_FORMAT": "json", "RECON_DEVICE": "cpu"}
    program = "from consumer.cli import main; main()"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        "worker",
        cwd=ROOT,
        env=os.environ | setup.environment | own | {"RECON_HEALTH_PORT": str(port)},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await eyes.until(lambda: any(each.type == "recon.worker.online" for each in eyes.events), 90)
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/health") as it:
            health = Health.model_validate_json(await it.text())
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    assert time.monotonic() - began < 10
    await eyes.until(lambda: eyes.events[-1].type == "recon.worker.offline")
    logged = err.decode()
    assert setup.settings().amqp_url.get_secret_value() not in logged
    lines = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    assert all("job_id" in line for line in lines)
    online = next(each for each in eyes.events if isinstance(each, WorkerOnline))
    assert online.data.models == health.models == ["nvdiffrec"]
    assert online.data.unavailable == health.unavailable
    reason = health.unavailable["reconviagen"]
    assert reason.code is ErrorCode.GPU_TOO_SMALL
    assert len([line for line in lines if reason.message in line["message"]]) == 1
    assert (health.device, health.engine, health.broker_connected) == ("cpu", "ready", True)
