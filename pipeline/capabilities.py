"""What a machine can do, as the engine finds it out and everybody else hears it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.errors import ErrorInfo
from schemas.jobs import ModelName


@dataclass(frozen=True)
class Capabilities:
    """What a machine can do.

    Attributes:
        device: What computes, such as `cpu` or `cuda (NVIDIA H200)`.
        gpu_memory_bytes: All memory of the GPU; None without one.
        models: Models that jobs may ask for, in the order of the schema.
        unavailable: Models that were wanted and cannot be served, with the reason.
    """

    device: str
    gpu_memory_bytes: int | None = None
    models: tuple[ModelName, ...] = ()
    unavailable: Mapping[ModelName, ErrorInfo] = field(default_factory=dict)
