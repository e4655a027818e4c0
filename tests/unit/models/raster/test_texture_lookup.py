import math

import pytest
import torch
import torch.nn.functional as F


def naive_lookup(tex, uv, wrap):
    """Bilinear lookup [P, C] of coordinates [P, 2], one at a time."""
    height, width, _ = tex.shape
    rows = []
    for u, v in uv.tolist():
        x, y = u * width - 0.5, v * height - 0.5
        total = 0
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                weight = (1 - abs(x - column)) * (1 - abs(y - row))
                if wrap:
                    texel = tex[row % height, column % width]
                else:
                    texel = tex[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
                total = total + weight * texel
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_linear_lookup_agrees_with_a_loop(backend, mode):
    tex, uv = torch.rand(1, 5, 7, 3), torch.rand(1, 6, 6, 2) * 4 - 1.5
    out = backend.texture(tex, uv, boundary_mode=mode)
    expected = naive_lookup(tex[0], uv.reshape(-1, 2), mode == "wrap").reshape(out.shape)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_agree_with_grid_sample(backend, shared):
    tex = torch.rand(1 if shared else 3, 6, 9, 4, requires_grad=True)
    uv = (torch.rand(3, 8, 8, 2) * 0.7 + 0.15).requires_grad_()
    out = backend.texture(tex, uv, boundary_mode="clamp")
    image = tex.expand(3, -1, -1, -1).permute(0, 3, 1, 2)
    expected = F.grid_sample(image, uv * 2 - 1, align_corners=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    weight = torch.randn_like(out)
    actual = torch.autograd.grad(out, (tex, uv), weight)
    wanted = torch.autograd.grad(expected, (tex, uv), weight)
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_texture_gradient_keeps_the_sum_of_the_incoming_one(backend):
    for mode in ("nearest", "linear", "linear-mipmap-linear"):
        tex = torch.rand(1, 8, 16, 2, requires_grad=True)
        weight = torch.rand(2, 12, 12, 2)
        out = backend.texture(tex, torch.rand(2, 12, 12, 2), torch.rand(2, 12, 12, 4) / 4, filter_mode=mode)
        (grad,) = torch.autograd.grad(out, tex, weight)
        torch.testing.assert_close(grad.sum((0, 1, 2)), weight.sum((0, 1, 2)), rtol=1e-5, atol=1e-4)


def test_clamped_coordinates_have_no_gradient(backend):
    uv = torch.tensor([[[[-0.3, 0.5], [0.5, 1.2]]]], requires_grad=True)
    (grad,) = torch.autograd.grad(
        backend.texture(torch.rand(1, 4, 4, 1), uv, boundary_mode="clamp").sum(), uv
    )
    assert grad[0, 0, 0, 0] == 0
    assert grad[0, 0, 0, 1] != 0
    assert grad[0, 0, 1, 1] == 0


def test_first_texel_starts_at_the_origin(backend):
    tex = torch.arange(12.0).reshape(1, 3, 4, 1)
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    centres = torch.stack([(columns + 0.5) / 4, (rows + 0.5) / 3], -1)[None]
    for mode in ("nearest", "linear"):
        torch.testing.assert_close(backend.texture(tex, centres, filter_mode=mode), tex)


def test_nearest_wraps_and_clamps(backend):
    tex = torch.arange(4.0).reshape(1, 1, 4, 1)
    uv = torch.tensor([[[[-0.1, 0.5], [1.1, 0.5], [0.99, 0.5]]]])
    assert backend.texture(tex, uv, filter_mode="nearest").flatten().tolist() == [3, 0, 3]
    clamped = backend.texture(tex, uv, filter_mode="nearest", boundary_mode="clamp")
    assert clamped.flatten().tolist() == [0, 3, 3]


def level(steps, size):
    """Slopes of a pixel whose footprint is 2^steps texels wide."""
    da = torch.zeros(1, 1, 1, 4)
    da[..., 0] = da[..., 3] = 2.0**steps / size
    return da


def test_level_one_is_the_box_average(backend):
    tex = torch.rand(1, 8, 8, 3)
    uv = torch.tensor([[[[0.375, 0.625]]]])  # centre of texel (2, 1) of the 4 x 4 level
    out = backend.texture(tex, uv, level(1, 8), "linear-mipmap-linear")
    torch.testing.assert_close(out[0, 0, 0], tex[0, 4:6, 2:4].mean((0, 1)))


def test_levels_are_blended_by_the_logarithm_of_the_longer_axis(backend):
    tex = torch.rand(1, 16, 8, 2)
    coarser = tex.reshape(1, 8, 2, 4, 2, 2).mean((2, 4))
    uv = torch.rand(1, 1, 1, 2)
    da = torch.tensor([0.03, 0.09, 0.06, -0.02]).reshape(1, 1, 1, 4)
    jacobian = torch.tensor([[0.03 * 8, 0.09 * 8], [0.06 * 16, -0.02 * 16]])
    lod = math.log2(torch.linalg.svdvals(jacobian)[0])
    assert 0 < lod < 1
    out = backend.texture(tex, uv, da, "linear-mipmap-linear")
    fine, coarse = backend.texture(tex, uv), backend.texture(coarser, uv)
    torch.testing.assert_close(out, fine + lod * (coarse - fine))


def test_huge_footprints_see_the_mean_and_tiny_ones_the_texture(backend):
    tex, uv = torch.rand(1, 8, 4, 3), torch.rand(1, 1, 1, 2)
    out = backend.texture(tex, uv, level(12, 8), "linear-mipmap-linear")
    torch.testing.assert_close(out[0, 0, 0], tex.mean((0, 1, 2)))
    for da in (level(-3, 8), torch.zeros(1, 1, 1, 4), torch.full((1, 1, 1, 4), float("nan"))):
        torch.testing.assert_close(
            backend.texture(tex, uv, da, "linear-mipmap-linear"), backend.texture(tex, uv)
        )


def test_mipmap_gradients_agree_with_finite_differences(backend):
    tex = torch.rand(1, 8, 8, 1, requires_grad=True)
    uv = (torch.rand(1, 3, 3, 2) * 0.8 + 0.1).requires_grad_()
    da = level(0.6, 8).expand(1, 3, 3, 4)
    weight = torch.randn(1, 3, 3, 1)

    def loss(t, c):
        return (backend.texture(t, c, da, "linear-mipmap-linear") * weight).sum()

    grads = torch.autograd.grad(loss(tex, uv), (tex, uv))
    for i, (value, grad) in enumerate(zip((tex, uv), grads, strict=True)):
        direction = torch.randn_like(value)
        step = (1e-2 if i == 0 else 1e-3) * direction
        ends = [[tex.detach(), uv.detach()] for _ in range(2)]
        ends[0][i], ends[1][i] = value.detach() + step, value.detach() - step
        slope = (loss(*ends[0]) - loss(*ends[1])) / (2e-2 if i == 0 else 2e-3)
        torch.testing.assert_close((grad * direction).sum(), slope, rtol=2e-2, atol=2e-3)


def test_level_limit_makes_odd_textures_possible(backend):
    tex, uv = torch.rand(1, 6, 6, 1), torch.rand(1, 1, 1, 2)
    with pytest.raises(ValueError, match="6 x 6"):
        backend.texture(tex, uv, level(1, 6), "linear-mipmap-linear")
    out = backend.texture(tex, uv, level(9, 6), "linear-mipmap-linear", max_mip_level=1)
    halved = tex.reshape(1, 3, 2, 3, 2, 1).mean((2, 4))
    torch.testing.assert_close(out, backend.texture(halved, uv))


def test_coordinates_that_are_no_numbers_do_no_harm(backend):
    uv = torch.tensor([[[[float("nan"), 0.5], [float("inf"), -1e30]]]], requires_grad=True)
    tex = torch.rand(1, 4, 4, 1, requires_grad=True)
    for mode in ("nearest", "linear"):
        for boundary in ("wrap", "clamp"):
            backend.texture(tex, uv, filter_mode=mode, boundary_mode=boundary).sum().backward()
