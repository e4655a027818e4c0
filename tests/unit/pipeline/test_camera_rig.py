import json

import numpy as np
from input_folders import SPOT

from pipeline.rig import axis6_poses, rig_intrinsics
from schemas.options import CameraOptions

TRANSFORMS = json.loads((SPOT / "transforms.json").read_text())


def test_axis6_reproduces_the_cameras_of_the_sample():
    matrices = np.array([frame["transform_matrix"] for frame in TRANSFORMS["frames"]])
    distance = np.linalg.norm(matrices[0, :3, 3])
    np.testing.assert_allclose(axis6_poses(distance), matrices, atol=1e-9)


def test_the_default_field_of_view_is_that_of_the_sample():
    intrinsics = rig_intrinsics(CameraOptions(rig="axis6"), 128, 128)
    np.testing.assert_allclose(intrinsics[0, 0], TRANSFORMS["fl_x"])
    np.testing.assert_allclose(intrinsics[0, 2], TRANSFORMS["cx"])


def test_distance_and_field_of_view_are_the_jobs():
    np.testing.assert_allclose(np.linalg.norm(axis6_poses(5)[:, :3, 3], axis=1), 5)
    intrinsics = rig_intrinsics(CameraOptions(rig="axis6", rig_fov_degrees=90), 100, 50)
    np.testing.assert_allclose(intrinsics, [[50, 0, 50], [0, 50, 25], [0, 0, 1]])
