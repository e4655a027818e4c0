"""The flow transformer of the second stage: velocities of the structured latent on its voxels.

Method: TRELLIS (Xiang et al., 2024, sections 3.3 and 4.1), conditioned on several views as ReconViaGen (2025)
does. Residual blocks of sparse convolutions pack voxels into tokens of 2^3 and unpack them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.embedding import TimestepEmbedder, absolute_position_embedding
from models.layers.norm import LayerNorm32
from models.layers.precision import MixedPrecision
from models.layers.transformer import Context, ModulatedCrossBlock
from models.reconviagen.flow_config import FlowConfig
from models.reconviagen.published import require
from models.sparse.convolution import SparseConv3d
from models.sparse.grid import SparseGrid


@dataclass(frozen=True, kw_only=True)
class LatentFlowConfig(FlowConfig):
    """Arguments of the published `SLatFlowModel`.

    Attributes:
        io_block_channels: Channels at each resolution above that of the tokens, fine to coarse.
        patch_size: Voxels of a token along each axis: 2 to the number of `io_block_channels`.
        num_io_res_blocks: Residual blocks at each of these resolutions, on the way in and on the way out.
        use_skip_connection: Whether blocks on the way out also see those on the way in: they do.
    """

    io_block_channels: Sequence[int]
    patch_size: int = 2
    num_io_res_blocks: int = 2
    use_skip_connection: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, use_skip_connection=True, patch_size=2 ** len(self.io_block_channels))


class ResidualBlock(nn.Module):
    """Two sparse convolutions, modulated by the timestep.

    Args:
        channels: Channels in.
        out_channels: Channels out.
        embedding_channels: Channels of the timestep's embedding.
    """

    def __init__(self, channels: int, out_channels: int, embedding_channels: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm32(channels, eps=1e-6)
        self.norm2 = LayerNorm32(out_channels, elementwise_affine=False, eps=1e-6)
        self.conv1 = SparseConv3d(channels, out_channels)
        self.conv2 = SparseConv3d(out_channels, out_channels)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, 2 * out_channels))
        self.skip_connection = (
            nn.Linear(channels, out_channels) if channels != out_channels else nn.Identity()
        )

    def forward(self, x: Tensor, embedding: Tensor, grid: SparseGrid) -> Tensor:
        """[B, N, Cin] over `grid` to [B, N, Cout]."""
        h = self.conv1(F.silu(self.norm1(x)), grid)
        changed: Tensor = self._second(h, embedding, grid) + self.skip_connection(x)
        return changed

    def _second(self, h: Tensor, embedding: Tensor, grid: SparseGrid) -> Tensor:
        scale, shift = self.emb_layers(embedding).chunk(2)
        changed: Tensor = self.conv2(F.silu(self.norm2.modulated(h, shift, scale)), grid)
        return changed


class PackingBlock(ResidualBlock):
    """A residual block that begins by pooling its input."""

    def forward(self, x: Tensor, embedding: Tensor, grid: SparseGrid) -> Tensor:
        """[B, N, Cin] over `grid` to [B, M, Cout] over `grid.coarsened().grid`."""
        coarse = grid.coarsened()
        return super().forward(coarse.pool(x), embedding, coarse.grid)


class UnpackingBlock(ResidualBlock):
    """A residual block that begins by unpooling its input."""

    def forward(self, x: Tensor, embedding: Tensor, grid: SparseGrid) -> Tensor:
        """[B, M, Cin] over `grid.coarsened().grid` to [B, N, Cout] over `grid`.

        What treats voxels one by one is done before unpooling: there are fewer of them.
        """
        h = self.conv1.after_unpooling(F.silu(self.norm1(x)), grid)
        return self._second(h, embedding, grid) + grid.coarsened().unpool(self.skip_connection(x))


class LatentFlow(MixedPrecision):
    """A transformer on packed voxels, in float32 before its packing and after its unpacking."""

    def __init__(self, config: LatentFlowConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.model_channels
        self.t_embedder = TimestepEmbedder(channels)
        self.input_layer = nn.Linear(config.in_channels, config.io_block_channels[0])
        self.input_blocks = nn.ModuleList()
        self.out_blocks = nn.ModuleList()
        plain = config.num_io_res_blocks - 1
        for fine, coarse in pairwise((*config.io_block_channels, channels)):
            self.input_blocks.extend(ResidualBlock(fine, fine, channels) for _ in range(plain))
            self.input_blocks.append(PackingBlock(fine, coarse, channels))
        for coarse, fine in pairwise((channels, *reversed(config.io_block_channels))):
            self.out_blocks.append(UnpackingBlock(2 * coarse, fine, channels))
            self.out_blocks.extend(ResidualBlock(2 * fine, fine, channels) for _ in range(plain))
        self.blocks = nn.ModuleList(ModulatedCrossBlock(config.block) for _ in range(config.num_blocks))
        self.out_layer = nn.Linear(config.io_block_channels[0], config.out_channels)

    def torso(self) -> Iterable[nn.Module]:
        """All blocks."""
        return self.input_blocks, self.blocks, self.out_blocks

    def bind(self, tokens: Tensor, grid: SparseGrid) -> BoundLatentFlow:
        """The velocity on one grid under one condition, whose keys and values are computed here, once.

        Args:
            tokens: The condition, [V, L, cond_channels]: L tokens of each of V views.
            grid: N voxels of a grid of `resolution`.
        """
        tokens = tokens.to(self.dtype)
        return BoundLatentFlow(self, [block.cross_attn.bind(tokens) for block in self.blocks], grid)

    def forward(self, x: Tensor, t: float, contexts: list[Context], grid: SparseGrid, rows: int) -> Tensor:
        """Velocities [rows, N, C] of a latent: with the condition, and then without it.

        Args:
            x: The noisy latent, [N, C], float32.
            t: Time, from 1 (noise) to 0.
            contexts: The condition of each block.
            grid: N voxels.
            rows: 1 or 2.
        """
        embedding = self.t_embedder(1000 * t).to(self.dtype)
        h = self.input_layer(x).to(self.dtype)[None]
        grids, skips = [grid], []
        for block in self.input_blocks:
            h = block(h, embedding, grids[-1])
            skips.append(h)
            if isinstance(block, PackingBlock):
                grids.append(grids[-1].coarsened().grid)
        h = h + self._places(grids[-1])
        h = h.expand(rows, -1, -1)  # until here the condition plays no part
        for block, context in zip(self.blocks, contexts, strict=True):
            h = block(h, embedding, context)
        for block, skip in zip(self.out_blocks, reversed(skips), strict=True):
            if isinstance(block, UnpackingBlock):
                grids.pop()
            h = block(torch.cat([h, skip.expand(rows, -1, -1)], -1), embedding, grids[-1])
        h = F.layer_norm(h.float(), h.shape[-1:])
        velocities: Tensor = self.out_layer(h)
        return velocities

    def _places(self, grid: SparseGrid) -> Tensor:
        channels, dtype = self.config.model_channels, self.dtype
        return grid.keep(
            ("places", channels, dtype), lambda: absolute_position_embedding(grid.coords, channels).to(dtype)
        )


class BoundLatentFlow:
    """The velocity of the structured latent on one grid under one condition.

    Args:
        flow: The network.
        contexts: Its condition, for each block.
        grid: The latent's voxels.
    """

    def __init__(self, flow: LatentFlow, contexts: list[Context], grid: SparseGrid) -> None:
        self._flow = flow
        self._contexts = contexts
        self._grid = grid

    def __call__(self, x: Tensor, t: float, *, unconditional: bool) -> tuple[Tensor, Tensor | None]:
        """Velocity of `x` [N, C] at time `t` in [0, 1], and, if asked for, that without the condition."""
        rows = self._flow(x, t, self._contexts, self._grid, 2 if unconditional else 1)
        return rows[0], rows[1] if unconditional else None
