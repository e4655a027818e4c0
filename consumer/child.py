"""One engine process as the event loop sees it: commands in, events out, one certain end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import threading
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from consumer.engine import engine_main
from consumer.log import LogConfig
from consumer.protocol import Command, EngineEvent, Exited, PipelineFactory
from schemas.errors import EngineDied, ErrorCode, ErrorInfo

LOGGER = logging.getLogger(__name__)

CLOSED_PIPE_GRACE_S = 5.0  # between the end of the pipe and the end of the process

_OOM_EVENTS = Path("/sys/fs/cgroup/memory.events")


class EngineProcess:
    """A running engine. Made by `spawn`; a thread of its own carries its events into the event loop."""

    def __init__(self, process: SpawnProcess, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe
        self._loop = asyncio.get_running_loop()
        self._oom_kills = _oom_kills()
        self._exited = asyncio.Event()
        self.events: asyncio.Queue[EngineEvent] = asyncio.Queue()
        """What the engine says; `Exited` comes last, and always."""
        threading.Thread(target=self._watch, name="engine-watch", daemon=True).start()

    @classmethod
    async def spawn(cls, factory: PipelineFactory, log_config: LogConfig | None) -> EngineProcess:
        """Start a new engine."""
        context = multiprocessing.get_context("spawn")  # never fork: CUDA does not survive it
        ours, theirs = context.Pipe()
        process = context.Process(target=engine_main, args=(theirs, factory, log_config), name="recon-engine")
        try:
            await asyncio.to_thread(process.start)
        finally:
            theirs.close()  # or we would never see the end of the pipe
        return cls(process, ours)

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended."""
        return self._exited.is_set()

    def send(self, command: Command) -> None:
        """Send a command. To a dead engine it is lost; `Exited` tells of the death."""
        with contextlib.suppress(OSError):
            self._pipe.send(command)

    def kill(self) -> None:
        """End the process at once."""
        if not self.is_gone:
            self._process.kill()

    async def wait_gone(self, timeout_s: float) -> None:
        """Wait for the end by itself, but not longer than this; then kill."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._exited.wait(), timeout_s)
        self.kill()
        await self._exited.wait()

    def exit_error(self, exit_code: int | None) -> ErrorInfo:
        """Why the process is gone, as far as its exit code and the kernel tell."""
        return exit_error(exit_code, out_of_memory=_oom_kills() > self._oom_kills)

    def _watch(self) -> None:
        """Thread: the only one that reads the pipe, waits for the process and closes both."""
        # The sentinel too: a grandchild may hold the other end of the pipe open after the engine's death.
        while self._pipe in connection.wait([self._pipe, self._process.sentinel]):
            try:
                self._put(self._pipe.recv())
            except (EOFError, OSError):
                break
            except Exception:
                LOGGER.exception("The engine sent something unreadable; ending it.")
                self._process.kill()
                break
        self._process.join(CLOSED_PIPE_GRACE_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._pipe.close()
        self._put(Exited(self._process.exitcode))

    def _put(self, event: EngineEvent) -> None:
        def deliver() -> None:
            if isinstance(event, Exited):
                self._exited.set()
            self.events.put_nowait(event)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(deliver)


def exit_error(exit_code: int | None, *, out_of_memory: bool) -> ErrorInfo:
    """An engine's death as an error.

    Args:
        exit_code: As in `multiprocessing`: negative for a signal.
        out_of_memory: The kernel's out-of-memory killer struck in our control group meanwhile.
    """
    if exit_code == -signal.SIGKILL and out_of_memory:
        text = "The engine was killed because the worker ran out of memory."
        return EngineDied(ErrorCode.HOST_OUT_OF_MEMORY, text, exit_code=exit_code).info()
    if exit_code is not None and exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = f"signal {-exit_code}"
        hint = " This may have been for lack of memory." if exit_code == -signal.SIGKILL else ""
        text = f"The engine was ended by {name} while it worked.{hint}"
        return EngineDied(ErrorCode.MODEL_CRASHED, text, exit_code=exit_code, signal=name).info()
    text = f"The engine left with exit code {exit_code} while it worked."
    return EngineDied(ErrorCode.MODEL_CRASHED, text, exit_code=exit_code).info()


def _oom_kills() -> int:
    """Kills by the out-of-memory killer in our control group; 0 where the kernel does not tell."""
    try:
        fields = dict(line.split() for line in _OOM_EVENTS.read_text().splitlines())
        return int(fields.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
