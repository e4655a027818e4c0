"""The closed vocabulary that crosses the pipe between the control plane and the engine.

Everything else matches on these types. All are frozen, picklable and free of torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from schemas.errors import ErrorInfo
from schemas.jobs import Job
from schemas.quality import QualityReport

if TYPE_CHECKING:
    from pipeline.cancel import CancelToken
    from pipeline.capabilities import Capabilities
    from pipeline.progress import ProgressReport


class EngineOutcome(Protocol):
    """What a pipeline returns when its result is durable."""

    @property
    def quality(self) -> QualityReport:
        """The whole quality report."""

    @property
    def output(self) -> str:
        """Location of the result."""

    @property
    def manifest(self) -> str:
        """Location of `manifest.json`."""


class EnginePipeline(Protocol):
    """What the engine runs: `pipeline.run.Pipeline`, or a miniature of it in tests."""

    def load(self) -> Capabilities:
        """Load weights and compile kernels; called once, before the first job. Tells what can be served."""

    def run(self, job: Job, *, cancel: CancelToken, emit: Callable[[ProgressReport], None]) -> EngineOutcome:
        """Run one job to a durable result."""


PipelineFactory = Callable[[], EnginePipeline]
"""Picklable: a function at module level, or a `functools.partial` of one."""


# --- Control plane to engine


@dataclass(frozen=True)
class Run:
    """Run this job."""

    job: Job


@dataclass(frozen=True)
class Cancel:
    """Stop this job at its next check. Without effect on any other job, or on none."""

    job_id: UUID
    reason: str


@dataclass(frozen=True)
class Stop:
    """Leave, once no job is running."""


Command = Run | Cancel | Stop


# --- Engine to control plane


@dataclass(frozen=True)
class Ready:
    """The models are loaded; jobs may come."""

    capabilities: Capabilities


@dataclass(frozen=True)
class LoadFailed:
    """The models could not be loaded; the engine leaves."""

    error: ErrorInfo


@dataclass(frozen=True)
class Progress:
    """How far the running job has come."""

    job_id: UUID
    stage: str
    fraction: float
    message: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    eta_s: float | None = None


@dataclass(frozen=True)
class Finished:
    """The job's result is durable, manifest included."""

    job_id: UUID
    quality: QualityReport
    output: str
    manifest: str


@dataclass(frozen=True)
class Failed:
    """The job failed."""

    job_id: UUID
    error: ErrorInfo
    leaves: bool = False
    """The engine is not fit for another job (a broken CUDA context, say) and ends by itself."""


@dataclass(frozen=True)
class Cancelled:
    """The job stopped because of a `Cancel`."""

    job_id: UUID
    reason: str


@dataclass(frozen=True)
class Exited:
    """The engine process is gone. Made by the supervisor, never sent through the pipe."""

    exit_code: int | None


EngineEvent = Ready | LoadFailed | Progress | Finished | Failed | Cancelled | Exited
JobEnd = Finished | Failed | Cancelled


class Pipe(Protocol):
    """The part of `multiprocessing.connection.Connection` that both sides use."""

    def send(self, obj: Any, /) -> None:
        """Send one message."""

    def recv(self) -> Any:
        """Wait for one message; `EOFError` when the other side is gone."""

    def close(self) -> None:
        """Close this end."""
