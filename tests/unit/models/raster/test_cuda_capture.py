"""Warp kernels on CUDA: nothing waits for the device, graphs can be captured, large triangles are split."""

import math

import pytest
import torch
from raster_scenes import project, sphere

from models.raster import make_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def cuda():
    return make_backend("warp", "cuda")


def inputs(columns=24):
    vertices, tri = sphere(columns)
    pos = torch.stack([project(vertices, 2 * math.pi * k / 3) for k in range(3)])
    return pos, tri, vertices[None, :, :2].contiguous(), torch.rand(1, 64, 64, 3)


def render(backend, pos, tri, attr, tex, size=(96, 128)):
    """An image through all four operations, and the gradients of its sum of squares."""
    rast, rast_db = backend.rasterize(pos, tri, size)
    uv, slopes = backend.interpolate(attr, rast, tri, rast_db)
    color = backend.texture(tex, uv, slopes, "linear-mipmap-linear")
    image = backend.antialias(color, rast, pos, tri)
    return image, *torch.autograd.grad(image.square().sum(), (pos, attr, tex))


def leaves(backend, tensors):
    pos, tri, attr, tex = (t.to(backend.device) for t in tensors)
    return pos.requires_grad_(), tri, attr.requires_grad_(), tex.requires_grad_()


def agree(actual, expected, fraction):
    for a, b in zip(actual, expected, strict=True):
        a, b = a.detach().cpu(), b.detach().cpu()
        assert (a - b).abs().max() <= fraction * b.abs().max()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_nothing_waits_for_the_device(cuda):
    tensors = leaves(cuda, inputs())
    render(cuda, *tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        render(cuda, tensors[0], tensors[1].clone(), *tensors[2:])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match")
def test_a_captured_graph_follows_its_inputs(cuda):
    pos, tri, attr, tex = leaves(cuda, inputs())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # loads the kernels
        render(cuda, pos, tri, attr, tex)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = render(cuda, pos, tri, attr, tex)
    # Other contents of the same tensors, the neighbourhoods of the triangles among them.
    with torch.no_grad():
        pos.mul_(torch.tensor([0.7, 0.8, 1.0, 1.0], device="cuda"))
        tri.copy_(tri[torch.randperm(len(tri), generator=torch.Generator().manual_seed(0))])
        tex.copy_(tex.flip(1))
    graph.replay()
    torch.cuda.synchronize()
    fresh = [pos.detach().clone().requires_grad_(), tri.clone(), attr, tex]
    agree(captured, render(cuda, *fresh), 1e-4)


def test_all_operations_agree_with_the_cpu(cuda):
    tensors = inputs()
    cpu = make_backend("warp", "cpu")
    agree(render(cuda, *leaves(cuda, tensors)), render(cpu, *leaves(cpu, tensors)), 2e-3)


@pytest.mark.parametrize("size", [(64, 80), (2048, 2048)])
def test_large_and_clipped_triangles_cover_what_they_cover_on_the_cpu(cuda, size):
    # A quad that fills the view, another before it, and a floor that reaches behind the camera.
    quad = torch.tensor([[-1.1, -1.1, 0.5, 1], [1.1, -1.1, 0.5, 1], [1.1, 1.1, 0.5, 1], [-1.1, 1.1, 0.5, 1]])
    slanted = quad * torch.tensor([0.7, 0.6, 1, 1]) - torch.tensor([0.0, 0.1, 0.7, 0])
    floor = torch.tensor([[-9.0, -1, 5.8, 6], [9, -1, 5.8, 6], [9, -1, -6.2, -6], [-9, -1, -6.2, -6]])
    pos = torch.cat([quad, slanted, floor])[None].repeat(2, 1, 1)
    pos[1, :, 0] += 0.3
    two = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    tri = torch.cat([two, two + 4, two + 8])
    expected, _ = make_backend("warp", "cpu").rasterize(pos, tri, size)
    rast, _ = cuda.rasterize(pos.cuda(), tri.cuda(), size)
    assert len(expected[..., 3].unique()) == 6
    same = rast[..., 3].cpu() == expected[..., 3]
    assert (~same).float().mean() < 1e-4
    torch.testing.assert_close(rast.cpu()[same], expected[same], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("mode", ["nearest", "linear", "linear-mipmap-linear"])
def test_many_pixels_may_add_to_one_texel(cuda, channels, mode):
    tex = torch.rand(1, 8, 8, channels)
    uv = torch.rand(2, 64, 64, 2) * torch.tensor([0.3, 0.3])  # most pixels share their texels
    uv_da = torch.full((2, 64, 64, 4), 0.1)
    weight = torch.randn(2, 64, 64, channels)
    grads = []
    for backend in (cuda, make_backend("warp", "cpu")):
        t = tex.to(backend.device).requires_grad_()
        out = backend.texture(t, uv.to(backend.device), uv_da.to(backend.device), mode)
        grads.append(torch.autograd.grad(out, t, weight.to(backend.device)))
    agree(*grads, 1e-4)


def test_a_view_into_the_middle_of_another_tensor_is_accepted(cuda):
    pos, tri, _, _ = inputs()
    flat = torch.cat([torch.zeros(1), pos.flatten()]).cuda()
    askew = flat[1:].reshape(pos.shape)
    assert askew.data_ptr() % 16
    assert torch.equal(
        cuda.rasterize(askew, tri.cuda(), (64, 64))[0], cuda.rasterize(pos.cuda(), tri.cuda(), (64, 64))[0]
    )


def test_given_neighbourhoods_are_used(cuda):
    pos, tri, _, _ = (t.cuda() for t in inputs())
    rast, _ = cuda.rasterize(pos, tri, (64, 64))
    color = torch.rand(3, 64, 64, 3, device="cuda")
    topology = cuda.make_topology(tri, pos.shape[1])
    assert torch.equal(cuda.antialias(color, rast, pos, tri, topology), cuda.antialias(color, rast, pos, tri))
