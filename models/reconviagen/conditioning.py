"""What both flows are conditioned on: the features of all views, fused (ReconViaGen, 2025, section 3.2).

Both networks take the same features of V views: tokens of four layers of VGGT's aggregator, coarse to fine,
[V, T, 2048] each, and of DINOv2, [V, T, 1024]. In either the first five of a view's T tokens are special (a
camera or class token and four registers), the others patches, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from models.layers.precision import MixedPrecision
from models.layers.transformer import CrossBlock, CrossBlockConfig
from models.reconviagen.published import require

LAYERS = (4, 11, 17, 23)
"""The layers of VGGT's aggregator that the conditions use."""

SPECIAL_TOKENS = 5
"""Tokens before the patches of a view, in VGGT and in DINOv2 with registers."""


@dataclass(frozen=True)
class StructureConditionConfig:
    """Arguments of the published `ModulatedMultiViewCond`.

    Attributes:
        channels: Channels of the condition.
        ctx_channels: Channels of VGGT's and DINOv2's tokens together.
        num_heads: Attention heads.
        mlp_ratio: Width of the feed-forward's hidden layer over `channels`.
        attn_mode: "full": every token attends to every other.
        window_size: Of windowed attention: none.
        shift_window: Likewise.
        use_checkpoint: Of training only.
        use_rope: Whether positions are embedded by rotation: they are not.
        qk_rms_norm: Whether self-attention normalises queries and keys.
        qk_rms_norm_cross: Whether cross-attention does.
        qkv_bias: Whether linear layers before attention have a bias: they have.
        share_mod: Without effect: nothing is modulated.
        num_init_tokens: Tokens of the condition.
        use_fp16: Whether the checkpoint is float16.

    Raises:
        ValueError: for a variant that was never published.
    """

    channels: int
    ctx_channels: int
    num_heads: int
    mlp_ratio: float = 4.0
    attn_mode: Literal["full", "windowed"] = "full"
    window_size: int | None = None
    shift_window: Sequence[int] | None = None
    use_checkpoint: bool = False
    use_rope: bool = False
    qk_rms_norm: bool = False
    qk_rms_norm_cross: bool = False
    qkv_bias: bool = True
    share_mod: bool = False
    num_init_tokens: int = 4096
    use_fp16: bool = False

    def __post_init__(self) -> None:
        require(self, attn_mode="full", use_rope=False, qkv_bias=True)

    @property
    def block(self) -> CrossBlockConfig:
        """Sizes of each block."""
        return CrossBlockConfig(
            channels=self.channels,
            context_channels=self.ctx_channels,
            heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            qk_rms_norm=self.qk_rms_norm,
            qk_rms_norm_cross=self.qk_rms_norm_cross,
        )


class StructureCondition(MixedPrecision):
    """Learned tokens that gather what all views show, layer after layer: what the structure flow sees."""

    def __init__(self, config: StructureConditionConfig) -> None:
        super().__init__()
        self.config = config
        self.cond_blocks = nn.ModuleList(CrossBlock(config.block) for _ in LAYERS)
        self.multiview_cond_tokens = nn.Parameter(torch.zeros(1, config.num_init_tokens, config.channels))
        nn.init.normal_(self.multiview_cond_tokens, std=0.02)

    def torso(self) -> Iterable[nn.Module]:
        """Everything."""
        return (self,)

    def forward(self, geometry: Sequence[Tensor], appearance: Tensor) -> Tensor:
        """The condition [num_init_tokens, channels], float32.

        Args:
            geometry: VGGT's tokens of the four layers, [V, T, G] each.
            appearance: DINOv2's tokens, [V, T, A]; G + A is `ctx_channels`.
        """
        appearance = appearance[:, SPECIAL_TOKENS:].to(self.dtype)
        condition = self.multiview_cond_tokens
        for block, layer in zip(cast("Iterable[CrossBlock]", self.cond_blocks), geometry, strict=True):
            views = torch.cat([layer[:, SPECIAL_TOKENS:].to(self.dtype), appearance], -1)
            condition = block(condition, block.cross_attn.bind(views.flatten(0, 1)[None]))
        return condition[0].float()


@dataclass(frozen=True)
class LatentConditionConfig:
    """Arguments of the published `ModulatedSLATMultiViewCond`.

    Attributes:
        channels: Channels of the condition, those of DINOv2.
        ctx_channels: Channels of VGGT's and DINOv2's tokens together.
        use_fp16: Whether the checkpoint is float16.
    """

    channels: int
    ctx_channels: int
    use_fp16: bool = False


class LatentCondition(MixedPrecision):
    """Each view's own tokens, DINOv2's corrected by VGGT's: the condition of the latent flow."""

    def __init__(self, config: LatentConditionConfig) -> None:
        super().__init__()
        self.config = config
        self.linear_blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(config.ctx_channels, config.channels), nn.ReLU()) for _ in LAYERS
        )

    def torso(self) -> Iterable[nn.Module]:
        """Everything."""
        return (self,)

    def forward(self, geometry: Sequence[Tensor], appearance: Tensor) -> Tensor:
        """The condition [V, T, channels], float32, special tokens included.

        Args:
            geometry: VGGT's tokens of the four layers, [V, T, G] each.
            appearance: DINOv2's tokens, [V, T, channels]; G + channels is `ctx_channels`.
        """
        appearance = appearance.to(self.dtype)
        condition = appearance
        for block, layer in zip(self.linear_blocks, geometry, strict=True):
            condition = appearance + block(torch.cat([layer.to(self.dtype), condition], -1))
        return condition.float()
