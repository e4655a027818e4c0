from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from benchmarks.reconstruction import evaluate
from benchmarks.reconstruction.alignment import Similarity
from benchmarks.reconstruction.evaluate import mean_psnr_db, renderer, score_images, score_surface, through
from benchmarks.reconstruction.surface_metrics import sample_surface
from models.base import Views
from models.raster import make_backend
from models.render import render_textured
from tests.unit.pipeline.textured_meshes import spherical_mesh, spot_mesh, spot_views

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def raster():
    return make_backend("warp", "cpu")


@pytest.fixture(scope="module")
def mesh():
    return spot_mesh(64)


@pytest.fixture(scope="module")
def views(raster, mesh):
    """What the mesh looks like: straight colours, with the depth of the pixels' centres."""
    cameras = spot_views().cameras.resized(64, 64)
    seen = render_textured(raster, mesh, cameras)
    straight = seen.color / seen.alpha[..., None].clamp(min=1e-6)
    depth = render_textured(raster, mesh, cameras, samples=1).depth
    return Views(tuple("abcdef"), straight, seen.alpha, depth, cameras)


def test_a_mesh_scores_perfectly_against_its_own_renderings(raster, mesh, views):
    render, depth = renderer(raster, mesh), renderer(raster, mesh, samples=1)
    scores = score_images(render, views, CPU, depth=depth)
    assert scores["psnr_db"] > 110
    assert scores["psnr_mask_db"] > 110
    assert scores["ssim"] == pytest.approx(1, abs=1e-9)
    assert scores["mask_iou"] == 1
    assert scores["depth_error"] == 0
    assert "lpips" not in scores


def test_scores_do_not_depend_on_how_many_views_are_scored_together(raster, mesh, views, monkeypatch):
    brighter = replace(
        views, images=(views.images + torch.linspace(0, 0.3, 6)[:, None, None, None]).clamp(0, 1)
    )
    render, depth = renderer(raster, mesh), renderer(raster, mesh, samples=1)
    together = score_images(render, brighter, CPU, depth=depth)
    monkeypatch.setattr(evaluate, "PIXELS_AT_ONCE", 4 * 64 * 64)
    assert score_images(render, brighter, CPU, depth=depth) == pytest.approx(together, rel=1e-6)
    assert mean_psnr_db(render, brighter, CPU) == pytest.approx(together["psnr_db"], rel=1e-6)


def test_images_too_large_for_the_rasterizer_are_rendered_in_tiles(raster, mesh, views, monkeypatch):
    whole = renderer(raster, mesh)(views.cameras[:2])
    monkeypatch.setattr(evaluate, "MAX_SIDE", 64)
    tiled = renderer(raster, mesh)(views.cameras[:2])
    assert torch.equal(tiled.alpha, whole.alpha)
    assert torch.equal(tiled.depth, whole.depth)


def test_views_without_depth_or_a_missing_depth_give_no_depth_error(raster, mesh, views):
    render = renderer(raster, mesh)
    assert "depth_error" not in score_images(render, replace(views, depths=None), CPU, depth=render)
    empty = replace(views, depths=torch.zeros_like(views.depths))
    assert score_images(render, empty, CPU, depth=render)["depth_error"] is None


def test_a_mesh_in_another_world_scores_as_in_the_true_one(raster, mesh, views):
    world = Similarity(1.6, Rotation.from_rotvec([0.2, -0.4, 1]).as_matrix(), np.array([0.3, -2, 1]))
    points = (mesh.vertices.double().numpy() - world.translation) @ world.rotation / world.scale
    elsewhere = replace(mesh, vertices=torch.from_numpy(points).float())
    render = through(renderer(raster, elsewhere), world)
    scores = score_images(render, views, CPU, depth=through(renderer(raster, elsewhere, samples=1), world))
    assert scores["psnr_db"] > 45  # edges of triangles fall on the other side of some samples
    assert scores["depth_error"] < 1e-3
    truth = sample_surface(mesh.vertices.double().numpy(), mesh.faces.numpy(), seed=2)
    aligned, exact = score_surface(elsewhere, truth, world), score_surface(mesh, truth)
    assert aligned == pytest.approx(exact, rel=1e-3)


def test_the_surface_of_a_smaller_sphere():
    mesh = spherical_mesh(subdivisions=4)
    truth = sample_surface(1.05 * mesh.vertices.double().numpy(), mesh.faces.numpy(), seed=2)
    assert score_surface(mesh, truth)["chamfer"] == pytest.approx(0.05, rel=0.02)
