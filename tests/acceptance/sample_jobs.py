"""What acceptance tests send: the sample's files, job messages, options for jobs that end soon."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

VIEWS = Path(__file__).resolve().parents[2] / "examples" / "spot-small" / "views"

Files = dict[str, bytes]

ANY_QUALITY: dict[str, float] = {
    "psnr_normal_db": 0, "psnr_warning_db": 0,
    "ssim_normal": -1, "ssim_warning": -1,
    "mask_iou_normal": 0, "mask_iou_warning": 0,
    "depth_error_normal": 1000, "depth_error_warning": 1000,
}  # fmt: skip
"""Thresholds that let every result pass."""

QUICK_NVDIFFREC: dict[str, Any] = {
    "grid_resolution": 24,
    "geometry_iterations": 10,
    "texture_iterations": 2,
    "quality": ANY_QUALITY,
    "outputs": {"previews": False},
}


def sample() -> Files:
    """The files of a good input."""
    return {str(path.relative_to(VIEWS)): path.read_bytes() for path in VIEWS.rglob("*") if path.is_file()}


def message(system: Any, location: str, **changes: object) -> dict[str, object]:
    """A job message as a producer writes it."""
    good = {
        "schema_version": "1.0",
        "job_id": str(uuid4()),
        "input": location,
        "output": system.results,
        "model": "nvdiffrec",
        "batch_id": "acceptance",
        "metadata": {"from": "test"},
    }
    return good | changes
