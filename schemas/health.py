"""What a worker answers over HTTP when it is asked how it is."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import Field

from schemas.base import Finite, Published
from schemas.events import Unavailable
from schemas.jobs import ModelName

HealthStatus = Literal["starting", "ok", "degraded", "stopping"]


class RunningJob(Published):
    """The job that a worker works on."""

    job_id: UUID = Field(description="The job.")
    model: ModelName = Field(description="Its model.")


class Health(Published):
    """Answer of `GET /health`."""

    status: HealthStatus = Field(
        description="`ok`: takes or runs jobs. `starting`: loads models, or has not reached the broker yet. "
        "`degraded`: lost the broker or the engine, or cannot take from its queues, and tries to get that "
        "back. `stopping`: takes no more jobs."
    )
    worker_id: str = Field(description="The worker.")
    version: str = Field(description="Version of the worker.")
    models: list[ModelName] = Field(description="Models it serves.")
    unavailable: dict[ModelName, Unavailable] = Field(
        description="Models it would serve if it could, with the reason why not."
    )
    engine: str = Field(description="What the engine does: `new`, `loading`, `ready`, `busy` or `stopped`.")
    device: str = Field(description="Device of the engine, such as `cpu`; `unknown` until it has loaded.")
    gpu_memory_gib: Finite | None = Field(description="All memory of the GPU, GiB; null without one.")
    job: RunningJob | None = Field(description="The job it works on; null between jobs.")
    broker_connected: bool = Field(description="Whether the connection to the broker is open.")
