"""Lit meshes through the whole renderer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trimesh

from models.geometry.camera import Cameras, intrinsics_from_fov, look_at
from models.geometry.mesh import TexturedMesh
from models.raster import make_backend
from models.render import draw, eye_positions, filtered_environment, render_textured, shading_limit
from models.shading import deferred
from models.shading.light import studio_light, texel_directions

SIZE = 48
HEIGHT = 16


@pytest.fixture(scope="module")
def raster():
    return make_backend("warp", "cpu")


def cameras(*positions, size=SIZE):
    poses = [look_at(np.array(p, float), np.zeros(3), np.array([0.0, 0.1, 1])) for p in positions]
    return Cameras(
        torch.tensor(np.stack(poses), dtype=torch.float32),
        torch.tensor(intrinsics_from_fov(0.6, size, size)[None], dtype=torch.float32).expand(
            len(poses), 3, 3
        ),
        size,
        size,
    )


def plain(color, roughness, metallic, texels=8):
    return (
        torch.tensor(color, dtype=torch.float32).expand(texels, texels, 3).clone(),
        torch.tensor([roughness, metallic]).expand(texels, texels, 2).clone(),
    )


def sphere(color=(0.8, 0.5, 0.3), roughness=0.5, metallic=0.0, light=None):
    shape = trimesh.creation.icosphere(4)
    vertices = torch.tensor(np.asarray(shape.vertices), dtype=torch.float32)
    faces = torch.tensor(np.asarray(shape.faces), dtype=torch.int32)
    uvs = vertices[:, :2] / 4 + 0.5
    light = torch.ones(HEIGHT, 2 * HEIGHT, 3) if light is None else light
    return TexturedMesh(vertices, faces, uvs, faces, *plain(color, roughness, metallic), None, light)


def square(light, normal_map=None):
    """A quad that faces +z, u along +x, v (downwards in the texture) along -y."""
    vertices = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    uvs = torch.stack([vertices[:, 0], -vertices[:, 1]], -1) / 2 + 0.5
    return TexturedMesh(vertices, faces, uvs, faces, *plain((0.7, 0.7, 0.7), 1.0, 0.0), normal_map, light)


def light_from(direction):
    d = texel_directions(HEIGHT, 2 * HEIGHT, "cpu") @ torch.tensor(direction, dtype=torch.float32)
    return (0.1 + d.clamp(min=0)[..., None]).expand(-1, -1, 3)


def test_eyes_are_found_in_the_matrices():
    views = cameras((3, 1, 2), (-2, 0.5, -4), (0.1, -3, 0))
    found = eye_positions(views.clip_from_world(0.5, 10))
    torch.testing.assert_close(found, views.positions, atol=1e-4, rtol=0)


def test_a_white_sphere_vanishes_in_white_light(raster):
    rendering = render_textured(raster, sphere((1, 1, 1), 0.6), cameras((4, 0, 0), (0, 3, 3)))
    color = rendering.over(1.0)
    torch.testing.assert_close(color, torch.ones_like(color), atol=3e-3, rtol=0)


def test_a_mirror_shows_the_side_that_the_camera_is_on(raster):
    d = texel_directions(HEIGHT, 2 * HEIGHT, "cpu")
    light = torch.where(d[..., :1] > 0, torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.8]))
    rendering = render_textured(
        raster, sphere((1, 1, 1), 0.04, 1.0, light), cameras((4, 0, 0.1), (-4, 0, 0.1))
    )
    red, _, blue = rendering.color[:, SIZE // 2, SIZE // 2].unbind(-1)
    assert red[0] > 2 * blue[0]
    assert blue[1] > 2 * red[1]


def test_light_falls_from_where_it_comes(raster):
    rendering = render_textured(raster, sphere(light=light_from((0, 0, 1.0))), cameras((4, 0, 0)))
    column = rendering.color[0, :, SIZE // 2, 0]
    assert column[SIZE // 4] > column[SIZE // 2] > column[3 * SIZE // 4]


def test_without_an_environment_the_studio_lights(raster):
    bare, lit = sphere(light=studio_light()), sphere(light=studio_light())
    view = cameras((4, 0, 0))
    shown = render_textured(raster, replace(bare, environment=None), view).color
    assert torch.equal(shown, render_textured(raster, lit, view).color)


def test_an_unlit_mesh_is_shown_as_painted(raster):
    mesh = replace(sphere(light=light_from((0, 0, 1.0))), roughness_metallic=None)
    middle = render_textured(raster, mesh, cameras((4, 0, 0))).color[0, SIZE // 2, SIZE // 2]
    torch.testing.assert_close(middle, torch.tensor([0.8, 0.5, 0.3]))


def test_a_flat_normal_map_changes_nothing(raster):
    light = light_from((0.3, 0.5, 0.6))
    flat = torch.tensor([0.0, 0, 1]).expand(8, 8, 3)
    view = cameras((0.5, 0.5, 3))
    without = render_textured(raster, square(light), view).color
    torch.testing.assert_close(render_textured(raster, square(light, flat), view).color, without)


@pytest.mark.parametrize(("tilt", "toward"), [((0.6, 0, 0.8), (1, 0, 0)), ((0, 0.6, 0.8), (0, 1, 0))])
def test_normal_maps_tilt_along_growing_u_and_falling_v(raster, tilt, toward):
    view = cameras((0, 0.01, 3))

    def brightness(direction, normal_map):
        mesh = square(light_from(direction), normal_map)
        return render_textured(raster, mesh, view).color[0, SIZE // 2, SIZE // 2, 0]

    tilted = torch.tensor(tilt, dtype=torch.float32).expand(8, 8, 3)
    away = tuple(-x for x in toward)
    assert brightness(toward, tilted) > brightness(toward, None) + 0.1
    assert brightness(away, tilted) < brightness(away, None) - 0.05


def test_gradients_reach_shape_material_and_light(raster):
    mesh = sphere(light=light_from((0, 0.6, 0.8)))
    tilt = F.normalize(torch.tensor([0.1, 0, 1]), dim=0).expand(8, 8, 3)
    free = {
        name: value.clone().requires_grad_()
        for name, value in [
            ("vertices", mesh.vertices),
            ("base_color", mesh.base_color),
            ("roughness_metallic", mesh.roughness_metallic),
            ("normal_map", tilt),
            ("environment", mesh.environment),
        ]
    }
    rendering = render_textured(raster, replace(mesh, **free), cameras((3, 1, 2), (-3, 0, 1)))
    rendering.color.square().mean().backward()
    for name, value in free.items():
        assert torch.isfinite(value.grad).all(), name
        assert value.grad.abs().max() > 0, name
    assert (free["roughness_metallic"].grad.abs().amax((0, 1)) > 0).all()


@pytest.mark.parametrize("room", [0, 3 * deferred.ROW])
def test_shading_a_number_fixed_beforehand_gives_the_same_as_counting(raster, room):
    """CUDA does the former, so as not to wait; here it is done on the CPU."""
    flat = torch.tensor([0.0, 0.1, 1]).expand(8, 8, 3)
    mesh = replace(sphere(light=light_from((0, 0.6, 0.8))), normal_map=flat)
    matrices, size = cameras((3, 1, 2), (-3, 0, 1)).clip_from_world(1, 6), (SIZE, SIZE)

    def run(limit):
        light, base = mesh.environment.clone().requires_grad_(), mesh.base_color.clone().requires_grad_()
        lit = replace(mesh, environment=light, base_color=base)
        image, _, _ = draw(raster, lit, matrices, size, filtered_environment(lit), limit=limit)
        image.square().sum().backward()
        return image.detach(), light.grad, base.grad

    limit = shading_limit(raster, mesh, matrices, size, 2) + room
    for one, other in zip(run(None), run(limit), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_limit_holds_the_largest_views_and_little_more(raster):
    mesh, size = sphere(), (SIZE, SIZE)
    matrices = cameras((6, 0, 0.1), (3, 0, 0.1), (-3, 0, 0.1), (0, 9, 1)).clip_from_world(1, 12)
    covered = draw(raster, mesh, matrices, size, None)[2].sum((1, 2, 3)).sort().values
    limit = shading_limit(raster, mesh, matrices, size, 2)
    assert limit % deferred.ROW == 0
    assert covered[-2:].sum() <= limit <= 1.05 * covered[-2:].sum() + 2 * deferred.ROW


def test_what_is_beyond_the_limit_stays_black(raster):
    mesh = sphere()
    matrices = cameras((3, 0, 0.1)).clip_from_world(1, 6)
    image, _, covered = draw(
        raster, mesh, matrices, (SIZE, SIZE), filtered_environment(mesh), limit=deferred.ROW
    )
    assert covered.sum() > 1.2 * deferred.ROW
    lit = (image[..., :3].sum(-1) > 0).sum()
    assert 0.9 * deferred.ROW < lit < 1.2 * deferred.ROW  # antialiasing adds a rim
