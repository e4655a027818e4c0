"""Sinusoidal embeddings of time and place."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimestepEmbedder(nn.Module):
    """An MLP on the sinusoidal embedding of a diffusion timestep (Nichol et al., GLIDE, 2022).

    Args:
        channels: C, of the result.
        frequencies: Width of the sinusoidal embedding, even.
    """

    def __init__(self, channels: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        first = nn.Linear(frequencies, channels)
        self.mlp = nn.Sequential(first, nn.SiLU(), nn.Linear(channels, channels))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(self, timestep: float) -> Tensor:
        """Embedding [C], float32, of one timestep, from 0 to 1000."""
        half = self.frequencies // 2
        # A few hundred numbers are quicker made here than on the device, and nothing has to wait for it.
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        phases = torch.tensor(timestep, dtype=torch.float32) * rates
        waves = torch.cat([phases.cos(), phases.sin()])
        embedding: Tensor = self.mlp(waves.to(self.device, non_blocking=True))
        return embedding


def absolute_position_embedding(coords: Tensor, channels: int) -> Tensor:
    """Sines and cosines of grid coordinates (Vaswani et al., 2017), axis after axis, then zeros.

    Args:
        coords: [N, 3], integers or float32, voxels.
        channels: C of the result; each axis takes the largest even share.

    Returns:
        [N, C], float32, on the device of `coords`.
    """
    share = channels // 3 // 2
    rates = 1.0 / 10000 ** (torch.arange(share, dtype=torch.float32) / share)
    phases = coords.float()[..., None] * rates.to(coords.device)  # [N, 3, share]
    waves = torch.cat([phases.sin(), phases.cos()], -1).flatten(1)
    return F.pad(waves, (0, channels - waves.shape[1]))
