"""Transformer blocks on features [B, N, C] of one set of tokens or voxels: plain, conditioned, and modulated.

Rows of a batch are guidance rows of one object (row 0 with the condition, row 1 without it), never objects.
Parameter names are those of TRELLIS (Xiang et al., 2024), whose checkpoints they take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.layers.attention import attention
from models.layers.norm import LayerNorm32, MultiHeadRMSNorm

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of query, key and value, [B, N, H, D] each: everywhere, or within windows."""


class Context(NamedTuple):
    """What cross-attention keeps of a condition: it does not change from step to step.

    Attributes:
        key: [V, S, H, D], of V sequences that are attended to apart and averaged.
        value: [V, S, H, D].
        absent: [C], the layer's output for a condition of nothing but zeros.
    """

    key: Tensor
    value: Tensor
    absent: Tensor


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        changed: Tensor = self.mlp(x)
        return changed


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        channels: C.
        heads: H, which divides C.
        qk_rms_norm: Whether queries and keys are normalised.
    """

    def __init__(self, channels: int, heads: int, *, qk_rms_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.q_rms_norm = _head_norm(channels, heads, qk_rms_norm)
        self.k_rms_norm = _head_norm(channels, heads, qk_rms_norm)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, attend: Attend = attention) -> Tensor:
        """[B, N, C] to [B, N, C]."""
        query, key, value = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        found = attend(self.q_rms_norm(query), self.k_rms_norm(key), value)
        changed: Tensor = self.to_out(found.flatten(-2))
        return changed


class CrossAttention(nn.Module):
    """Multi-head attention to a condition.

    Args:
        channels: C.
        context_channels: Channels of the condition.
        heads: H, which divides C.
        qk_rms_norm: Whether queries and keys are normalised.
    """

    def __init__(
        self, channels: int, context_channels: int, heads: int, *, qk_rms_norm: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels)
        self.to_kv = nn.Linear(context_channels, 2 * channels)
        self.q_rms_norm = _head_norm(channels, heads, qk_rms_norm)
        self.k_rms_norm = _head_norm(channels, heads, qk_rms_norm)
        self.to_out = nn.Linear(channels, channels)

    def bind(self, context: Tensor) -> Context:
        """Keys and values of a condition [V, S, context channels], of the layer's dtype.

        Where a condition is all zeros every key is the bias of the keys, so attention weighs all tokens alike
        and gives the bias of the values, whatever the query: `Context.absent` is that, after `to_out`.
        """
        key, value = self.to_kv(context).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        bias = self.to_kv.bias[self.to_out.in_features :]
        return Context(self.k_rms_norm(key), value, self.to_out(bias))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[1, N, C] to [1, N, C], the mean over the sequences of the context.

        `to_out` is linear: the mean is taken before it, once.
        """
        query = self.q_rms_norm(self.to_q(x).unflatten(-1, (self.heads, -1)))
        views = context.key.shape[0]
        found = attention(query.expand(views, -1, -1, -1), context.key, context.value)
        if views > 1:
            found = found.mean(0, keepdim=True)
        changed: Tensor = self.to_out(found.flatten(-2))
        return changed


class TransformerBlock(nn.Module):
    """Self-attention and feed-forward with residuals; the norms have no parameters.

    Args:
        channels: C.
        heads: H, which divides C.
        mlp_ratio: Width of the feed-forward's hidden layer over C.
        qk_rms_norm: Whether queries and keys are normalised.
    """

    def __init__(
        self, channels: int, heads: int, *, mlp_ratio: float = 4.0, qk_rms_norm: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm32(channels, elementwise_affine=False, eps=1e-6)
        self.norm2 = LayerNorm32(channels, elementwise_affine=False, eps=1e-6)
        self.attn = SelfAttention(channels, heads, qk_rms_norm=qk_rms_norm)
        self.mlp = FeedForward(channels, mlp_ratio)

    def forward(self, x: Tensor, attend: Attend = attention) -> Tensor:
        """[B, N, C] to [B, N, C]."""
        x = x + self.attn(self.norm1(x), attend)
        changed: Tensor = x + self.mlp(self.norm2(x))
        return changed


@dataclass(frozen=True)
class CrossBlockConfig:
    """Sizes of a block with cross-attention.

    Attributes:
        channels: C.
        context_channels: Channels of the condition.
        heads: H, which divides C.
        mlp_ratio: Width of the feed-forward's hidden layer over C.
        qk_rms_norm: Whether self-attention normalises queries and keys.
        qk_rms_norm_cross: Whether cross-attention does.
    """

    channels: int
    context_channels: int
    heads: int
    mlp_ratio: float = 4.0
    qk_rms_norm: bool = False
    qk_rms_norm_cross: bool = False


class _CrossLayers(nn.Module):
    """The layers that both blocks with cross-attention have."""

    def __init__(self, config: CrossBlockConfig) -> None:
        super().__init__()
        channels, heads = config.channels, config.heads
        self.norm1 = LayerNorm32(channels, elementwise_affine=False, eps=1e-6)
        self.norm2 = LayerNorm32(channels, eps=1e-6)
        self.norm3 = LayerNorm32(channels, elementwise_affine=False, eps=1e-6)
        self.self_attn = SelfAttention(channels, heads, qk_rms_norm=config.qk_rms_norm)
        self.cross_attn = CrossAttention(
            channels, config.context_channels, heads, qk_rms_norm=config.qk_rms_norm_cross
        )
        self.mlp = FeedForward(channels, config.mlp_ratio)


class CrossBlock(_CrossLayers):
    """Self-attention, attention to a condition, and feed-forward, with residuals."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[1, N, C] to [1, N, C]."""
        x = x + self.self_attn(self.norm1(x))
        x = x + self.cross_attn(self.norm2(x), context)
        changed: Tensor = x + self.mlp(self.norm3(x))
        return changed


class ModulatedCrossBlock(_CrossLayers):
    """The same with shifts, scales and gates that depend on the timestep (Peebles and Xie, 2023)."""

    def __init__(self, config: CrossBlockConfig) -> None:
        super().__init__(config)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.channels, 6 * config.channels))

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
        """[B, N, C] to [B, N, C]: row 0 with the condition, row 1, if there is one, without it.

        Args:
            x: Features.
            embedding: Of the timestep, [C], of the dtype of `x`.
            context: The condition, from `cross_attn.bind`.
        """
        shift1, scale1, gate1, shift3, scale3, gate3 = self.adaLN_modulation(embedding).chunk(6)
        x = torch.addcmul(x, self.self_attn(self.norm1.modulated(x, shift1, scale1)), gate1)
        x = self._attend_to(x, context)
        return torch.addcmul(x, self.mlp(self.norm3.modulated(x, shift3, scale3)), gate3)

    def _attend_to(self, x: Tensor, context: Context) -> Tensor:
        conditional, unconditional = x[:1], x[1:]
        conditional = conditional + self.cross_attn(self.norm2(conditional), context)
        return torch.cat([conditional, unconditional + context.absent])


def _head_norm(channels: int, heads: int, wanted: bool) -> nn.Module:
    return MultiHeadRMSNorm(channels // heads, heads) if wanted else nn.Identity()
