"""The free parameters of phase 1's surface."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry.flexicubes import WEIGHTS_PER_CUBE, FlexiCubes, Isosurface
from models.nvdiffrec.config import GeometryConfig
from models.nvdiffrec.regularizers import sign_loss

_BORDER_DISTANCE = 1e-3  # the surface must not touch the grid's border: border vertices stay outside by this


class SdfGrid:
    """Signed distances, small moves of the grid's vertices, and the weights of FlexiCubes.

    Args:
        flexicubes: The extractor; fixes the grid's size.
        sdf: Initial signed distance [(R + 1)^3], normalised frame, negative inside.
    """

    def __init__(self, flexicubes: FlexiCubes, sdf: Tensor) -> None:
        device = sdf.device
        self._flexicubes = flexicubes
        self._positions = flexicubes.grid_positions()
        self._border = flexicubes.border()
        self._half_cell = 1.0 / flexicubes.resolution
        self.sdf = sdf.clone().requires_grad_()
        self.deform = torch.zeros(flexicubes.vertex_count, 3, device=device, requires_grad=True)
        self.weights = torch.zeros(flexicubes.cube_count, WEIGHTS_PER_CUBE, device=device, requires_grad=True)

    def parameters(self, config: GeometryConfig) -> Iterable[dict[str, Any]]:
        """Parameter groups for an optimiser, with their learning rates."""
        return [
            {"params": [self.sdf], "lr": config.sdf_rate},
            {"params": [self.deform], "lr": config.deform_rate},
            {"params": [self.weights], "lr": config.weight_rate},
        ]

    @property
    def distance(self) -> Tensor:
        """Signed distances with a border that is always outside, [(R + 1)^3]."""
        return torch.where(self._border, self.sdf.clamp(min=_BORDER_DISTANCE), self.sdf)

    def surface(self, *, training: bool) -> Isosurface:
        """The surface as it stands."""
        moved = self._positions + torch.tanh(self.deform) * (0.99 * self._half_cell)
        return self._flexicubes.extract(moved, self.distance, self.weights, training=training)

    def sign_loss(self) -> Tensor:
        """See `regularizers.sign_loss`; distances are in cells."""
        side = self._flexicubes.resolution + 1
        return sign_loss((self.distance / (2 * self._half_cell)).reshape(side, side, side))


def resampled(sdf: Tensor, resolution: int) -> Tensor:
    """A distance grid [(R + 1)^3] at another resolution, trilinearly interpolated: [(resolution + 1)^3]."""
    side = round(sdf.numel() ** (1 / 3))
    volume = sdf.reshape(1, 1, side, side, side)
    size = (resolution + 1,) * 3
    return F.interpolate(volume, size, mode="trilinear", align_corners=True).reshape(-1)
