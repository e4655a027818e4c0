"""What people see of a job: a live bar on a terminal, one line an event elsewhere; all on standard error."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from schemas.errors import ErrorInfo
from schemas.events import (
    JobAccepted,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobProgress,
    JobRequeued,
    JobStarted,
)
from schemas.quality import MeanMetrics, QualityReport

LINE_S = 1.0


class JobView(Protocol):
    """Shows a job's progress."""

    def progress(self, stage: str, fraction: float, message: str, eta_s: float | None) -> None:
        """Show how far the job has come."""

    def say(self, text: str) -> None:
        """Show one line."""


class _Lines:
    """For logs and pipes: at most a line a second while the stage stays the same."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""
        self._said = -math.inf

    def progress(self, stage: str, fraction: float, message: str, eta_s: float | None) -> None:
        now = time.monotonic()
        if stage == self._stage and now - self._said < LINE_S:
            return
        self._stage, self._said = stage, now
        self.say(f"{fraction:4.0%}  {stage:<11} {format_eta(eta_s):>12}  {message}".rstrip())

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Bar:
    """For people."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def progress(self, stage: str, fraction: float, message: str, eta_s: float | None) -> None:
        self._bar.update(self._task, completed=fraction, stage=stage, eta=format_eta(eta_s), message=message)

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def job_view(console: Console) -> Iterator[JobView]:
    """A view fit for where the console leads."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[stage]:<11}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[eta]:>12}"),
        TextColumn("{task.fields[message]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Bar(bar, bar.add_task("job", total=1.0, stage="waiting", eta="", message=""))


@contextmanager
def transfer_bar(console: Console, label: str) -> Iterator[_Transfer]:
    """A bar for an upload or a download; silent unless on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield _Transfer(bar, bar.add_task(label, total=None))


class _Transfer:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def update(self, done: int, total: int) -> None:
        """Show bytes done, and bytes in all."""
        self._bar.update(self._task, completed=done, total=total)


def show_event(view: JobView, event: JobEvent) -> None:
    """Show one event."""
    attempt = f" (attempt {event.data.attempt})" if event.data.attempt > 1 else ""
    match event:
        case JobProgress(data=data):
            view.progress(data.stage, data.fraction, data.message, data.eta_s)
        case JobAccepted(data=data):
            view.say(f"accepted by {data.worker_id}{attempt}")
        case JobStarted(data=data):
            view.say(f"started {data.model}: {', '.join(data.stages)}")
        case JobRequeued(data=data):
            view.say(f"requeued{attempt}: {'shutdown' if data.error is None else format_error(data.error)}")
        case JobCancelRequested():
            view.say("cancel requested; it needs a confirmation")
        case JobCancelled():
            view.say("cancelled")
        case JobCompleted(data=data):
            view.say(f"completed in {data.duration_s:.1f} s, quality {data.status}: {data.output}")
        case JobFailed(data=data):
            view.say(f"failed: {format_error(data.error)}")


def format_error(error: ErrorInfo) -> str:
    """Code and sentence on one line."""
    return f"{error.code}: {' '.join(error.message.split())}"


def format_eta(eta_s: float | None) -> str:
    """Time left, for people."""
    if eta_s is None:
        return ""
    minutes, seconds = divmod(math.ceil(eta_s), 60)
    return f"{minutes}:{seconds:02d} left"


def quality_table(quality: QualityReport) -> Table:
    """The verdict: every check, and the means."""
    table = Table(title=f"Quality: {quality.status}", title_justify="left")
    for name in ("metric", "value", "normal", "warning", "status"):
        table.add_column(name, justify="left" if name in ("metric", "status") else "right")
    for check in quality.checks:
        sign = ">=" if check.higher_is_better else "<="
        limits = (f"{sign} {check.normal:g}", f"{sign} {check.warning:g}")
        table.add_row(check.metric, f"{check.value:.4g}", *limits, check.status)
    return table


def show_quality(console: Console, quality: QualityReport) -> None:
    """Show the verdict and the means."""
    console.print(quality_table(quality))
    console.print(f"input: {format_means(quality.input_views)}", highlight=False, soft_wrap=True)
    if quality.heldout_views is not None:
        console.print(f"held out: {format_means(quality.heldout_views)}", highlight=False, soft_wrap=True)


def format_means(means: MeanMetrics) -> str:
    """Means over views on one line."""
    depth = "" if means.depth_error is None else f", depth error {means.depth_error:.4g}"
    return (
        f"{means.views} views: PSNR {means.psnr_db:.2f} dB, SSIM {means.ssim:.4f}, "
        f"mask IoU {means.mask_iou:.4f}{depth}"
    )
