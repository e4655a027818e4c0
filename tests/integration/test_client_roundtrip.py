"""The client library and the command against real services: upload, submit, watch, fetch."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from consumer.cli import app
from consumer.client import Client
from consumer.connection import Broker
from consumer.settings import Settings
from consumer.worker import Worker
from pipeline.record import result_location
from pipeline.storage import open_store
from schemas.base import utc_now
from schemas.errors import AccessError, ErrorCode, ResourceError
from schemas.events import is_terminal
from schemas.jobs import Job
from schemas.results import Artifact, Manifest
from tests.unit.consumer.miniatures import Miniature, Outcome

pytestmark = [pytest.mark.broker, pytest.mark.storage]

MODEL = b"glTF" * 1000


class Publishing(Miniature):
    """A miniature that leaves a result with a manifest."""

    def _finish(self, job: Job) -> Outcome:
        outcome = super()._finish(job)
        store = open_store(result_location(job), self._s3)
        store.put_bytes("previews/model.glb", MODEL, "model/gltf-binary")
        file = Artifact(
            path="previews/model.glb",
            size=len(MODEL),
            sha256=hashlib.sha256(MODEL).hexdigest(),
            media_type="model/gltf-binary",
        )
        manifest = Manifest(job_id=job.job_id, created_at=utc_now(), quality_status="normal", files=[file])
        store.put_bytes("manifest.json", manifest.model_dump_json().encode(), "application/json")
        return outcome


@pytest.fixture
def environment(rabbitmq: Any, s3: Any, bucket: str, tmp_path: Path) -> dict[str, str]:
    name = f"c{uuid4().hex[:8]}"
    return {
        "RECON_AMQP_URL": rabbitmq.amqp_url,
        "RECON_S3_ENDPOINT": s3.endpoint_url,
        "RECON_S3_ACCESS_KEY": s3.access_key,
        "RECON_S3_SECRET_KEY": s3.secret_key,
        "RECON_ALLOWED_INPUTS": f"s3://{bucket}",
        "RECON_ALLOWED_OUTPUTS": f"s3://{bucket}",
        "RECON_INPUT_PREFIX": f"s3://{bucket}/inputs",
        "RECON_OUTPUT_PREFIX": f"s3://{bucket}/results",
        "RECON_JOBS_EXCHANGE": name,
        "RECON_STATUS_EXCHANGE": f"{name}.status",
        "RECON_DEAD_QUEUE": f"{name}.dead",
        "RECON_CONTROL_QUEUE": f"{name}.control",
        "RECON_POLL_S": "0.05",
        "RECON_WORK_ROOT": str(tmp_path / "work"),
        "RECON_HEALTH_PORT": "0",
        "COLUMNS": "200",
    }


@pytest.fixture
def settings(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings()


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    async with Client(settings) as client:
        yield client


@asynccontextmanager
async def running_worker(settings: Settings) -> AsyncIterator[None]:
    worker = Worker(settings, factory=functools.partial(Publishing, settings.s3()))
    task = asyncio.ensure_future(worker.run())
    await asyncio.wait_for(worker.ready.wait(), 60)
    try:
        yield
    finally:
        worker.stop()
        await asyncio.wait_for(task, 60)


async def recon(*arguments: str) -> Result:
    """The command in a thread: it brings an event loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, app, list(arguments))


def job_with(client: Client, bucket: str, **metadata: Any) -> Job:
    return client.new_job(f"s3://{bucket}/in", metadata=metadata)


async def test_events_from_before_the_job_to_its_end(settings: Settings, client: Client, bucket: str):
    job = job_with(client, bucket, do="sleep", seconds=0.5)
    async with running_worker(settings), client.watch(job.job_id) as events:
        assert events.finished is None
        await client.submit(job)
        seen = [event async for event in events]
    assert [e.type for e in seen if "progress" not in e.type] == [
        "recon.job.accepted",
        "recon.job.started",
        "recon.job.completed",
    ]
    assert is_terminal(seen[-1])
    assert {event.data.job_id for event in seen} == {job.job_id}


async def test_who_comes_late_gets_the_same_last_event_from_the_record(
    settings: Settings, client: Client, bucket: str
):
    job = job_with(client, bucket)
    async with running_worker(settings), client.watch(job.job_id) as events:
        await client.submit(job)
        live = [event async for event in events]
    async with client.watch(job.job_id) as late:
        assert late.finished == live[-1]
        assert [event async for event in late] == live[-1:]


async def test_a_watcher_learns_of_an_end_whose_event_it_missed(
    settings: Settings, client: Client, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("consumer.client.SILENCE_S", 0.3)
    job = job_with(client, bucket)
    async with client.watch(job.job_id) as events:
        monkeypatch.setattr(events, "_inbox", asyncio.Queue())  # deaf from here on
        async with running_worker(settings):
            await client.submit(job)
            seen = [event async for event in events]
    assert [event.type for event in seen] == ["recon.job.completed"]


async def test_a_job_that_no_queue_takes_is_an_error_at_the_producer(
    settings: Settings, client: Client, bucket: str
):
    await client.submit(job_with(client, bucket))  # declares the topology
    connection = await aio_pika.connect(settings.amqp_url.get_secret_value())
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(settings.topology().job_queue("nvdiffrec"), ensure=False)
        await queue.unbind(settings.jobs_exchange, "job.nvdiffrec")
        with pytest.raises(ResourceError, match="nothing takes") as caught:
            await client.submit(job_with(client, bucket))
    assert caught.value.code is ErrorCode.BROKER_UNAVAILABLE


async def test_a_wrong_password_is_named_but_not_shown(settings: Settings):
    url = settings.amqp_url.get_secret_value().replace("recon:", "recon:not-")
    with pytest.raises(ResourceError) as caught:
        await Broker(Settings(amqp_url=url)).connect()
    assert caught.value.code is ErrorCode.BROKER_UNAVAILABLE
    assert "refused" in caught.value.message
    assert "not-" not in caught.value.message


async def test_a_folder_is_uploaded_as_it_is(
    settings: Settings, client: Client, bucket: str, tmp_path: Path, s3: Any
):
    for name in ("transforms.json", "images/0.png", "images/1.png", ".hidden/x", "depth/.swap"):
        path = tmp_path / "views" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    seen: list[tuple[str, int, int]] = []
    location = f"s3://{bucket}/inputs/one"
    count = await client.upload(tmp_path / "views", location, lambda *step: seen.append(step))
    keys = {each.key for each in open_store(location, settings.s3()).list()}
    assert keys == {"transforms.json", "images/0.png", "images/1.png"}
    assert count == 3
    assert seen[-1][1] == seen[-1][2]
    head = s3.client().head_object(Bucket=bucket, Key="inputs/one/images/0.png")
    assert head["ContentLength"] == len("images/0.png")


async def test_fetch_and_record(settings: Settings, client: Client, bucket: str, tmp_path: Path):
    job = job_with(client, bucket)
    async with running_worker(settings), client.watch(job.job_id) as events:
        await client.submit(job)
        async for _ in events:
            pass
    await client.fetch(job.job_id, tmp_path / "got")
    assert (tmp_path / "got/previews/model.glb").read_bytes() == MODEL
    assert (await client.record(job.job_id)).state == "completed"
    assert (await client.quality(job.job_id)).status == "normal"
    with pytest.raises(AccessError) as caught:
        await client.record(UUID(int=0))
    assert caught.value.code is ErrorCode.JOB_NOT_FOUND


async def test_the_command_from_submit_to_fetch(settings: Settings, bucket: str, tmp_path: Path):
    async with running_worker(settings):
        done = await recon("submit", f"s3://{bucket}/in", "--no-check", "--watch", "--metadata", "order=7")
        assert done.exit_code == 0, done.output
        job_id = done.stdout.strip()
        for word in ("accepted by", "started nvdiffrec", "completed in", "PSNR"):
            assert word in done.stderr
        late = await recon("watch", job_id)
        assert late.exit_code == 0
        assert "already finished" in late.stderr
        assert late.stdout == ""
        fetched = await recon("fetch", job_id, "--out", str(tmp_path / "got"))
        assert fetched.exit_code == 0, fetched.output
        assert fetched.stdout.strip() == str(tmp_path / "got")
        assert (tmp_path / "got/previews/model.glb").read_bytes() == MODEL


async def test_the_exit_code_tells_of_a_failed_job(settings: Settings, bucket: str):
    async with running_worker(settings):
        flags = ("--no-check", "--watch", "--json", "--metadata", "do=diverge", "--batch-id", "b")
        done = await recon("submit", f"s3://{bucket}/in", *flags)
    assert done.exit_code == 1
    job, *events = (json.loads(line) for line in done.stdout.splitlines())
    assert job["batch_id"] == "b"
    assert events[-1]["type"] == "recon.job.failed"
    assert events[-1]["data"]["error"]["code"] == "MODEL_DIVERGED"


async def test_a_bad_folder_is_refused_before_anything_is_uploaded(
    settings: Settings, bucket: str, tmp_path: Path
):
    (tmp_path / "images").mkdir()
    for index in range(2):
        Image.new("RGBA", (32, 32), "red").save(tmp_path / f"images/{index}.png")
    done = await recon("submit", str(tmp_path))
    assert done.exit_code == 4
    assert "error: " in done.stderr
    assert list(open_store(f"s3://{bucket}", settings.s3()).list()) == []


async def test_a_prefix_is_checked_before_the_job_is_published(settings: Settings, bucket: str):
    empty = await recon("submit", f"s3://{bucket}/nothing-here")
    assert empty.exit_code == 4
    assert "INPUT_NOT_FOUND" in empty.stderr
    client = Client(settings)
    sample = Path(__file__).resolve().parents[2] / "examples/spot-small/views"
    await client.upload(sample, f"s3://{bucket}/inputs/spot")
    good = await recon("submit", f"s3://{bucket}/inputs/spot")
    assert good.exit_code == 0, good.output
    assert "6 views, 6 with depth" in good.stderr
