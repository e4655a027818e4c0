"""The main job: six views go in through RabbitMQ, a mesh comes out that is measured against the truth."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy.spatial import cKDTree

from models.geometry.camera import Cameras
from models.geometry.mesh import TexturedMesh
from models.raster import make_backend
from models.render import render_textured
from schemas.events import (
    JobAccepted,
    JobCompleted,
    JobProgress,
    JobStarted,
    is_terminal,
)
from schemas.quality import QualityReport
from schemas.results import JobRecord, Manifest

pytestmark = [pytest.mark.broker, pytest.mark.storage, pytest.mark.slow, pytest.mark.timeout(600)]

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "spot-small"
SAMPLES_FOR_DISTANCE = 50_000


@dataclass(frozen=True)
class Finished:
    """One job from `recon submit` to `recon fetch`."""

    job_id: str
    folder: Path
    completed: JobCompleted

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture(scope="module")
def finished(system, tmp_path_factory) -> Finished:
    submitted = system.recon("submit", str(SAMPLE / "views"))
    assert submitted.returncode == 0, submitted.stderr
    job_id = submitted.stdout.split()[-1]

    event = system.end_of(job_id, 500)
    assert isinstance(event, JobCompleted), event

    out = tmp_path_factory.mktemp("fetched")
    fetched = system.recon("fetch", job_id, "--out", str(out))
    assert fetched.returncode == 0, fetched.stderr
    return Finished(job_id, out, event)


def test_status_is_normal_and_input_views_match(finished):
    report = QualityReport.model_validate_json(finished.read("quality.json"))
    assert finished.completed.data.status == report.status == "normal"
    assert report.input_views.views == 6
    assert report.input_views.psnr_db >= 28.0
    assert report.input_views.ssim >= 0.93


def test_events_tell_the_story_in_order(system, finished):
    events = system.events_of(finished.job_id)
    kinds = [type(event) for event in events if not isinstance(event, JobProgress)]
    assert kinds == [JobAccepted, JobStarted, JobCompleted]
    assert is_terminal(events[-1])
    assert len({event.id for event in events}) == len(events)

    seqs = [event.data.seq for event in events]
    assert seqs == sorted(set(seqs)), "seq strictly increases"
    progress = [event.data for event in events if isinstance(event, JobProgress)]
    fractions = [data.fraction for data in progress]
    assert fractions == sorted(fractions), "progress never falls"
    (started,) = [event.data for event in events if isinstance(event, JobStarted)]
    assert set(started.stages) >= {data.stage for data in progress}


def test_job_is_acknowledged(system, finished):
    assert system.wait_until_empty(system.queue)
    assert system.wait_until_empty(system.dead)


def test_record_and_manifest_are_true(finished):
    record = JobRecord.model_validate_json(finished.read("job.json"))
    assert (record.state, record.attempt, record.quality_status) == ("completed", 1, "normal")
    assert record.accepted_at <= record.started_at <= record.finished_at

    manifest = Manifest.model_validate_json(finished.read("manifest.json"))
    names = {file.path for file in manifest.files}
    assert {"model.glb", "model.obj", "model.mtl", "model.ply", "quality.json"} <= names
    assert any(name.startswith("previews/") for name in names)
    for file in manifest.files:
        body = (finished.folder / file.path).read_bytes()
        assert len(body) == file.size, file.path
        assert hashlib.sha256(body).hexdigest() == file.sha256, file.path


@pytest.mark.parametrize("name", ["model.glb", "model.obj", "model.ply"])
def test_result_loads_with_texture_or_colours(finished, name):
    mesh = trimesh.load(finished.folder / name, force="mesh")
    assert len(mesh.faces) > 500
    if name == "model.ply":
        assert len(np.unique(mesh.visual.vertex_colors, axis=0)) > 50
    else:
        material = mesh.visual.material
        image = material.baseColorTexture if name == "model.glb" else material.image
        assert image is not None
        assert min(image.size) >= 64


def test_held_out_views_match(finished):
    """Views that neither the optimisation nor the quality check has seen."""
    images, masks, cameras = _test_views()
    mesh = _read_obj(finished.folder)

    rendered = render_textured(make_backend("warp", "cpu"), mesh, cameras).over(1.0).clamp(0, 1)

    squared = (rendered - images) ** 2
    whole = -10 * torch.log10(squared.mean(dim=(1, 2, 3)))
    inside = -10 * torch.log10((squared.mean(-1) * masks).sum((1, 2)) / masks.sum((1, 2)))
    print(f"held out, PSNR: whole image {whole.mean():.2f} dB, inside the mask {inside.mean():.2f} dB")
    assert whole.mean() >= 24.0
    assert inside.mean() >= 24.0


def test_surface_is_near_the_true_one(finished):
    made = _surface_points(finished.folder / "model.ply")
    true = _surface_points(SAMPLE / "mesh.ply")

    accuracy = cKDTree(true).query(made)[0].mean()
    completeness = cKDTree(made).query(true)[0].mean()

    distance = (accuracy + completeness) / 2
    print(f"symmetric chamfer distance {distance:.4f} ({accuracy:.4f}, {completeness:.4f})")
    assert distance <= 0.02


def _surface_points(path: Path) -> np.ndarray:
    mesh = trimesh.load(path, force="mesh")
    points, _ = trimesh.sample.sample_surface(mesh, SAMPLES_FOR_DISTANCE, seed=0)
    return np.asarray(points)


def _test_views() -> tuple[torch.Tensor, torch.Tensor, Cameras]:
    """Images over white [V, H, W, 3], masks [V, H, W] and cameras of the held-out views."""
    folder = SAMPLE / "test"
    transforms = json.loads((folder / "transforms.json").read_text())
    rgba = torch.tensor(
        np.stack([np.asarray(Image.open(folder / f["file_path"])) / 255.0 for f in transforms["frames"]]),
        dtype=torch.float32,
    )
    alpha = rgba[..., 3:]
    k = torch.tensor(
        [
            [transforms["fl_x"], 0, transforms["cx"]],
            [0, transforms["fl_y"], transforms["cy"]],
            [0, 0, 1],
        ]
    )
    poses = torch.tensor([frame["transform_matrix"] for frame in transforms["frames"]])
    cameras = Cameras(poses, k.expand(len(poses), 3, 3), transforms["w"], transforms["h"])
    return rgba[..., :3] * alpha + (1 - alpha), (alpha[..., 0] > 0.5).float(), cameras


def _read_obj(folder: Path) -> TexturedMesh:
    """The fetched OBJ with its indices as they are: loaders that split vertices at seams open the surface."""
    rows: dict[str, list[list[str]]] = {"v": [], "vt": [], "f": []}
    for line in (folder / "model.obj").read_text().splitlines():
        kind, *values = line.split()
        if kind in rows:
            rows[kind].append(values)
    corners = torch.tensor([[[int(i) for i in c.split("/")[:2]] for c in face] for face in rows["f"]]) - 1
    uvs = torch.tensor([[float(x) for x in row] for row in rows["vt"]])
    uvs[:, 1] = 1 - uvs[:, 1]  # OBJ's v = 0 is the bottom row, ours the top one
    texture = np.asarray(Image.open(folder / "textures" / "base_color.png").convert("RGB")) / 255.0
    return TexturedMesh(
        torch.tensor([[float(x) for x in row[:3]] for row in rows["v"]]),
        corners[..., 0].int().contiguous(),
        uvs,
        corners[..., 1].int().contiguous(),
        torch.tensor(texture, dtype=torch.float32),
    )
