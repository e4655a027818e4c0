"""Scaled dot-product attention through one function, dense or over packed sequences of unequal length.

What computes it is chosen from where the tensors are and what is installed, never from a setting:

    dense    torch, whose own choice of kernel was the fastest wherever it was measured
    packed   xformers on CUDA, if it runs there; else torch's kernel for packed sequences (2.10 and later) on
             CUDA in half precision; else sequences of about one length together, padded and masked

All of them are differentiable and agree up to rounding.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Bucket:
    """Sequences of about one length, padded to the longest of them.

    Attributes:
        rows: [S, M] int64, places in the packed row; padding repeats the sequence's first place.
        valid: [S, M] bool, which places are no padding.
        padded: Whether there is padding.
    """

    rows: Tensor
    valid: Tensor
    padded: bool


@dataclass(frozen=True)
class Lengths:
    """Where sequences of unequal length begin and end in one packed row: built once, used by many calls.

    The forms that the backends want are made on first use and kept, so that no call waits for the device.

    Attributes:
        sizes: Tokens of each sequence, all positive, in the order of the row.
        device: Where the packed tensors are.
    """

    sizes: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(cls, sizes: Tensor | Iterable[int], device: torch.device | str) -> Lengths:
        """Lengths from a tensor [S] or from numbers; waits for the device once.

        Raises:
            ValueError: if there is no sequence or one of them is empty.
        """
        numbers = tuple(sizes.tolist() if isinstance(sizes, Tensor) else sizes)
        if not numbers or min(numbers) < 1:
            raise ValueError(f"packed sequences need at least one token each, got {numbers[:8]}")
        return cls(numbers, torch.device(device))

    @property
    def total(self) -> int:
        """Tokens in the packed row."""
        return sum(self.sizes)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.sizes)

    @cached_property
    def offsets(self) -> Tensor:
        """[S + 1] int32: where each sequence begins, and the end of the last."""
        return torch.tensor([0, *accumulate(self.sizes)], dtype=torch.int32, device=self.device)

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """All sequences, those of about one length together."""
        begins = [0, *accumulate(self.sizes)]
        members: dict[int, list[int]] = defaultdict(list)
        for index, size in enumerate(self.sizes):
            members[_rounded(size)].append(index)
        return tuple(
            _bucket([begins[i] for i in some], [self.sizes[i] for i in some], self.device)
            for _, some in sorted(members.items())
        )

    @cached_property
    def order(self) -> Tensor:
        """[T] int64: for each token of the packed row its place among the buckets' padded tokens."""
        rows = torch.cat([bucket.rows.flatten() for bucket in self.buckets])
        places = torch.cat([bucket.valid.flatten() for bucket in self.buckets]).nonzero()[:, 0]
        return torch.empty_like(places).scatter_(0, rows[places], places)

    @cached_property
    def block_diagonal(self) -> Any:
        """The same as xformers' attention bias."""
        masks = importlib.import_module("xformers.ops.fmha.attn_bias")
        return masks.BlockDiagonalMask.from_seqlens(list(self.sizes), device=self.device)


def attention(query: Tensor, key: Tensor, value: Tensor, *, lengths: Lengths | None = None) -> Tensor:
    """Softmax of query and key over the square root of D, applied to value.

    Args:
        query: [B, L, H, D].
        key: [B, S, H, D].
        value: [B, S, H, D].
        lengths: Self-attention within the sequences of one packed row: B is 1, L and S are their total.

    Returns:
        [B, L, H, D] of the query's dtype.

    Raises:
        ValueError: if packed tensors do not have the shape that `lengths` says.
    """
    if lengths is None:
        return _torch(query, key, value)
    for tensor in (query, key, value):
        if tensor.shape[:2] != (1, lengths.total):
            raise ValueError(f"packed tensors begin with [1, {lengths.total}], got {list(tensor.shape)}")
    if query.is_cuda and _xformers_runs(query.device, query.dtype):
        return _block_diagonal(query, key, value, lengths)
    if query.is_cuda and query.dtype in _HALF and _has_variable():
        return _variable(query, key, value, lengths)
    return _bucketed(query, key, value, lengths)


def _torch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """torch's attention; `mask` [B, 1, 1, S] is true where a key counts."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # [B, H, L, D]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def _block_diagonal(query: Tensor, key: Tensor, value: Tensor, lengths: Lengths) -> Tensor:
    """xformers' kernel for packed sequences."""
    xformers = importlib.import_module("xformers.ops")
    found: Tensor = xformers.memory_efficient_attention(query, key, value, attn_bias=lengths.block_diagonal)
    return found


@cache
def _xformers_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether xformers attends there: it may be absent, or built for another torch, CUDA or GPU."""
    probe = torch.zeros(1, 8, 1, 64, device=device, dtype=dtype)
    try:
        _block_diagonal(probe, probe, probe, Lengths((8,), device))
    except (ImportError, RuntimeError):  # NotImplementedError is a RuntimeError
        return False
    return True


def _variable(query: Tensor, key: Tensor, value: Tensor, lengths: Lengths) -> Tensor:
    """torch's kernel for packed sequences."""
    attend = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    offsets, longest = lengths.offsets, lengths.longest
    found: Tensor = attend(query[0], key[0], value[0], offsets, offsets, longest, longest)
    return found[None]


@cache
def _has_variable() -> bool:
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None


def _bucketed(query: Tensor, key: Tensor, value: Tensor, lengths: Lengths) -> Tensor:
    """Padded attention bucket by bucket, then every token from its place."""
    found = []
    for bucket in lengths.buckets:
        q, k, v = (x[0, bucket.rows] for x in (query, key, value))  # [S, M, H, D]
        mask = bucket.valid[:, None, None] if bucket.padded else None
        found.append(_torch(q, k, v, mask).flatten(0, 1))
    return torch.cat(found)[lengths.order][None]


def _bucket(begins: list[int], sizes: list[int], device: torch.device) -> Bucket:
    begin, size = torch.tensor([begins, sizes], device=device)[..., None]  # [S, 1] each
    place = torch.arange(max(sizes), device=device)
    valid = place < size
    return Bucket(torch.where(valid, begin + place, begin), valid, min(sizes) < max(sizes))


def _rounded(size: int) -> int:
    """The length of a bucket's longest sequence: four buckets an octave keep padding below a quarter."""
    step = max(8, 1 << max(0, size.bit_length() - 3))
    return -(-size // step) * step
