"""Keep one engine: start it, bound its time, cancel, kill and replace it; turn its death into data.

    new ──> loading ──Ready──> ready <──end of job── busy
     ^         │                 └───────run────────^ │
     └─────────┴────────── the process is gone ───────┘

`stop` leads to `stopped` from everywhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import StrEnum

from consumer.child import EngineProcess
from consumer.log import LogConfig
from consumer.protocol import (
    Cancel,
    Cancelled,
    Exited,
    Failed,
    Finished,
    JobEnd,
    LoadFailed,
    PipelineFactory,
    Progress,
    Ready,
    Run,
    Stop,
)
from pipeline.capabilities import Capabilities
from schemas.errors import EngineDied, ErrorCode, ModelError
from schemas.jobs import Job

LOGGER = logging.getLogger(__name__)

# Reasons of a cancel beside `user`.
TIME_LIMIT = "time_limit"
SHUTDOWN = "shutdown"

UNKNOWN = Capabilities(device="unknown")
"""Of an engine that has not loaded yet."""

STOP_GRACE_S = 2.0  # an idle engine leaves at once; one that does not has nothing left to lose

OnProgress = Callable[[Progress], None]
"""Returns at once: behind the progress in the pipe waits the end of the job."""


class EngineState(StrEnum):
    """What the engine is doing."""

    NEW = "new"
    LOADING = "loading"
    READY = "ready"
    BUSY = "busy"
    STOPPED = "stopped"


class Supervisor:
    """The control plane's end of the engine. Never blocks the event loop.

    Args:
        factory: Makes the pipeline in the child; picklable.
        load_timeout_s: Time for the models to load.
        cancel_grace_s: Time between a cancel and the kill.
        log_config: How the child logs; None leaves its logging alone.
    """

    def __init__(
        self,
        factory: PipelineFactory,
        *,
        load_timeout_s: float = 600.0,
        cancel_grace_s: float = 10.0,
        log_config: LogConfig | None = None,
    ) -> None:
        self._factory = factory
        self._load_timeout_s = load_timeout_s
        self._cancel_grace_s = cancel_grace_s
        self._log_config = log_config
        self._state = EngineState.NEW
        self._child: EngineProcess | None = None
        self._job: Job | None = None
        self._cancel_reason: str | None = None
        self._kill_timer: asyncio.TimerHandle | None = None
        self.capabilities = UNKNOWN
        """What the engine can do, once it has loaded."""

    @property
    def state(self) -> EngineState:
        """What the engine is doing."""
        return self._state

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None while there is none."""
        return None if self._child is None else self._child.pid

    @property
    def job(self) -> Job | None:
        """The job that runs; None while there is none."""
        return self._job

    async def ensure_ready(self) -> None:
        """Start the engine unless it is ready; a dead one is replaced.

        Raises:
            EngineDied: the engine ended while it loaded, or took too long.
            ModelError: the error with which loading failed.
        """
        self._expect(EngineState.NEW, EngineState.READY)
        if self._child is not None and not self._child.is_gone:
            return
        self._state = EngineState.LOADING
        try:
            self._child = child = await EngineProcess.spawn(self._factory, self._log_config)
            await self._load(child)
        except OSError as error:
            await self._discard()
            text = f"The engine's process cannot be started: {error}"
            raise EngineDied(ErrorCode.MODEL_CRASHED, text) from error
        except BaseException:
            await self._discard()
            raise
        self._state = EngineState.READY
        LOGGER.info("The engine is ready on %s (pid %s).", self.capabilities.device, child.pid)

    async def run(self, job: Job, on_progress: OnProgress) -> JobEnd:
        """Run one job to its end, whatever that is; a death of the engine is a `Failed`."""
        self._expect(EngineState.READY)
        child = self._child
        assert child is not None
        self._state = EngineState.BUSY
        self._job, self._cancel_reason = job, None
        limit = asyncio.get_running_loop().call_later(job.time_limit_s, self.cancel, TIME_LIMIT)
        try:
            child.send(Run(job))
            end = await self._follow(child, job, on_progress)
        except BaseException:
            await self._discard()  # whatever the engine is doing now, nobody waits for it
            raise
        finally:
            limit.cancel()
            if self._kill_timer is not None:
                self._kill_timer.cancel()
                self._kill_timer = None
            self._job = None
        if isinstance(end, Failed) and end.leaves:
            await child.wait_gone(STOP_GRACE_S)
        if child.is_gone:
            await self._discard()
        elif self._state is EngineState.BUSY:
            self._state = EngineState.READY
        return end

    def cancel(self, reason: str) -> None:
        """Ask the running job to stop, and kill the engine if it does not within the grace time.

        A latch: without effect when no job is running or one is being cancelled already.
        """
        if self._child is None or self._job is None or self._cancel_reason is not None:
            return
        LOGGER.info("Cancelling the job: %s.", reason)
        self._cancel_reason = reason
        self._child.send(Cancel(self._job.job_id, reason))
        self._kill_timer = asyncio.get_running_loop().call_later(self._cancel_grace_s, self._kill_stubborn)

    async def stop(self) -> None:
        """End the engine: politely when idle, by a kill when busy."""
        if self._child is not None and self._state is EngineState.READY:
            self._child.send(Stop())
            await self._child.wait_gone(STOP_GRACE_S)
        await self._discard()
        self._state = EngineState.STOPPED

    async def _load(self, child: EngineProcess) -> None:
        try:
            event = await asyncio.wait_for(child.events.get(), self._load_timeout_s)
        except TimeoutError:
            text = f"The engine did not load within {self._load_timeout_s:g} s."
            raise EngineDied(ErrorCode.MODEL_CRASHED, text) from None
        match event:
            case Ready(capabilities):
                self.capabilities = capabilities
            case LoadFailed(error):
                raise ModelError(error.code, error.message, **error.details)
            case Exited(exit_code):
                info = child.exit_error(exit_code)
                raise EngineDied(info.code, f"While loading: {info.message}")
            case _:
                raise EngineDied(
                    ErrorCode.INTERNAL_ERROR, f"Unexpected {type(event).__name__} while loading."
                )

    async def _follow(self, child: EngineProcess, job: Job, on_progress: OnProgress) -> JobEnd:
        while True:
            match await child.events.get():
                case Progress() as progress:
                    on_progress(progress)
                case Finished() as finished:
                    return finished
                case Cancelled():
                    return self._ended_by_cancel(job)
                case Failed() as failed:
                    # A job that stumbles because it is being cancelled must not be tried again.
                    stumbled = self._cancel_reason is not None and failed.error.retryable
                    return self._ended_by_cancel(job) if stumbled else failed
                case Exited(exit_code):
                    if self._cancel_reason is not None:
                        return self._ended_by_cancel(job)
                    error = child.exit_error(exit_code)
                    LOGGER.error("%s", error.message)
                    return Failed(job.job_id, error, leaves=True)
                case event:
                    LOGGER.warning("Ignored %s while a job runs.", type(event).__name__)

    def _ended_by_cancel(self, job: Job) -> JobEnd:
        reason = self._cancel_reason or "user"
        if reason != TIME_LIMIT:
            return Cancelled(job.job_id, reason)
        error = ModelError(
            ErrorCode.TIME_LIMIT_EXCEEDED,
            f"The job ran longer than its time limit of {job.time_limit_s:g} s.",
            limit=job.time_limit_s,
        )
        return Failed(job.job_id, error.info())

    def _kill_stubborn(self) -> None:
        LOGGER.warning("The engine ignored the cancel for %g s; killing it.", self._cancel_grace_s)
        if self._child is not None:
            self._child.kill()

    async def _discard(self) -> None:
        """Make sure that nothing is left of the current process."""
        if self._child is not None:
            self._child.kill()
            await self._child.wait_gone(STOP_GRACE_S)
            self._child = None
        if self._state is not EngineState.STOPPED:
            self._state = EngineState.NEW

    def _expect(self, *allowed: EngineState) -> None:
        if self._state not in allowed:
            names = " or ".join(allowed)
            raise RuntimeError(f"The engine is {self._state}; this needs it to be {names}.")
