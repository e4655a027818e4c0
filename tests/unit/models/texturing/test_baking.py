"""Textures baked from views and from another source of colours."""

from dataclasses import replace

import torch
import trimesh

from models.base import PosedViews
from models.geometry.mesh import Mesh, vertex_normals
from models.geometry.rigs import cameras_around
from models.painted import PaintedMesh, render_painted
from models.raster import make_backend
from models.render import render_textured
from models.texturing import exposure
from models.texturing.baking import textured
from models.texturing.exposure import exposure_gains
from models.texturing.sight import Sight
from models.texturing.window import object_window
from tests.unit.pipeline.textured_meshes import spot_mesh, spot_views

RASTER = make_backend("warp", "cpu")
SIDES = torch.tensor([[0, -1, 0.2], [0.9, 0.5, 0.1], [-0.9, 0.5, -0.1], [0.1, 0.1, 1], [0.1, -0.1, -1]])


def painted_sphere(center=(0.0, 0.0, 0.0), radius=1.0, levels=4):
    shape = trimesh.creation.icosphere(levels)
    points = torch.tensor(shape.vertices, dtype=torch.float32)
    colors = 0.5 + 0.3 * torch.stack([points[:, 0], (2 * points[:, 1]).sin(), (3 * points[:, 2]).cos()], 1)
    faces = torch.tensor(shape.faces, dtype=torch.int32)
    return PaintedMesh(radius * points + torch.tensor(center), faces, colors)


def joined(one, two):
    return PaintedMesh(
        torch.cat([one.vertices, two.vertices]),
        torch.cat([one.faces, two.faces + len(one.vertices)]),
        torch.cat([one.colors, two.colors]),
    )


def photographed(mesh, directions, *, size=128, radius=1.0, gains=None):
    directions = torch.nn.functional.normalize(directions, dim=1).numpy()
    cameras = cameras_around(directions, torch.zeros(3), radius, size=size)
    shown = render_painted(RASTER, mesh, cameras, samples=2)
    images = shown.color / shown.alpha.clamp(min=1e-3)[..., None]
    if gains is not None:
        images = images * gains[:, None, None]
    names = tuple(map(str, range(len(directions))))
    return PosedViews(names, images, shown.alpha, None, cameras)


def in_gray(mesh):
    gray = replace(mesh, colors=torch.full_like(mesh.colors, 0.5))
    return lambda cameras: render_painted(RASTER, gray, cameras)


def rendered_difference(result, mesh, directions, region=None):
    """Mean absolute difference of colours, where the object's rim does not blur them."""
    views = photographed(mesh, directions)
    found = render_textured(RASTER, result, views.cameras)
    inside = views.masks > 0.999
    if region is not None:
        inside &= region(views.cameras.unproject(found.depth))
    return float((found.color - views.images).abs().mean(-1)[inside].mean())


def test_a_sphere_seen_all_round_gets_its_paint():
    mesh = painted_sphere()
    views = photographed(mesh, SIDES)
    result = textured(RASTER, mesh.surface, views, in_gray(mesh), resolution=256)
    assert result.unlit
    assert torch.equal(result.vertices, mesh.vertices)
    others = torch.tensor([[0.5, -0.6, 0.4], [-0.3, 0.9, 0.3], [-0.7, -0.5, -0.6]])
    assert rendered_difference(result, mesh, others) < 0.004


def test_views_of_different_exposure_are_brought_together():
    mesh = painted_sphere()
    gains = torch.tensor(
        [[1.0, 1.1, 0.9], [0.8, 0.85, 0.8], [1.2, 1.1, 1.2], [0.9, 1.0, 0.9], [1.0, 0.9, 1.1]]
    )
    views = photographed(mesh, SIDES, gains=gains)
    depth = render_painted(RASTER, mesh, views.cameras).depth
    sights = [
        Sight(views.images[i], views.masks[i], depth[i], views.cameras[[i]], 0.02) for i in range(len(views))
    ]
    found = exposure_gains(sights, mesh.vertices, vertex_normals(mesh.vertices, mesh.faces))
    product = (found * gains).log()
    assert (product - product.mean(0)).abs().max() < 0.025  # whatever the whole's brightness
    corrected = textured(RASTER, mesh.surface, views, in_gray(mesh), resolution=256)
    even = textured(RASTER, mesh.surface, photographed(mesh, SIDES), in_gray(mesh), resolution=256)

    def roughness(result):  # an edge between views shows against the smooth paint
        image = render_textured(RASTER, result, views.cameras).color / views.images.clamp(min=0.05)
        ratio = torch.where((views.masks > 0.999)[..., None], image, 1.0)
        return float((ratio[:, 1:] - ratio[:, :-1]).abs().mean())

    assert roughness(corrected) < 1.2 * roughness(even)


def test_the_unseen_side_takes_the_fallback_in_the_views_tint():
    mesh = painted_sphere()
    front = torch.tensor([[0, -1.0, 0], [0.7, -0.7, 0], [-0.7, -0.7, 0], [0, -0.7, 0.7], [0, -0.7, -0.7]])
    tinted = replace(mesh, colors=mesh.colors + torch.tensor([0.12, -0.1, 0.05]))
    result = textured(
        RASTER,
        mesh.surface,
        photographed(mesh, front),
        lambda cameras: render_painted(RASTER, tinted, cameras),
        resolution=256,
    )
    assert rendered_difference(result, mesh, -front) < 0.015  # the tint itself is 0.09
    assert rendered_difference(result, mesh, SIDES) < 0.012  # with the border


def test_the_paint_goes_on_where_the_fallback_shows_nothing():
    mesh = painted_sphere()
    front = torch.tensor([[0, -1.0, 0], [0.7, -0.7, 0], [-0.7, -0.7, 0], [0, -0.7, 0.7], [0, -0.7, -0.7]])

    def empty(cameras):
        shown = render_painted(RASTER, mesh, cameras)
        return shown._replace(color=torch.zeros_like(shown.color), alpha=torch.zeros_like(shown.alpha))

    result = textured(RASTER, mesh.surface, photographed(mesh, front), empty, resolution=256)
    back = photographed(mesh, -front[:1])
    found = render_textured(RASTER, result, back.cameras)
    inside = back.masks > 0.999
    assert found.color[inside].min() > 0.15  # as dark as the sphere's darkest paint, never black
    assert rendered_difference(result, mesh, front) < 0.01


def test_what_stands_before_a_surface_is_not_printed_on_it():
    far = replace(painted_sphere(center=(0.0, 0.5, 0.0), radius=0.5), colors=torch.tensor([[0.9, 0.9, 0.9]]))
    far = replace(far, colors=far.colors.expand(len(far.vertices), 3))
    near = painted_sphere(center=(0.0, -0.6, 0.0), radius=0.2, levels=4)
    near = replace(near, colors=torch.tensor([[0.9, 0.1, 0.1]]).expand(len(near.vertices), 3))
    mesh = joined(far, near)
    ahead = torch.tensor([[0, -1.0, 0], [0.15, -1.0, 0.0]])
    result = textured(
        RASTER,
        mesh.surface,
        photographed(mesh, ahead),
        lambda cameras: render_painted(RASTER, mesh, cameras),
        resolution=256,
    )
    around = torch.tensor([[0.6, -0.8, 0], [0.8, 0.6, 0.2], [-0.6, -0.8, 0.1]])
    views = photographed(mesh, around)
    found = render_textured(RASTER, result, views.cameras)
    white = (views.images[..., 1] > 0.85) & (views.masks > 0.999)
    assert float((found.color[..., 1] - 0.9).abs()[white].max()) < 0.1  # red would be 0.8 off


def test_held_out_views_of_spot_are_met():
    shape = spot_mesh(64)
    mesh = Mesh(shape.vertices, shape.faces)
    gray = PaintedMesh(mesh.vertices, mesh.faces, torch.full_like(mesh.vertices, 0.5))
    heard = []
    result = textured(
        RASTER,
        mesh,
        spot_views().posed(),
        lambda cameras: render_painted(RASTER, gray, cameras),
        resolution=256,
        callback=lambda share, message, metrics: heard.append(share),
    )
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    test = spot_views("test")
    found = render_textured(RASTER, result, test.cameras).over(1.0)
    true = test.images * test.masks[..., None] + 1 - test.masks[..., None]
    error = (found - true).square().mean((1, 2, 3))
    assert float(-10 * error.log10().mean()) > 30


def test_work_is_told_view_by_view_and_the_fallback_drawn_a_few_at_a_time():
    mesh = painted_sphere(levels=3)
    gray, heard, drawn = in_gray(mesh), [], []

    def fallback(cameras):
        drawn.append((len(cameras), len(heard)))
        return gray(cameras)

    views = photographed(mesh, SIDES, size=64)
    tell = lambda share, message, metrics: heard.append(share)  # noqa: E731
    textured(RASTER, mesh.surface, views, fallback, resolution=64, callback=tell)
    assert heard == sorted(heard)
    sizes, before = zip(*drawn, strict=True)
    assert sum(sizes) == 48
    assert max(sizes) <= 8
    assert len(set(before)) == len(drawn)  # told after each of them
    assert len([share for share in heard if 0.2 < share <= 0.35]) >= 2 * len(SIDES)


def test_a_large_photograph_is_cut_to_the_object_and_scaled_down():
    mesh = painted_sphere()
    cameras = cameras_around(SIDES[:1].double().numpy(), torch.tensor([0.3, 0, 0.0]), 3.0, size=400)
    shown = render_painted(RASTER, mesh, cameras)
    window = object_window(shown.color[0], shown.alpha[0], cameras, 60, torch.device("cpu"))
    assert max(window.mask.shape) == 60
    assert window.mask.mean() > 0.6  # a disc fills 0.79 of its box
    again = render_painted(RASTER, mesh, window.camera, samples=2)
    torch.testing.assert_close(window.mask, again.alpha[0], atol=0.3, rtol=0)
    inside = (window.mask > 0.99) & (again.alpha[0] > 0.99)
    assert (window.image - again.color[0])[inside].abs().max() < 0.03
    assert object_window(shown.color[0], 0 * shown.alpha[0], cameras, 60, torch.device("cpu")) is None


def test_many_views_are_compared_with_some_others_each():
    mesh = painted_sphere(levels=3)
    directions = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    gains = 0.8 + 0.3 * torch.rand(40, 3, generator=torch.Generator().manual_seed(2))
    views = photographed(mesh, directions, size=48, gains=gains)
    depth = render_painted(RASTER, mesh, views.cameras).depth
    sights = [Sight(views.images[i], views.masks[i], depth[i], views.cameras[[i]], 0.02) for i in range(40)]
    weights = torch.ones(40, 9)
    assert len(exposure._pairs(weights)) <= 40 * 16 < 40 * 39 / 2
    found = exposure_gains(sights, mesh.vertices, vertex_normals(mesh.vertices, mesh.faces))
    product = (found * gains).log()
    assert (product - product.mean(0)).abs().max() < 0.05
