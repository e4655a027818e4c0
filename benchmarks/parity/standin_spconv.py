"""What upstream calls of `spconv.pytorch`, in plain torch, with spconv's layout of weights and indices.

The convolution is spconv's "native" algorithm, which upstream's own application asks for: for every offset of
the kernel the inputs that have a partner are gathered, multiplied and added to their partners.
"""

from __future__ import annotations

import enum
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

Pairs = list[tuple[Tensor, Tensor]]  # for every offset: rows of the outputs, rows of their inputs


class ConvAlgo(enum.Enum):
    """Names of spconv's algorithms; this module knows one."""

    Native = 0
    MaskImplicitGemm = 1


class SparseConvTensor:
    """Features [N, C] at indices [N, 4] (batch, x, y, z), with the attributes that upstream copies."""

    def __init__(
        self,
        features: Tensor,
        indices: Tensor,
        spatial_shape: Any,
        batch_size: int,
        grid: Tensor | None = None,
        voxel_num: Tensor | None = None,
        indice_dict: dict[str, Pairs] | None = None,
    ) -> None:
        self._features = features
        self.indices = indices
        self.spatial_shape = spatial_shape
        self.batch_size = batch_size
        self.grid = grid
        self.voxel_num = voxel_num
        self.indice_dict = {} if indice_dict is None else indice_dict
        self.benchmark = False
        self.benchmark_record: dict[str, Any] = {}
        self.thrust_allocator = None
        self._timer = None
        self.force_algo = None
        self.int8_scale = None

    @property
    def features(self) -> Tensor:
        """The features, [N, C]."""
        return self._features

    def replace_feature(self, features: Tensor) -> SparseConvTensor:
        """The same voxels with other features."""
        return SparseConvTensor(
            features,
            self.indices,
            self.spatial_shape,
            self.batch_size,
            self.grid,
            self.voxel_num,
            self.indice_dict,
        )


class SubMConv3d(nn.Module):
    """Convolution whose outputs lie where the inputs do; weight [out, k, k, k, in] as spconv stores it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        dilation: int = 1,
        bias: bool = True,
        indice_key: str | None = None,
        algo: ConvAlgo | None = None,
    ) -> None:
        super().__init__()
        if dilation != 1 or algo is ConvAlgo.MaskImplicitGemm:
            raise NotImplementedError(f"dilation {dilation}, {algo}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.indice_key = kernel_size, indice_key
        self.weight = nn.Parameter(torch.empty(out_channels, *[kernel_size] * 3, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.normal_(self.weight, std=1 / math.sqrt(in_channels * kernel_size**3))

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """Convolves; the pairs of voxels are kept under `indice_key`, if there is one, as spconv does."""
        if self.kernel_size == 1:  # spconv reads these weights as [in, out] without transposing (issue 450)
            out = x.features @ self.weight.view(self.in_channels, self.out_channels)
            return x.replace_feature(out if self.bias is None else out + self.bias)
        weights = self.weight.flatten(1, 3)  # [out, k^3, in]
        middle = weights.shape[1] // 2
        out = x.features @ weights[:, middle].T
        for offset, (to, source) in enumerate(self._pairs(x)):
            if offset != middle:
                out.index_add_(0, to, x.features[source] @ weights[:, offset].T)
        return x.replace_feature(out if self.bias is None else out + self.bias)

    def _pairs(self, x: SparseConvTensor) -> Pairs:
        if self.indice_key is None:
            return neighbor_pairs(x.indices, self.kernel_size)
        if self.indice_key not in x.indice_dict:
            x.indice_dict[self.indice_key] = neighbor_pairs(x.indices, self.kernel_size)
        return x.indice_dict[self.indice_key]


def neighbor_pairs(indices: Tensor, kernel_size: int) -> Pairs:
    """For every offset of the kernel (x slowest), which voxels have a neighbour there, and which it is."""
    reach = kernel_size // 2
    shape = [top + 1 + 2 * reach for top in indices.max(dim=0).values.tolist()]
    strides = [math.prod(shape[axis + 1 :]) for axis in range(4)]
    step = torch.tensor(strides, device=indices.device)
    keys = ((indices.long() + reach) * step).sum(dim=1)
    table = torch.full([math.prod(shape)], -1, dtype=torch.int32, device=indices.device)
    table[keys] = torch.arange(len(keys), dtype=torch.int32, device=indices.device)
    offsets = itertools.product(range(-reach, reach + 1), repeat=3)
    jumps = [sum(o * s for o, s in zip(offset, strides[1:], strict=True)) for offset in offsets]
    found = table[keys[None] + torch.tensor(jumps, device=indices.device)[:, None]]  # [k^3, N]
    counts = (found >= 0).sum(dim=1).tolist()
    offset, to = (found >= 0).nonzero(as_tuple=True)
    source = found[offset, to].long()
    return list(zip(to.split(counts), source.split(counts), strict=True))
