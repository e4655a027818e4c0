"""What upstream calls of `xformers.ops`, by torch's own scaled dot product attention.

On CUDA in half precision torch takes flash attention, as xformers does, or cuDNN's, which is quicker on
Hopper.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

try:  # torch >= 2.10
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None


@dataclass(frozen=True)
class BlockDiagonalMask:
    """Lengths of the sequences that lie one behind the other in one row; each attends to its own partner."""

    query_lengths: list[int]
    key_lengths: list[int]

    @classmethod
    def from_seqlens(cls, q_seqlen: list[int], kv_seqlen: list[int] | None = None) -> BlockDiagonalMask:
        """The mask of sequences of these lengths."""
        return cls(list(q_seqlen), list(q_seqlen if kv_seqlen is None else kv_seqlen))


fmha = SimpleNamespace(BlockDiagonalMask=BlockDiagonalMask)


def memory_efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: BlockDiagonalMask | None = None
) -> Tensor:
    """softmax(query key' / sqrt(D)) value: query [B, L, H, D], key and value [B, S, H, D] -> [B, L, H, D]."""
    if attn_bias is None or len(attn_bias.query_lengths) == 1:
        return _dense(query, key, value)
    if varlen_attn is not None and query.is_cuda and query.dtype != torch.float32:
        return _packed(query, key, value, attn_bias)
    parts = [t[0].split(n) for t, n in _with_lengths(query, key, value, attn_bias)]
    return torch.cat([_dense(q[None], k[None], v[None]) for q, k, v in zip(*parts, strict=True)], dim=1)


def _with_lengths(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockDiagonalMask
) -> list[tuple[Tensor, list[int]]]:
    return [(query, mask.query_lengths), (key, mask.key_lengths), (value, mask.key_lengths)]


def _dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads_first = (t.transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def _packed(query: Tensor, key: Tensor, value: Tensor, mask: BlockDiagonalMask) -> Tensor:
    def starts(lengths: list[int]) -> Tensor:
        ends = torch.tensor([0, *lengths]).cumsum(0)
        return ends.to(device=query.device, dtype=torch.int32)

    out = varlen_attn(
        query[0].contiguous(),
        key[0].contiguous(),
        value[0].contiguous(),
        starts(mask.query_lengths),
        starts(mask.key_lengths),
        max(mask.query_lengths),
        max(mask.key_lengths),
    )
    return out[None]
