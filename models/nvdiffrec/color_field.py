"""The look of every point in space: what phase 1 paints its changing surface with."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.shading.harmonics import harmonics


class ColorField(nn.Module):
    """Dense feature grids of several resolutions, trilinearly interpolated, and a small MLP.

    The dense form of the multiresolution encoding of Müller et al. (2022): these sizes need no hashing.

    Args:
        resolutions: Grid sizes, coarse to fine.
        features: Feature channels of each grid.
        hidden: Width of the MLP's hidden layer.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        resolutions: tuple[int, ...] = (16, 32, 64),
        features: int = 4,
        hidden: int = 32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.grids = nn.ParameterList(
            torch.empty(1, features, r, r, r).uniform_(-1e-2, 1e-2, generator=generator) for r in resolutions
        )
        widths = [3 + features * len(resolutions), hidden, 3]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            bound = (6 / layer.in_features) ** 0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, points: Tensor) -> Tensor:
        """Colours [N, 3] in (0, 1), sRGB, of `points` [N, 3] in [-1, 1]."""
        where = points[None, None, None]  # [1, 1, 1, N, 3]
        found = [
            F.grid_sample(grid, where, mode="bilinear", padding_mode="border", align_corners=True)[
                0, :, 0, 0
            ].T
            for grid in self.grids
        ]
        x = torch.cat([points, *found], -1)
        return torch.sigmoid(self.layers[1](F.relu(self.layers[0](x))))


class ShadedField(nn.Module):
    """A colour field under a grey diffuse light: how bright a point is depends on where its surface faces.

    Most of what photographs tell of a smooth, evenly coloured surface is its shading. The light is the nine
    spherical harmonics that diffuse reflection lets through (Ramamoorthi and Hanrahan, 2001), applied to sRGB
    values: sRGB is nearly a power of radiance, and the power of a product is the product of powers.

    Args:
        generator: Source of the initial weights.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.albedo = ColorField(generator=generator)
        self.light = nn.Parameter(torch.zeros(9))

    def forward(self, points: Tensor, normals: Tensor) -> Tensor:
        """Colours [N, 3], sRGB, of `points` [N, 3] in [-1, 1] with unit `normals` [N, 3]."""
        color: Tensor = self.albedo(points)
        return color * self.brightness(normals)

    def brightness(self, normals: Tensor) -> Tensor:
        """Factor [N, 1] on the sRGB albedo of a surface with unit `normals` [N, 3]."""
        return 1 + (harmonics(normals) @ self.light)[:, None]
