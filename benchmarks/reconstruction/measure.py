"""Time and memory of one reconstruction, with pauses in which it is looked at."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.reconstruction.evaluate import Render
from models.base import Reconstruction, Reconstructor, Views
from schemas.options import NvdiffrecOptions

Score = Callable[[Render], float]
"""Rates a state of the reconstruction by what it renders: held-out PSNR, dB."""

_MIB = 2**20
_LINE = 100  # characters of a line of progress


@dataclass(frozen=True)
class Snapshot:
    """What the reconstruction looked like on its way.

    Attributes:
        step: As the model calls it.
        seconds: Since the start, without the time that looking took.
        psnr_db: Held-out PSNR.
    """

    step: str
    seconds: float
    psnr_db: float


@dataclass(frozen=True)
class Cost:
    """What one reconstruction took.

    Attributes:
        seconds: Wall-clock time of the whole call, the device waited for.
        stages: Seconds by stage, in order. A stage begins with the first message that names it.
        memory: MiB; see `MemoryPeaks`.
        snapshots: In order; empty where none were asked for.
    """

    seconds: float
    stages: dict[str, float]
    memory: dict[str, float]
    snapshots: list[Snapshot]


def measure_run(
    model: Reconstructor,
    views: Views,
    options: NvdiffrecOptions,
    device: torch.device,
    score: Score | None = None,
) -> tuple[Reconstruction, Cost]:
    """Reconstruct once; the result, and what it took.

    Args:
        model: Loaded.
        views: The input, on the CPU, as a worker hands it over.
        options: The job's.
        device: The model's.
        score: If given, the model is asked for snapshots (`snapshot(step_name, render)`), and each is rated.

    Raises:
        ModelError, InvalidJob: as the model.
    """
    memory = MemoryPeaks(device)
    clock = Clock(device)
    progress = Progress(clock)
    recorder = None if score is None else SnapshotRecorder(clock, memory, score)
    keywords: dict[str, Any] = {} if recorder is None else {"snapshot": recorder}
    made = model.reconstruct(views, options, progress, **keywords)
    seconds = clock.seconds()
    return made, Cost(
        seconds=seconds,
        stages=progress.stages(seconds),
        memory=memory.figures(),
        snapshots=recorder.snapshots if recorder else [],
    )


class Clock:
    """Wall-clock seconds since it was made; the device is waited for at every reading."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._paused = 0.0
        self._start = self._now()

    def seconds(self) -> float:
        """Seconds since the start, without pauses."""
        return self._now() - self._start - self._paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens within takes no time."""
        start = self._now()
        yield
        self._paused += self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Progress:
    """The callback of a model: seconds by stage, and a line on a terminal.

    The name of a stage is a message's beginning, up to a colon; numbers in it do not make it another one.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began: list[tuple[str, float]] = [("start", 0.0)]

    def __call__(self, fraction: float, message: str, metrics: dict[str, float]) -> None:
        """One step of the model."""
        if not message:
            return
        name = re.sub(r"\d[\d,.]*", "N", message.split(":")[0])
        if name != self._began[-1][0]:  # only then is the device waited for
            self._began.append((name, self._clock.seconds()))
        if sys.stderr.isatty():
            figures = " ".join(f"{name} {value:.2f}" for name, value in metrics.items())
            line = f"{fraction:5.0%} {message} {figures}"[:_LINE]
            print(f"\r{line:{_LINE}}", end="", file=sys.stderr)

    def stages(self, end: float) -> dict[str, float]:
        """Seconds by stage, in order.

        Args:
            end: Seconds at which the last stage ended.
        """
        ends = [begin for _, begin in self._began[1:]] + [end]
        seconds: dict[str, float] = {}
        for (name, begin), stop in zip(self._began, ends, strict=True):
            seconds[name] = seconds.get(name, 0.0) + stop - begin
        return seconds


class MemoryPeaks:
    """Peaks of memory since it was made.

    `gpu_mib`: most that torch had allocated at once. `gpu_reserved_mib`: most that torch held of the device.
    `gpu_device_mib`: in use on the whole device at the end, by every process and library. `host_mib`: most of
    this process's resident memory; since the process's start where the system does not let the mark be reset.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peaks = {"gpu_mib": 0.0, "gpu_reserved_mib": 0.0}
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # starts CUDA, without which there are no marks to reset
        _reset_host_peak()
        self._reset()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What is allocated on the device within does not count."""
        self._read()
        yield
        self._reset()

    def figures(self) -> dict[str, float]:
        """The peaks, MiB; those of the device only if it is a GPU."""
        host = {"host_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        if self._device.type != "cuda":
            return host
        self._read()
        free, total = torch.cuda.mem_get_info(self._device)
        return {**self._peaks, "gpu_device_mib": (total - free) / _MIB, **host}

    def _read(self) -> None:
        if self._device.type == "cuda":
            for name, peak in (
                ("gpu_mib", torch.cuda.max_memory_allocated(self._device)),
                ("gpu_reserved_mib", torch.cuda.max_memory_reserved(self._device)),
            ):
                self._peaks[name] = max(self._peaks[name], peak / _MIB)

    def _reset(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)


class SnapshotRecorder:
    """What a model calls every so many steps, with a function that renders its present state.

    Neither the time nor the memory that this takes is the reconstruction's.
    """

    def __init__(self, clock: Clock, memory: MemoryPeaks, score: Score) -> None:
        self._clock = clock
        self._memory = memory
        self._score = score
        self.snapshots: list[Snapshot] = []

    def __call__(self, step: str, render: Render) -> None:
        """Rate the present state."""
        with self._clock.pause(), self._memory.pause():
            seconds = self._clock.seconds()
            self.snapshots.append(Snapshot(step, seconds, self._score(render)))


def seconds_to(snapshots: list[Snapshot], psnr_db: float) -> float | None:
    """When the first snapshot reached a PSNR, seconds; None if none did."""
    return next((one.seconds for one in snapshots if one.psnr_db >= psnr_db), None)


def snapshot_record(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot for JSON."""
    return {"step": snapshot.step, "seconds": snapshot.seconds, "psnr_db": snapshot.psnr_db}


def end_line(text: str) -> None:
    """Write a line to standard error, over the progress where it is a terminal."""
    start = "\r" if sys.stderr.isatty() else ""
    print(f"{start}{text:{_LINE}}".rstrip(" "), file=sys.stderr)


def _reset_host_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the mark that ru_maxrss reads
    except OSError:
        return
