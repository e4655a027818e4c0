"""Pose encodings against cameras made without them."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from models.geometry.camera import Cameras, intrinsics_from_fov, look_at
from models.reconviagen.pose_encoding import cameras_of_encoding, rotation_of_quaternion
from schemas.errors import ErrorCode, ModelError


def cameras_around_the_origin() -> Cameras:
    generator = np.random.default_rng(3)
    poses = [look_at(generator.normal(size=3) * 3, np.zeros(3), generator.normal(size=3)) for _ in range(12)]
    intrinsics = [intrinsics_from_fov(fov, 70, 42) for fov in generator.uniform(0.3, 2, 12)]
    return Cameras(
        torch.tensor(np.stack(poses), dtype=torch.float32),
        torch.tensor(np.stack(intrinsics), dtype=torch.float32),
        70,
        42,
    )


def encoding_of_cameras(cameras: Cameras) -> torch.Tensor:
    """World to camera in OpenCV axes: translation, quaternion, angles of view (vertical first)."""
    view = cameras.world_to_camera_opencv.double().numpy()
    quaternion = Rotation.from_matrix(view[:, :3, :3]).as_quat()
    focal = cameras.intrinsics.double().numpy()[:, [1, 0], [1, 0]]
    fov = 2 * np.arctan(np.array([cameras.height, cameras.width]) / 2 / focal)
    return torch.tensor(np.concatenate([view[:, :3, 3], quaternion, fov], 1), dtype=torch.float32)


@pytest.mark.parametrize("length", [1.0, -2.5])
def test_encoding_and_decoding_gives_the_same_cameras(length):
    cameras = cameras_around_the_origin()
    encoding = encoding_of_cameras(cameras)
    encoding[:, 3:7] *= length  # only the quaternion's direction counts, and not its sign
    decoded = cameras_of_encoding(encoding, 70, 42)
    torch.testing.assert_close(decoded.camera_to_world, cameras.camera_to_world, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(decoded.intrinsics, cameras.intrinsics, atol=1e-3, rtol=1e-5)
    assert (decoded.width, decoded.height) == (70, 42)


def test_the_neutral_pose_looks_along_z_with_y_down():
    encoding = torch.tensor([[0, 0, 0, 0, 0, 0, 1, math.pi / 2, math.pi / 2]])
    cameras = cameras_of_encoding(encoding, 100, 100)
    pixel, depth = cameras.project(torch.tensor([[0.0, 0.0, 2.0], [0.4, 0.0, 2.0], [0.0, 0.4, 2.0]]))
    expected = torch.tensor([[[50.0, 50.0], [60.0, 50.0], [50.0, 60.0]]])
    torch.testing.assert_close(pixel, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(depth, torch.full((1, 3), 2.0))


def test_rotations_agree_with_scipy():
    quaternion = torch.randn(50, 4)
    expected = torch.tensor(Rotation.from_quat(quaternion.double().numpy()).as_matrix())
    torch.testing.assert_close(rotation_of_quaternion(quaternion).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, math.nan), (4, math.inf), (7, 0.0), (8, math.pi), (8, math.nan), (slice(3, 7), 0.0)],
)
def test_answers_that_are_no_camera_are_refused(place, value):
    encoding = encoding_of_cameras(cameras_around_the_origin())
    encoding[5, place] = value
    with pytest.raises(ModelError) as refusal:
        cameras_of_encoding(encoding, 70, 42)
    assert refusal.value.code == ErrorCode.CAMERA_ESTIMATION_FAILED
    assert refusal.value.details["view"] == 5
