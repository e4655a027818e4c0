"""A whole job with a miniature model, on real storage in folders."""

import json
import logging
import threading
from dataclasses import replace

import pytest
import torch
from textured_meshes import lit_sphere, spherical_mesh, spot_mesh
from workplace import LENIENT, Miniature, Workplace

from models.geometry.mesh import TexturedMesh
from pipeline.cancel import CancelToken
from schemas.errors import ErrorCode, JobCancelled, ResourceError
from schemas.jobs import ReconviagenJob
from schemas.quality import QualityReport
from schemas.results import Manifest


@pytest.fixture
def place(tmp_path, caplog) -> Workplace:
    caplog.set_level(logging.INFO)
    return Workplace(tmp_path, lambda: spot_mesh(64))


def test_a_job_leaves_a_complete_result_and_nothing_else(place):
    job = place.job(quality=LENIENT, outputs={"preview_size": 64, "zip": True})
    outcome = place.run(job)
    result = place.result(job)
    manifest = Manifest.model_validate_json((result / "manifest.json").read_bytes())
    files = {p.relative_to(result).as_posix() for p in result.rglob("*") if p.is_file()}
    assert {artifact.path for artifact in manifest.files} == files - {"manifest.json"}
    assert {"model.glb", "model.obj", "model.mtl", "model.ply", "quality.json", "result.zip"} <= files
    assert {"textures/base_color.png", "previews/turntable.webp", "logs/job.log"} <= files
    assert outcome.output == f"file://{result}"
    assert outcome.manifest == f"file://{result}/manifest.json"
    assert QualityReport.model_validate_json((result / "quality.json").read_bytes()) == outcome.quality
    assert place.leftovers() == []
    assert place.model.loaded == 1


def test_the_report_tells_the_truth_about_the_run(place):
    job = place.job(quality=LENIENT)
    quality = place.run(job).quality
    assert [t.stage for t in quality.timings] == ["download", "validate", "reconstruct", "export", "quality"]
    assert quality.created_at == job.created_at
    assert (quality.mask_source, quality.camera_source, quality.raster) == (
        "alpha",
        "transforms.json",
        "warp",
    )
    assert quality.input_views.views == 6
    log = (place.result(job) / "logs" / "job.log").read_text()
    assert f"job {job.job_id}: reconstruct finished" in log


def test_progress_is_monotone_and_names_every_stage(place):
    place.run(place.job(quality=LENIENT))
    fractions = [report.fraction for report in place.reports]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    stages = list(dict.fromkeys(report.stage for report in place.reports))
    assert stages == ["download", "validate", "reconstruct", "export", "quality", "upload"]
    assert any(report.metrics.get("psnr_db") == 20.0 for report in place.reports)


def test_held_out_views_are_kept_from_the_model_and_reported_apart(place):
    quality = place.run(place.job(quality={**LENIENT, "holdout": 2})).quality
    assert place.model.seen[0].names == tuple(f"images/00{i}.png" for i in (0, 2, 3, 5))
    assert [view.name for view in quality.heldout] == ["images/001.png", "images/004.png"]
    assert (quality.input_views.views, quality.heldout_views.views) == (4, 2)


def test_a_result_below_the_thresholds_is_kept_and_then_refused(tmp_path):
    place = Workplace(tmp_path, lambda: spherical_mesh(32))
    job = place.job()
    error = place.fails(job)
    assert error.code is ErrorCode.QUALITY_BELOW_THRESHOLD
    assert error.details["output"] == f"file://{place.result(job)}"
    assert error.details["checks"]
    manifest = Manifest.model_validate_json((place.result(job) / "manifest.json").read_bytes())
    assert manifest.quality_status == "failure"
    assert json.loads((place.result(job) / "quality.json").read_text())["status"] == "failure"


def test_running_a_job_again_overwrites_its_result(place):
    job = place.job(quality=LENIENT)
    first = place.run(job)
    second = place.run(job)
    assert first.output == second.output
    assert len(list((place.folder / "out").iterdir())) == 1


@pytest.mark.parametrize("field", ["input", "output"])
def test_locations_outside_of_the_allow_list_are_refused_before_anything_is_touched(place, field):
    job = place.job().model_copy(update={field: f"file://{place.folder}/elsewhere"})
    assert place.fails(job).code is ErrorCode.LOCATION_NOT_ALLOWED
    assert place.reports == []
    assert list((place.folder / "out").iterdir()) == []


def test_bad_input_fails_with_its_code_and_leaves_a_log(place):
    (place.input / "images" / "000.png").write_text("no picture")
    job = place.job()
    assert place.fails(job).code is ErrorCode.UNSUPPORTED_IMAGE_FORMAT
    assert [p.name for p in place.result(job).rglob("*") if p.is_file()] == ["job.log"]
    assert "UNSUPPORTED_IMAGE_FORMAT" in (place.result(job) / "logs" / "job.log").read_text()


def test_a_model_that_is_not_served_is_named(place):
    job = ReconviagenJob(input=f"file://{place.input}", output=f"file://{place.folder}/out")
    error = place.fails(job)
    assert error.code is ErrorCode.MODEL_WEIGHTS_MISSING
    assert "reconviagen" in error.message
    assert error.details["served"] == ["nvdiffrec"]
    reason = ResourceError(ErrorCode.GPU_TOO_SMALL, "It has 2 GiB.").info()
    place.pipeline._served.unavailable["reconviagen"] = reason
    error = place.fails(job)
    assert error.code is ErrorCode.GPU_TOO_SMALL
    assert "It has 2 GiB." in error.message


def test_a_cancel_stops_the_model_and_nothing_is_published(place):
    cancel = CancelToken()

    def cancel_and_go_on() -> TexturedMesh:
        cancel.cancel()
        return spot_mesh(64)

    place.model.make = cancel_and_go_on
    job = place.job()
    with pytest.raises(JobCancelled):
        place.run(job, cancel)
    assert place.leftovers() == []
    assert not place.result(job).exists()


def test_a_cancel_from_another_thread_is_noticed_inside_a_loop(place):
    cancel = CancelToken()

    class Endless(Miniature):
        def reconstruct(self, views, options, callback):
            threading.Timer(0.2, cancel.cancel).start()
            while True:
                callback(0.1, "working", {})

    place.pipeline._served.reconstructors["nvdiffrec"] = Endless(None)
    with pytest.raises(JobCancelled):
        place.run(place.job(), cancel)


def raises(error: Exception):
    def make():
        raise error

    return make


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), ErrorCode.HOST_OUT_OF_MEMORY),
        (OSError(28, "no space left"), ErrorCode.DISK_FULL),
        (torch.cuda.OutOfMemoryError("x"), ErrorCode.MODEL_VRAM_OOM),
    ],
)
def test_what_the_machine_lacks_gets_its_code(place, error, code):
    place.model.make = raises(error)
    assert place.fails(place.job()).code is code
    place.model.make = lambda: spot_mesh(64)
    assert place.run(place.job(quality=LENIENT)).quality.status == "normal"


def test_a_fault_in_a_model_passes_as_it_is(place):
    place.model.make = raises(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        place.run(place.job())
    assert place.leftovers() == []


def test_a_mesh_that_is_no_surface_means_the_model_diverged(place):
    mesh = spherical_mesh(32)
    for broken in (
        TexturedMesh(mesh.vertices, mesh.faces[:0], mesh.uvs, mesh.uv_faces[:0], mesh.base_color),
        TexturedMesh(mesh.vertices * float("nan"), mesh.faces, mesh.uvs, mesh.uv_faces, mesh.base_color),
    ):
        place.model.make = lambda broken=broken: broken
        assert place.fails(place.job()).code is ErrorCode.MODEL_DIVERGED


@pytest.mark.parametrize(
    "name", ["vertices", "uvs", "base_color", "roughness_metallic", "normal_map", "environment"]
)
def test_every_texture_must_be_finite(place, name):
    mesh = lit_sphere(32)
    values = getattr(mesh, name).clone()
    values.view(-1)[7] = float("inf")
    place.model.make = lambda: replace(mesh, **{name: values})
    error = place.fails(place.job())
    assert error.code is ErrorCode.MODEL_DIVERGED
    assert error.details["tensor"] == name


def test_the_device_is_named(place):
    assert place.pipeline.device == "cpu"
