"""`job.json`, the job's record, and `manifest.json`, which marks a result complete."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import Field

from schemas.base import SCHEMA_VERSION, Metadata, Published, UtcDateTime
from schemas.errors import ErrorInfo
from schemas.jobs import ModelName
from schemas.quality import Status

JobState = Literal["running", "completed", "failed", "cancelled", "requeued"]
TERMINAL_STATES: frozenset[JobState] = frozenset({"completed", "failed", "cancelled"})

RECORD_NAME = "job.json"
MANIFEST_NAME = "manifest.json"


class JobRecord(Published):
    """`job.json`: what became of a job. Survives the worker; decides whether a redelivered job runs again."""

    schema_version: Literal["1.0"] = Field(SCHEMA_VERSION, description="Version of this document's schema.")
    job_id: UUID = Field(description="The job.")
    model: ModelName = Field(description="The reconstruction model.")
    input: str = Field(description="Input location, as in the job.")
    output: str = Field(description="Location of the result, `<job's output>/<job_id>`.")
    batch_id: str | None = Field(None, description="As in the job.")
    metadata: Metadata = Field(default_factory=dict, description="As in the job.")
    state: JobState = Field(description="Where the job stands.")
    attempt: int = Field(
        ge=0,
        description="Attempts begun, without those that a shutdown ended; 0 if refused before the first.",
    )
    worker_id: str = Field(description="The worker that wrote this record.")
    last_seq: int = Field(ge=0, description="`seq` of the last event of this job that is known to be used.")
    created_at: UtcDateTime = Field(description="The job's own `created_at`, copied.")
    accepted_at: UtcDateTime = Field(description="When a worker first took the job.")
    started_at: UtcDateTime | None = Field(None, description="When the latest attempt began.")
    finished_at: UtcDateTime | None = Field(None, description="When the outcome was decided.")
    quality_status: Status | None = Field(None, description="Verdict, once there is one.")
    error: ErrorInfo | None = Field(None, description="Why the job failed or was requeued.")

    @property
    def is_terminal(self) -> bool:
        """Whether the outcome is decided."""
        return self.state in TERMINAL_STATES


class Artifact(Published):
    """One file of a result."""

    path: str = Field(description="Path below the result prefix, with forward slashes.")
    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the content, hexadecimal.")
    media_type: str = Field(description="Media type, such as `model/gltf-binary`.")


class Manifest(Published):
    """`manifest.json`: every result file but `job.json` and itself; written after all of them."""

    schema_version: Literal["1.0"] = Field(SCHEMA_VERSION, description="Version of this document's schema.")
    job_id: UUID = Field(description="The job.")
    created_at: UtcDateTime = Field(description="When this manifest was written.")
    quality_status: Status = Field(description="Verdict of `quality.json`.")
    files: list[Artifact] = Field(description="The files, sorted by path.")
