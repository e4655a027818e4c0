"""From the structure's latent to an occupancy grid: a dense convolutional decoder (TRELLIS, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.norm import ChannelLayerNorm32
from models.layers.precision import MixedPrecision
from models.reconviagen.published import require


@dataclass(frozen=True)
class StructureDecoderConfig:
    """Arguments of the published `SparseStructureDecoder`.

    Attributes:
        out_channels: Channels of the result: 1, occupancy.
        latent_channels: Channels of the latent.
        num_res_blocks: Residual blocks at each resolution.
        channels: Channels at each resolution, coarse to fine.
        num_res_blocks_middle: Residual blocks before them.
        norm_type: "layer": norms over the channels of a voxel.
        use_fp16: Whether the checkpoint's torso is float16.
        use_bf16: Whether it is bfloat16.

    Raises:
        ValueError: for a variant that was never published.
    """

    out_channels: int
    latent_channels: int
    num_res_blocks: int
    channels: Sequence[int]
    num_res_blocks_middle: int = 2
    norm_type: Literal["group", "layer"] = "layer"
    use_fp16: bool = False
    use_bf16: bool = False

    def __post_init__(self) -> None:
        require(self, out_channels=1, norm_type="layer")


class StructureDecoder(MixedPrecision):
    """Residual blocks of 3D convolutions; every resolution but the last ends in a twofold enlargement."""

    def __init__(self, config: StructureDecoderConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.channels[0], config.channels[-1]
        self.input_layer = nn.Conv3d(config.latent_channels, first, 3, padding=1)
        self.middle_block = nn.Sequential(
            *(ResidualBlock(first) for _ in range(config.num_res_blocks_middle))
        )
        self.blocks = nn.Sequential()
        for channels, finer in zip_longest(config.channels, config.channels[1:]):
            self.blocks.extend(ResidualBlock(channels) for _ in range(config.num_res_blocks))
            if finer is not None:
                self.blocks.append(Enlargement(channels, finer))
        self.out_layer = nn.Sequential(
            ChannelLayerNorm32(last), nn.SiLU(), nn.Conv3d(last, config.out_channels, 3, padding=1)
        )

    def torso(self) -> Iterable[nn.Module]:
        """All but the first and the last convolution."""
        return self.middle_block, self.blocks

    def forward(self, latent: Tensor) -> Tensor:
        """Logits of occupancy [X, Y, Z], float32, above 0 inside; differentiable.

        Args:
            latent: [latent_channels, R, R, R], float32; X = R for one resolution, 2 R for two, and so on.
        """
        # With channels last neither the norms nor the convolutions of half-precision units copy their input.
        x = self.input_layer(latent[None].contiguous(memory_format=torch.channels_last_3d))
        x = self.blocks(self.middle_block(x.to(self.dtype)))
        logits: Tensor = self.out_layer(x.float())
        return logits[0, 0]


class ResidualBlock(nn.Module):
    """Two convolutions, each after a norm and SiLU, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelLayerNorm32(channels)
        self.norm2 = ChannelLayerNorm32(channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, X, Y, Z] to the same."""
        h = self.conv1(F.silu(self.norm1(x)))
        changed: Tensor = x + self.conv2(F.silu(self.norm2(h)))
        return changed


class Enlargement(nn.Module):
    """Each voxel becomes eight, made from its own channels (pixel shuffle, Shi et al., 2016, in 3D)."""

    def __init__(self, channels: int, finer: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 8 * finer, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, X, Y, Z] to [B, finer, 2 X, 2 Y, 2 Z]."""
        eight: Tensor = (
            self.conv(x).movedim(1, -1).unflatten(-1, (-1, 2, 2, 2))
        )  # [B, X, Y, Z, finer, 2, 2, 2]
        voxels = eight.permute(0, 1, 5, 2, 6, 3, 7, 4)  # [B, X, 2, Y, 2, Z, 2, finer]
        return voxels.flatten(5, 6).flatten(3, 4).flatten(1, 2).movedim(-1, 1)
