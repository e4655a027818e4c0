"""The transformer block of DINOv2, VGGT's aggregator and its camera head, named as in their checkpoints.

Precision: the residual stream and the norms are float32; the matrix products are in the dtype of their
weights, as under autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers.attention import attention
from models.reconviagen.rotary import Rotation, rotate


class LayerScale(nn.Module):
    """One factor a channel on what a residual branch adds (Touvron et al., ICCV 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """`x + gamma * branch`, both [..., C], in the dtype of `x`."""
        return torch.addcmul(x, branch.to(x.dtype), self.gamma)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., out], in the dtype of the weights."""
        hidden = functional.gelu(self.fc1(x.to(self.fc1.weight.dtype)))
        result: Tensor = self.fc2(hidden)
        return result


class SelfAttention(nn.Module):
    """Multi-head self-attention, with normalised queries and keys if asked.

    Args:
        channels: C.
        num_heads: H, which divides C.
        qk_norm: Whether queries and keys go through a layer norm of their own.
    """

    def __init__(self, channels: int, num_heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        if qk_norm:
            self.q_norm = nn.LayerNorm(channels // num_heads)
            self.k_norm = nn.LayerNorm(channels // num_heads)
        self.qk_norm = qk_norm

    def forward(self, x: Tensor, rotation: Rotation | None, *, joint: bool) -> Tensor:
        """[B, L, C] to [B, L, C], in the dtype of the weights; see `Block.forward`."""
        dtype = self.qkv.weight.dtype
        qkv = self.qkv(x.to(dtype)).unflatten(-1, (3, self.num_heads, -1))  # [B, L, 3, H, D]
        query, key, value = qkv.unbind(2)
        if self.qk_norm:
            query, key = self.q_norm(query.float()), self.k_norm(key.float())
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        query, key = query.to(dtype), key.to(dtype)
        if joint:
            query, key, value = (each.flatten(0, 1)[None] for each in (query, key, value))
        attended: Tensor = self.proj(attention(query, key, value).reshape(x.shape))
        return attended


class Block(nn.Module):
    """Attention and perceptron, each behind a norm, each added through a layer scale.

    Args:
        channels: C.
        num_heads: H, which divides C.
        mlp_ratio: Hidden channels of the perceptron over C.
        eps: Of the two norms.
        qk_norm: Whether queries and keys are normalised.
    """

    def __init__(
        self, channels: int, num_heads: int, mlp_ratio: float, *, eps: float, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.attn = SelfAttention(channels, num_heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(channels)
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.ls2 = LayerScale(channels)

    def forward(self, x: Tensor, rotation: Rotation | None = None, *, joint: bool = False) -> Tensor:
        """One step of the residual stream.

        Args:
            x: [B, L, C].
            rotation: Of the L tokens' queries and keys.
            joint: Whether the B rows attend to each other as one sequence of B L tokens, instead of each to
                itself.

        Returns:
            [B, L, C].
        """
        x = self.ls1(x, self.attn(self.norm1(x), rotation, joint=joint))
        x = self.ls2(x, self.mlp(self.norm2(x)))
        return x


def matrix_products(*modules: nn.Module) -> list[nn.Module]:
    """The linear layers and convolutions of modules: what may be in half precision."""
    layers = (layer for module in modules for layer in module.modules())
    return [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
