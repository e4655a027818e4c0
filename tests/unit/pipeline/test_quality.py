from __future__ import annotations

import dataclasses
import json
from typing import Any
from uuid import UUID

import pytest
import torch
from textured_meshes import spherical_mesh, spot_mesh, spot_views

from models.base import Reconstruction, Views
from models.geometry.mesh import TexturedMesh
from models.raster import RasterBackend, make_backend
from pipeline.quality import (
    QualityMeasurement,
    build_report,
    check_metrics,
    mean_metrics,
    measure_quality,
    measure_view,
)
from pipeline.rendering import render_view
from schemas.base import utc_now
from schemas.jobs import NvdiffrecJob
from schemas.options import QualityOptions
from schemas.quality import MeanMetrics, QualityReport, StageTiming, ViewMetrics


@pytest.fixture(scope="module")
def raster() -> RasterBackend:
    return make_backend("warp", "cpu")


@pytest.fixture(scope="module")
def mesh() -> TexturedMesh:
    return spot_mesh(128)


def silent(fraction: float, message: str, metrics: dict[str, float]) -> None:
    """A callback for those who do not look."""


def rendered_views(raster: RasterBackend, mesh: TexturedMesh, cameras_of: Views) -> Views:
    """Perfect photographs of a mesh, as straight alpha."""
    renderings = [render_view(raster, mesh, cameras_of.cameras[[i]]) for i in range(len(cameras_of))]
    color = torch.cat([r.color for r in renderings])
    alpha = torch.cat([r.alpha for r in renderings])
    straight = color / alpha[..., None].clamp(min=1e-6)
    centres = [render_view(raster, mesh, cameras_of.cameras[[i]], samples=1) for i in range(len(cameras_of))]
    depth = torch.cat([r.depth for r in centres])
    return dataclasses.replace(cameras_of, images=straight, masks=alpha, depths=depth)


@pytest.mark.parametrize("folder", ["views", "test"])
def test_the_true_shape_covers_the_masks_and_depths_of_the_example(
    raster: RasterBackend, mesh: TexturedMesh, folder: str
) -> None:
    """Image rows, camera axes, principal point and depth's meaning: a mistake in any shows here."""
    views = spot_views(folder)
    for index in range(len(views)):
        metrics = measure_view(raster, mesh, views.subset([index]))
        assert metrics.mask_iou > 0.99
        assert metrics.depth_error is not None
        assert metrics.depth_error < 2e-4  # world units; the files keep depth in steps of 1e-4


def test_photographs_of_the_mesh_itself_are_matched_perfectly(
    raster: RasterBackend, mesh: TexturedMesh
) -> None:
    views = rendered_views(raster, mesh, spot_views())
    measurement = measure_quality(raster, mesh, views, None, QualityOptions(), callback=silent)
    mean = measurement.input_views
    assert mean.psnr_db == pytest.approx(100, abs=0.1)
    assert mean.ssim == pytest.approx(1, abs=1e-4)
    assert mean.mask_iou > 0.98  # pixels half covered fall to either side
    assert mean.depth_error == 0
    assert measurement.status == "normal"
    assert measurement.heldout_views is None
    assert [check.metric for check in measurement.checks] == [
        "psnr_db",
        "ssim",
        "mask_iou",
        "depth_error_relative",
    ]


def test_a_known_error_gives_the_known_psnr(raster: RasterBackend) -> None:
    mesh = dataclasses.replace(spherical_mesh(), base_color=torch.full((64, 64, 3), 0.5))
    views = rendered_views(raster, mesh, spot_views().subset([0]))
    opaque = dataclasses.replace(views, masks=(views.masks == 1).float())
    brighter = dataclasses.replace(mesh, base_color=mesh.base_color + 0.1)
    assert measure_view(raster, brighter, opaque).psnr_db == pytest.approx(20, abs=1e-3)


def test_what_lies_outside_of_the_mask_does_not_matter(raster: RasterBackend, mesh: TexturedMesh) -> None:
    views = rendered_views(raster, mesh, spot_views().subset([2]))
    litter = torch.where(views.masks[..., None] > 0, views.images, torch.rand_like(views.images))
    other = dataclasses.replace(views, images=litter)
    assert measure_view(raster, mesh, other) == measure_view(raster, mesh, views)


def test_a_mesh_that_no_view_shows_fails_without_crashing(raster: RasterBackend, mesh: TexturedMesh) -> None:
    lost = dataclasses.replace(mesh, vertices=mesh.vertices + 50)
    measurement = measure_quality(raster, lost, spot_views(), None, QualityOptions(), callback=silent)
    assert measurement.status == "failure"
    assert measurement.input_views.mask_iou == 0
    assert measurement.input_views.depth_error is None
    assert [check.metric for check in measurement.checks] == ["psnr_db", "ssim", "mask_iou"]


def test_a_mesh_behind_the_camera_fails_without_crashing(raster: RasterBackend, mesh: TexturedMesh) -> None:
    behind = dataclasses.replace(mesh, vertices=mesh.vertices - torch.tensor([0.0, 20.0, 0.0]))
    front = spot_views().subset([0])
    assert measure_view(raster, behind, front).mask_iou == 0


def test_a_view_without_object_is_compared_as_a_whole(raster: RasterBackend, mesh: TexturedMesh) -> None:
    views = spot_views().subset([0])
    nothing = dataclasses.replace(views, masks=torch.zeros_like(views.masks))
    metrics = measure_view(raster, mesh, nothing)
    assert metrics.mask_iou == 0
    assert metrics.depth_error is None
    assert 0 < metrics.psnr_db < 100


def test_heldout_views_are_reported_apart_and_not_judged(raster: RasterBackend, mesh: TexturedMesh) -> None:
    seen = rendered_views(raster, mesh, spot_views().subset([0, 1, 2]))
    unseen = spot_views().subset([3, 4])  # photographs of another texture: bad figures
    calls: list[tuple[float, dict[str, float]]] = []
    measurement = measure_quality(
        raster, mesh, seen, unseen, QualityOptions(), callback=lambda f, _, m: calls.append((f, m))
    )
    assert measurement.status == "normal"
    assert [view.name for view in measurement.views] == list(seen.names)
    assert [view.name for view in measurement.heldout] == list(unseen.names)
    assert measurement.heldout_views is not None
    assert measurement.heldout_views.psnr_db < 15
    assert measurement.input_views.views == 3
    assert [fraction for fraction, _ in calls] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert calls[0][1]["psnr_db"] == measurement.views[0].psnr_db


def test_cancelling_stops_after_the_view_at_hand(raster: RasterBackend, mesh: TexturedMesh) -> None:
    calls = []

    def cancel(fraction: float, message: str, metrics: dict[str, float]) -> None:
        calls.append(fraction)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_quality(raster, mesh, spot_views(), None, QualityOptions(), callback=cancel)
    assert len(calls) == 1


def test_views_without_depth_have_no_depth_check(raster: RasterBackend, mesh: TexturedMesh) -> None:
    views = dataclasses.replace(rendered_views(raster, mesh, spot_views().subset([0])), depths=None)
    measurement = measure_quality(raster, mesh, views, None, QualityOptions(), callback=silent)
    assert measurement.views[0].depth_error is None
    assert "depth_error_relative" not in [check.metric for check in measurement.checks]


def test_mean_depth_error_leaves_out_views_without_one_and_is_relative_to_the_radius() -> None:
    views = [
        ViewMetrics(name="a", psnr_db=20, ssim=0.5, mask_iou=1, depth_error=0.2),
        ViewMetrics(name="b", psnr_db=30, ssim=0.7, mask_iou=0.5, depth_error=None),
        ViewMetrics(name="c", psnr_db=40, ssim=0.9, mask_iou=0.75, depth_error=0.4),
    ]
    mean = mean_metrics(views, radius=2.0)
    assert (mean.views, mean.psnr_db) == (3, 30)
    assert mean.ssim == pytest.approx(0.7)
    assert mean.mask_iou == pytest.approx(0.75)
    assert mean.depth_error == pytest.approx(0.3)
    assert mean.depth_error_relative == pytest.approx(0.15)


GOOD: dict[str, Any] = {"psnr_db": 30, "ssim": 0.9, "mask_iou": 0.95, "depth_error_relative": 0.01}


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("psnr_db", 25.0, "normal"),
        ("psnr_db", 24.99, "warning"),
        ("psnr_db", 20.0, "warning"),
        ("psnr_db", 19.99, "failure"),
        ("ssim", 0.85, "normal"),
        ("ssim", 0.849, "warning"),
        ("ssim", 0.75, "warning"),
        ("ssim", 0.749, "failure"),
        ("mask_iou", 0.90, "normal"),
        ("mask_iou", 0.75, "warning"),
        ("mask_iou", 0.749, "failure"),
        ("depth_error_relative", 0.02, "normal"),
        ("depth_error_relative", 0.021, "warning"),
        ("depth_error_relative", 0.05, "warning"),
        ("depth_error_relative", 0.051, "failure"),
    ],
)
def test_default_thresholds(metric: str, value: float, expected: str) -> None:
    mean = MeanMetrics(views=1, **(GOOD | {metric: value}))
    checks = {check.metric: check for check in check_metrics(mean, QualityOptions())}
    assert checks.pop(metric).status == expected
    assert {check.status for check in checks.values()} == {"normal"}


@pytest.fixture(scope="module")
def measurement(raster: RasterBackend, mesh: TexturedMesh) -> QualityMeasurement:
    return measure_quality(raster, mesh, spot_views(), None, QualityOptions(), callback=silent)


def test_report_holds_everything_and_survives_json(
    mesh: TexturedMesh, measurement: QualityMeasurement
) -> None:
    job = NvdiffrecJob(
        job_id=UUID(int=7), input="s3://bucket/in", output="s3://bucket/out", model="nvdiffrec"
    )
    timing = StageTiming(stage="export", started_at=utc_now(), seconds=1.5)
    report = build_report(
        job,
        measurement,
        timings=[timing],
        reconstruction=Reconstruction(mesh, "warp", {"geometry/psnr_db": [10.0, 20.0]}, {"steps": 2.0}),
        device="cpu",
        mask_source="alpha",
        camera_source="sfm:pycolmap",
        dropped_views=("images/004.png",),
    )
    assert report.camera_source == "sfm:pycolmap"
    assert report.dropped_views == ["images/004.png"]
    assert (report.job_id, report.created_at, report.model) == (job.job_id, job.created_at, "nvdiffrec")
    assert report.status == "failure"  # the texture is made up
    assert (report.raster, report.device) == ("warp", "cpu")
    assert report.timings == [timing]
    assert report.curves == {"geometry/psnr_db": [10.0, 20.0]}
    assert report.extra == {"steps": 2.0}
    assert report.mesh.faces == len(mesh.faces)
    assert {"recon-worker", "torch", "numpy", "trimesh", "scikit-image", "xatlas"} <= set(report.versions)
    assert QualityReport.model_validate(json.loads(report.model_dump_json())) == report
