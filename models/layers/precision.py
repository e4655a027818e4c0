"""Half precision for the torso of a network: what multiplies matrices, but not its norms or its two ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from torch import nn

from models.layers.norm import MultiHeadRMSNorm

_NORMS = (nn.LayerNorm, nn.GroupNorm, MultiHeadRMSNorm)


class MixedPrecision(nn.Module):
    """A network that takes and gives float32 and may hold its torso in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self._dtype = torch.float32

    @property
    def dtype(self) -> torch.dtype:
        """Of the torso's parameters, norms excepted, and of the features between its layers."""
        return self._dtype

    def torso(self) -> Iterable[nn.Module]:
        """The parts that may be in half precision."""
        raise NotImplementedError

    def to_precision(self, dtype: torch.dtype) -> Self:
        """Hold the torso in float32, float16 or bfloat16; norms stay in float32."""
        self._dtype = dtype
        for part in self.torso():
            for module in part.modules():
                if not isinstance(module, _NORMS):
                    for parameter in module.parameters(recurse=False):
                        parameter.data = parameter.data.to(dtype)
        return self
