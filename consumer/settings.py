"""The environment, read once into frozen settings. Precedence: flag, environment, default; nothing else."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from consumer.topology import Topology
from pipeline.settings import PipelineSettings, S3Settings
from schemas.errors import ErrorCode, InvalidJob
from schemas.jobs import MODELS, ModelName, describe
from schemas.locations import LocationStr, parse_location

ENV_PREFIX = "RECON_"
AUTO = "auto"

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def default_worker_id() -> str:
    """Host name and process id: unique enough, and people find the machine."""
    return f"{socket.gethostname()}-{os.getpid()}"


def mask_url(url: str) -> str:
    """The URL without its password, fit for logs. Hides too much rather than too little."""
    if not _is_amqp_url(url):
        return "***"
    # All up to the last @: whoever forgot to encode a character of the password must not read it in a log.
    return re.sub(r"(?s)\?.*", "?***", re.sub(r"(?s)^(\w+://[^:@]*):.*@", r"\1:***@", url))


def _is_amqp_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    # A second @ or a # comes from a password that was not encoded; the host is another one then.
    ambiguous = url.count("@") > 1 or "#" in url or "@" in parts.path + parts.query
    return parts.scheme in ("amqp", "amqps") and bool(parts.hostname) and port != 0 and not ambiguous


class Settings(BaseSettings):
    """Settings of worker, client and CLI. Each field is read from `RECON_<NAME>`; lists have commas."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")

    # Broker
    amqp_url: SecretStr = Field(
        SecretStr("amqp://guest:guest@localhost:5672/"), description="RabbitMQ, with user and password."
    )
    heartbeat_s: int = Field(
        20, ge=1, le=600, description="AMQP heartbeat; two missed ones close a connection."
    )
    reconnect_s: Seconds = Field(2.0, description="Pause between attempts to reach the broker again.")
    broker_patience_s: Seconds = Field(
        60.0, description="How long a terminal event is retried before its job is given back."
    )
    jobs_exchange: str = Field(
        "recon.jobs", description="Exchange for jobs; its name also begins the queues'."
    )
    status_exchange: str = Field("recon.status", description="Exchange for status events.")
    dead_queue: str = Field("recon.jobs.dead", description="Queue for jobs that cannot be processed.")
    control_queue: str = Field("recon.control", description="Queue for cancel requests.")
    delivery_limit: int = Field(
        20, ge=1, description="Deliveries by the broker before it dead-letters a job by itself."
    )

    # Storage
    s3_endpoint: str | None = Field(None, description="URL of the S3 server; AWS if unset.")
    s3_region: str = Field("us-east-1", description="Region, part of every signature.")
    s3_access_key: str | None = Field(None, description="Access key; the AWS_* variables if unset.")
    s3_secret_key: SecretStr | None = Field(None, description="Secret key; the AWS_* variables if unset.")
    s3_path_style: bool = Field(
        True, description="Bucket in the path rather than in the host name: what most servers want."
    )
    storage_patience_s: Seconds = Field(
        30.0, description="How long an unreachable storage is retried before a job is given back."
    )

    # What the worker may touch
    allowed_inputs: str = Field("s3://recon", description="Locations below which jobs may read.")
    allowed_outputs: str = Field("s3://recon", description="Locations below which jobs may write.")

    # Worker
    worker_id: str = Field(
        default_factory=default_worker_id, min_length=1, max_length=128, description="Name in events."
    )
    models: str = Field(
        "auto",
        description="Models that this worker serves; `auto`: those that the machine can serve. One that is "
        "named and cannot be served is an error at the start.",
    )
    min_gpu_memory_gib: float = Field(
        12.0,
        ge=0,
        allow_inf_nan=False,
        description="Memory of a GPU on which `reconviagen` is served; 0 serves it anywhere, also without a "
        "GPU.",
    )
    max_attempts: int = Field(3, ge=1, le=100, description="Attempts before a retryable failure is final.")
    poll_s: Seconds = Field(0.5, description="Pause between looks at empty queues.")
    progress_s: float = Field(1.0, ge=0, description="Least time between two progress events of a stage.")
    cancel_grace_s: Seconds = Field(10.0, description="Time for a cancelled job to stop before the kill.")
    shutdown_grace_s: float = Field(
        30.0, ge=0, description="Time for the running job to finish at a shutdown before it is requeued."
    )
    load_timeout_s: Seconds = Field(600.0, description="Time for the engine to load its models.")
    work_root: Path = Field(
        Path(tempfile.gettempdir()) / "recon", description="Folder for the work folders of jobs."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device of the engine.")
    weights: Path = Field(
        Path("~/.cache/recon/weights"),
        validate_default=True,
        description="Folder with the weights of `reconviagen`; `recon weights fetch` fills it.",
    )

    # Health
    health_host: str = Field(
        "127.0.0.1", min_length=1, description="Address on which the worker tells its health over HTTP."
    )
    health_port: int = Field(8081, ge=0, le=65535, description="Port of `/health`; 0 for none.")

    # Client
    input_prefix: LocationStr = Field(
        "s3://recon/inputs", description="`recon submit FOLDER` uploads below this location."
    )
    output_prefix: LocationStr = Field(
        "s3://recon/results", description="Results lie below this location unless the job says otherwise."
    )

    @field_validator("amqp_url")
    @classmethod
    def _broker_url(cls, value: SecretStr) -> SecretStr:
        if not _is_amqp_url(value.get_secret_value()):
            raise ValueError(
                "give amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps://; "
                "percent-encode / ? # @ : in the password"
            )
        return value

    @field_validator("models")
    @classmethod
    def _known_models(cls, value: str) -> str:
        chosen = _split(value)
        if chosen != (AUTO,) and (not chosen or set(chosen) - set(MODELS)):
            raise ValueError(f"give {AUTO!r}, or at least one of {', '.join(MODELS)}, separated by commas")
        return value

    @field_validator("weights")
    @classmethod
    def _in_home(cls, value: Path) -> Path:
        return value.expanduser()

    @field_validator("allowed_inputs", "allowed_outputs")
    @classmethod
    def _locations(cls, value: str) -> str:
        for each in _split(value):
            parse_location(each)
        return value

    @property
    def wanted_models(self) -> tuple[ModelName, ...] | None:
        """The models to serve, in the order of the schema; None for those that the machine can serve."""
        chosen = _split(self.models)
        return None if chosen == (AUTO,) else tuple(model for model in MODELS if model in chosen)

    @property
    def masked_amqp_url(self) -> str:
        """The broker's address without its password."""
        return mask_url(self.amqp_url.get_secret_value())

    def topology(self) -> Topology:
        """Names and limits in the broker."""
        return Topology(
            jobs=self.jobs_exchange,
            status=self.status_exchange,
            dead=self.dead_queue,
            control=self.control_queue,
            delivery_limit=self.delivery_limit,
        )

    def s3(self) -> S3Settings:
        """How to reach the object storage."""
        return S3Settings(
            endpoint_url=self.s3_endpoint,
            region=self.s3_region,
            access_key=self.s3_access_key,
            secret_key=None if self.s3_secret_key is None else self.s3_secret_key.get_secret_value(),
            path_style=self.s3_path_style,
        )

    def pipeline(self) -> PipelineSettings:
        """What the pipeline in the engine needs to know."""
        return PipelineSettings(
            s3=self.s3(),
            allowed_inputs=_split(self.allowed_inputs),
            allowed_outputs=_split(self.allowed_outputs),
            work_root=self.work_root,
            weights=self.weights,
            models=self.wanted_models,
            min_gpu_memory_gib=self.min_gpu_memory_gib,
            device=self.device,
        )


def load_settings(**flags: Any) -> Settings:
    """Settings from the environment; flags that are not None take precedence.

    Raises:
        InvalidJob: INVALID_OPTIONS, naming the variable.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        name, _, problem = describe(error).partition(":")
        text = f"Setting {ENV_PREFIX}{name.upper()}:{problem}"
        raise InvalidJob(ErrorCode.INVALID_OPTIONS, text) from None


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
