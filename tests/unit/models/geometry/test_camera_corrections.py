from dataclasses import replace

import pytest
import torch

from models.geometry.camera_corrections import CameraCorrections
from models.geometry.rotation import rigid_about
from models.raster import make_backend
from models.render import clip_planes, clip_positions, render_textured
from tests.unit.models.nvdiffrec.camera_noise import reprojection_error, with_noisy_cameras
from tests.unit.pipeline.textured_meshes import spot_mesh, spot_views

CENTER, SCALE = torch.tensor([0.1, -0.2, 0.3]), 1.3


@pytest.fixture(scope="module")
def views():
    return spot_views()


def set_corrections(corrections):
    with torch.no_grad():
        corrections.motion.copy_(0.02 * torch.randn(corrections.motion.shape))
        corrections.log_focal.fill_(0.03)


def test_no_correction_at_first(views):
    cameras = views.cameras.normalized(CENTER, SCALE)
    matrices = cameras.clip_from_world(0.5, 5.0)
    corrections = CameraCorrections(cameras)
    assert torch.allclose(corrections.matrices(matrices), matrices, atol=1e-6)
    assert corrections.prior().item() == 0
    same = corrections.corrected(views.cameras, CENTER, SCALE)
    assert torch.allclose(same.camera_to_world, views.cameras.camera_to_world, atol=1e-6)


def test_matrices_and_corrected_cameras_see_the_same(views):
    """Also with a principal point off the centre and axes of different focal length."""
    intrinsics = views.cameras.intrinsics.clone()
    intrinsics[:, 0, 2] += 9
    intrinsics[:, 1, 2] -= 5
    intrinsics[:, 1, 1] *= 1.1
    given = replace(views.cameras, intrinsics=intrinsics)
    cameras = given.normalized(CENTER, SCALE)
    corrections = CameraCorrections(cameras)
    set_corrections(corrections)
    points = torch.randn(40, 3) * 0.5
    clip = clip_positions(points, corrections.matrices(cameras.clip_from_world(0.5, 5.0)))
    pixel, depth = corrections.corrected(given, CENTER, SCALE).project(points * SCALE + CENTER)
    size = torch.tensor([given.width, given.height])
    seen = (clip[..., :2] / clip[..., 3:] * torch.tensor([1.0, -1.0]) + 1) / 2 * size
    assert torch.allclose(seen, pixel, atol=2e-2)
    assert torch.allclose(clip[..., 3] * SCALE, depth, atol=1e-3)


def test_a_common_motion_of_all_views_is_left_out(views):
    corrections = CameraCorrections(views.cameras)
    with torch.no_grad():
        turn, shift = torch.tensor([0.1, 0.0, -0.1]), torch.tensor([0.2, 0.3, 0.0])
        corrections.motion[:, :3] = turn
        corrections.motion[:, 3:] = shift + torch.linalg.cross(turn.expand(len(views), 3), corrections.pivot)
    assert torch.allclose(corrections.motions(), torch.eye(4).expand(len(views), 4, 4), atol=1e-6)


def test_gradients_reach_every_correction(views):
    corrections = CameraCorrections(views.cameras)
    matrices = corrections.matrices(views.cameras.clip_from_world(0.5, 5.0))
    (matrices * torch.randn(matrices.shape)).sum().backward()
    assert (corrections.motion.grad != 0).all()
    assert corrections.log_focal.grad != 0


def test_known_errors_are_found_by_rendering(views):
    """Cameras off by 0.5 degrees and 1% of their distance, focal length by 1%; the shape's place unknown."""
    raster = make_backend("warp", torch.device("cpu"))
    mesh, true = spot_mesh(128), views.cameras.resized(96, 96)
    target = render_textured(raster, mesh, true, samples=1)
    given = with_noisy_cameras(replace(views, cameras=true), focal=1.01).cameras
    corrections = CameraCorrections(given)
    matrices = given.clip_from_world(*clip_planes(mesh.vertices, given))
    points = mesh.vertices[::7]
    before = reprojection_error(true, given, points)
    steps, rate = 70, 6e-3
    place = torch.zeros(6, requires_grad=True)
    groups = [*corrections.parameter_groups(rate), {"params": [place], "lr": rate}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.02 ** (1 / steps))
    for _ in range(steps):
        motion = rigid_about(place[:3], place[3:], torch.zeros(3))
        vertices = mesh.vertices @ motion[:3, :3].T + motion[:3, 3]
        position = clip_positions(vertices, corrections.matrices(matrices)).contiguous()
        rast, rast_db = raster.rasterize(position, mesh.faces, (96, 96))
        uv, uv_da = raster.interpolate(mesh.uvs[None], rast, mesh.uv_faces, rast_db)
        color = raster.texture(
            mesh.base_color[None], uv, uv_da, filter_mode="linear-mipmap-linear", boundary_mode="clamp"
        )
        covered = (rast[..., 3:] > 0).to(color.dtype)
        image = raster.antialias(torch.cat([color * covered, covered], -1), rast, position, mesh.faces)
        found = image.flip(1)
        loss = (found[..., :3] - target.color).abs().mean() + (found[..., 3] - target.alpha).square().mean()
        loss = loss + 1e-5 * corrections.prior()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    after = reprojection_error(true, corrections.corrected(given, torch.zeros(3), 1.0), points)
    assert before > 1.0
    assert after < 0.08


def test_before_an_object_that_stays_cameras_move_together(views):
    """With the shape free that motion is left to it; before a finished object it is the cameras' error."""
    corrections = CameraCorrections(views.cameras, front=0.0, whole=True)
    with torch.no_grad():
        corrections.motion.copy_(torch.tensor([0.02, 0.0, 0.01, 0.1, 0.0, 0.0]))
    motions = corrections.motions()
    true = rigid_about(corrections.motion[0, :3], corrections.motion[0, 3:], torch.zeros(3))
    torch.testing.assert_close(motions, true.expand_as(motions))
    assert torch.equal(CameraCorrections(views.cameras).motions()[0], torch.eye(4))
