"""Generated objects and the cameras of their views, on the example's true shape."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models.geometry.camera import Cameras
from models.geometry.decimation import decimate
from models.geometry.mesh import Mesh
from models.geometry.rotation import rotation_between, rotation_matrix
from models.geometry.similarity import Similarity
from models.painted import PaintedMesh
from models.raster import make_backend
from models.reconviagen.alignment import Alignment, align_to_cameras, estimate_cameras, known_cameras
from models.reconviagen.comparison import observed
from models.reconviagen.crops import crop_views
from models.reconviagen.placement import place, sample, spread_rotations, turns_about_z
from schemas.errors import JobCancelled
from tests.unit.pipeline.textured_meshes import spot_mesh, spot_views

RASTER = make_backend("warp", "cpu")
TRUE = Similarity(
    torch.tensor(1.7), rotation_matrix(torch.tensor([0.0, 0.0, 2.1])), torch.tensor([0.03, -0.05, 0.02])
)
"""From the model space of these tests to the world."""


@pytest.fixture(scope="module")
def views():
    return spot_views().subset([0, 1, 2, 3]).posed()


@pytest.fixture(scope="module")
def model(views):
    """The true shape in model space, each vertex in the mean colour of the views that face it."""
    shape = spot_mesh(16)
    mesh = decimate(Mesh(shape.vertices, shape.faces), 1500)
    pixel, _ = views.cameras.project(mesh.vertices)
    place = (pixel / views.cameras.width * 2 - 1)[:, None]
    seen = F.grid_sample(views.images.permute(0, 3, 1, 2), place, align_corners=False)[:, :, 0].mT
    facing = (F.normalize(views.cameras.positions, dim=1) @ F.normalize(mesh.vertices, dim=1).T).clamp(min=0)
    colors = (seen * facing[..., None] ** 4).sum(0) / (facing**4).sum(0)[:, None].clamp(min=1e-6)
    return PaintedMesh(TRUE.inverse().points(mesh.vertices), mesh.faces, colors.clamp(0, 1))


def turn_degrees(found, true):
    return 2 * math.degrees(math.asin(min(1.0, float((found - true).norm()) / 8**0.5)))


def test_an_object_is_put_where_given_cameras_saw_it(views, model):
    heard = []
    found = align_to_cameras(
        RASTER,
        model,
        crop_views(views),
        views.cameras,
        depths=views.depths,
        callback=lambda share, message, metrics: heard.append(share),
    )
    assert turn_degrees(found.similarity.rotation, TRUE.rotation) < 0.5
    assert float(found.similarity.scale) == pytest.approx(1.7, rel=0.01)
    world = found.similarity.points(model.vertices)
    assert (world - TRUE.points(model.vertices)).norm(dim=1).max() < 0.02
    assert found.iou.min() > 0.95
    assert found.figures()["alignment/silhouette_px"] < 0.5
    pixel, _ = found.cameras.project(model.vertices)
    torch.testing.assert_close(pixel, views.cameras.project(world)[0], atol=0.02, rtol=0)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def test_a_foolish_guess_does_no_harm(views, model):
    foolish = TRUE.inverse().cameras(views.cameras).camera_to_world.clone()
    foolish[:, :3, 3] *= 1e4 * torch.rand(4, 1)
    cameras = replace(views.cameras, camera_to_world=foolish)
    nothing = torch.zeros(4)
    guess = Alignment(Similarity.identity(), cameras, nothing, nothing)
    found = align_to_cameras(RASTER, model, crop_views(views), views.cameras, guess=guess)
    assert turn_degrees(found.similarity.rotation, TRUE.rotation) < 0.5
    assert found.iou.min() > 0.95


def wrongly(cameras, generator):
    """What a network might say: in a world of its own, every camera a little wrong, one quite wrong."""
    pose = cameras.camera_to_world.clone()
    axis, move = F.normalize(torch.randn(2, len(pose), 3, generator=generator), dim=-1)
    pose[:, :3, :3] = rotation_matrix(axis * math.radians(5)) @ pose[:, :3, :3]
    pose[:, :3, 3] += 0.05 * move * pose[:, :3, 3].norm(dim=1, keepdim=True)
    pose[-2] = pose[-3]
    own = Similarity(torch.tensor(0.6), rotation_matrix(torch.tensor([1.0, -0.5, 2.0])), torch.randn(3))
    return own.cameras(replace(cameras, camera_to_world=pose))


def test_cameras_are_found_from_a_network_that_errs(views, model):
    crops = crop_views(views)
    true = TRUE.inverse().cameras(views.cameras)
    heard = []

    def predict(images):
        renders = len(images) - len(views)
        assert images.shape[1:] == (3, 518, 518)
        assert float(images.max()) <= 1.0
        rig = known_cameras(model, 518)
        assert len(rig) == renders
        cropped = crops.to_crops(true)
        middle = cropped.intrinsics[:, :2, 2]
        aside = (259 - middle) / cropped.intrinsics[:, :1, 0] * torch.tensor([1.0, -1.0])
        towards = F.normalize(F.pad(aside, (0, 1), value=-1.0), dim=1)
        pose = cropped.camera_to_world.clone()
        pose[:, :3, :3] = pose[:, :3, :3] @ rotation_between(
            torch.tensor([[0.0, 0, -1]]).expand(4, 3), towards
        )
        intrinsics = cropped.intrinsics.clone()
        intrinsics[:, :2, 2] = 259
        poses = torch.cat([rig.camera_to_world, pose])
        both = Cameras(poses, torch.cat([rig.intrinsics, intrinsics]), 518, 518)
        return wrongly(both, torch.Generator().manual_seed(1))

    found = estimate_cameras(
        RASTER, model, crops, predict, callback=lambda share, message, metrics: heard.append(share)
    )
    error = (found.cameras.project(model.vertices)[0] - true.project(model.vertices)[0]).norm(dim=-1)
    assert float(error.square().mean().sqrt()) < 1.0  # pixels of 128; 5 degrees are six of them
    assert found.iou.min() > 0.93
    assert torch.equal(found.similarity.rotation, torch.eye(3))
    assert heard[-1] == 1.0


def test_a_cancelled_job_ends_the_alignment(views, model):
    def cancel(share, message, metrics):
        raise JobCancelled("by the user")

    with pytest.raises(JobCancelled):
        align_to_cameras(RASTER, model, crop_views(views), views.cameras, callback=cancel)


def test_the_search_alone_knows_the_rotation(views, model):
    crops = crop_views(views)
    cameras = crops.to_crops(views.cameras).resized(32, 32)
    samples = sample(model)
    rotations = turns_about_z(24)
    found = place(samples, cameras, observed(crops, views.depths, 32), rotations)
    best = int(found.score.argmax())
    assert turn_degrees(rotations[best], TRUE.rotation) < 8  # half of the spacing
    similarity = found.similarities(samples)[best]
    assert float(similarity.scale) == pytest.approx(1.7, rel=0.1)


def test_spread_rotations_leave_no_gap():
    rotations = spread_rotations(300)
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand(300, 3, 3), atol=1e-5, rtol=0)
    any_ = rotation_matrix(torch.randn(500, 3) * 2)
    trace = torch.einsum("aij,bij->ab", any_, rotations).amax(1)
    assert math.degrees(math.acos((float(trace.min()) - 1) / 2)) < 45
