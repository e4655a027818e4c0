"""The engine process and its supervisor, with a miniature pipeline for every way to end."""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from consumer.child import EngineProcess, exit_error
from consumer.protocol import Cancelled, Failed, Finished, JobEnd, Progress
from consumer.supervisor import EngineState, Supervisor
from schemas.errors import EngineDied, ErrorCode, ModelError
from schemas.jobs import MODELS, Job
from tests.unit.consumer.miniatures import DiesLoading, FailsToLoad, LoadsForever, Miniature, WithoutWeights
from tests.unit.consumer.worker_fakes import NO_S3, make_job

ROOT = Path(__file__).resolve().parents[3]

MakeSupervisor = Callable[..., Supervisor]


@pytest.fixture
async def make() -> AsyncIterator[MakeSupervisor]:
    made: list[Supervisor] = []

    def one(kind: type[Miniature] = Miniature, **kwargs: Any) -> Supervisor:
        made.append(Supervisor(functools.partial(kind, NO_S3), **kwargs))
        return made[-1]

    yield one
    for each in made:
        await each.stop()
        assert each.pid is None


@pytest.fixture
async def engine(make: MakeSupervisor) -> Supervisor:
    supervisor = make(cancel_grace_s=0.5)
    await supervisor.ensure_ready()
    return supervisor


class Follower:
    """Collects progress and lets a test wait for the first of it."""

    def __init__(self) -> None:
        self.reports: list[Progress] = []
        self.begun = asyncio.Event()

    def __call__(self, progress: Progress) -> None:
        self.reports.append(progress)
        self.begun.set()


def wish(folder: Path, do: str, *, time_limit_s: float = 60.0, **fields: Any) -> Job:
    return make_job(folder, metadata={"do": do, **fields}, time_limit_s=time_limit_s)


async def run(engine: Supervisor, job: Job) -> JobEnd:
    await engine.ensure_ready()
    return await engine.run(job, Follower())


async def run_and_cancel(engine: Supervisor, job: Job, reason: str = "user") -> JobEnd:
    follower = Follower()
    running = asyncio.ensure_future(engine.run(job, follower))
    await follower.begun.wait()
    engine.cancel(reason)
    return await running


def code(end: JobEnd) -> ErrorCode:
    assert isinstance(end, Failed)
    return end.error.code


async def test_jobs_run_one_after_the_other_in_one_warm_process(engine: Supervisor, tmp_path: Path):
    pid = engine.pid
    for _ in range(2):
        assert isinstance(await run(engine, wish(tmp_path, "nothing")), Finished)
    assert (engine.pid, engine.state, engine.job) == (pid, EngineState.READY, None)
    assert (engine.capabilities.device, engine.capabilities.models) == ("cpu (miniature)", MODELS)


async def test_progress_arrives_in_order(engine: Supervisor, tmp_path: Path):
    follower = Follower()
    await engine.run(wish(tmp_path, "sleep", seconds=0.2), follower)
    fractions = [report.fraction for report in follower.reports]
    assert len(fractions) > 3
    assert fractions == sorted(fractions)


@pytest.mark.parametrize(
    ("do", "expected"),
    [
        ("raise", ErrorCode.INTERNAL_ERROR),
        ("diverge", ErrorCode.MODEL_DIVERGED),
        ("storage away", ErrorCode.STORAGE_UNAVAILABLE),
    ],
)
async def test_an_exception_fails_the_job_and_keeps_the_engine(
    engine: Supervisor, tmp_path: Path, do, expected
):
    pid = engine.pid
    assert code(await run(engine, wish(tmp_path, do))) is expected
    assert isinstance(await run(engine, wish(tmp_path, "nothing")), Finished)
    assert engine.pid == pid


async def test_an_error_crosses_the_pipe_with_its_details(engine: Supervisor, tmp_path: Path):
    end = await run(engine, wish(tmp_path, "diverge"))
    assert isinstance(end, Failed)
    assert end.error.details == {"step": 3}


async def test_a_cuda_fault_costs_the_process(engine: Supervisor, tmp_path: Path):
    pid = engine.pid
    assert code(await run(engine, wish(tmp_path, "cuda fault"))) is ErrorCode.GPU_UNAVAILABLE
    assert isinstance(await run(engine, wish(tmp_path, "nothing")), Finished)
    assert engine.pid != pid


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
async def test_a_killed_engine_fails_one_job_and_is_replaced(engine: Supervisor, tmp_path: Path, name: str):
    pid = engine.pid
    end = await run(engine, wish(tmp_path, "signal", signal=name))
    assert code(end) is ErrorCode.MODEL_CRASHED
    assert isinstance(end, Failed)
    assert end.error.details["signal"] == name
    assert isinstance(await run(engine, wish(tmp_path, "nothing")), Finished)
    assert engine.pid != pid


async def test_an_engine_that_leaves_is_a_crash_with_its_exit_code(engine: Supervisor, tmp_path: Path):
    end = await run(engine, wish(tmp_path, "exit"))
    assert isinstance(end, Failed)
    assert (end.error.code, end.error.details) == (ErrorCode.MODEL_CRASHED, {"exit_code": 7})


async def test_a_cancel_stops_the_running_job_and_keeps_the_engine(engine: Supervisor, tmp_path: Path):
    pid = engine.pid
    end = await run_and_cancel(engine, wish(tmp_path, "sleep", seconds=30))
    assert isinstance(end, Cancelled)
    assert end.reason == "user"
    assert engine.pid == pid
    assert isinstance(await run(engine, wish(tmp_path, "nothing")), Finished)


async def test_a_cancel_between_jobs_does_not_affect_the_next_one(engine: Supervisor, tmp_path: Path):
    for _ in range(100):
        engine.cancel("user")
    assert isinstance(await run(engine, wish(tmp_path, "nothing")), Finished)


async def test_the_first_of_a_hundred_cancels_counts(engine: Supervisor, tmp_path: Path):
    follower = Follower()
    running = asyncio.ensure_future(engine.run(wish(tmp_path, "sleep", seconds=30), follower))
    await follower.begun.wait()
    for number in range(100):
        engine.cancel("shutdown" if number == 0 else "user")
    end = await running
    assert isinstance(end, Cancelled)
    assert end.reason == "shutdown"


@pytest.mark.parametrize("do", ["ignore cancel", "hold the GIL"])
async def test_an_engine_that_ignores_a_cancel_is_killed_after_the_grace(
    engine: Supervisor, tmp_path: Path, do: str
):
    pid, began = engine.pid, time.monotonic()
    assert isinstance(await run_and_cancel(engine, wish(tmp_path, do, seconds=30)), Cancelled)
    assert 0.4 < time.monotonic() - began < 10
    assert isinstance(await run(engine, wish(tmp_path, "nothing")), Finished)
    assert engine.pid != pid


@pytest.mark.parametrize("do", ["sleep", "ignore cancel"])
async def test_a_job_beyond_its_time_limit_fails_for_good(engine: Supervisor, tmp_path: Path, do: str):
    end = await run(engine, wish(tmp_path, do, seconds=30, time_limit_s=0.3))
    assert code(end) is ErrorCode.TIME_LIMIT_EXCEEDED
    assert isinstance(end, Failed)
    assert not end.error.retryable


async def test_a_death_between_jobs_is_noticed_before_the_next(engine: Supervisor, tmp_path: Path):
    child = engine._child
    assert child is not None
    child.kill()
    await child.wait_gone(5.0)
    assert isinstance(await run(engine, wish(tmp_path, "nothing")), Finished)


async def test_the_event_loop_stays_free_while_the_engine_holds_its_gil(engine: Supervisor, tmp_path: Path):
    ticks, running = 0, asyncio.ensure_future(run(engine, wish(tmp_path, "hold the GIL", seconds=1)))
    while not running.done():
        await asyncio.sleep(0.05)
        ticks += 1
    assert ticks >= 10


async def test_reasons_for_models_that_are_not_served_cross_the_pipe(make: MakeSupervisor):
    supervisor = make(WithoutWeights)
    await supervisor.ensure_ready()
    assert supervisor.capabilities.models == ("nvdiffrec",)
    assert "recon weights fetch" in supervisor.capabilities.unavailable["reconviagen"].message


async def test_a_failed_load_carries_its_own_error(make: MakeSupervisor):
    with pytest.raises(ModelError) as caught:
        await make(FailsToLoad).ensure_ready()
    assert caught.value.code is ErrorCode.MODEL_WEIGHTS_MISSING
    assert caught.value.details == {"file": "x"}


async def test_an_engine_that_cannot_even_be_spawned_may_be_tried_again(
    make: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
):
    async def no_process(*_: object) -> EngineProcess:
        raise BlockingIOError("Resource temporarily unavailable")

    supervisor = make()
    with monkeypatch.context() as patched:
        patched.setattr(EngineProcess, "spawn", no_process)
        with pytest.raises(EngineDied, match="temporarily unavailable") as caught:
            await supervisor.ensure_ready()
    assert caught.value.retryable
    assert supervisor.state is EngineState.NEW
    await supervisor.ensure_ready()


async def test_a_death_while_loading_is_reported(make: MakeSupervisor):
    with pytest.raises(EngineDied, match="SIGSEGV"):
        await make(DiesLoading).ensure_ready()


async def test_loading_is_bounded_in_time(make: MakeSupervisor):
    with pytest.raises(EngineDied, match="did not load"):
        await make(LoadsForever, load_timeout_s=1.0).ensure_ready()


async def test_a_call_in_the_wrong_state_says_so(make: MakeSupervisor, tmp_path: Path):
    supervisor = make()
    with pytest.raises(RuntimeError, match="is new; this needs it to be ready"):
        await supervisor.run(wish(tmp_path, "nothing"), Follower())


async def test_a_busy_engine_is_stopped_at_once(engine: Supervisor, tmp_path: Path):
    follower = Follower()
    running = asyncio.ensure_future(engine.run(wish(tmp_path, "sleep", seconds=30), follower))
    await follower.begun.wait()
    await engine.stop()
    assert isinstance(await running, Failed)
    assert engine.state is EngineState.STOPPED


async def test_an_engine_does_not_outlive_a_control_plane_that_was_killed(tmp_path: Path):
    """An orphan would keep the GPU, even one that is deep in a computation."""
    pids = tmp_path / "pids"
    program = f"""
import asyncio, functools, os, pathlib, signal
from consumer.supervisor import Supervisor
from tests.unit.consumer.miniatures import Miniature
from tests.unit.consumer.worker_fakes import NO_S3, make_job

def die(progress):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    engine = Supervisor(functools.partial(Miniature, NO_S3))
    await engine.ensure_ready()
    pathlib.Path({str(pids)!r}).write_text(str(engine.pid))
    await engine.run(make_job(pathlib.Path("/tmp"), metadata={{"do": "ignore cancel", "seconds": 60}}), die)

asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT)
    assert await asyncio.wait_for(parent.wait(), 60) == -signal.SIGKILL
    orphan = int(pids.read_text())
    async with asyncio.timeout(10):
        while _is_running(orphan):
            await asyncio.sleep(0.05)


def _is_running(pid: int) -> bool:
    """A zombie that nobody waits for does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_kill_by_the_kernel_is_told_from_a_crash():
    assert exit_error(-9, out_of_memory=True).code is ErrorCode.HOST_OUT_OF_MEMORY
    killed = exit_error(-9, out_of_memory=False)
    assert killed.code is ErrorCode.MODEL_CRASHED
    assert "memory" in killed.message
    assert "memory" not in exit_error(-11, out_of_memory=False).message
    assert exit_error(None, out_of_memory=True).code is ErrorCode.MODEL_CRASHED
