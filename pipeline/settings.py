"""What the pipeline is told from outside, as frozen values. Nothing here reads the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from schemas.jobs import ModelName

_MIB = 1024 * 1024


@dataclass(frozen=True)
class S3Settings:
    """How to reach the object storage."""

    endpoint_url: str | None = None
    """URL of an S3 server; None means AWS."""
    region: str = "us-east-1"
    access_key: str | None = None
    """None leaves credentials to boto3's own chain (profile, instance role)."""
    secret_key: str | None = field(default=None, repr=False)
    path_style: bool = True
    """`endpoint/bucket/key` instead of `bucket.endpoint/key`: works with every self-hosted store."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0
    attempts: int = 4
    """Tries of one request when the store cannot be reached or answers that it is overloaded."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what comes from outside, checked before anything is decoded."""

    max_files: int = 5000
    """Objects below the input prefix, including those that are ignored."""
    max_views: int = 500
    max_file_bytes: int = 256 * _MIB
    max_input_bytes: int = 4096 * _MIB
    """Bytes of all files that are downloaded."""
    max_image_pixels: int = 64_000_000
    """Pixels of one image, judged by its header; undistorted images are not enlarged beyond. Undistorting
    takes about 65 bytes of memory for each pixel of one file at a time: 4 GB at this bound."""
    max_image_side: int = 16_384
    """Pixels of an image's longer side, judged by its header; undistorted images keep to it as well. OpenCV
    undistorts no image with sides above 32766."""
    max_decoded_pixels: int = 8_000_000_000
    """Pixels of all images, depth maps and masks together, judged by their headers: bounds the time that
    decoding takes."""
    max_total_pixels: int = 220_000_000
    """Pixels of all views together at their common size, to which larger ones are scaled down; each costs
    20 bytes (colour, mask, depth as float32). 200 views of 1024x1024 fit."""
    max_json_bytes: int = 16 * _MIB
    max_json_depth: int = 16


@dataclass(frozen=True)
class PipelineSettings:
    """Everything the pipeline needs beside the job."""

    s3: S3Settings
    allowed_inputs: tuple[str, ...]
    """Locations below which inputs may lie. Empty allows nothing."""
    allowed_outputs: tuple[str, ...]
    """Locations below which results may be written. Empty allows nothing."""
    work_root: Path
    """Folder that holds one temporary folder per running job."""
    weights: Path | None = None
    """Folder with the weights of reconviagen, as `recon weights fetch` lays it out. None: there are none."""
    models: tuple[ModelName, ...] | None = None
    """Models to serve; one that cannot be served is an error. None: all that this machine can serve."""
    min_gpu_memory_gib: float = 12.0
    """Memory of a GPU on which reconviagen is served; 0 serves it anywhere, also without a GPU."""
    limits: Limits = field(default_factory=Limits)
    device: str = "auto"
    """`auto` (CUDA where it is), `cpu`, or a CUDA device such as `cuda:1`."""
    transfer_threads: int = 4
    """Files downloaded or uploaded at the same time."""
