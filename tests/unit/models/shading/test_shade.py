"""The split sum against the integral it stands for."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.shading.brdf import specular_albedo
from models.shading.color import exposed, linear_to_srgb, srgb_to_linear
from models.shading.light import filter_light, solid_angles, texel_directions
from models.shading.shade import shade

HEIGHT = 16


def material(base, roughness, metallic, count):
    return (
        torch.tensor(base).expand(count, 3),
        torch.full((count, 1), roughness),
        torch.full((count, 1), metallic),
    )


def views(degrees):
    """Eyes at some angles from +z."""
    angle = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angle.sin(), torch.zeros_like(angle), angle.cos()], -1)


def brdf_times_cosine(normal, view, light, roughness, f0):
    """GGX, Smith, Schlick of glTF 2.0, appendix B, for one view and many lights: [L, 3]."""
    alpha = roughness**2
    half = F.normalize(view + light, dim=-1)
    n_l, n_v, n_h = (light @ normal).clamp(min=0), view @ normal, half @ normal
    v_h = (half * view).sum(-1).clamp(0, 1)
    d = alpha**2 / (math.pi * (n_h**2 * (alpha**2 - 1) + 1) ** 2)
    visible = 1 / (n_l + (alpha**2 + (1 - alpha**2) * n_l**2).sqrt())
    visible = visible / (n_v + (alpha**2 + (1 - alpha**2) * n_v**2).sqrt())
    fresnel = f0 + (1 - f0) * (1 - v_h[:, None]) ** 5
    return fresnel * (d * visible * n_l)[:, None], fresnel, n_l


def integrated(normal, view, base, roughness, metallic, radiance):
    """Sum over all directions of light of glTF's material, its diffuse term times one minus Fresnel's."""
    height, width, _ = radiance.shape
    light = texel_directions(height, width, "cpu").reshape(-1, 3)
    solid = solid_angles(height, width, "cpu").reshape(-1, 1)
    f0 = 0.04 + metallic * (base - 0.04)
    specular, fresnel, n_l = brdf_times_cosine(normal, view, light, roughness, f0)
    diffuse = (1 - fresnel) * base * (1 - metallic) / math.pi * n_l[:, None]
    return ((specular + diffuse) * radiance.reshape(-1, 3) * solid).sum(0)


def soft_light(height):
    d = texel_directions(height, 2 * height, "cpu")
    side = (d @ F.normalize(torch.tensor([1.0, -1, 2]), dim=0))[..., None]
    return 0.4 + torch.tensor([0.9, 0.8, 0.6]) * side.clamp(min=0) + 0.2 * torch.sin(3 * d)


@pytest.mark.parametrize("roughness", [0.3, 0.6, 1.0])
def test_reflected_share_is_the_integral_of_the_lobe(roughness):
    cosine = torch.tensor([0.15, 0.4, 0.75, 1.0])
    lights = texel_directions(256, 512, "cpu").reshape(-1, 3)
    solid = solid_angles(256, 512, "cpu").reshape(-1, 1)
    up = torch.tensor([0.0, 0, 1])
    scale, bias = specular_albedo(cosine[:, None], torch.full((4, 1), roughness))
    for i, c in enumerate(cosine):
        view = torch.stack([(1 - c * c).sqrt(), torch.tensor(0.0), c])
        for f0 in (0.04, 1.0):
            lobe, _, _ = brdf_times_cosine(up, view, lights, roughness, torch.full((3,), f0))
            assert (f0 * scale[i] + bias[i]).item() == pytest.approx(
                (lobe * solid).sum(0)[0].item(), abs=0.01
            )


def test_no_surface_gives_back_more_than_it_gets():
    cosine, roughness = torch.rand(5000, 1), torch.rand(5000, 1)
    scale, bias = specular_albedo(cosine, roughness)
    assert scale.min() >= 0
    assert bias.min() >= 0
    assert (scale + bias).max() < 1.001
    smooth = specular_albedo(torch.rand(100, 1) * 0.8 + 0.2, torch.full((100, 1), 0.05))
    torch.testing.assert_close(sum(smooth), torch.ones(100, 1), atol=5e-3, rtol=0)


def test_a_white_surface_vanishes_in_a_white_furnace():
    light = filter_light(torch.ones(HEIGHT, 2 * HEIGHT, 3))
    eyes = views([0.0, 30, 60, 80, 89])
    normal = torch.tensor([0.0, 0, 1]).expand_as(eyes)
    for roughness in (0.1, 0.5, 1.0):
        paint = shade(normal, eyes, *material((1.0, 1, 1), roughness, 0.0, 5), light)
        torch.testing.assert_close(paint, torch.ones_like(paint), atol=2e-3, rtol=0)
        metal = shade(normal, eyes, *material((1.0, 1, 1), roughness, 1.0, 5), light)
        assert metal.max() < 1.002
        assert metal.min() > 0.3  # what bounces more than once between facets is lost: known of the model


@pytest.mark.parametrize(
    ("base", "metallic", "roughness", "bound"),
    [
        ((0.8, 0.5, 0.2), 0.0, 1.0, 0.04),
        ((0.8, 0.5, 0.2), 0.0, 0.5, 0.02),
        ((0.8, 0.5, 0.2), 0.0, 0.3, 0.04),
        ((0.9, 0.7, 0.3), 1.0, 0.3, 0.07),
        ((0.9, 0.7, 0.3), 1.0, 0.5, 0.07),
        ((0.9, 0.7, 0.3), 1.0, 0.8, 0.07),
        ((0.9, 0.7, 0.3), 1.0, 1.0, 0.11),
        ((0.5, 0.5, 0.5), 0.5, 0.5, 0.07),
    ],
)
def test_shading_is_near_the_integral_over_all_light(base, metallic, roughness, bound):
    """Bounds are the split sum's own: it takes the lobe for a round one, which metal at a slant shows
    most."""
    light = filter_light(soft_light(HEIGHT))
    eyes = views([0.0, 20, 45, 60])
    normal = torch.tensor([0.0, 0, 1]).expand_as(eyes)
    found = shade(normal, eyes, *material(base, roughness, metallic, 4), light)
    fine = soft_light(128)
    for i, eye in enumerate(eyes):
        expected = integrated(normal[i], eye, torch.tensor(base), roughness, metallic, fine)
        assert ((found[i] - expected).abs() / expected).max() < bound


def test_shading_turns_with_the_world():
    radiance = soft_light(HEIGHT)
    normal, eye = F.normalize(torch.randn(2, 300, 3), dim=-1)
    eye = F.normalize(eye + 1.5 * normal, dim=-1)
    paint = material((0.8, 0.5, 0.2), 0.5, 0.5, 300)

    def turned(v):
        return torch.stack([v[:, 1], -v[:, 0], v[:, 2]], -1)

    before = shade(normal, eye, *paint, filter_light(radiance))
    after = shade(turned(normal), turned(eye), *paint, filter_light(radiance.roll(HEIGHT // 2, 1)))
    torch.testing.assert_close(after, before, atol=0.01, rtol=0)


def test_every_argument_gets_its_gradient():
    light = filter_light(soft_light(HEIGHT))
    light = type(light)(light.diffuse.double(), light.specular.double())
    normal, eye = F.normalize(torch.randn(2, 8, 3).double(), dim=-1)
    eye = F.normalize(eye + 2 * normal, dim=-1)
    paint = [torch.rand(8, n).double() * 0.8 + 0.1 for n in (3, 1, 1)]
    arguments = [x.detach().requires_grad_() for x in (normal, eye, *paint)]
    assert torch.autograd.gradcheck(lambda *x: shade(*x, light), arguments, eps=1e-7, atol=1e-4)


def test_where_there_is_no_surface_nothing_shines():
    light = filter_light(torch.ones(HEIGHT, 2 * HEIGHT, 3))
    zero = torch.zeros(2, 3)
    arguments = [x.clone().requires_grad_() for x in (zero, zero, *material((0.5, 0.5, 0.5), 0.5, 0.0, 2))]
    color = shade(*arguments, light)
    assert torch.equal(color, zero)
    color.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in arguments)


def test_srgb_is_exact_and_there_and_back():
    known = torch.tensor([0.0, 0.0031308, 0.02, 0.2140411, 0.5, 1.0])
    codes = torch.tensor([0.0, 0.0404499, 0.1516, 0.5, 0.7353569, 1.0])
    torch.testing.assert_close(linear_to_srgb(known), codes, atol=2e-4, rtol=0)
    values = torch.linspace(0, 1.5, 400)
    torch.testing.assert_close(srgb_to_linear(linear_to_srgb(values)), values, atol=1e-5, rtol=0)


def test_gradients_live_in_black_and_above_white():
    linear = torch.tensor([0.0, 1e-4, 0.5, 3.0], requires_grad=True)
    shown = exposed(linear_to_srgb(linear))
    assert shown.max().item() == pytest.approx(1.0)
    shown.sum().backward()
    assert torch.isfinite(linear.grad).all()
    assert linear.grad.min() > 0.1
