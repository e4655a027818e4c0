"""The body that the latent's decoders share: a transformer on voxels whose attention stays within windows.

Method: TRELLIS (Xiang et al., 2024, section 3.2), windows as in Swin (Liu et al., 2021): every second block
shifts them by half their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.layers.attention import attention
from models.layers.embedding import absolute_position_embedding
from models.layers.precision import MixedPrecision
from models.layers.transformer import TransformerBlock
from models.reconviagen.published import require
from models.sparse.grid import SparseGrid


@dataclass(frozen=True)
class LatentDecoderConfig:
    """Arguments of the published decoders of the structured latent.

    Attributes:
        resolution: Voxels of the latent along each axis.
        model_channels: Channels of the body.
        latent_channels: Channels of the latent.
        num_blocks: Transformer blocks.
        representation_config: What the decoder's output means; see each decoder.
        num_heads: Attention heads; by default as many as `num_head_channels` allows.
        num_head_channels: Channels of a head where `num_heads` is not given.
        mlp_ratio: Width of the feed-forward's hidden layer over `model_channels`.
        attn_mode: "swin": attention within windows.
        window_size: Voxels of a window along each axis.
        pe_mode: How positions are embedded: "ape", absolutely.
        use_fp16: Whether the checkpoint's torso is float16.
        use_bf16: Whether it is bfloat16.
        use_checkpoint: Of training only.
        qk_rms_norm: Whether attention normalises queries and keys.

    Raises:
        ValueError: for a variant that was never published.
    """

    resolution: int
    model_channels: int
    latent_channels: int
    num_blocks: int
    representation_config: Mapping[str, Any]
    num_heads: int | None = None
    num_head_channels: int = 64
    mlp_ratio: float = 4.0
    attn_mode: Literal["swin"] = "swin"
    window_size: int = 8
    pe_mode: Literal["ape", "rope"] = "ape"
    use_fp16: bool = False
    use_bf16: bool = False
    use_checkpoint: bool = False
    qk_rms_norm: bool = False

    def __post_init__(self) -> None:
        require(self, attn_mode="swin", pe_mode="ape")

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.num_heads or self.model_channels // self.num_head_channels


class SparseTransformer(MixedPrecision):
    """A latent's features over a grid, before a decoder's last layers."""

    def __init__(self, config: LatentDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.input_layer = nn.Linear(config.latent_channels, config.model_channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                config.model_channels,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                qk_rms_norm=config.qk_rms_norm,
            )
            for _ in range(config.num_blocks)
        )

    def torso(self) -> Iterable[nn.Module]:
        """The blocks."""
        return (self.blocks,)

    def features(self, latent: Tensor, grid: SparseGrid) -> Tensor:
        """Features [1, N, model_channels] of the torso's dtype; differentiable.

        Where the latent wants a gradient, the activations within blocks are computed again in the backward
        pass: keeping those of a published decoder would take several gigabytes.

        Args:
            latent: [N, latent_channels], float32, over `grid`.
            grid: N voxels of a grid of `resolution`.
        """
        places = absolute_position_embedding(grid.coords, self.config.model_channels)
        x: Tensor = (self.input_layer(latent) + places).to(self.dtype)[None]
        for index, block in enumerate(self.blocks):
            windows = grid.windows(self.config.window_size, index % 2 * (self.config.window_size // 2))
            attend = partial(attention, lengths=windows.lengths)
            x = x.index_select(1, windows.order)
            if torch.is_grad_enabled() and latent.requires_grad:
                x = checkpoint(block, x, attend, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, attend)
            x = x.index_select(1, windows.inverse)
        return x
