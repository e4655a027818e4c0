"""VGGT's dense heads: a map of points or depths, with its confidence, from four layers of the aggregator.

References: Ranftl et al., Vision Transformers for Dense Prediction, ICCV 2021; Wang et al., VGGT, CVPR 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_POSITION_BASE = 100.0  # of the sinusoids' frequencies
_POSITION_SCALE = 0.1  # amplitude of the position embedding


@dataclass(frozen=True)
class DenseHeadConfig:
    """Shape of a dense head; the defaults are the published ones."""

    features: int = 256  # channels of the fused map, a multiple of 8
    out_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)  # of the four layers, multiples of 4
    last_channels: int = 32  # before the last convolution


class DenseHead(nn.Module):
    """Four maps of patch tokens, brought to four scales and fused from coarse to fine.

    Args:
        config: Shape.
        channels: C of the tokens.
        outputs: Channels of the result.
    """

    def __init__(self, config: DenseHeadConfig, channels: int, outputs: int) -> None:
        super().__init__()
        first, second, _, fourth = config.out_channels
        self.norm = nn.LayerNorm(channels)
        self.projects = nn.ModuleList(nn.Conv2d(channels, width, 1) for width in config.out_channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(first, first, 4, stride=4),
                nn.ConvTranspose2d(second, second, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(fourth, fourth, 3, stride=2, padding=1),
            ]
        )
        self.scratch = Fusion(config, outputs)

    def forward(
        self, layers: Sequence[Tensor], grid: tuple[int, int], size: tuple[int, int], *, at_once: int = 4
    ) -> Tensor:
        """Raw map of every view; what the numbers mean is the caller's.

        Args:
            layers: Patch tokens of four layers [V, P, C], patches row by row.
            grid: Rows and columns of the patches.
            size: Height and width of the result, pixels.
            at_once: Views computed together: about 0.5 GiB each at 518 x 518 pixels.

        Returns:
            [V, height, width, outputs].
        """
        views = layers[0].shape[0]
        maps = [
            self._forward([layer[first : first + at_once] for layer in layers], grid, size)
            for first in range(0, views, at_once)
        ]
        return torch.cat(maps).permute(0, 2, 3, 1)

    def _forward(self, layers: Sequence[Tensor], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        aspect = size[1] / size[0]
        maps = []
        for tokens, project, resize in zip(layers, self.projects, self.resize_layers, strict=True):
            x = self.norm(tokens).transpose(1, 2).unflatten(2, grid)  # [V, C, rows, columns]
            maps.append(resize(with_positions(project(x), aspect)))
        raw: Tensor = self.scratch(maps, size)
        return raw


class Fusion(nn.Module):
    """From the coarsest of four maps to the finest, and to the image's size."""

    def __init__(self, config: DenseHeadConfig, outputs: int) -> None:
        super().__init__()
        width, last = config.features, config.last_channels
        first, second, third, fourth = config.out_channels
        self.layer1_rn = nn.Conv2d(first, width, 3, padding=1, bias=False)
        self.layer2_rn = nn.Conv2d(second, width, 3, padding=1, bias=False)
        self.layer3_rn = nn.Conv2d(third, width, 3, padding=1, bias=False)
        self.layer4_rn = nn.Conv2d(fourth, width, 3, padding=1, bias=False)
        self.refinenet1 = FusionBlock(width)
        self.refinenet2 = FusionBlock(width)
        self.refinenet3 = FusionBlock(width)
        self.refinenet4 = FusionBlock(width, merges=False)
        self.output_conv1 = nn.Conv2d(width, width // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(width // 2, last, 3, padding=1), nn.ReLU(), nn.Conv2d(last, outputs, 1)
        )

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps [V, C_i, H_i, W_i], from fine to coarse, to [V, outputs, *size]."""
        first, second, third, fourth = maps
        third, second, first = self.layer3_rn(third), self.layer2_rn(second), self.layer1_rn(first)
        x = self.refinenet4(self.layer4_rn(fourth), None, third.shape[-2:])
        x = self.refinenet3(x, third, second.shape[-2:])
        x = self.refinenet2(x, second, first.shape[-2:])
        x = self.refinenet1(x, first, (2 * first.shape[-2], 2 * first.shape[-1]))
        x = _resized(self.output_conv1(x), size)
        raw: Tensor = self.output_conv2(with_positions(x, size[1] / size[0]))
        return raw


class FusionBlock(nn.Module):
    """Adds a finer map to a coarse one, works on the sum and enlarges it.

    Args:
        channels: Of all maps.
        merges: Whether there is a finer map to add.
    """

    def __init__(self, channels: int, *, merges: bool = True) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        if merges:
            self.resConfUnit1 = ResidualUnit(channels)
        self.resConfUnit2 = ResidualUnit(channels)

    def forward(self, x: Tensor, finer: Tensor | None, size: tuple[int, int]) -> Tensor:
        """[V, C, h, w] and perhaps another such map to [V, C, *size]."""
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        # Published order: enlarge, then convolve. A 1x1 convolution commutes with an interpolation, whose
        # weights sum to 1, and is cheaper before it.
        return _resized(self.out_conv(self.resConfUnit2(x)), size)


class ResidualUnit(nn.Module):
    """Two convolutions on a residual branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[V, C, H, W] to the same; the sum holds the rectified input, as the weights were trained with."""
        x = x.relu()
        branch: Tensor = self.conv2(self.conv1(x).relu())
        return x + branch


def with_positions(x: Tensor, aspect: float) -> Tensor:
    """A map with sinusoids of its pixels' places added: columns in the first half of its channels, then rows.

    Args:
        x: [V, C, H, W]; C is a multiple of 4.
        aspect: Width over height of the image that the map stands for; its diagonal has length 2.
    """
    height, width = x.shape[-2:]
    half = x.shape[1] // 2
    diagonal = (1 + aspect**2) ** 0.5
    columns = _sinusoids(width, aspect / diagonal, half, x)[:, None, :]  # [C/2, 1, W]
    rows = _sinusoids(height, 1 / diagonal, half, x)[:, :, None]  # [C/2, H, 1]
    return torch.cat([x[:, :half] + columns, x[:, half:] + rows], 1)


def _sinusoids(count: int, span: float, channels: int, like: Tensor) -> Tensor:
    """[channels, count]: sines, then cosines, of the centres of `count` cells over [-span, span]."""
    end = span * (count - 1) / count
    place = torch.linspace(-end, end, count, device=like.device, dtype=torch.float64)
    exponent = torch.arange(channels // 2, device=like.device, dtype=torch.float64) / (channels / 2)
    angle = place / (_POSITION_BASE**exponent)[:, None]
    return (torch.cat([angle.sin(), angle.cos()]) * _POSITION_SCALE).to(like.dtype)


def _resized(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    return functional.interpolate(x, tuple(size), mode="bilinear", align_corners=True)
