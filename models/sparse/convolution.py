"""Convolution on sparse voxels: values at the grid's voxels only, absent neighbours count as zero.

Submanifold sparse convolution, Graham et al., CVPR 2018. Weights are [Cout, k, k, k, Cin]: the tap at
[a, b, c] meets the voxel at offset (a, b, c) - k // 2, as in `torch.nn.Conv3d` but with the channels last.
"""

from __future__ import annotations

import importlib
import math
from functools import cache, lru_cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.sparse.grid import SparseGrid

_CHUNK_BYTES = 1 << 27  # of neighbours' features gathered for one matrix product
_WIDE = torch.complex128  # the widest number there is: 16 bytes


class SparseConv3d(nn.Module):
    """Convolution of 1 or 3 taps along each axis with as many voxels out as in.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel_size: 1 or 3.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size not in (1, 3):
            raise ValueError(f"kernel_size must be 1 or 3, got {kernel_size}")
        size = (kernel_size,) * 3
        # A container of its own: published checkpoints name the parameters `conv.weight` and `conv.bias`.
        self.conv = nn.ParameterDict(
            {
                "weight": nn.Parameter(torch.empty(out_channels, *size, in_channels)),
                "bias": nn.Parameter(torch.empty(out_channels)),
            }
        )
        bound = 1 / math.sqrt(in_channels * kernel_size**3)
        for parameter in self.conv.values():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, features: Tensor, grid: SparseGrid) -> Tensor:
        """Convolve features [B, N, Cin] over `grid`; returns [B, N, Cout]."""
        return submanifold_convolution(features, grid, self.conv["weight"], self.conv["bias"])

    def on_children(self, features: Tensor, grid: SparseGrid) -> Tensor:
        """Convolve over `grid.subdivided()` what each voxel of `grid` hands down to its eight children.

        Args:
            features: [B, N, Cin] over `grid`.
            grid: The grid before subdivision.

        Returns:
            [B, 8 N, Cout]: `self(features.repeat_interleave(8, 1), grid.subdivided())` up to rounding.
        """
        return convolution_on_children(features, grid, self.conv["weight"], self.conv["bias"])

    def after_unpooling(self, features: Tensor, grid: SparseGrid) -> Tensor:
        """Convolve over `grid` what each of its voxels takes over from its parent.

        Args:
            features: [B, M, Cin] over `grid.coarsened().grid`.
            grid: The grid after unpooling.

        Returns:
            [B, N, Cout]: `self(grid.coarsened().unpool(features), grid)` up to rounding.
        """
        return convolution_after_unpooling(features, grid, self.conv["weight"], self.conv["bias"])


def submanifold_convolution(features: Tensor, grid: SparseGrid, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution over a grid's voxels, with spconv where it is installed and can serve, else in plain torch.

    Args:
        features: [B, N, Cin] over `grid`, of the weights' dtype.
        grid: N voxels.
        weight: [Cout, k, k, k, Cin], k = 1 or 3.
        bias: [Cout].

    Returns:
        [B, N, Cout]; differentiable with respect to features, weight and bias.
    """
    if weight.shape[1] == 1:
        return _pointwise(features, weight, bias)
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in (features, weight, bias))
    if features.is_cuda and not differentiated and _spconv_runs(features.device, features.dtype):
        return _with_spconv(features, grid, weight, bias)
    return _gathered_product(features, grid.neighbors(), weight.flatten(1), bias)


def convolution_on_children(features: Tensor, grid: SparseGrid, weight: Tensor, bias: Tensor) -> Tensor:
    """See `SparseConv3d.on_children`.

    Siblings share their features, so of a child's 27 neighbours only 8 differ: along each axis two of the
    three taps meet the same parent. Their weights are added first, which leaves 8 of 27 products.
    """
    out_channels, size, _, _, in_channels = weight.shape
    if size == 1:
        return _pointwise(features, weight, bias).repeat_interleave(8, 1)
    share = _tap_shares(weight.device)
    merged = torch.einsum("pak,qbl,rcm,oklmi->pqroabci", share, share, share, weight.float()).to(weight.dtype)
    merged = merged.reshape(8, out_channels, 8 * in_channels)
    neighbors = grid.neighbors()
    children = [
        _gathered_product(features, neighbors[:, _parents_around(child)], merged[child], bias)
        for child in range(8)
    ]
    return torch.stack(children, 2).flatten(1, 2)


def convolution_after_unpooling(features: Tensor, grid: SparseGrid, weight: Tensor, bias: Tensor) -> Tensor:
    """See `SparseConv3d.after_unpooling`, for 3 taps along each axis.

    Each tap's product is taken on the fewer coarse voxels; the sum over taps then gathers Cout numbers for
    each neighbour rather than Cin, several times fewer where the network narrows.
    """
    out_channels = weight.shape[0]
    matrices = weight.flatten(1, 3).transpose(0, 1).flatten(0, 1)  # [27 Cout, Cin]
    bags = grid.keep("bags", lambda: _bags(grid))
    rows = []
    for row in F.pad(features, (0, 0, 0, 1)):  # [M + 1, Cin]: the last is that of absent neighbours
        products = F.linear(row, matrices).reshape(-1, out_channels)  # [(M + 1) 27, Cout]
        rows.append(F.embedding_bag(bags, products, mode="sum") + bias)
    return torch.stack(rows)


def _bags(grid: SparseGrid) -> Tensor:
    """[N, 27]: 27 times a neighbour's coarse voxel, or their number if there is none, plus the tap."""
    coarse = grid.coarsened()
    parent = F.pad(coarse.parent, (0, 1), value=len(coarse.grid))
    return 27 * parent[grid.neighbors().long()] + torch.arange(27, device=grid.device)


def _pointwise(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution of one tap.

    spconv reads the numbers of a [Cout, 1, 1, 1, Cin] weight as a matrix [Cin, Cout] without transposing them
    (its issue 450). Published networks were trained so, hence their weights mean that.
    """
    return torch.matmul(features, weight.reshape(weight.shape[-1], weight.shape[0])) + bias


def _gathered_product(features: Tensor, table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear map of each row's gathered features.

    Args:
        features: [B, N, Cin].
        table: [M, K] int32, rows of `features`, or N for zeros.
        weight: [Cout, K Cin].
        bias: [Cout].

    Returns:
        [B, M, Cout]. No more than `_CHUNK_BYTES` are gathered at a time, neither forward nor backward.
    """
    padded = F.pad(features, (0, 0, 0, 1))
    row_bytes = weight.shape[1] * features.shape[0] * features.element_size()
    chunks = table.split(max(1, _CHUNK_BYTES // row_bytes))

    def product_of(chunk: Tensor) -> Tensor:
        gathered = _rows(padded, chunk.flatten()).reshape(features.shape[0], -1, weight.shape[1])
        return F.linear(gathered, weight, bias)

    if torch.is_grad_enabled():  # gathered features are gathered again in the backward pass rather than kept
        parts = [
            checkpoint(product_of, chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks
        ]
    else:
        parts = [product_of(chunk) for chunk in chunks]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _rows(features: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [R] of features [B, N, C], [B, R, C].

    torch copies number by number, which takes most of a convolution's time; where nothing has to be
    differentiated, as few and wide numbers as their bytes make are copied in their stead.
    """
    if torch.is_grad_enabled() or features.shape[2] * features.element_size() % _WIDE.itemsize:
        return features.index_select(1, index)
    return features.view(_WIDE).index_select(1, index).view(features.dtype)


def _tap_shares(device: torch.device) -> Tensor:
    """[2, 2, 3]: for a child on side p of its parent, which taps meet each of the two parents it sees."""
    lower = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]  # sees the parent before its own, and its own
    upper = [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]  # sees its own, and the one behind
    return torch.tensor([lower, upper], device=device)


def _parents_around(child: int) -> list[int]:
    """Columns of `SparseGrid.neighbors` of the eight parents that a child's neighbours belong to."""
    side = (child >> 2 & 1, child >> 1 & 1, child & 1)
    return [9 * (side[0] + a) + 3 * (side[1] + b) + side[2] + c for a, b, c in product((0, 1), repeat=3)]


@cache
def _spconv_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether spconv convolves there: it may be absent, or built for another torch, CUDA or GPU."""
    if dtype not in (torch.float16, torch.float32):
        return False
    grid = SparseGrid(torch.zeros(1, 3, dtype=torch.int32, device=device), 1)
    features, bias = (torch.zeros(size, dtype=dtype, device=device) for size in ((1, 1, 16), (16,)))
    weight = torch.zeros(16, 3, 3, 3, 16, dtype=dtype, device=device)
    try:
        with torch.no_grad():
            _with_spconv(features, grid, weight, bias)
    except (ImportError, RuntimeError, AssertionError):
        return False
    return True


@lru_cache(maxsize=32)
def _spconv_layer(in_channels: int, out_channels: int) -> Any:
    """A layer of spconv without values of its own: ours are passed in with each call."""
    spconv = importlib.import_module("spconv.pytorch")
    with torch.device("meta"):
        return spconv.SubMConv3d(in_channels, out_channels, 3, indice_key="neighbors").eval()


def _with_spconv(features: Tensor, grid: SparseGrid, weight: Tensor, bias: Tensor) -> Tensor:
    spconv = importlib.import_module("spconv.pytorch")
    layer = _spconv_layer(weight.shape[-1], weight.shape[0])
    pairs: dict[str, Any] = grid.keep("spconv pairs", dict)
    indices = F.pad(grid.coords, (1, 0))  # one object: number 0
    rows = []
    for row in features:
        tensor = spconv.SparseConvTensor(
            row.contiguous(), indices, [grid.resolution] * 3, 1, indice_dict=pairs
        )
        result = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (tensor,))
        pairs.update(result.indice_dict)
        rows.append(result.features)
    return torch.stack(rows)
