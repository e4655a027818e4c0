import numpy as np
import pytest
import torch

from models.geometry.camera import Cameras, intrinsics_from_fov, look_at


def two_cameras() -> Cameras:
    poses = [
        look_at(np.array([0.3, -3.0, 0.5]), np.zeros(3), np.array([0, 0, 1.0])),
        look_at(np.array([2.0, 1.0, 1.5]), np.array([0.1, 0, 0]), np.array([0, 0, 1.0])),
    ]
    intrinsics = np.array([[120.0, 0, 30], [0, 110, 27], [0, 0, 1]])
    return Cameras(
        torch.tensor(np.stack(poses), dtype=torch.float32),
        torch.tensor(np.stack([intrinsics, intrinsics * 1.0]), dtype=torch.float32),
        64,
        48,
    )


def test_look_at_gives_a_rotation_that_sees_its_target_on_the_optical_axis():
    cameras = two_cameras()
    rotation = cameras.camera_to_world[:, :3, :3]
    torch.testing.assert_close(
        rotation @ rotation.transpose(1, 2), torch.eye(3).expand(2, 3, 3), atol=1e-6, rtol=0
    )
    assert (torch.linalg.det(rotation) > 0).all()
    pixel, depth = cameras.project(torch.tensor([[0.0, 0, 0], [0.1, 0, 0]]))
    torch.testing.assert_close(pixel[0, 0], torch.tensor([30.0, 27.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(pixel[1, 1], torch.tensor([30.0, 27.0]), atol=1e-4, rtol=0)
    assert (depth > 0).all()


def test_look_at_refuses_an_up_vector_along_the_view():
    with pytest.raises(ValueError, match="parallel"):
        look_at(np.array([0, 0, 2.0]), np.zeros(3), np.array([0, 0, 1.0]))


def test_project_agrees_with_a_point_by_point_opencv_pinhole():
    cameras = two_cameras()
    points = torch.randn(20, 3) * 0.4
    pixel, depth = cameras.project(points)
    flip = np.diag([1.0, -1, -1, 1])
    for view in range(2):
        world_to_camera = np.linalg.inv(cameras.camera_to_world[view].double().numpy() @ flip)
        for index, point in enumerate(points.double().numpy()):
            x, y, z = (world_to_camera @ np.append(point, 1))[:3]
            k = cameras.intrinsics[view].double().numpy()
            expected = [k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]]
            np.testing.assert_allclose(pixel[view, index], expected, atol=1e-3)
            np.testing.assert_allclose(depth[view, index], z, atol=1e-5)


def test_unproject_inverts_project():
    cameras = two_cameras()
    depth = torch.rand(2, 48, 64) + 2
    points = cameras.unproject(depth)
    for view in range(2):
        pixel, found = cameras[[view]].project(points[view].reshape(-1, 3))
        y, x = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(64) + 0.5, indexing="ij")
        torch.testing.assert_close(pixel[0], torch.stack([x, y], -1).reshape(-1, 2), atol=1e-3, rtol=0)
        torch.testing.assert_close(found[0], depth[view].reshape(-1), atol=1e-4, rtol=0)


def test_clip_space_agrees_with_pixels_rows_up():
    cameras = two_cameras()
    points = torch.randn(50, 3) * 0.4
    clip = torch.einsum(
        "vij,nj->vni", cameras.clip_from_world(0.5, 10.0), torch.cat([points, torch.ones(50, 1)], 1)
    )
    pixel, depth = cameras.project(points)
    ndc = clip[..., :3] / clip[..., 3:]
    torch.testing.assert_close((ndc[..., 0] + 1) / 2 * 64, pixel[..., 0], atol=1e-3, rtol=0)
    torch.testing.assert_close(48 - (ndc[..., 1] + 1) / 2 * 48, pixel[..., 1], atol=1e-3, rtol=0)
    torch.testing.assert_close(clip[..., 3], depth, atol=1e-5, rtol=0)
    assert (ndc[..., 2].abs() <= 1).all()


def test_resized_and_normalized_cameras_see_the_same_picture():
    cameras = two_cameras()
    points = torch.randn(10, 3) * 0.3
    pixel, depth = cameras.project(points)
    half, _ = cameras.resized(32, 24).project(points)
    torch.testing.assert_close(half, pixel / 2, atol=1e-3, rtol=0)
    center, scale = torch.tensor([0.2, -0.1, 0.4]), 1.7
    moved, near = cameras.normalized(center, scale).project((points - center) / scale)
    torch.testing.assert_close(moved, pixel, atol=1e-2, rtol=0)
    torch.testing.assert_close(near * scale, depth, atol=1e-4, rtol=0)


def test_field_of_view_spans_the_image():
    k = intrinsics_from_fov(np.deg2rad(40), 128, 128)
    assert np.isclose(2 * np.arctan(64 / k[0, 0]), np.deg2rad(40))
