"""Occupied voxels of a cubic grid, and what depends on their places alone.

Features over a grid are dense tensors [B, N, C], row n belonging to voxel n; a batch B shares one grid.
Tables are computed when first asked for and kept: every layer of a network, and every step of a sampler,
asks for the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.attention import Lengths

T = TypeVar("T")

_CHILDREN = tuple(product((0, 1), repeat=3))
_NEIGHBOURS = tuple(product((-1, 0, 1), repeat=3))


@dataclass(frozen=True, eq=False)
class Windows:
    """Voxels sorted into cubic windows.

    Attributes:
        order: [N] int64, the voxels window by window.
        inverse: [N] int64, the place of each voxel in `order`.
        lengths: Of the windows that are not empty.
    """

    order: Tensor
    inverse: Tensor
    lengths: Lengths


@dataclass(frozen=True, eq=False)
class Coarsening:
    """A grid of half the resolution that covers a finer one.

    Attributes:
        grid: The coarse grid, M voxels in lexicographic order.
        parent: [N] int64, the coarse voxel that holds each fine one.
        children: [M, 8] int32, the fine voxels within each coarse one, N where there is none.
    """

    grid: SparseGrid
    parent: Tensor
    children: Tensor

    def pool(self, features: Tensor) -> Tensor:
        """Features of the coarse voxels, [B, N, C] -> [B, M, C]: the sum of n children divided by n + 1.

        The published networks were trained with a mean that counts the zero it starts from as one more
        child; a true mean would change their activations.
        """
        count = (self.children < features.shape[1]).sum(1)
        total = F.pad(features, (0, 0, 0, 1))[:, self.children.long()].float().sum(2)
        return (total / (count + 1)[:, None]).to(features.dtype)

    def unpool(self, features: Tensor) -> Tensor:
        """Features of the fine voxels, [B, M, C] -> [B, N, C]: their parent's."""
        return features[:, self.parent]


class SparseGrid:
    """N distinct voxels of a grid.

    Args:
        coords: [N, 3] integers in [0, resolution), one row per voxel, in any order. The order is kept.
        resolution: Voxels along each axis.

    Raises:
        ValueError: the shape is wrong, a voxel lies outside, or there is none.
    """

    def __init__(self, coords: Tensor, resolution: int) -> None:
        if coords.dim() != 2 or coords.shape[1] != 3 or coords.shape[0] == 0:
            raise ValueError(f"coords must be of shape [N, 3] with N > 0, got {tuple(coords.shape)}")
        if int(coords.min()) < 0 or int(coords.max()) >= resolution:
            raise ValueError(f"coords must be in [0, {resolution})")
        self.coords = coords.int()
        self.resolution = resolution
        self._kept: dict[Any, Any] = {}

    def __len__(self) -> int:
        return self.coords.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tables live."""
        return self.coords.device

    def to(self, device: torch.device | str) -> SparseGrid:
        """The same grid on another device, without its tables; itself if it is there already."""
        if torch.device(device) == self.device:
            return self
        return SparseGrid(self.coords.to(device), self.resolution)

    def keep(self, key: Any, compute: Callable[[], T]) -> T:
        """What `compute` gave when `key` was first asked for; it may depend on the voxels' places alone."""
        if key not in self._kept:
            self._kept[key] = compute()
        kept: T = self._kept[key]
        return kept

    def neighbors(self) -> Tensor:
        """Voxels around each voxel, [N, 27] int32, N where there is none.

        Column 9 (dx + 1) + 3 (dy + 1) + dz + 1 is the one at offset (dx, dy, dz); column 13 the voxel itself.
        """
        return self.keep("neighbors", self._neighbors)

    def coarsened(self) -> Coarsening:
        """The grid of half the resolution that covers this one."""
        return self.keep("coarsened", self._coarsened)

    def subdivided(self) -> SparseGrid:
        """The grid of twice the resolution.

        Voxel n at (x, y, z) gives the voxels 8 n + 4 dx + 2 dy + dz at 2 (x, y, z) + (dx, dy, dz).
        """
        return self.keep("subdivided", self._subdivided)

    def windows(self, size: int, shift: int) -> Windows:
        """Voxels by cubic windows, `size` voxels a side, with borders at multiples of it, less `shift`."""
        return self.keep(("windows", size, shift), lambda: self._windows(size, shift))

    def _key(self, coords: Tensor) -> Tensor:
        """Place in a dense grid with a margin of one voxel, [...] int64."""
        x, y, z = coords.long().unbind(-1)
        side = self.resolution + 2
        return ((x + 1) * side + y + 1) * side + z + 1

    def _neighbors(self) -> Tensor:
        number, side = len(self), self.resolution + 2
        key = self._key(self.coords)
        voxel_at = torch.full((side**3,), number, dtype=torch.int32, device=self.device)
        voxel_at[key] = torch.arange(number, dtype=torch.int32, device=self.device)
        table = torch.empty(number, 27, dtype=torch.int32, device=self.device)
        for column, (x, y, z) in enumerate(_NEIGHBOURS):
            table[:, column] = voxel_at[key + (x * side + y) * side + z]
        return table

    def _coarsened(self) -> Coarsening:
        half = (self.resolution + 1) // 2
        x, y, z = (self.coords.long() // 2).unbind(1)
        place, parent = torch.unique((x * half + y) * half + z, return_inverse=True)
        coords = torch.stack([place // (half * half), place // half % half, place % half], 1)
        children = torch.full((place.numel(), 8), len(self), dtype=torch.int32, device=self.device)
        dx, dy, dz = (self.coords.long() % 2).unbind(1)
        children[parent, 4 * dx + 2 * dy + dz] = torch.arange(
            len(self), dtype=torch.int32, device=self.device
        )
        return Coarsening(SparseGrid(coords, half), parent, children)

    def _subdivided(self) -> SparseGrid:
        offsets = torch.tensor(_CHILDREN, dtype=torch.int32, device=self.device)
        coords = (2 * self.coords[:, None] + offsets).reshape(-1, 3)
        return SparseGrid(coords, 2 * self.resolution)

    def _windows(self, size: int, shift: int) -> Windows:
        x, y, z = ((self.coords.long() + shift) // size).unbind(1)
        side = (self.resolution + shift) // size + 1
        window, order = ((x * side + y) * side + z).sort(stable=True)
        lengths = torch.unique_consecutive(window, return_counts=True)[1]
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(self), device=self.device)
        return Windows(order, inverse, Lengths.of(lengths, self.device))
