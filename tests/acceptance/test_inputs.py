"""Every kind of input goes through `recon run`: photographs without cameras, lenses, mixed sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from photographs import Lens, around, photograph, speckled_spot, take_through, write_view
from scipy.spatial import cKDTree

from schemas.quality import QualityReport
from schemas.results import JobRecord

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
TRUTH = ROOT / "examples" / "spot-small" / "mesh.ply"

QUICK = {
    "preset": "preview",
    "geometry_iterations": 30,
    "grid_resolution": 32,
    "texture_iterations": 10,
    "outputs.previews": False,
    # What is looked at here is the shape; a few steps give no colours worth judging.
    "quality.psnr_warning_db": 0,
    "quality.ssim_warning": -1,
}


def run(folder: Path, out: Path, **options: Any) -> tuple[int, JobRecord, str]:
    """`recon run`: its exit code, the job's record, and what it told people."""
    pairs = [f"--option={key}={json.dumps(value)}" for key, value in (QUICK | options).items()]
    done = subprocess.run(
        [sys.executable, "-m", "consumer", "run", str(folder), "--out", str(out), "--json", *pairs],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "RECON_DEVICE": "cpu", "RECON_WORK_ROOT": str(out / "work")},
        cwd=out.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, JobRecord.model_validate_json(done.stdout.splitlines()[-1]), done.stderr


def result(out: Path, record: JobRecord) -> tuple[QualityReport, trimesh.Trimesh]:
    folder = out / str(record.job_id)
    report = QualityReport.model_validate_json((folder / "quality.json").read_text())
    return report, trimesh.load_mesh(folder / "model.ply", process=False)


def distance_after_alignment(mesh: trimesh.Trimesh) -> tuple[float, float]:
    """Mean distance of a mesh's surface from the true one, and the scale that was needed to lay it over."""
    truth = trimesh.load_mesh(TRUTH, process=False)
    wanted, found = (np.asarray(trimesh.sample.sample_surface(m, 6000, seed=0)[0]) for m in (truth, mesh))
    turns = [
        trimesh.transformations.rotation_matrix(angle, [0, 0, 1]) for angle in np.radians(range(0, 360, 45))
    ]
    spread = np.linalg.norm(wanted - wanted.mean(0), axis=1).mean()
    scale = spread / np.linalg.norm(found - found.mean(0), axis=1).mean()
    start = trimesh.transformations.scale_matrix(scale)
    start[:3, 3] = wanted.mean(0) - scale * found.mean(0)
    best = (np.inf, 1.0)
    for turn in turns:
        about = np.eye(4)
        about[:3, 3] = wanted.mean(0)
        first = about @ turn @ np.linalg.inv(about) @ start
        matrix, moved, _ = trimesh.registration.icp(
            found, wanted, initial=first, max_iterations=40, scale=True
        )
        distances, _ = cKDTree(wanted).query(moved)
        best = min(best, (float(distances.mean()), float(np.cbrt(np.linalg.det(matrix[:3, :3])))))
    return best


def test_a_folder_of_photographs_without_cameras_becomes_a_mesh(tmp_path):
    photograph(tmp_path / "input", speckled_spot(), around(16, rings=(20.0,)), size=(320, 320))
    code, record, text = run(tmp_path / "input", tmp_path / "out")
    assert code == 0, text
    report, mesh = result(tmp_path / "out", record)
    assert report.camera_source == "sfm:pycolmap"
    assert report.mask_source == "alpha"
    assert report.input_views.views == 16
    assert report.input_views.mask_iou > 0.95
    distance, _ = distance_after_alignment(mesh)
    assert distance < 0.03  # the object is about 2 across


def test_lenses_and_sizes_of_every_kind_become_a_mesh_where_the_cameras_are(tmp_path):
    bent = {"k1": -0.2, "k2": 0.05, "p1": 0.003, "p2": -0.002}
    lenses = [
        Lens(192, 192, (255.0, 255.0), (96.0, 96.0), bent),
        Lens(160, 220, (250.0, 250.0), (80.0, 110.0)),
        Lens(180, 180, (220.0, 222.0), (92.0, 88.0), {"k1": 0.02}, fisheye=True),
        Lens(128, 128, (170.0, 170.0), (64.0, 64.0)),
    ]
    mesh, frames = speckled_spot(256), []
    for index, pose in enumerate(around(8, rings=(15.0,))):
        lens = lenses[index % len(lenses)]
        shots = take_through(mesh, pose, lens)
        files = write_view(
            tmp_path / "input",
            index,
            shots,
            depth_scale=0.0001,
            depth_size=(lens.width // 2, lens.height // 2),
        )
        frames.append(lens.frame() | files | {"transform_matrix": pose.tolist()})
    meta = {"depth_unit_scale_factor": 0.0001, "frames": frames}
    (tmp_path / "input" / "transforms.json").write_text(json.dumps(meta))
    code, record, text = run(tmp_path / "input", tmp_path / "out")
    assert code == 0, text
    report, made = result(tmp_path / "out", record)
    assert (report.camera_source, report.input_views.views) == ("transforms.json", 8)
    assert report.input_views.mask_iou > 0.95
    truth = trimesh.load_mesh(TRUTH, process=False)
    wanted, found = (trimesh.sample.sample_surface(m, 6000, seed=0)[0] for m in (truth, made))
    assert cKDTree(wanted).query(found)[0].mean() < 0.03  # in the input's own frame, nothing aligned
