"""Normalisation in float32, whatever the precision of the features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm32(nn.LayerNorm):
    """Layer normalisation with float32 parameters and arithmetic; features keep their dtype.

    The parameters are rounded to the features' dtype when they are used, as the result is: torch's kernel
    then reads and writes the features once, and itself computes in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        if not self.elementwise_affine:
            return super().forward(x)
        return F.layer_norm(
            x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps
        )

    def modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Adaptive normalisation (Peebles and Xie, 2023): norm(x) (1 + scale) + shift, in one kernel.

        Only for a norm without parameters of its own.

        Args:
            x: [..., C].
            shift: [C], of the dtype of `x`.
            scale: [C], likewise.
        """
        return F.layer_norm(x, self.normalized_shape, 1 + scale, shift, self.eps)


class ChannelLayerNorm32(LayerNorm32):
    """Layer normalisation over the channels of a volume [B, C, X, Y, Z]."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise dimension 1; no copy for tensors in the channels-last memory format."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MultiHeadRMSNorm(nn.Module):
    """Vectors of each head scaled to length sqrt(D), times a learned factor per head and channel.

    Args:
        channels: D, of one head.
        heads: H.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., H, D]; same shape and dtype."""
        root = self.gamma.shape[-1] ** 0.5
        # Only the length is made in float32: on a GPU this layer is bound by the bytes it moves. The bound
        # keeps the factor finite in float16.
        shortest = max(1e-12, root / torch.finfo(x.dtype).max)
        precise = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise).clamp_min(shortest)
        unit: Tensor = x * (root / length).to(x.dtype)
        return unit * self.gamma.to(x.dtype)
