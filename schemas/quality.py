"""`quality.json`: what was measured, against which thresholds, and the verdict."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import Field, JsonValue

from schemas.base import SCHEMA_VERSION, Finite, Published, UtcDateTime

Status = Literal["normal", "warning", "failure"]

_ORDER: dict[Status, int] = {"normal": 0, "warning": 1, "failure": 2}


def worst(statuses: list[Status]) -> Status:
    """The worst of some statuses; `normal` for none."""
    return max(statuses, key=_ORDER.__getitem__, default="normal")


class ViewMetrics(Published):
    """One view, re-rendered from the exported model and compared with its image inside the mask's region."""

    name: str = Field(description="File name of the view, relative to the input prefix.")
    psnr_db: Finite = Field(
        description="PSNR inside the mask over a common background, sRGB, dB; capped at 100."
    )
    ssim: Finite = Field(description="SSIM (7x7 window) averaged over the mask.")
    mask_iou: Finite = Field(ge=0, le=1, description="Intersection over union of rendered and given mask.")
    depth_error: Finite | None = Field(
        None,
        description="Mean absolute z-depth error where both depths exist, world units; null without depth.",
    )


class MeanMetrics(Published):
    """Means over a set of views."""

    views: int = Field(ge=1, description="Number of views in the mean.")
    psnr_db: Finite = Field(description="Mean PSNR, dB.")
    ssim: Finite = Field(description="Mean SSIM.")
    mask_iou: Finite = Field(description="Mean mask IoU.")
    depth_error: Finite | None = Field(None, description="Mean depth error, world units; null without depth.")
    depth_error_relative: Finite | None = Field(
        None, description="Mean depth error as a share of the object's bounding radius."
    )


class Check(Published):
    """One metric against its thresholds."""

    metric: str = Field(description="Name of the metric in `input_views`.")
    value: Finite = Field(description="What was measured.")
    normal: Finite = Field(description="Threshold of `normal`.")
    warning: Finite = Field(description="Threshold of `warning`.")
    higher_is_better: bool = Field(description="Direction of the comparison.")
    status: Status = Field(description="Verdict of this metric.")


class MeshStatistics(Published):
    """Facts about the exported mesh."""

    vertices: int = Field(
        ge=0, description="Vertices of the surface, before seams of the texture atlas split them."
    )
    faces: int = Field(ge=0, description="Triangles.")
    watertight: bool = Field(description="Whether every edge has exactly two faces.")
    manifold: bool | None = Field(
        None,
        description="Whether the faces around every edge and every vertex form one sheet; null in reports of "
        "older workers.",
    )
    genus: int | None = Field(
        None,
        description="Number of handles, all components together; null unless watertight, manifold and "
        "consistently oriented.",
    )
    components: int = Field(ge=0, description="Connected components.")
    bounds: tuple[tuple[Finite, Finite, Finite], tuple[Finite, Finite, Finite]] = Field(
        description="Smallest and largest corner in the input's world frame, world units."
    )


class StageTiming(Published):
    """When a stage of the pipeline ran."""

    stage: str = Field(description="Name of the stage.")
    started_at: UtcDateTime = Field(description="Start, UTC.")
    seconds: Finite = Field(ge=0, description="Duration by a monotonic clock, seconds.")


class QualityReport(Published):
    """The whole of `quality.json`."""

    schema_version: Literal["1.0"] = Field(SCHEMA_VERSION, description="Version of this document's schema.")
    job_id: UUID = Field(description="The job.")
    created_at: UtcDateTime = Field(description="The job's own `created_at`, copied.")
    status: Status = Field(description="The worst status among `checks`.")
    checks: list[Check] = Field(description="Every metric with a threshold.")
    input_views: MeanMetrics = Field(description="Means over the views that the optimisation saw.")
    heldout_views: MeanMetrics | None = Field(
        None,
        description="Means over views held out; never mixed with inputs. Their cameras are as given, also "
        "where those of the input views were corrected.",
    )
    views: list[ViewMetrics] = Field(description="Each input view.")
    heldout: list[ViewMetrics] = Field(default_factory=list, description="Each held-out view.")
    mesh: MeshStatistics = Field(description="Facts about the mesh.")
    timings: list[StageTiming] = Field(
        description="Every stage that had finished when the report was written."
    )
    model: str = Field(description="Name of the reconstruction model.")
    raster: str = Field(description="Rasterizer that ran: `nvdiffrast` or `warp`.")
    device: str = Field(description="Device that computed, such as `cpu` or `cuda (NVIDIA H200)`.")
    mask_source: str = Field(description="Where the masks came from: `mask_path`, `alpha` or `depth`.")
    camera_source: str = Field(
        description="Where the cameras came from: `transforms.json`, `rig:<name>`, `sfm:pycolmap` where they "
        "were estimated, or `model:vggt` where the model found them."
    )
    dropped_views: list[str] = Field(
        default_factory=list,
        description="Images that were left out because their cameras could not be estimated.",
    )
    parts: dict[str, str] = Field(
        default_factory=dict,
        description="Networks of the model that ran, each with repository and revision of its weights.",
    )
    versions: dict[str, str] = Field(
        description="Versions of this worker and of the libraries that shaped the result."
    )
    curves: dict[str, list[Finite]] = Field(
        default_factory=dict,
        description="Optimisation curves, such as `geometry/psnr_db`; sampled, equal spacing.",
    )
    extra: dict[str, JsonValue] = Field(default_factory=dict, description="Model-specific figures.")
