"""Run structure from motion in a process of its own, watched: it may fail, hang or be cancelled."""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.decode import Tick
from pipeline.structure_from_motion import MODEL_NAME, Model
from schemas.errors import ErrorCode, ModelError, ReconError, ResourceError

LOGGER = logging.getLogger(__name__)

POLL_S = 0.25
_LOG_NAME = "colmap.log"
_LOG_TAIL = 2000


_FULL_DISK_TEXTS = ("disk is full", "no space left", "disk quota exceeded")
_NO_MEMORY_TEXTS = ("std::bad_alloc", "memoryerror", "cannot allocate memory")


class OutOfTime(Exception):
    """The process found no model in its time; says so."""


def solve(folder: Path, time_limit_s: float, tick: Tick) -> Model:
    """Do the task of a folder.

    A process that takes too long or dies may have left the model of its first attempt: that one is returned.

    Args:
        folder: Holds the task and what belongs to it.
        time_limit_s: After which the process is killed.
        tick: Called with every message of the process, and every `POLL_S` seconds; what it raises ends the
            process.

    Raises:
        OutOfTime: There was no time to find a model.
        ResourceError: HOST_OUT_OF_MEMORY, DISK_FULL: it died of that.
        ModelError: MODEL_CRASHED: it died otherwise.
    """
    try:
        _watch(folder, time_limit_s, tick)
    except (OutOfTime, ReconError) as error:
        model = Model.read(folder) if (folder / MODEL_NAME).exists() else None
        if model is None or not len(model.views):
            raise
        LOGGER.warning("%s; what it had found until then is used", error)
        return model
    return Model.read(folder)


def _watch(folder: Path, time_limit_s: float, tick: Tick) -> None:
    deadline = time.monotonic() + time_limit_s
    fraction, message = 0.0, "starting structure from motion"
    with (folder / _LOG_NAME).open("wb") as log, _process(folder, log.fileno()) as process:
        for line in _lines(process, deadline):
            if line is not None:
                reported = _report(line)
                if reported is None:
                    continue
                # A second attempt begins anew, but progress never falls.
                fraction, message = max(fraction, reported[0]), reported[1]
            tick(fraction, message)
        code = process.wait()
    if code != 0:
        text = (folder / _LOG_NAME).read_text(encoding="utf-8", errors="replace")
        LOGGER.warning("structure from motion ended with %d:\n%s", code, text[-_LOG_TAIL:])
        raise _death(code, text)


def _report(line: bytes) -> tuple[float, str] | None:
    """Fraction and message of a line of the process; None if something else wrote it."""
    try:
        report = json.loads(line)
        return float(report["fraction"]), str(report["message"])
    except (ValueError, KeyError, TypeError):
        LOGGER.warning("structure from motion wrote something unexpected: %r", line[:_LOG_TAIL])
        return None


def _death(code: int, log: str) -> ReconError:
    """What a process died of, by its exit status and what it wrote to standard error."""
    text = log.lower()
    if any(part in text for part in _FULL_DISK_TEXTS):
        return ResourceError(ErrorCode.DISK_FULL)
    # Nobody but the kernel, short of memory, kills it by this signal: we do so only to leave it.
    if code == -signal.SIGKILL or any(part in text for part in _NO_MEMORY_TEXTS):
        return ResourceError(
            ErrorCode.HOST_OUT_OF_MEMORY, "The worker ran out of memory while it estimated cameras."
        )
    return ModelError(
        ErrorCode.MODEL_CRASHED, f"Structure from motion ended unexpectedly ({code}).", exit_code=code
    )


@contextmanager
def _process(folder: Path, log: int) -> Iterator[subprocess.Popen[bytes]]:
    """The process, killed at the end if it still runs. Its standard input tells it when we are gone."""
    package = Path(__file__).resolve().parent
    paths = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", f"{package.name}.structure_from_motion", str(folder.resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_WAIT_POLICY": "passive"},
        start_new_session=True,  # a Ctrl-C is for us to hear
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes | None]:
    """Lines of the process as they come until it ends, None after every `POLL_S` seconds without one."""
    assert process.stdout is not None
    descriptor, begun = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            _check_time(deadline)
            if not selector.select(POLL_S):
                yield None
                continue
            data = os.read(descriptor, 65536)
            if not data:
                break
            *whole, begun = (begun + data).split(b"\n")
            yield from whole
    while process.poll() is None:  # it has nothing to say any more, and may still hang
        _check_time(deadline)
        yield None
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)


def _check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise OutOfTime("structure from motion took too long")
