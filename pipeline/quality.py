"""Measure a mesh against the photographs: re-render each view, compare, judge by the job's thresholds.

A view's image and its rendering are laid over the same white background (that of the usual benchmarks) and
compared inside the object's mask only. Depth errors are also given as a share of the object's bounding
radius: the distance of the mesh's farthest vertex from the centre of its bounding box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.base import Callback, PosedViews, Reconstruction
from models.geometry.mesh import TexturedMesh
from models.raster import RasterBackend
from pipeline.metrics import FloatArray, depth_error, mask_iou, psnr_db, ssim
from pipeline.rendering import render_view
from pipeline.surface import bounding_sphere, mesh_statistics
from pipeline.versions import software_versions
from schemas.jobs import Job
from schemas.options import QualityOptions
from schemas.quality import (
    Check,
    MeanMetrics,
    MeshStatistics,
    QualityReport,
    StageTiming,
    Status,
    ViewMetrics,
    worst,
)

BACKGROUND = 1.0


@dataclass(frozen=True)
class QualityMeasurement:
    """What was measured, and the verdict.

    Attributes:
        views, heldout: Each input view; each held-out view.
        input_views, heldout_views: Their means; None without held-out views.
        checks: Every metric of `input_views` with a threshold.
        status: The worst of the checks.
        mesh: Facts about the mesh.
    """

    views: list[ViewMetrics]
    heldout: list[ViewMetrics]
    input_views: MeanMetrics
    heldout_views: MeanMetrics | None
    checks: list[Check]
    status: Status
    mesh: MeshStatistics


def measure_quality(
    raster: RasterBackend,
    mesh: TexturedMesh,
    views: PosedViews,
    heldout: PosedViews | None,
    options: QualityOptions,
    *,
    callback: Callback,
) -> QualityMeasurement:
    """Render every view, one at a time and at its own size, and compare it with its image.

    Args:
        raster: The rasterizer; the mesh is moved to its device.
        mesh: The exported mesh.
        views: The views that the model saw, at least one; on any device.
        heldout: Views that it did not see, None if there are none; reported apart and never judged.
        options: Thresholds.
        callback: Called after every view.

    Raises:
        ValueError: The mesh has no faces, or a coordinate is not finite.
    """
    statistics = mesh_statistics(mesh)
    mesh = mesh.to(raster.device)
    unseen = len(heldout) if heldout else 0
    total = len(views) + unseen
    seen = _measure_views(raster, mesh, views, callback, 0, total)
    others = _measure_views(raster, mesh, heldout, callback, len(views), total) if heldout else []
    _, radius = bounding_sphere(mesh.vertices)
    mean = mean_metrics(seen, radius)
    checks = check_metrics(mean, options)
    return QualityMeasurement(
        views=seen,
        heldout=others,
        input_views=mean,
        heldout_views=mean_metrics(others, radius) if others else None,
        checks=checks,
        status=worst([check.status for check in checks]),
        mesh=statistics,
    )


def measure_view(raster: RasterBackend, mesh: TexturedMesh, view: PosedViews) -> ViewMetrics:
    """Compare one view with its rendering.

    Colours are averages over pixels, as in photographs; mask and depth are those of the pixels' centres, as
    in depth maps: the average of two depths across an edge is the depth of nothing. A view with an empty mask
    is compared over the whole image.

    Args:
        raster: The rasterizer.
        mesh: The mesh, on the rasterizer's device.
        view: A single view.
    """
    camera = view.cameras.to(raster.device)
    image = _array(render_view(raster, mesh, camera).over(BACKGROUND).clamp(0, 1))
    shape = render_view(raster, mesh, camera, samples=1)
    mask = _array(view.masks)
    coverage = mask[..., None]
    reference = (_array(view.images) * coverage + BACKGROUND * (1 - coverage)).astype(np.float32)
    region = mask > 0.5
    compared = region if region.any() else np.ones_like(region)
    error = None
    if view.depths is not None:
        error = depth_error(_array(shape.depth), _array(view.depths), region)
    return ViewMetrics(
        name=view.names[0],
        psnr_db=psnr_db(image, reference, compared),
        ssim=ssim(image, reference, compared),
        mask_iou=mask_iou(_array(shape.alpha) > 0.5, region),
        depth_error=error,
    )


def mean_metrics(views: list[ViewMetrics], radius: float) -> MeanMetrics:
    """Means over some views; the depth error over those that have one.

    Args:
        views: At least one.
        radius: The object's bounding radius, world units.
    """
    errors = [view.depth_error for view in views if view.depth_error is not None]
    error = float(np.mean(errors)) if errors else None
    return MeanMetrics(
        views=len(views),
        psnr_db=float(np.mean([view.psnr_db for view in views])),
        ssim=float(np.mean([view.ssim for view in views])),
        mask_iou=float(np.mean([view.mask_iou for view in views])),
        depth_error=error,
        depth_error_relative=None if error is None else error / max(radius, 1e-12),
    )


def check_metrics(mean: MeanMetrics, options: QualityOptions) -> list[Check]:
    """Hold the means against the thresholds; a metric that was not measured is not judged."""
    checks = [
        _check("psnr_db", mean.psnr_db, options.psnr_normal_db, options.psnr_warning_db),
        _check("ssim", mean.ssim, options.ssim_normal, options.ssim_warning),
        _check("mask_iou", mean.mask_iou, options.mask_iou_normal, options.mask_iou_warning),
    ]
    if mean.depth_error_relative is not None:
        checks.append(
            _check(
                "depth_error_relative",
                mean.depth_error_relative,
                options.depth_error_normal,
                options.depth_error_warning,
                higher_is_better=False,
            )
        )
    return checks


def build_report(
    job: Job,
    measurement: QualityMeasurement,
    *,
    timings: list[StageTiming],
    reconstruction: Reconstruction,
    device: str,
    mask_source: str,
    camera_source: str,
    dropped_views: Sequence[str] = (),
) -> QualityReport:
    """The content of `quality.json`.

    Args:
        job: The job.
        measurement: Outcome of `measure_quality`.
        timings: Every stage that has finished.
        reconstruction: What the model made: its rasterizer, parts, curves and further figures.
        device: Device that computed, such as `cpu` or `cuda (NVIDIA H200)`.
        mask_source: `mask_path`, `alpha` or `depth`.
        camera_source: See `pipeline.camera_source`.
        dropped_views: Images without a camera.
    """
    return QualityReport(
        job_id=job.job_id,
        created_at=job.created_at,
        status=measurement.status,
        checks=measurement.checks,
        input_views=measurement.input_views,
        heldout_views=measurement.heldout_views,
        views=measurement.views,
        heldout=measurement.heldout,
        mesh=measurement.mesh,
        timings=timings,
        model=job.model,
        raster=reconstruction.raster,
        device=device,
        mask_source=mask_source,
        camera_source=camera_source,
        dropped_views=list(dropped_views),
        parts=reconstruction.parts,
        versions=software_versions(),
        curves=reconstruction.curves,
        extra=dict(reconstruction.extra),
    )


def _measure_views(
    raster: RasterBackend, mesh: TexturedMesh, views: PosedViews, callback: Callback, done: int, total: int
) -> list[ViewMetrics]:
    measured = []
    for index, name in enumerate(views.names):
        metrics = measure_view(raster, mesh, views.subset([index]))
        measured.append(metrics)
        callback(
            (done + index + 1) / total,
            f"compared {name} with its rendering",
            {"psnr_db": metrics.psnr_db, "ssim": metrics.ssim, "mask_iou": metrics.mask_iou},
        )
    return measured


def _check(
    metric: str, value: float, normal: float, warning: float, *, higher_is_better: bool = True
) -> Check:
    sign = 1 if higher_is_better else -1
    status: Status = "failure"
    if sign * value >= sign * normal:
        status = "normal"
    elif sign * value >= sign * warning:
        status = "warning"
    return Check(
        metric=metric,
        value=value,
        normal=normal,
        warning=warning,
        higher_is_better=higher_is_better,
        status=status,
    )


def _array(batch: torch.Tensor) -> FloatArray:
    """The only image of a batch, as an array."""
    array: FloatArray = batch[0].detach().float().cpu().numpy()
    return array
