"""What the published configurations of both flow transformers have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.layers.transformer import CrossBlockConfig
from models.reconviagen.published import require


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Arguments that both flows are published with.

    Attributes:
        resolution: Voxels of the latent along each axis.
        in_channels: Channels of the latent.
        model_channels: Channels of the tokens.
        cond_channels: Channels of the condition.
        out_channels: Channels of the velocity, those of the latent.
        num_blocks: Transformer blocks.
        num_heads: Attention heads; by default as many as `num_head_channels` allows.
        num_head_channels: Channels of a head where `num_heads` is not given.
        mlp_ratio: Width of the feed-forward's hidden layer over `model_channels`.
        pe_mode: How positions are embedded: "ape", absolutely.
        use_fp16: Whether the checkpoint's torso is float16.
        use_bf16: Whether it is bfloat16.
        use_checkpoint: Of training only.
        share_mod: Whether all blocks share their modulation: they do not.
        qk_rms_norm: Whether self-attention normalises queries and keys.
        qk_rms_norm_cross: Whether cross-attention does.

    Raises:
        ValueError: for a variant that was never published.
    """

    resolution: int
    in_channels: int
    model_channels: int
    cond_channels: int
    out_channels: int
    num_blocks: int
    num_heads: int | None = None
    num_head_channels: int = 64
    mlp_ratio: float = 4.0
    pe_mode: Literal["ape", "rope"] = "ape"
    use_fp16: bool = False
    use_bf16: bool = False
    use_checkpoint: bool = False
    share_mod: bool = False
    qk_rms_norm: bool = False
    qk_rms_norm_cross: bool = False

    def __post_init__(self) -> None:
        require(self, pe_mode="ape", share_mod=False, out_channels=self.in_channels)

    @property
    def block(self) -> CrossBlockConfig:
        """Sizes of each transformer block."""
        return CrossBlockConfig(
            channels=self.model_channels,
            context_channels=self.cond_channels,
            heads=self.num_heads or self.model_channels // self.num_head_channels,
            mlp_ratio=self.mlp_ratio,
            qk_rms_norm=self.qk_rms_norm,
            qk_rms_norm_cross=self.qk_rms_norm_cross,
        )
