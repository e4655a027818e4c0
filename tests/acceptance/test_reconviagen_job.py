"""Jobs for `reconviagen` and `nvdiffrec` in turn, through a real broker and storage to one worker on a CPU.

The networks are miniatures with random weights whose object is a cube, whatever the views show: the way that
a job takes is the real one, and the verdict on its result is a bad one.
"""

from __future__ import annotations

import hashlib
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from sample_jobs import ANY_QUALITY, QUICK_NVDIFFREC, Files, message, sample

from pipeline.weights import SOURCES
from schemas.errors import ErrorCode
from schemas.events import (
    Event,
    JobAccepted,
    JobCompleted,
    JobFailed,
    JobProgress,
    JobRequeued,
    JobStarted,
    WorkerOffline,
    WorkerOnline,
)
from schemas.health import Health
from schemas.jobs import MODELS
from schemas.quality import QualityReport
from schemas.results import JobRecord, Manifest
from tests.checkpoints import write_tame_checkpoint
from tests.gltf.khronos import validate
from tests.ports import free_port

pytestmark = [pytest.mark.broker, pytest.mark.storage, pytest.mark.slow]

QUICK = {
    "structure_steps": 2,
    "latent_steps": 2,
    "texture_resolution": 64,
    "target_triangles": 1000,
    "outputs": {"preview_size": 64},
}
PATIENCE_S = 240.0
STILLS = ("front", "right", "back", "left", "top", "bottom")


@pytest.fixture(scope="module")
def worker_settings(tmp_path_factory) -> dict[str, str]:
    weights = tmp_path_factory.mktemp("weights")
    write_tame_checkpoint(weights)
    return {
        "RECON_WEIGHTS": str(weights),
        "RECON_MIN_GPU_MEMORY_GIB": "0",
        "RECON_HEALTH_PORT": str(free_port()),
        "RECON_PROGRESS_S": "0.05",
        "RECON_SHUTDOWN_GRACE_S": "0",
    }


def views(*, cameras: bool) -> Files:
    """Three views of the sample: images alone, or with cameras and depth."""
    files = {name: body for name, body in sample().items() if Path(name).stem in ("000", "001", "003")}
    if not cameras:
        return {name: body for name, body in files.items() if name.startswith("images/")}
    transforms = json.loads(sample()["transforms.json"])
    transforms["frames"] = [frame for frame in transforms["frames"] if frame["file_path"] in files]
    return files | {"transforms.json": json.dumps(transforms).encode()}


def submitted(system, model: str, files: Files, **options: Any) -> str:
    """Send a job as any producer could; returns its id."""
    job = message(system, system.upload(files), model=model, options=options)
    system.submit_raw(job, model)
    return str(job["job_id"])


def is_steps(event: Event, job_id: str, name: str) -> bool:
    """Whether an event tells of a step of a loop of that name."""
    return (
        isinstance(event, JobProgress)
        and event.subject == job_id
        and event.data.message.startswith(f"{name}: step ")
    )


@pytest.fixture(scope="module")
def unposed(system, tmp_path_factory) -> tuple[str, Event, Path]:
    """A folder of images alone, from `recon submit` to `recon fetch`: id, last event, the fetched folder."""
    source, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("fetched")
    (source / "images").mkdir()
    for name, body in views(cameras=False).items():
        (source / name).write_bytes(body)
    options = source.with_suffix(".json")
    options.write_text(json.dumps(QUICK | {"quality": ANY_QUALITY}))
    sent = system.recon(
        "submit", str(source), "--model", "reconviagen", "--options-file", str(options), "--option", "seed=3"
    )
    assert sent.returncode == 0, sent.stderr
    assert "cameras from model:vggt" in sent.stderr
    job_id = sent.stdout.split()[-1]
    end = system.end_of(job_id, PATIENCE_S)
    assert isinstance(end, JobCompleted), end
    fetched = system.recon("fetch", job_id, "--out", str(out))
    assert fetched.returncode == 0, fetched.stderr
    return job_id, end, out


@pytest.fixture(scope="module")
def report(unposed) -> QualityReport:
    return QualityReport.model_validate_json((unposed[2] / "quality.json").read_text())


def test_the_worker_says_that_it_serves_both_models(system):
    online = next(event for event in system.events if isinstance(event, WorkerOnline))
    assert (online.data.models, online.data.unavailable) == (list(MODELS), {})
    health = asked(system)
    assert (health.status, health.models, health.unavailable) == ("ok", list(MODELS), {})


def test_images_alone_become_a_mesh_whose_cameras_the_model_found(report, unposed):
    assert report.model == "reconviagen"
    assert report.camera_source == "model:vggt"
    assert report.mask_source == "alpha"
    assert report.input_views.views == len(report.views) == 3
    assert report.dropped_views == []
    assert unposed[1].data.status == report.status == "normal"
    assert report.input_views.mask_iou > 0.3, "the found cameras look at the object"


def test_the_report_names_every_network_with_the_revision_of_its_weights(report):
    pinned = {f"{source.repository}@{source.revision}" for source in SOURCES}
    assert len(report.parts) == 9
    assert set(report.parts.values()) == pinned


def test_the_report_has_the_models_own_figures(report):
    assert 0 < report.extra["alignment/mask_iou"] <= 1
    assert report.extra["gaussians"] > 0
    assert report.extra["model_unit"] > 0
    assert report.mesh.faces <= QUICK["target_triangles"]
    assert report.mesh.watertight


def test_events_are_in_order_and_name_the_steps(system, unposed):
    events = system.events_of(unposed[0])
    kinds = [type(event) for event in events if not isinstance(event, JobProgress)]
    assert kinds == [JobAccepted, JobStarted, JobCompleted]
    seqs = [event.data.seq for event in events]
    assert seqs == sorted(set(seqs))
    progress = [event.data for event in events if isinstance(event, JobProgress)]
    fractions = [data.fraction for data in progress]
    assert fractions == sorted(fractions)
    (started,) = [event.data for event in events if isinstance(event, JobStarted)]
    stages = list(dict.fromkeys(data.stage for data in progress))
    assert stages == [stage for stage in started.stages if stage in stages]
    assert {"reconstruct", "preview"} <= set(stages)
    told = " | ".join(data.message for data in progress if data.stage == "reconstruct")
    assert "cameras: step " in told, told
    assert "texture" in told or "cleaning" in told, told


def test_the_files_are_as_the_manifest_says(unposed):
    folder = unposed[2]
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    names = {file.path for file in manifest.files}
    assert {"model.glb", "model.obj", "model.ply", "textures/base_color.png", "quality.json"} <= names
    assert {f"previews/{name}.png" for name in STILLS} | {"previews/turntable.webp"} <= names
    for file in manifest.files:
        assert hashlib.sha256((folder / file.path).read_bytes()).hexdigest() == file.sha256, file.path


@pytest.mark.parametrize("name", ["model.glb", "model.obj"])
def test_the_mesh_has_the_views_colours(unposed, name):
    mesh = trimesh.load(unposed[2] / name, force="mesh")
    assert len(mesh.faces) > 100
    image = mesh.visual.material.baseColorTexture if name == "model.glb" else mesh.visual.material.image
    colors = np.asarray(image.convert("RGB"))
    assert colors.shape == (64, 64, 3)
    assert np.median(colors) > 100, "Spot is mostly white and pink"


def test_the_glb_is_valid(unposed, validator):
    issues = validate(validator, unposed[2] / "model.glb")["issues"]
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


def test_the_previews_show_the_object(unposed):
    for name in STILLS:
        picture = np.asarray(Image.open(unposed[2] / "previews" / f"{name}.png").convert("RGB"), float)
        assert picture.shape == (64, 64, 3)
        assert np.abs(picture - picture[0, 0]).max(-1).astype(bool).mean() > 0.2, name
    with Image.open(unposed[2] / "previews" / "turntable.webp") as turntable:
        assert turntable.n_frames == 36


def test_the_jobs_log_tells_what_the_model_did(unposed):
    log = (unposed[2] / "logs" / "job.log").read_text()
    assert "known cameras were recognised" in log
    assert "cameras: mask IoU 0." in log


def test_nvdiffrec_follows_in_the_same_worker(system, unposed):
    job_id = submitted(system, "nvdiffrec", sample(), **QUICK_NVDIFFREC)
    assert isinstance(system.end_of(job_id, PATIENCE_S), JobCompleted)


def test_a_bad_result_with_cameras_and_depth_fails_and_is_kept(system):
    """The thresholds are the default ones; the health tells of the job while it runs."""
    job_id = submitted(system, "reconviagen", views(cameras=True), **QUICK)
    system.broker.wait_for(lambda event: is_steps(event, job_id, "alignment"), PATIENCE_S)
    job = asked(system).job
    end = system.end_of(job_id, PATIENCE_S)

    assert job is not None
    assert (str(job.job_id), job.model) == (job_id, "reconviagen")
    assert isinstance(end, JobFailed), end
    assert end.data.error.code is ErrorCode.QUALITY_BELOW_THRESHOLD
    kept = {name: stored(system, job_id, name) for name in ("quality.json", "manifest.json", "job.json")}
    report = QualityReport.model_validate_json(kept["quality.json"])
    assert (report.status, report.camera_source) == ("failure", "transforms.json")
    assert report.input_views.depth_error_relative is not None
    manifest = Manifest.model_validate_json(kept["manifest.json"])
    assert manifest.quality_status == "failure"
    assert "model.glb" in {file.path for file in manifest.files}
    record = JobRecord.model_validate_json(kept["job.json"])
    assert (record.state, record.quality_status) == ("failed", "failure")
    center = np.mean(report.mesh.bounds, 0)
    assert np.linalg.norm(center) < 0.5, "the object is where the cameras look"


def test_a_shutdown_stops_the_sampling_and_gives_the_job_back(system):
    """The last test of the module: the worker is gone after it."""
    job_id = submitted(
        system, "reconviagen", views(cameras=False), **(QUICK | {"structure_steps": 200, "latent_steps": 200})
    )
    system.broker.wait_for(lambda event: is_steps(event, job_id, "structure"), PATIENCE_S)

    began = time.monotonic()
    system.worker.terminate()
    assert system.worker.wait(60) == 0
    assert time.monotonic() - began < 10

    system.broker.wait_for(lambda event: isinstance(event, WorkerOffline), 10)
    events = system.events_of(job_id)
    assert isinstance(events[-1], JobRequeued)
    last = [event for event in events if isinstance(event, JobProgress)][-1]
    assert is_steps(last, job_id, "structure") or is_steps(last, job_id, "latent"), last.data.message
    waiting = system.broker.take(f"{system.jobs}.reconviagen")
    assert json.loads(waiting.body)["job_id"] == job_id


def asked(system) -> Health:
    """What the worker says of itself over HTTP."""
    port = system.environment["RECON_HEALTH_PORT"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
        return Health.model_validate_json(answer.read())


def stored(system, job_id: str, name: str) -> bytes:
    """A file of a job's result."""
    return system.storage.get_object(Bucket=system.bucket, Key=f"results/{job_id}/{name}")["Body"].read()
