import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from benchmarks.reconstruction.alignment import Similarity, align_cameras, pose_errors, rotation_angles
from models.geometry.camera import Cameras, intrinsics_from_fov

WORLD = Similarity(
    1.7, Rotation.from_euler("xyz", [20, -50, 110], degrees=True).as_matrix(), np.array([1, -2, 3])
)


def cameras(views=6, *, centres=None, dtype=torch.float64):
    random = np.random.default_rng(3)
    pose = np.tile(np.eye(4), (views, 1, 1))
    pose[:, :3, :3] = Rotation.random(views, rng=random).as_matrix()
    pose[:, :3, 3] = random.normal(size=(views, 3)) if centres is None else centres
    k = torch.from_numpy(intrinsics_from_fov(0.7, 64, 48)).to(dtype).expand(views, 3, 3)
    return Cameras(torch.from_numpy(pose).to(dtype), k, 64, 48)


def turned(rig, rotations):
    pose = rig.camera_to_world.clone()
    pose[:, :3, :3] = pose[:, :3, :3] @ torch.from_numpy(rotations)
    return Cameras(pose, rig.intrinsics, rig.width, rig.height)


def assert_same(one, two):
    assert one.scale == pytest.approx(two.scale, abs=1e-9)
    np.testing.assert_allclose(one.rotation, two.rotation, atol=1e-9)
    np.testing.assert_allclose(one.translation, two.translation, atol=1e-9)


def test_a_known_similarity_is_recovered():
    true = cameras()
    assert_same(align_cameras(WORLD.cameras_to_estimated(true), true), WORLD)


def test_centres_on_a_line_are_aligned_by_their_orientations():
    true = cameras(3, centres=np.array([[0, 0, 0], [1, 1, 0], [3, 3, 0]]))
    assert_same(align_cameras(WORLD.cameras_to_estimated(true), true), WORLD)


def test_a_known_similarity_is_recovered_by_points_too():
    true, points = cameras(), np.random.default_rng(1).normal(size=(50, 3))
    assert_same(align_cameras(WORLD.cameras_to_estimated(true), true, points), WORLD)


def test_cameras_that_turned_and_shifted_alike_are_aligned_by_what_they_see():
    # Each camera turns about the object: its centre moves far, what it sees hardly.
    random = np.random.default_rng(4)
    directions = random.normal(size=(8, 3))
    centres = 20 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    true, points = cameras(8, centres=centres), random.normal(size=(200, 3))
    pose = true.camera_to_world.numpy().copy()
    turns = Rotation.from_rotvec(np.radians(0.5) * random.normal(size=(8, 3))).as_matrix()
    pose[:, :3] = turns @ pose[:, :3]
    moved = Cameras(torch.from_numpy(pose), true.intrinsics, true.width, true.height)

    def missed(similarity):
        return np.linalg.norm(similarity.points_to_true(points) - points, axis=1).mean()

    assert missed(align_cameras(moved, true, points)) < missed(align_cameras(moved, true))


def test_cameras_and_points_move_alike():
    true, points = cameras(), np.random.default_rng(0).normal(size=(5, 3))
    moved = WORLD.cameras_to_estimated(true)
    pixels, depth = moved.project(torch.from_numpy(points))
    same, true_depth = true.project(torch.from_numpy(WORLD.points_to_true(points)))
    assert torch.allclose(pixels, same, atol=1e-6)
    assert torch.allclose(depth * WORLD.scale, true_depth, atol=1e-9)
    assert torch.allclose(WORLD.cameras_to_true(moved).camera_to_world, true.camera_to_world, atol=1e-9)


def test_a_similarity_alone_is_no_error_of_the_cameras():
    true = cameras(dtype=torch.float32)
    errors = pose_errors(WORLD.cameras_to_estimated(true), true, np.zeros(3))
    assert errors.degrees < 1e-4
    assert errors.distance_share < 1e-5


def test_errors_of_orientation_are_measured():
    true = cameras(100)
    angles = np.radians(2) * np.where(np.arange(100) % 2, 1, -1)
    turns = Rotation.from_rotvec(angles[:, None] * [0, 0, 1]).as_matrix()
    errors = pose_errors(turned(true, turns), true, np.zeros(3))
    assert errors.degrees == pytest.approx(2, rel=0.03)  # a common part of them is a turn of the world
    assert errors.distance_share < 0.03


def test_errors_of_position_are_a_share_of_the_distance_to_the_object():
    directions = np.random.default_rng(1).normal(size=(200, 3))
    centres = 5 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    true = cameras(200, centres=centres + np.array([10.0, 0, 0]))
    step = 0.01 * 5 * Rotation.random(200, rng=np.random.default_rng(2)).as_matrix()[:, 0]
    pose = true.camera_to_world.clone()
    pose[:, :3, 3] += torch.from_numpy(step)
    moved = Cameras(pose, true.intrinsics, true.width, true.height)
    assert pose_errors(moved, true, np.array([10.0, 0, 0])).distance_share == pytest.approx(0.01, rel=0.05)


def test_angles_are_precise_when_small_and_when_half_a_turn():
    angles = np.array([0, 1e-7, 0.5, 90, 180])
    rotations = Rotation.from_rotvec(np.radians(angles)[:, None] * [0.6, 0, 0.8]).as_matrix()
    np.testing.assert_allclose(rotation_angles(rotations, np.tile(np.eye(3), (5, 1, 1))), angles, atol=1e-9)


def test_what_fixes_no_similarity_is_refused():
    with pytest.raises(ValueError, match="common centre"):
        align_cameras(cameras(3, centres=np.zeros((3, 3))), cameras(3))
    with pytest.raises(ValueError, match="3 estimated cameras cannot be aligned with 4"):
        align_cameras(cameras(3), cameras(4))
