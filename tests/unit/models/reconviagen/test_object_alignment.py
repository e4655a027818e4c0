"""Generated objects and the cameras of their views, on the example's true shape."""

import math
import re
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
from models.reconviagen import alignment, comparison
from models.reconviagen.alignment import (
    Alignment,
    _Progress,
    _transferred,
    align_to_cameras,
    estimate_cameras,
    known_cameras,
)
from models.reconviagen.comparison import Drawing, observed
from models.reconviagen.crops import crop_views
from models.reconviagen.placement import place, sample, spread_rotations, turns_about_z
from models.render import clip_matrices
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


def network(model, crops, true, said=lambda cameras: cameras):
    """A network that knows the crops' cameras, and says of them what `said` makes of the truth."""
    cropped = crops.to_crops(true)
    middle = cropped.intrinsics[:, :2, 2]
    aside = (259 - middle) / cropped.intrinsics[:, :1, 0] * torch.tensor([1.0, -1.0])
    towards = F.normalize(F.pad(aside, (0, 1), value=-1.0), dim=1)
    ahead = torch.tensor([[0.0, 0, -1]]).expand(len(crops), 3)
    pose, intrinsics = cropped.camera_to_world.clone(), cropped.intrinsics.clone()
    pose[:, :3, :3] = pose[:, :3, :3] @ rotation_between(ahead, towards)
    intrinsics[:, :2, 2] = 259
    rig = known_cameras(model, 518)

    def predict(images):
        assert images.shape[1:] == (3, 518, 518)
        assert float(images.max()) <= 1.0
        shown = images[len(rig) :]
        view = [int((crops.images == image).flatten(1).all(1).nonzero()[0]) for image in shown]
        poses = torch.cat([rig.camera_to_world, pose[view]])
        return said(Cameras(poses, torch.cat([rig.intrinsics, intrinsics[view]]), 518, 518))

    return predict


def test_cameras_are_found_from_a_network_that_errs(views, model):
    crops = crop_views(views)
    true = TRUE.inverse().cameras(views.cameras)
    shares, steps = [], {}

    def callback(share, message, metrics):
        shares.append(share)
        name, step, of, phase = re.fullmatch(r"(.*): step (.*) of (.*), (.*)", message).groups()
        assert name == "cameras"
        assert int(step) == steps.get(phase, (0, 0))[0] + 1
        steps[phase] = int(step), int(of)

    predict = network(model, crops, true, lambda cameras: wrongly(cameras, torch.Generator().manual_seed(1)))
    found = estimate_cameras(RASTER, model, crops, predict, callback=callback)
    error = (found.cameras.project(model.vertices)[0] - true.project(model.vertices)[0]).norm(dim=-1)
    assert float(error.square().mean().sqrt()) < 1.0  # pixels of 128; 5 degrees are six of them
    assert found.iou.min() > 0.93
    assert torch.equal(found.similarity.rotation, torch.eye(3))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert all(step == of for step, of in steps.values())
    assert steps["lost views"][1] > 40  # one was quite wrong


def test_a_network_is_shown_few_of_many_views_at_a_time(views, model):
    order = [i % 4 for i in range(37)]
    crops = crop_views(views)[order]
    true = TRUE.inverse().cameras(views.cameras[order])
    shown, told = [], []

    def said(cameras):
        shown.append(len(cameras) - len(known_cameras(model, 518)))
        own = Similarity(torch.tensor(0.5 + len(shown)), rotation_matrix(torch.randn(3)), torch.randn(3))
        return own.cameras(cameras)

    progress = _Progress("cameras", lambda share, message, metrics: told.append(message))
    found = _transferred(RASTER, model, crops, network(model, crops, true, said), progress)
    assert sorted(shown) == [12, 12, 13]
    assert told[-1] == "cameras: step 3 of 3, networks"
    pixel, truth = found.project(model.vertices)[0], true.project(model.vertices)[0]
    assert float((pixel - truth).norm(dim=-1).max()) < 3  # of 128; another view's are off by dozens


def test_many_views_are_drawn_some_at_a_time(views, model, monkeypatch):
    crops = crop_views(views)
    cameras = TRUE.inverse().cameras(crops.to_crops(views.cameras)).resized(64, 64)
    drawing = Drawing(RASTER, model, observed(crops, views.depths, 64))
    clip = clip_matrices(cameras, model.vertices)
    matrices = torch.stack([clip, clip.flip(0), clip.roll(1, 0)])
    at_once = drawing.mismatch(matrices), drawing.slope(matrices)
    drawn = []

    def draw(some):
        drawn.append(len(some))
        return Drawing.draw(drawing, some)

    monkeypatch.setattr(drawing, "draw", draw)
    monkeypatch.setattr(comparison, "_TOGETHER", 5 * (64 * 64 + len(model.vertices)))
    torch.testing.assert_close(drawing.mismatch(matrices), at_once[0])
    torch.testing.assert_close(drawing.slope(matrices), at_once[1])
    assert drawn == [5, 5, 2] * 2
    assert at_once[0][0].max() < 0.5 * at_once[0][1:].min()


def test_an_object_is_put_before_some_of_many_views(views, model, monkeypatch):
    held = []

    def place_few(samples, cameras, seen, rotations, tick):
        held.append(len(cameras))
        raise JobCancelled("enough is known")

    order = [i % 4 for i in range(60)]
    monkeypatch.setattr(alignment, "place", place_few)
    with pytest.raises(JobCancelled):
        align_to_cameras(RASTER, model, crop_views(views)[order], views.cameras[order])
    assert held == [48]


def cut_off(views, first, last):
    """Columns of the views; the objects' crops reach beyond these images."""
    intrinsics = views.cameras.intrinsics.clone()
    intrinsics[:, 0, 2] -= first
    cameras = Cameras(views.cameras.camera_to_world, intrinsics, last - first, views.cameras.height)
    parts = {name: getattr(views, name)[:, :, first:last] for name in ("images", "masks", "depths")}
    return replace(views, cameras=cameras, **parts)


def test_what_the_images_cut_off_does_not_count(views, model):
    cut = cut_off(views, 40, 84)
    crops = crop_views(cut)
    side = 128
    cameras = TRUE.inverse().cameras(crops.to_crops(cut.cameras)).resized(side, side)
    clip = clip_matrices(cameras, model.vertices)
    seen = observed(crops, None, side)
    assert (seen.inside.float().mean((1, 2)) < 0.97).any()
    known = Drawing(RASTER, model, seen)
    naive = Drawing(RASTER, model, replace(seen, inside=torch.ones_like(seen.inside)))
    assert known.overlap(clip).min() > 0.93 > 0.9 > naive.overlap(clip).min()
    assert known.mismatch(clip[None]).max() < 0.5 * naive.mismatch(clip[None]).max()
    assert known.rim_distance(clip).max() < 1.0 < naive.rim_distance(clip).max()


def test_the_search_knows_the_place_of_an_object_that_is_cut_off(views, model):
    cut = cut_off(views, 40, 84)
    crops = crop_views(cut)
    cameras, seen = crops.to_crops(cut.cameras).resized(32, 32), observed(crops, None, 32)
    samples, rotations = sample(model), TRUE.rotation[None]
    off = []
    for inside in (seen.inside, torch.ones_like(seen.inside)):
        found = place(samples, cameras, replace(seen, inside=inside), rotations, lambda: None)
        world = found.similarities(samples)[0].points(model.vertices)
        off.append(float((world - TRUE.points(model.vertices)).norm(dim=1).max()))
    assert off[0] < 0.17  # of a size of two; the start of a descent
    assert off[0] < 0.6 * off[1]


def test_the_search_knows_pixels_that_are_not_square(views, model):
    squeezed = replace(
        views,
        images=F.avg_pool2d(views.images.permute(0, 3, 1, 2), (1, 2)).permute(0, 2, 3, 1),
        masks=F.avg_pool2d(views.masks, (1, 2)),
        depths=None,
        cameras=views.cameras.resized(views.cameras.width // 2, views.cameras.height),
    )
    crops = crop_views(squeezed)
    cameras = crops.to_crops(squeezed.cameras).resized(32, 32)
    samples = sample(model)
    found = place(samples, cameras, observed(crops, None, 32), TRUE.rotation[None], lambda: None)
    world = found.similarities(samples)[0].points(model.vertices)
    assert float((world - TRUE.points(model.vertices)).norm(dim=1).max()) < 0.1


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
    found = place(samples, cameras, observed(crops, views.depths, 32), rotations, lambda: None)
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
