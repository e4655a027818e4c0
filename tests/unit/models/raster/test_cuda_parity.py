"""Forward and backward of all four operations: our Warp kernels, on CPU and CUDA, against nvdiffrast.

Inside of triangles the tolerance is tight. On a one-pixel band along edges the backends may see different
triangles, because each clips and rounds in its own way: such pixels are counted, not compared.
"""

import importlib.util
import math

import pytest
import torch
from raster_scenes import project, sphere

from models.raster import make_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("nvdiffrast") is None, reason="nvdiffrast is not installed"),
]

SIZE = (120, 160)


@pytest.fixture(scope="module")
def reference():
    return make_backend("nvdiffrast", "cuda")


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def warp(request):
    return make_backend("warp", request.param)


@pytest.fixture(scope="module")
def scene():
    """Two nested bumpy spheres, one of them open, in three views; everything on the CPU."""
    generator = torch.Generator().manual_seed(0)
    vertices, tri = sphere(32)
    vertices = vertices * (1 + 0.05 * torch.randn(len(vertices), 1, generator=generator))
    tri = torch.cat([tri, tri[: len(tri) // 3] + len(vertices)])
    vertices = torch.cat([vertices, 0.5 * vertices + torch.tensor([0.5, 0.2, 0.9])])
    pos = torch.stack([project(vertices, 2 * math.pi * k / 3) for k in range(3)])
    return pos, tri


@pytest.fixture(scope="module")
def rasters(reference, scene):
    """The reference's raster of the scene, from which the other operations start on all backends."""
    pos, tri = (t.cuda() for t in scene)
    rast, rast_db = reference.rasterize(pos, tri, SIZE)
    return rast.detach().cpu(), rast_db.cpu()


def run(backend, operation, inputs, cotangent, *others, **options):
    """Result and gradients on the CPU of an operation on copies of `inputs` on the backend's device."""
    leaves = [t.detach().to(backend.device).requires_grad_() for t in inputs]
    others = [t.to(backend.device) if isinstance(t, torch.Tensor) else t for t in others]
    options = {k: t.to(backend.device) if isinstance(t, torch.Tensor) else t for k, t in options.items()}
    result = getattr(backend, operation)(*leaves, *others, **options)
    first = result[0] if isinstance(result, tuple) else result
    grads = torch.autograd.grad(first, leaves, cotangent.to(backend.device), allow_unused=True)
    outputs = result if isinstance(result, tuple) else (result,)
    return [t.detach().cpu() if t is not None else None for t in (*outputs, *grads)]


def close(actual, expected, fraction):
    """Compares relative to the largest value."""
    assert torch.isfinite(actual).all()
    error = (actual - expected).abs().max().item()
    assert error <= fraction * max(expected.abs().max().item(), 1e-6)


def test_rasterize(reference, warp, scene, rasters):
    pos, tri = scene
    rast, rast_db = warp.rasterize(pos.to(warp.device), tri.to(warp.device), SIZE)
    rast, rast_db = rast.cpu(), rast_db.cpu()
    expected, expected_db = rasters
    same = rast[..., 3] == expected[..., 3]
    number = expected[..., 3]
    edge = torch.zeros_like(same)
    edge[:, 1:] |= number[:, 1:] != number[:, :-1]
    edge[:, :-1] |= number[:, 1:] != number[:, :-1]
    edge[:, :, 1:] |= number[:, :, 1:] != number[:, :, :-1]
    edge[:, :, :-1] |= number[:, :, 1:] != number[:, :, :-1]
    assert (same | edge).all(), "a pixel inside of a triangle differs"
    assert (~same).float().mean() < 1e-3
    torch.testing.assert_close(rast[same], expected[same], atol=2e-4, rtol=1e-4)
    close(rast_db[same], expected_db[same], 1e-3)

    # Gradients, where both see the same, by way of a loss on those pixels only.
    cotangent = torch.randn(rast.shape, generator=torch.Generator().manual_seed(1)) * same[..., None]
    cotangent[..., 2:] = 0
    (*_, grad), (*_, wanted) = (run(b, "rasterize", [pos], cotangent, tri, SIZE) for b in (warp, reference))
    close(grad, wanted, 2e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_interpolate(reference, warp, scene, rasters, shared):
    _, tri = scene
    rast, rast_db = rasters
    generator = torch.Generator().manual_seed(2)
    attr = torch.randn(1 if shared else 3, int(tri.max()) + 1, 5, generator=generator)
    cotangent = torch.randn(3, *SIZE, 5, generator=generator)
    ours, theirs = (run(b, "interpolate", [attr, rast], cotangent, tri, rast_db) for b in (warp, reference))
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, 1e-4)


@pytest.mark.parametrize("boundary", ["wrap", "clamp"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "linear-mipmap-linear"])
@pytest.mark.parametrize("shared", [True, False])
def test_texture(reference, warp, mode, boundary, shared):
    generator = torch.Generator().manual_seed(3)
    tex = torch.rand(1 if shared else 3, 32, 64, 3, generator=generator)
    # Clear of the borders between texels at every level, where rounding decides which texel is read.
    cell = torch.randint(-512, 1024, (3, *SIZE, 2), generator=generator)
    uv = (cell + 0.2 + 0.6 * torch.rand(3, *SIZE, 2, generator=generator)) / 512
    uv_da = torch.randn(3, *SIZE, 4, generator=generator) * 0.1
    cotangent = torch.randn(3, *SIZE, 3, generator=generator)
    options = {"uv_da": uv_da, "filter_mode": mode, "boundary_mode": boundary}
    ours, theirs = (run(b, "texture", [tex, uv], cotangent, **options) for b in (warp, reference))
    close(ours[0], theirs[0], 1e-4)
    close(ours[1], theirs[1], 1e-3)
    if mode != "nearest":
        close(ours[2], theirs[2], 1e-3)


def test_antialias(reference, warp, scene, rasters):
    pos, tri = scene
    rast, _ = rasters
    generator = torch.Generator().manual_seed(4)
    color = torch.rand(3, *SIZE, 3, generator=generator)
    cotangent = torch.randn(3, *SIZE, 3, generator=generator)

    def both(backend):
        c = color.to(backend.device).requires_grad_()
        p = pos.to(backend.device).requires_grad_()
        out = backend.antialias(c, rast.to(backend.device), p, tri.to(backend.device))
        grads = torch.autograd.grad(out, (c, p), cotangent.to(backend.device))
        return [t.detach().cpu() for t in (out, *grads)]

    ours, theirs = both(warp), both(reference)
    assert (theirs[0] != color).any(-1).float().mean() > 0.005
    # An edge exactly at 45 degrees, or a pixel centre exactly on its line, may fall either way.
    differs = ((ours[0] - theirs[0]).abs() > 1e-4).any(-1)
    assert differs.sum() <= 4
    close(ours[1], theirs[1], 1.0 if differs.any() else 1e-3)
    close(ours[2], theirs[2], 5e-2 if differs.any() else 2e-3)


def test_results_follow_the_current_stream(scene):
    backend = make_backend("warp", "cuda")
    pos, tri = (t.cuda() for t in scene)
    expected = backend.rasterize(pos, tri, SIZE)[0].clone()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(pos)
        for _ in range(50):  # keeps the stream busy, so that a launch on another one would come too early
            late = late + pos / 50
        rast, _ = backend.rasterize(late, tri, SIZE)
    stream.synchronize()
    assert ((rast[..., 3] == expected[..., 3]).float().mean()) > 0.99


def test_forward_is_repeatable_on_cuda(scene):
    backend = make_backend("warp", "cuda")
    pos, tri = (t.cuda() for t in scene)
    first, second = (backend.rasterize(pos, tri, SIZE) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
