"""The worker's health over HTTP, and the container's question for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from consumer.health import answering, json_answer
from consumer.settings import Settings
from consumer.supervisor import EngineState
from consumer.worker import Worker
from pipeline.capabilities import Capabilities
from schemas.errors import ErrorCode, ModelError
from schemas.health import Health
from tests.ports import free_port
from tests.unit.consumer.worker_fakes import make_job

HEALTHCHECK = Path(__file__).resolve().parents[3] / "deploy" / "healthcheck.py"
HOST = "127.0.0.1"
MISSING = ModelError(ErrorCode.MODEL_WEIGHTS_MISSING, "Run: recon weights fetch").info()
GPU = Capabilities("cuda (NVIDIA X)", 12 * 2**30, ("nvdiffrec",), {"reconviagen": MISSING})


@pytest.fixture
def worker() -> Worker:
    return Worker(Settings(worker_id="w1"))


def bring_up(worker: Worker, monkeypatch: pytest.MonkeyPatch, *, connected: bool = True) -> None:
    worker.engine.capabilities = GPU
    worker.engine._state = EngineState.READY
    worker.ready.set()
    monkeypatch.setattr(type(worker._broker), "is_connected", property(lambda self: connected))


def serving(worker: Worker, port: int) -> Any:
    return answering(HOST, port, {"/health": lambda: json_answer(worker.health())})


def listening() -> set[int]:
    """The TCP ports on which this process listens."""
    ports = set()
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # no socket, or gone
            number = os.dup(int(file.name))
            try:
                held = socket.socket(fileno=number)
            except OSError:
                os.close(number)
                continue
            with held:
                if held.family == socket.AF_INET and held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    ports.add(int(held.getsockname()[1]))
    return ports


async def get(port: int, path: str = "/health") -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{HOST}:{port}{path}") as answer:
        return answer.status, answer.content_type, await answer.text()


async def test_a_worker_tells_what_it_serves_and_what_it_lacks(worker, monkeypatch, tmp_path):
    bring_up(worker, monkeypatch)
    job = make_job(tmp_path)
    worker.engine._state, worker.engine._job = EngineState.BUSY, job
    port = free_port()
    async with serving(worker, port):
        status, kind, text = await get(port)
        assert (await get(port, "/"))[0] == 404
    assert (status, kind) == (200, "application/json")
    told = json.loads(text)
    assert told == {
        "status": "ok",
        "worker_id": "w1",
        "version": told["version"],
        "models": ["nvdiffrec"],
        "unavailable": {
            "reconviagen": {"code": "MODEL_WEIGHTS_MISSING", "message": "Run: recon weights fetch"}
        },
        "engine": "busy",
        "device": "cuda (NVIDIA X)",
        "gpu_memory_gib": 12.0,
        "job": {"job_id": str(job.job_id), "model": "nvdiffrec"},
        "broker_connected": True,
    }


async def test_a_worker_that_has_just_begun_says_so(worker):
    health = worker.health()
    assert (health.status, health.engine, health.device) == ("starting", "new", "unknown")
    assert (health.models, health.broker_connected, health.job) == ([], False, None)


@pytest.mark.parametrize("lost", ["broker", "engine"])
async def test_a_worker_that_has_lost_a_part_is_not_well(worker, monkeypatch, lost):
    bring_up(worker, monkeypatch, connected=lost != "broker")
    if lost == "engine":
        worker.engine._state = EngineState.LOADING
    assert worker.health().status == "degraded"


async def test_a_worker_that_goes_says_so(worker, monkeypatch):
    bring_up(worker, monkeypatch)
    worker.stop()
    assert worker._ending is not None
    worker._ending.cancel()
    assert worker.health().status == "stopping"


async def test_no_port_is_opened_for_port_zero(worker):
    before = listening()
    async with serving(worker, 0):
        assert listening() == before
    async with serving(worker, port := free_port()):
        assert listening() == before | {port}


@pytest.mark.parametrize(
    "said", [b"", b"GET /heal", b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"]
)
async def test_a_client_that_holds_its_connection_does_not_delay_the_end(worker, said):
    port = free_port()
    async with serving(worker, port):
        _, writer = await asyncio.open_connection(HOST, port)
        writer.write(said)
        await writer.drain()
        await asyncio.sleep(0.1)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    writer.close()


async def test_what_is_no_http_costs_no_line_in_the_log(worker, caplog):
    port = free_port()
    async with serving(worker, port):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
    assert [record.name for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_port_that_is_taken_costs_a_line_in_the_log_and_nothing_else(worker, caplog):
    port = free_port()
    async with serving(worker, port):
        with caplog.at_level(logging.ERROR):
            async with serving(worker, port):
                assert (await get(port))[0] == 200
        assert str(port) in caplog.text
        assert (await get(port))[0] == 200, "the first one goes on"


async def check(port: int, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        HEALTHCHECK,
        env={"RECON_HEALTH_PORT": str(port), "http_proxy": "http://127.0.0.1:1", **environment},
        stdout=subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_a_container_is_healthy_while_its_worker_is_well(worker, monkeypatch):
    port = free_port()
    assert (await check(port))[0] == 1, "nobody answers"
    async with serving(worker, port):
        assert (await check(port))[0] == 1, "it has not begun to work"
        bring_up(worker, monkeypatch)
        code, said = await check(port, RECON_HEALTH_HOST="0.0.0.0")
        assert code == 0
        assert Health.model_validate_json(said).job is None
        bring_up(worker, monkeypatch, connected=False)
        assert (await check(port))[0] == 1
    assert (await check(0))[0] == 0
