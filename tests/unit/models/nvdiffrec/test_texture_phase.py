"""Phase 2 on surfaces whose looks and light are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trimesh

from models.geometry.atlas import unwrap
from models.geometry.camera import Cameras, intrinsics_from_fov, look_at
from models.geometry.mesh import Mesh, TexturedMesh
from models.nvdiffrec.config import TextureConfig
from models.nvdiffrec.journal import Journal
from models.nvdiffrec.light_fit import fit_light
from models.nvdiffrec.targets import Targets
from models.nvdiffrec.texture_phase import optimize_appearance
from models.raster import make_backend
from models.render import draw, filtered_environment
from models.shading.light import filter_light, mean_radiance, texel_directions

SIZE, TEXELS, VIEWS = 64, 64, 12
PAINT = torch.tensor([0.75, 0.35, 0.25])  # sRGB
ROUGHNESS = 0.5


@pytest.fixture(scope="module")
def raster():
    return make_backend("warp", "cpu")


@pytest.fixture(scope="module")
def sphere():
    """A painted sphere under two lamps."""
    shape = trimesh.creation.icosphere(3)
    mesh = Mesh(
        torch.tensor(np.asarray(shape.vertices) * 0.7, dtype=torch.float32),
        torch.tensor(np.asarray(shape.faces), dtype=torch.int32),
    )
    uvs, uv_faces = unwrap(mesh, TEXELS)
    paint = PAINT.expand(TEXELS, TEXELS, 3)
    surface = torch.tensor([ROUGHNESS, 0.0]).expand(TEXELS, TEXELS, 2)
    return TexturedMesh(mesh.vertices, mesh.faces, uvs, uv_faces, paint, surface, None, lamps())


@pytest.fixture(scope="module")
def targets(raster, sphere):
    return photographed(raster, sphere)


def lamps(height=16):
    """A dim sky with two lamps, its mean 1."""
    d = texel_directions(height, 2 * height, "cpu")

    def lamp(direction):
        return torch.exp((d @ F.normalize(torch.tensor(direction), dim=0) - 1) / 0.04)[..., None]

    radiance = 0.5 + 9 * lamp([1.0, 0.5, 1.0]) + 6 * lamp([-1.0, -0.8, 0.4])
    radiance = radiance * torch.tensor([1.03, 1.0, 0.97])
    return radiance / mean_radiance(radiance).mean()


def around(count):
    """Cameras all around, some from above, some from below."""
    turn = torch.arange(count) * (2 * np.pi * 0.381966)
    height = torch.linspace(-0.85, 0.85, count)
    level = (1 - height.square()).sqrt()
    eyes = 3 * torch.stack([level * turn.cos(), level * turn.sin(), height], -1)
    poses = [look_at(eye.numpy(), np.zeros(3), np.array([0.0, 0, 1])) for eye in eyes]
    intrinsics = torch.tensor(intrinsics_from_fov(0.6, SIZE, SIZE), dtype=torch.float32)
    return Cameras(
        torch.tensor(np.stack(poses), dtype=torch.float32), intrinsics.repeat(count, 1, 1), SIZE, SIZE
    )


@torch.no_grad()
def photographed(raster, mesh):
    matrices = around(VIEWS).clip_from_world(1, 6)
    image, depth, covered = draw(raster, mesh, matrices, (SIZE, SIZE), filtered_environment(mesh))
    return Targets(image[..., :3], image[..., 3], depth[..., 0], covered[..., 0], matrices)


def fitted(raster, targets, start, iterations, texture_rate=1e-2, **options):
    config = TextureConfig(iterations=iterations, resolution=TEXELS, texture_rate=texture_rate)
    return optimize_appearance(
        raster,
        targets,
        start,
        config,
        0,
        lambda *_: None,
        Journal(),
        **options,
    )


@pytest.fixture(scope="module")
def baked(raster, targets, sphere):
    """The same sphere with its light baked in, as phase 1 hands it over."""
    grey = replace(sphere, base_color=torch.full((TEXELS, TEXELS, 3), 0.5))
    return fitted(raster, targets, grey, 60, texture_rate=3e-2)


def at_charts(mesh, texture):
    """Texels at the corners of the charts."""
    index = (mesh.uvs * TEXELS).long().clamp(0, TEXELS - 1)
    return texture[index[:, 1], index[:, 0]]


def test_unlit_gives_one_texture_in_range(baked, sphere):
    mesh, curve = baked
    assert mesh.unlit
    assert mesh.environment is None
    assert 0 <= mesh.base_color.min() <= mesh.base_color.max() <= 1
    assert curve[-1] > curve[0] + 5
    assert (mesh.vertices - sphere.vertices).abs().max() < 0.02


@pytest.mark.slow
def test_known_material_and_light_come_back(raster, targets, baked):
    start, unlit_curve = baked
    made, curve = fitted(raster, targets, start, 150, materials="pbr")
    assert curve[-1] > unlit_curve[-1] + 5  # highlights move with the eye
    albedo, surface = at_charts(made, made.base_color), at_charts(made, made.roughness_metallic)
    light_in_paint = (at_charts(start, start.base_color) - PAINT).abs().mean()
    assert (albedo - PAINT).abs().mean() < min(0.04, light_in_paint / 2)
    assert surface[:, 0].mean().item() == pytest.approx(ROUGHNESS, abs=0.06)
    assert surface[:, 1].mean() < 0.1
    torch.testing.assert_close(mean_radiance(made.environment), torch.ones(3), atol=0.1, rtol=0)
    directions = F.normalize(torch.randn(500, 3), dim=-1)
    truth = filter_light(lamps()).irradiance(directions)
    found = filter_light(made.environment).irradiance(directions)
    assert ((found - truth).abs() / truth).mean() < 0.12


def test_materials_start_near_the_baked_looks(raster, targets, baked):
    start, unlit_curve = baked
    made, curve = fitted(raster, targets, start, 1, materials="pbr", normal_map=True)
    assert curve[0] > unlit_curve[-1] - 1.5
    assert made.base_color.shape == made.normal_map.shape == (TEXELS, TEXELS, 3)
    assert made.environment.shape == (16, 32, 3)
    assert not any(
        x.requires_grad for x in (made.base_color, made.roughness_metallic, made.normal_map, made.environment)
    )
    length = torch.linalg.vector_norm(made.normal_map, dim=-1)
    torch.testing.assert_close(length, torch.ones_like(length))
    assert made.normal_map[..., 2].min() > 0.99


def test_a_bump_in_the_pictures_goes_into_the_normal_map(raster, sphere):
    tilt = torch.tensor([0.0, 0, 1]).repeat(TEXELS, TEXELS, 1)
    bumpy = (torch.arange(TEXELS) // 8 % 2 == 0)[:, None].expand(TEXELS, TEXELS)
    tilt[bumpy] = F.normalize(torch.tensor([0.3, 0, 1]), dim=0)
    truth = replace(sphere, normal_map=tilt)
    targets = photographed(raster, truth)
    grey = replace(sphere, base_color=PAINT.expand(TEXELS, TEXELS, 3))
    flat, flat_curve = fitted(raster, targets, grey, 30, materials="pbr")
    made, curve = fitted(raster, targets, grey, 30, materials="pbr", normal_map=True)
    assert flat.normal_map is None
    assert curve[-1] > flat_curve[-1]
    slope = made.normal_map[..., 0] / made.normal_map[..., 2]
    assert (
        at_charts(made, slope)[at_charts(made, bumpy)].mean()
        > 0.02 + at_charts(made, slope)[~at_charts(made, bumpy)].mean()
    )


def test_the_first_light_follows_the_brightness_and_not_the_paint():
    normals = F.normalize(torch.randn(4000, 3), dim=-1)
    above = torch.tensor([0.0, 0, 1])
    radiance = (1 + 0.6 * (texel_directions(16, 32, "cpu") @ above))[..., None].expand(-1, -1, 3)
    shading = filter_light(radiance).irradiance(normals)[:, 0]
    spots = torch.rand(4000) < 0.2
    light = fit_light(normals, shading * torch.where(spots, 0.1, 0.8), 16)
    torch.testing.assert_close(mean_radiance(light), torch.ones(3), atol=1e-3, rtol=0)
    found = filter_light(light).irradiance(normals)[:, 0]
    assert ((found - shading).abs() / shading).mean() < 0.05


def test_the_first_light_stays_within_bounds_where_nothing_is_known():
    light = fit_light(torch.tensor([[0.0, 0, 1]]).repeat(10, 1), torch.zeros(10), 16)
    assert torch.isfinite(light).all()
    assert light.min() > 0.1
    assert light.max() < 6
