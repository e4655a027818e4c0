import importlib.util

import pytest
import torch

from models.raster import make_backend
from models.raster.warp_backend import WarpBackend

TRI = torch.tensor([[0, 1, 2]], dtype=torch.int32)
POS = torch.zeros(2, 3, 4)
RAST = torch.zeros(2, 8, 8, 4)


def test_auto_is_warp_on_a_cpu():
    backend = make_backend("auto", "cpu")
    assert backend.name == "warp"
    assert backend.device == torch.device("cpu")


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="'opengl'"):
        make_backend("opengl", "cpu")


def test_nvdiffrast_refuses_a_cpu():
    with pytest.raises(ValueError, match="CUDA device, got cpu"):
        make_backend("nvdiffrast", "cpu")


@pytest.mark.skipif(importlib.util.find_spec("nvdiffrast") is not None, reason="nvdiffrast is installed")
def test_missing_nvdiffrast_says_what_to_install():
    with pytest.raises(RuntimeError, match=r"pip install .*nvdiffrast"):
        make_backend("nvdiffrast", "cuda:0")


@pytest.mark.parametrize(
    ("operation", "arguments", "message"),
    [
        ("rasterize", (POS[0], TRI, (8, 8)), r"pos must have shape \[B, N, 4\], got \[3, 4\]"),
        ("rasterize", (POS.double(), TRI, (8, 8)), "pos must be torch.float32, got torch.float64"),
        ("rasterize", (POS, TRI.long(), (8, 8)), "tri must be torch.int32, got torch.int64"),
        ("rasterize", (POS, TRI.T, (8, 8)), r"tri must have shape \[F, 3\], got \[3, 1\]"),
        ("rasterize", (POS, TRI, (8, 4096)), r"got \(8, 4096\)"),
        (
            "interpolate",
            (torch.zeros(3, 3, 1), RAST, TRI),
            r"attr must have 1 or 2 views, got shape \[3, 3, 1\]",
        ),
        ("interpolate", (POS, RAST, TRI, RAST[:, 1:]), r"rast_db must have shape \[2, 8, 8, 4\], got \[2, 7"),
        ("texture", (RAST, RAST), r"uv must have shape \[B, H, W, 2\], got \[2, 8, 8, 4\]"),
        ("texture", (RAST, RAST[..., :2], None, "linear-mipmap-linear"), "needs uv_da"),
        ("texture", (RAST, RAST[..., :2], None, "cubic"), "'cubic'"),
        ("texture", (RAST, RAST[..., :2], None, "linear", "mirror"), "'mirror'"),
        ("texture", (RAST[:, :0], RAST[..., :2]), "must not be empty"),
        (
            "antialias",
            (RAST[:1], RAST, POS, TRI),
            r"color must have shape \[2, 8, 8, C\], got \[1, 8, 8, 4\]",
        ),
        ("antialias", (RAST, RAST, POS[:1], TRI), r"pos must have shape \[2, N, 4\], got \[1, 3, 4\]"),
        ("antialias", (RAST, RAST, POS.to("meta"), TRI), "one device.*pos on meta"),
        ("interpolate", (None, RAST, TRI), "attr must be a tensor"),
    ],
)
def test_mistakes_are_shown(backend, operation, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(backend, operation)(*arguments)


def test_strided_inputs_are_accepted(backend):
    pos = torch.tensor([[-1.0, -1, 0, 1], [1, -1, 0, 1], [-1, 1, 0, 1]]).T.contiguous().T[None]
    assert not pos.is_contiguous()
    rast, rast_db = backend.rasterize(pos, TRI.flip(1).flip(1), (8, 8))
    out, _ = backend.interpolate(pos[..., :2], rast, TRI, rast_db)
    assert (backend.antialias(out, rast, pos, TRI) >= out.min()).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_results_of_a_view_do_not_depend_on_the_threads(threads):
    pos = torch.randn(7, 60, 4) * 0.3 + torch.tensor([0.0, 0, 0, 2])
    tri = torch.arange(60, dtype=torch.int32).reshape(20, 3)
    one, many = WarpBackend("cpu", threads=1), WarpBackend("cpu", threads=threads)
    grads = []
    for backend in (one, many):
        p = pos.clone().requires_grad_()
        rast, _ = backend.rasterize(p, tri, (48, 48))
        out, _ = backend.interpolate(p[..., :3], rast, tri)
        backend.antialias(out, rast, p, tri).square().sum().backward()
        grads.append((rast.detach(), p.grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_backward_through_all_operations_reaches_every_input(backend):
    pos = torch.tensor([[[-0.8, -0.8, 0, 1], [0.8, -0.8, 0, 1], [0, 0.8, 0, 1]]], requires_grad=True)
    uv = torch.rand(1, 3, 2, requires_grad=True)
    tex = torch.rand(1, 8, 8, 3, requires_grad=True)
    rast, rast_db = backend.rasterize(pos, TRI, (16, 16))
    coordinates, slopes = backend.interpolate(uv, rast, TRI, rast_db)
    color = backend.texture(tex, coordinates, slopes, "linear-mipmap-linear")
    backend.antialias(color * (rast[..., 3:] > 0), rast, pos, TRI).square().sum().backward()
    for tensor in (pos, uv, tex):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


def test_all_operations_run_in_inference_mode(backend):
    with torch.inference_mode():
        pos = torch.tensor([[[-0.8, -0.8, 0, 1], [0.8, -0.8, 0, 1], [0, 0.8, 0, 1]]])
        tri = TRI.clone()
        rast, rast_db = backend.rasterize(pos, tri, (8, 8))
        uv, slopes = backend.interpolate(pos[..., :2], rast, tri, rast_db)
        color = backend.texture(torch.rand(1, 4, 4, 3), uv, slopes, "linear-mipmap-linear")
        assert backend.antialias(color, rast, pos, tri).shape == (1, 8, 8, 3)
