import pytest
import torch
from raster_scenes import project, sphere


@pytest.fixture
def scene(backend):
    vertices, tri = sphere()
    pos = torch.stack([project(vertices, 0.5 * k) for k in range(3)])
    rast, rast_db = backend.rasterize(pos, tri, (24, 32))
    return rast, rast_db, tri, len(vertices)


def dense(attr, rast, tri):
    """The same sum over corners by plain indexing."""
    views = (
        torch.arange(len(rast))[:, None, None] if len(attr) > 1 else torch.zeros(1, 1, 1, dtype=torch.long)
    )
    corners = tri.long()[(rast[..., 3].long() - 1).clamp(min=0)]
    weights = torch.cat([rast[..., :2], 1 - rast[..., :1] - rast[..., 1:2]], -1)
    values = attr[views[..., None], corners]
    return (values * weights[..., None]).sum(-2) * (rast[..., 3:] > 0)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("channels", [1, 5])
def test_values_and_gradients_agree_with_plain_indexing(backend, scene, shared, channels):
    rast, _, tri, count = scene
    attr = torch.randn(1 if shared else len(rast), count, channels, requires_grad=True)
    rast = rast.detach().requires_grad_()
    out, slopes = backend.interpolate(attr, rast, tri)
    expected = dense(attr, rast, tri)
    assert slopes is None
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    weight = torch.randn_like(out)
    actual = torch.autograd.grad(out, (attr, rast), weight)
    wanted = torch.autograd.grad(expected, (attr, rast), weight)
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_slopes_follow_the_chain_rule(backend, scene):
    rast, rast_db, tri, count = scene
    attr = torch.randn(1, count, 2, requires_grad=True)
    _, slopes = backend.interpolate(attr, rast, tri, rast_db)
    corners = attr[0][tri.long()[(rast[..., 3].long() - 1).clamp(min=0)]]
    du, dv = corners[..., 0, :] - corners[..., 2, :], corners[..., 1, :] - corners[..., 2, :]
    by_x = rast_db[..., 0:1] * du + rast_db[..., 2:3] * dv
    by_y = rast_db[..., 1:2] * du + rast_db[..., 3:4] * dv
    expected = torch.stack([by_x, by_y], -1).flatten(-2) * (rast[..., 3:] > 0)
    torch.testing.assert_close(slopes, expected.detach(), atol=1e-5, rtol=1e-4)
    assert not slopes.requires_grad


def test_other_indices_may_be_used_for_seams(backend, scene):
    rast, _, tri, _ = scene
    split = torch.arange(tri.numel(), dtype=torch.int32).reshape(-1, 3)
    attr = torch.arange(len(tri)).float().repeat_interleave(3)[None, :, None]
    out, _ = backend.interpolate(attr, rast, split)
    seen = rast[..., 3] > 0
    torch.testing.assert_close(out[..., 0][seen], rast[..., 3][seen] - 1)


def test_runs_are_bit_identical_with_a_shared_attribute(backend, scene):
    rast, _, tri, count = scene
    attr = torch.randn(1, count, 3, requires_grad=True)
    weight = torch.randn(*rast.shape[:3], 3)
    first, second = (
        torch.autograd.grad(backend.interpolate(attr, rast, tri)[0], attr, weight)[0] for _ in range(2)
    )
    assert torch.equal(first, second)
