"""Filtered environment maps against sums over all directions."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.shading import light as light_module
from models.shading.light import (
    LEVELS,
    EnvironmentLight,
    filter_light,
    mean_radiance,
    solid_angles,
    studio_light,
    texel_directions,
)

HEIGHT, FINE = 16, 8
AXES = torch.cat([torch.eye(3), -torch.eye(3)])


def directions(count):
    return F.normalize(torch.randn(count, 3), dim=-1)


def smooth_map(height=HEIGHT):
    """A light with a warm bright side and a blue one."""
    d = texel_directions(height, 2 * height, "cpu")
    warm, blue = d @ F.normalize(torch.tensor([1.0, 1, 1]), dim=0), d @ torch.tensor([-1.0, 0, 0])
    return (
        0.3
        + warm.clamp(min=0)[..., None] * torch.tensor([2.0, 1.5, 1.0])
        + blue.exp()[..., None] * torch.tensor([0.1, 0.2, 0.4])
    )


def summed(radiance, kernel):
    """Mean of a map's radiance [D, 3] weighted by `kernel` of the cosines, texels cut into `FINE`^2 parts."""
    height, width, _ = radiance.shape
    points = texel_directions(height * FINE, width * FINE, "cpu").reshape(-1, 3)
    parts = radiance.repeat_interleave(FINE, 0).repeat_interleave(FINE, 1).reshape(-1, 3)
    solid = solid_angles(height * FINE, width * FINE, "cpu").reshape(-1)

    def at(direction):
        weight = kernel(points @ direction) * solid
        return (weight[:, None] * parts).sum(0), weight.sum()

    return at


def test_texels_look_where_the_convention_says():
    d = texel_directions(HEIGHT, 2 * HEIGHT, "cpu")
    middle = HEIGHT // 2
    for row, column, axis in [
        (slice(middle - 1, middle + 1), slice(HEIGHT - 1, HEIGHT + 1), (1, 0, 0)),
        (slice(middle - 1, middle + 1), slice(middle - 1, middle + 1), (0, 1, 0)),
        (slice(middle - 1, middle + 1), slice(3 * middle - 1, 3 * middle + 1), (0, -1, 0)),
        (slice(0, 1), slice(None), (0, 0, 1)),
        (slice(HEIGHT - 1, None), slice(None), (0, 0, -1)),
    ]:
        looked = F.normalize(d[row, column].mean((0, 1)), dim=0)
        torch.testing.assert_close(looked, torch.tensor(axis, dtype=torch.float32), atol=1e-6, rtol=0)


def test_solid_angles_cover_the_sphere():
    assert solid_angles(7, 9, "cpu").sum().item() == pytest.approx(4 * math.pi, rel=1e-5)
    torch.testing.assert_close(mean_radiance(torch.full((7, 9, 3), 2.5)), torch.full((3,), 2.5))


def test_an_even_light_looks_even_from_everywhere_at_every_roughness():
    light = filter_light(torch.full((HEIGHT, 2 * HEIGHT, 3), 0.7))
    d = torch.cat([directions(2000), AXES])
    expected = torch.full_like(d, 0.7)
    torch.testing.assert_close(light.irradiance(d), expected)
    torch.testing.assert_close(light.reflected(d, torch.rand(len(d), 1)), expected)


def test_irradiance_is_the_cosine_integral():
    radiance = smooth_map() * (0.5 + torch.rand(HEIGHT, 2 * HEIGHT, 1))  # rough, too
    at = summed(radiance, lambda c: c.clamp(min=0))
    d = torch.cat([directions(40), AXES])
    expected = torch.stack([at(x)[0] / math.pi for x in d])
    found = filter_light(radiance).irradiance(d)
    assert ((found - expected).abs() / expected).max() < 0.01


@pytest.mark.parametrize(("roughness", "bound"), [(3 / 7, 0.02), (0.6, 0.02), (0.8, 0.01), (1.0, 0.01)])
def test_reflections_are_ggx_weighted_means(roughness, bound):
    alpha = roughness**2

    def kernel(cosine):  # D(n.h) n.l with n = v = r, written out for its own sake
        half = ((1 + cosine) / 2).clamp(min=0).sqrt()
        return alpha**2 / (math.pi * (half**2 * (alpha**2 - 1) + 1) ** 2) * cosine.clamp(min=0)

    at = summed(smooth_map(), kernel)
    d = torch.cat([directions(40), AXES])
    expected = torch.stack([total / weight for total, weight in map(at, d)])
    found = filter_light(smooth_map()).reflected(d, torch.full((len(d), 1), roughness))
    assert ((found - expected).abs() / expected).max() < bound


def test_a_mirror_sees_the_map_itself():
    radiance = smooth_map()
    light = filter_light(radiance)
    rows = slice(2, -2)  # texels at the poles are narrower than the grid's
    d = texel_directions(HEIGHT, 2 * HEIGHT, "cpu")[rows]
    found = light.reflected(d, torch.zeros_like(d[..., :1]))
    assert (found - radiance[rows]).abs().mean() < 0.02


def test_turning_map_and_directions_together_changes_nothing():
    radiance = smooth_map()
    turned = radiance.roll(HEIGHT // 2, 1)  # columns grow as the azimuth falls: a quarter turn clockwise
    d, roughness = directions(500), torch.rand(500, 1) * 0.6 + 0.4
    clockwise = torch.stack([d[:, 1], -d[:, 0], d[:, 2]], -1)
    before, after = filter_light(radiance), filter_light(turned)
    torch.testing.assert_close(after.irradiance(clockwise), before.irradiance(d), atol=5e-3, rtol=0)
    torch.testing.assert_close(
        after.reflected(clockwise, roughness), before.reflected(d, roughness), atol=2e-2, rtol=0
    )


def test_nothing_jumps_at_the_folds_of_the_grid():
    light = filter_light(torch.rand(HEIGHT, 2 * HEIGHT, 3))
    azimuth = torch.rand(300) * 2 * math.pi
    ring = torch.stack([azimuth.cos(), azimuth.sin(), torch.zeros(300)], -1)
    edge = torch.stack([torch.zeros(300), azimuth.cos(), -azimuth.sin().abs() - 0.1], -1)
    step = torch.tensor([1e-4, 0, 0])
    up = torch.tensor([0, 0, 1e-4])
    for one, other in [(ring + up, ring - up), (edge + step, edge - step)]:
        for roughness in (0.0, 0.5):
            rough = torch.full((300, 1), roughness)
            difference = light.reflected(one, rough) - light.reflected(other, rough)
            assert difference.abs().max() < 5e-3


def test_gradients_of_the_texels_are_exact():
    start = smooth_map().requires_grad_()
    d, roughness = directions(50), torch.rand(50, 1)

    def seen(radiance):
        light = filter_light(radiance)
        return (light.irradiance(d) * d).sum() + (light.reflected(d, roughness) * d.roll(1, 1)).sum()

    value = seen(start)
    value.backward()
    change = torch.randn_like(start)
    linear = (start.grad * change).sum()
    assert (seen(start.detach() + change) - value).item() == pytest.approx(linear.item(), rel=1e-3)


def test_directions_get_gradients():
    light = filter_light(smooth_map())
    light = type(light)(light.diffuse.double(), light.specular.double())
    d = directions(20).double().requires_grad_()
    roughness = (torch.rand(20, 1).double() * 0.9 + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(light.irradiance, (d,), eps=1e-7, atol=1e-4)
    assert torch.autograd.gradcheck(light.reflected, (d, roughness), eps=1e-7, atol=1e-4)


def test_the_zero_vector_sees_nothing_and_teaches_nothing():
    radiance = torch.ones(HEIGHT, 2 * HEIGHT, 3, requires_grad=True)
    nowhere = torch.zeros(4, 3, requires_grad=True)
    light = filter_light(radiance)
    seen = light.irradiance(nowhere) + light.reflected(nowhere, torch.full((4, 1), 0.5))
    assert torch.equal(seen, torch.zeros(4, 3))
    seen.sum().backward()
    assert torch.equal(radiance.grad, torch.zeros_like(radiance))
    assert torch.equal(nowhere.grad, torch.zeros(4, 3))


def test_large_maps_are_averaged_down():
    large = smooth_map(128)
    found, expected = filter_light(large), filter_light(smooth_map(light_module.MAX_HEIGHT))
    d = directions(200)
    torch.testing.assert_close(found.irradiance(d), expected.irradiance(d), atol=5e-3, rtol=0)
    rough = torch.full((200, 1), 0.3)
    torch.testing.assert_close(found.reflected(d, rough), expected.reflected(d, rough), atol=3e-2, rtol=0)


def test_a_learned_light_is_positive_and_starts_where_it_is_told():
    start = smooth_map()
    light = EnvironmentLight(start)
    torch.testing.assert_close(light.radiance.detach(), start)
    torch.testing.assert_close(light().diffuse, filter_light(start).diffuse)
    with torch.no_grad():
        light.log_radiance -= 50
    assert (light.radiance > 0).all()
    assert light().specular.shape[2] == LEVELS


def test_the_studio_is_grey_of_mean_one_and_brighter_above():
    studio = studio_light()
    assert studio.min() > 0
    assert torch.equal(studio, studio[..., :1].expand_as(studio))
    torch.testing.assert_close(mean_radiance(studio), torch.ones(3), atol=1e-3, rtol=0)
    light = filter_light(studio_light(torch.tensor([0.0, 1, 0])))
    above, level, below = light.irradiance(torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, -1, 0]]))[:, 0]
    assert above > level + 0.2 > below + 0.4
    assert level.item() == pytest.approx(1, abs=0.01)
