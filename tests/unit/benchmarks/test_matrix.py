"""Whole records of a model that knows the truth, so that every figure is known as well."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from benchmarks.reconstruction.alignment import Similarity
from benchmarks.reconstruction.datasets import DataSet
from benchmarks.reconstruction.degrade import Degradation
from benchmarks.reconstruction.evaluate import renderer
from benchmarks.reconstruction.matrix import Bench, Plan
from models.base import Reconstruction
from models.raster import make_backend
from tests.unit.pipeline.textured_meshes import SPOT, spot_mesh, spot_views

CPU = torch.device("cpu")
ELSEWHERE = Similarity(1.1, Rotation.from_rotvec([0.1, 0.2, -0.3]).as_matrix(), np.array([0.1, 0.1, -0.2]))
NOISY = Degradation(camera_noise_degrees=0.5, camera_noise_distance=0.01)


class Oracle:
    """Returns the true shape; if told so in another world, with the true cameras as seen from there."""

    name = "oracle"

    def __init__(self, world=None):
        self.world = world
        self.calls = 0

    def load(self):
        pass

    def reconstruct(self, views, options, callback, snapshot=None):
        self.calls += 1
        mesh, cameras = spot_mesh(64), None
        if self.world is not None:
            points = mesh.vertices.double().numpy() - self.world.translation
            points = points @ self.world.rotation / self.world.scale
            mesh = replace(mesh, vertices=torch.from_numpy(points).float())
            cameras = self.world.cameras_to_estimated(spot_views().cameras).resized(64, 64)
        if snapshot is not None:
            grey = replace(mesh, base_color=torch.ones_like(mesh.base_color))
            for step, shown in (("first", grey), ("last", mesh)):
                snapshot(step, renderer(make_backend("warp", "cpu"), shown))
        return Reconstruction(mesh, "warp", extra={"cells": 3.0}, cameras=cameras)


@pytest.fixture(scope="module")
def data():
    return DataSet(SPOT)


def run(data, model, **plan):
    plan = Plan(**{"degradation": Degradation(), "repeat": 1, "targets_db": None, **plan})
    return Bench(model, CPU, plan).record(data, "views", {})


@pytest.fixture(scope="module")
def exact(data):
    return run(data, Oracle())


def test_the_true_shape_scores_as_such(exact):
    assert exact["surface"]["chamfer"] < 0.004  # two samplings of one surface
    assert exact["surface"]["normal_consistency"] > 0.99
    assert exact["test"]["mask_iou"] > 0.98
    assert exact["test"]["depth_error"] < 1e-3
    assert (exact["views"], exact["size"], exact["raster"]) == (6, "128x128", "warp")
    assert exact["extra"] == {"cells": 3.0}
    assert "pose_errors" not in exact


def test_a_result_in_the_world_of_its_own_cameras_is_aligned_before_it_is_measured(data, exact):
    made = run(data, Oracle(ELSEWHERE), degradation=NOISY)
    assert made["surface"] == pytest.approx(exact["surface"], rel=1e-3)
    for views in ("input", "test"):
        assert made[views]["psnr_db"] == pytest.approx(exact[views]["psnr_db"], abs=0.05)
        assert made[views]["mask_iou"] == pytest.approx(exact[views]["mask_iou"], abs=1e-3)
    assert made["test"]["depth_error"] < 1e-3
    assert made["similarity"]["scale"] == pytest.approx(1.1, abs=1e-4)
    assert made["pose_errors"]["refined"]["degrees"] < 1e-3
    assert made["pose_errors"]["refined"]["distance_share"] < 1e-5
    assert 0.1 < made["pose_errors"]["given"]["degrees"] < 1


def test_a_result_of_exact_cameras_is_never_aligned(data):
    made = run(data, Oracle(ELSEWHERE))
    assert made["surface"]["chamfer"] > 0.05
    assert made["test"]["mask_iou"] < 0.9
    assert made["input"]["mask_iou"] > 0.98  # its own cameras see it where it is


def test_snapshots_are_taken_in_the_last_run_alone(data, exact):
    model = Oracle()
    final = exact["test"]["psnr_db"]
    made = run(data, model, repeat=3, targets_db=(round(final - 0.01, 3), 99.0))
    assert model.calls == len(made["seconds_each"]) == 3
    assert made["seconds"] == pytest.approx(np.median(made["seconds_each"][1:]))
    assert [one["step"] for one in made["snapshots"]] == ["first", "last"]
    assert made["snapshots"][1]["psnr_db"] == pytest.approx(final, abs=1e-3)
    reached, never = made["seconds_to_psnr"].values()
    assert reached in [one["seconds"] for one in made["snapshots"]]
    assert never is None
