import pytest
import torch
import torch.nn.functional as F

from models.sparse import convolution
from models.sparse.convolution import SparseConv3d
from models.sparse.grid import SparseGrid


def random_grid(resolution: int = 6, share: float = 0.4) -> SparseGrid:
    coords = torch.nonzero(torch.rand(resolution, resolution, resolution) < share)
    return SparseGrid(coords[torch.randperm(coords.shape[0])], resolution)


def dense_twin(layer: SparseConv3d, features: torch.Tensor, grid: SparseGrid) -> torch.Tensor:
    """The same convolution on the whole cube, looked up at the voxels."""
    weight, bias = layer.conv["weight"], layer.conv["bias"]
    if weight.shape[1] == 1:  # its numbers are a matrix [Cin, Cout]
        weight = weight.reshape(weight.shape[-1], weight.shape[0]).T.reshape(weight.shape)
    x, y, z = grid.coords.long().unbind(1)
    cube = features.new_zeros(features.shape[0], *(grid.resolution,) * 3, features.shape[2])
    rows = torch.arange(features.shape[0])[:, None]
    cube = cube.index_put((rows, x[None], y[None], z[None]), features)
    out = F.conv3d(cube.movedim(-1, 1), weight.movedim(-1, 1), bias, padding=weight.shape[1] // 2)
    return out[:, :, x, y, z].transpose(1, 2)


def value_and_gradients(function, layer: SparseConv3d, features: torch.Tensor, cotangent: torch.Tensor):
    inputs = (features, layer.conv["weight"], layer.conv["bias"])
    out = function(features)
    return out, torch.autograd.grad((out * cotangent).sum(), inputs)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("chunk_bytes", [1 << 28, 5000])
def test_agrees_with_a_dense_convolution_forward_and_backward(kernel_size, chunk_bytes, monkeypatch):
    monkeypatch.setattr(convolution, "_CHUNK_BYTES", chunk_bytes)
    grid = random_grid()
    layer = SparseConv3d(4, 5, kernel_size).double()
    features = torch.randn(2, len(grid), 4, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, len(grid), 5, dtype=torch.float64)
    ours = value_and_gradients(lambda f: layer(f, grid), layer, features, cotangent)
    dense = value_and_gradients(lambda f: dense_twin(layer, f, grid), layer, features, cotangent)
    torch.testing.assert_close(ours, dense)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_convolution_on_children_is_that_of_the_subdivided_grid(kernel_size):
    grid = random_grid()
    layer = SparseConv3d(4, 5, kernel_size)
    features = torch.randn(2, len(grid), 4, requires_grad=True)
    cotangent = torch.randn(2, 8 * len(grid), 5)
    short = value_and_gradients(lambda f: layer.on_children(f, grid), layer, features, cotangent)
    long = value_and_gradients(
        lambda f: layer(f.repeat_interleave(8, 1), grid.subdivided()), layer, features, cotangent
    )
    torch.testing.assert_close(short, long, atol=1e-4, rtol=1e-4)


def test_convolution_after_unpooling_is_that_of_the_unpooled_features():
    grid = random_grid()
    layer = SparseConv3d(4, 5)
    coarse = grid.coarsened()
    features = torch.randn(2, len(coarse.grid), 4, requires_grad=True)
    cotangent = torch.randn(2, len(grid), 5)
    short = value_and_gradients(lambda f: layer.after_unpooling(f, grid), layer, features, cotangent)
    long = value_and_gradients(lambda f: layer(coarse.unpool(f), grid), layer, features, cotangent)
    torch.testing.assert_close(short, long, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [3, 4, 8])  # rows of 12, 16 and 32 bytes
def test_without_gradients_the_result_is_the_same(channels):
    grid = random_grid()
    layer = SparseConv3d(channels, 5)
    features = torch.randn(2, len(grid), channels)
    with torch.no_grad():
        quiet = layer(features, grid), layer.on_children(features, grid)
    torch.testing.assert_close(quiet, (layer(features, grid), layer.on_children(features, grid)))


def test_parameters_have_the_published_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in SparseConv3d(4, 5).state_dict().items()}
    assert shapes == {"conv.weight": (5, 3, 3, 3, 4), "conv.bias": (5,)}


def test_other_kernel_sizes_are_refused():
    with pytest.raises(ValueError, match="kernel_size must be 1 or 3, got 2"):
        SparseConv3d(4, 5, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spconv", [False, True])
def test_half_precision_on_a_gpu_is_near_float32_with_and_without_spconv(spconv, monkeypatch):
    if spconv:
        pytest.importorskip("spconv")
    monkeypatch.setattr(convolution, "_spconv_runs", lambda device, dtype: spconv)
    grid = random_grid(20)
    layer = SparseConv3d(64, 32)
    features = torch.randn(2, len(grid), 64)
    with torch.no_grad():
        full = layer(features, grid)
        on_gpu = SparseGrid(grid.coords.cuda(), grid.resolution)
        half = layer.half().cuda()(features.half().cuda(), on_gpu)
    torch.testing.assert_close(half.float().cpu(), full, atol=2e-2, rtol=2e-2)
