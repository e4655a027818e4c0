"""Status events: CloudEvents 1.0 in structured mode, published on the fanout exchange `recon.status`.

Delivery is at least once: subscribers de-duplicate by `id`. Within a job `data.seq` strictly increases,
across attempts too. Exactly one terminal event (`completed`, `failed`, `cancelled`) is decided per job.
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID, uuid4

from pydantic import Field, TypeAdapter

from schemas.base import Finite, Metadata, Published, UtcDateTime, utc_now
from schemas.errors import ErrorCode, ErrorInfo
from schemas.jobs import ModelName
from schemas.quality import MeanMetrics, Status

CONTENT_TYPE = "application/cloudevents+json"


class JobData(Published):
    """What every job event carries."""

    job_id: UUID | None = Field(description="The job; null only where a message was too broken to name one.")
    batch_id: str | None = Field(None, description="As in the job.")
    metadata: Metadata = Field(default_factory=dict, description="As in the job.")
    worker_id: str = Field(description="The worker that speaks.")
    attempt: int = Field(ge=0, description="The attempt this event belongs to, from 1; 0 before the first.")
    seq: int = Field(ge=1, description="Strictly increasing within a job, across attempts.")


class AcceptedData(JobData):
    """A worker took the job."""

    model: ModelName = Field(description="The reconstruction model.")


class StartedData(JobData):
    """The engine began to compute."""

    model: ModelName = Field(description="The reconstruction model.")
    stages: list[str] = Field(description="Names of the stages to come, in order.")


class ProgressData(JobData):
    """How far the job has come."""

    stage: str = Field(description="Name of the running stage.")
    fraction: Finite = Field(
        ge=0, le=1, description="Share of the whole job that is done; never falls in an attempt."
    )
    message: str = Field("", description="For people.")
    metrics: dict[str, Finite] = Field(
        default_factory=dict, description="Figures of the stage, such as `psnr_db`."
    )
    eta_s: Finite | None = Field(None, ge=0, description="Estimated seconds to the end; null while unknown.")
    preview: str | None = Field(None, description="Location of an image of the reconstruction so far.")


class CancelRequestedData(JobData):
    """A cancel was asked for; confirm it with the token."""

    token: str = Field(description="Send it back in `cancel.confirm`.")
    expires_at: UtcDateTime = Field(description="When the token stops working.")


class CancelledData(JobData):
    """The job was cancelled. Terminal."""

    reason: str = Field("user", description="Who asked.")


class CompletedData(JobData):
    """The job is done and its result is durable. Terminal."""

    output: str = Field(description="Location of the result.")
    manifest: str = Field(description="Location of `manifest.json`.")
    status: Status = Field(description="Verdict: `normal` or `warning`.")
    quality: MeanMetrics = Field(description="Means over the input views.")
    duration_s: Finite = Field(ge=0, description="Seconds from accepted to done, this attempt.")


class FailedData(JobData):
    """The job failed for good. Terminal."""

    error: ErrorInfo = Field(description="Why.")
    output: str | None = Field(None, description="Location of what was kept for inspection, if anything.")


class RequeuedData(JobData):
    """The attempt ended without an outcome; the job will run again."""

    error: ErrorInfo | None = Field(None, description="Why; null for a shutdown.")
    retry_in_s: Finite = Field(0, ge=0, description="Earliest next attempt, seconds from now.")


class Unavailable(Published):
    """Why a worker does not serve a model."""

    code: ErrorCode = Field(description="Stable, for programs.")
    message: str = Field(description="For people: what is missing, and what to do about it.")


class WorkerData(Published):
    """A worker comes, goes, or can serve other models than before."""

    worker_id: str = Field(description="The worker.")
    models: list[ModelName] = Field(description="Models it serves.")
    unavailable: dict[ModelName, Unavailable] = Field(
        default_factory=dict, description="Models it would serve if it could, with the reason why not."
    )
    device: str = Field(description="Device of its engine, such as `cpu`.")
    version: str = Field(description="Version of the worker.")


class CloudEvent(Published):
    """The CloudEvents 1.0 context attributes."""

    specversion: Literal["1.0"] = Field("1.0", description="CloudEvents version.")
    id: str = Field(
        default_factory=lambda: str(uuid4()), description="Unique per event; redelivery repeats it."
    )
    source: str = Field(description="URI-reference of the speaker, `/recon/workers/<worker_id>`.")
    subject: str | None = Field(None, description="The job id, as text.")
    time: UtcDateTime = Field(default_factory=utc_now, description="When it happened.")
    datacontenttype: Literal["application/json"] = Field("application/json", description="Type of `data`.")


class JobAccepted(CloudEvent):
    """`recon.job.accepted`."""

    type: Literal["recon.job.accepted"] = "recon.job.accepted"
    data: AcceptedData


class JobStarted(CloudEvent):
    """`recon.job.started`."""

    type: Literal["recon.job.started"] = "recon.job.started"
    data: StartedData


class JobProgress(CloudEvent):
    """`recon.job.progress`."""

    type: Literal["recon.job.progress"] = "recon.job.progress"
    data: ProgressData


class JobCancelRequested(CloudEvent):
    """`recon.job.cancel_requested`."""

    type: Literal["recon.job.cancel_requested"] = "recon.job.cancel_requested"
    data: CancelRequestedData


class JobCancelled(CloudEvent):
    """`recon.job.cancelled`."""

    type: Literal["recon.job.cancelled"] = "recon.job.cancelled"
    data: CancelledData


class JobCompleted(CloudEvent):
    """`recon.job.completed`."""

    type: Literal["recon.job.completed"] = "recon.job.completed"
    data: CompletedData


class JobFailed(CloudEvent):
    """`recon.job.failed`."""

    type: Literal["recon.job.failed"] = "recon.job.failed"
    data: FailedData


class JobRequeued(CloudEvent):
    """`recon.job.requeued`."""

    type: Literal["recon.job.requeued"] = "recon.job.requeued"
    data: RequeuedData


class WorkerOnline(CloudEvent):
    """`recon.worker.online`."""

    type: Literal["recon.worker.online"] = "recon.worker.online"
    data: WorkerData


class WorkerOffline(CloudEvent):
    """`recon.worker.offline`."""

    type: Literal["recon.worker.offline"] = "recon.worker.offline"
    data: WorkerData


JobEvent = (
    JobAccepted
    | JobStarted
    | JobProgress
    | JobCancelRequested
    | JobCancelled
    | JobCompleted
    | JobFailed
    | JobRequeued
)
Event = JobEvent | WorkerOnline | WorkerOffline

TERMINAL_EVENTS = (JobCompleted, JobFailed, JobCancelled)

EVENT_ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


def is_terminal(event: Event) -> bool:
    """Whether the event decides its job."""
    return isinstance(event, TERMINAL_EVENTS)


def parse_event(body: bytes) -> Event:
    """Parse an event as subscribers receive it.

    Raises:
        pydantic.ValidationError: not one of our events.
    """
    return EVENT_ADAPTER.validate_json(body)
