"""Run structure from motion in a process of its own, watched: it may fail, hang or be cancelled."""

from __future__ import annotations

import json
import logging
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.decode import Tick
from pipeline.structure_from_motion import Model

LOGGER = logging.getLogger(__name__)

POLL_S = 0.25
_LOG_NAME = "colmap.log"
_LOG_TAIL = 2000


class ProcessFailed(Exception):
    """The process ended without a model; says why."""


def solve(folder: Path, time_limit_s: float, tick: Tick) -> Model:
    """Do the task of a folder.

    Args:
        folder: Holds the task and what belongs to it.
        time_limit_s: After which the process is killed.
        tick: Called with every message of the process, and every `POLL_S` seconds; what it raises ends the
            process.

    Raises:
        ProcessFailed: It died, or ran out of time.
    """
    deadline = time.monotonic() + time_limit_s
    fraction, message = 0.0, "starting structure from motion"
    with (folder / _LOG_NAME).open("wb") as log, _process(folder, log.fileno()) as process:
        for line in _lines(process, deadline):
            if line is not None:
                report = json.loads(line)
                # A second attempt begins anew, but progress never falls.
                fraction, message = max(fraction, float(report["fraction"])), str(report["message"])
            tick(fraction, message)
        code = process.wait()
    if code != 0:
        text = (folder / _LOG_NAME).read_text(encoding="utf-8", errors="replace")
        LOGGER.warning("structure from motion ended with %d:\n%s", code, text[-_LOG_TAIL:])
        raise ProcessFailed(f"structure from motion ended unexpectedly ({code})")
    return Model.read(folder)


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
    """Lines of the process as they come, None after every `POLL_S` seconds without one."""
    assert process.stdout is not None
    descriptor, begun = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if time.monotonic() > deadline:
                raise ProcessFailed("structure from motion took too long")
            if not selector.select(POLL_S):
                yield None
                continue
            data = os.read(descriptor, 65536)
            if not data:
                return
            *whole, begun = (begun + data).split(b"\n")
            yield from whole
