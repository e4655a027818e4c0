"""From the structured latent to a painted surface (TRELLIS, Xiang et al., 2024, section 3.2).

Voxels are subdivided twice; each of the small ones is then a cube of a FlexiCubes grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.geometry.dual_tables import EDGES
from models.geometry.flexicubes import WEIGHTS_PER_CUBE, Isosurface
from models.geometry.sparse_flexicubes import CubeFeatures, extract_sparse
from models.painted import PaintedMesh
from models.reconviagen.published import require
from models.reconviagen.sparse_transformer import LatentDecoderConfig, SparseTransformer
from models.sparse.convolution import SparseConv3d
from models.sparse.grid import SparseGrid

_COLOR, _NORMAL = 3, 3  # channels of the attributes
_ATTRIBUTES = _COLOR + _NORMAL
_PUBLISHED_EDGES = ["01", "15", "45", "04", "23", "37", "67", "26", "02", "13", "57", "46"]
"""Corners of a cube's edges in the order of the published weights; corners as in `dual_tables`."""

_WEIGHTS = [
    *range(len(EDGES), len(EDGES) + 8),
    *(_PUBLISHED_EDGES.index(f"{low}{high}") for low, high in EDGES),
    WEIGHTS_PER_CUBE - 1,
]
"""Which of the published weights, 12 beta, 8 alpha and gamma, each of ours is: 8 alpha, 12 beta and gamma."""


@dataclass(frozen=True)
class MeshDecoderConfig(LatentDecoderConfig):
    """Arguments of the published `SLatMeshDecoder`.

    Attributes:
        mesh_extractor: "fc": FlexiCubes.
    """

    mesh_extractor: Literal["fc", "mc"] = "fc"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, mesh_extractor="fc", representation_config={"use_color": True})


class VoxelGroupNorm32(nn.GroupNorm):
    """Group normalisation of features [1, N, C] over all voxels; parameters and arithmetic are float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; same shape and dtype."""
        # By channel first: no copy of the features with their dimensions exchanged is needed.
        variance, mean = torch.var_mean(x[0].float(), 0, correction=0)
        of_group = mean.reshape(self.num_groups, -1)
        middle = of_group.mean(1, keepdim=True)
        spread = (variance.reshape_as(of_group) + (of_group - middle) ** 2).mean(1, keepdim=True)
        scale = (torch.rsqrt(spread + self.eps).expand_as(of_group)).flatten() * self.weight
        shift = self.bias - middle.expand_as(of_group).flatten() * scale
        return torch.addcmul(shift, x.float(), scale).to(x.dtype)


class SubdivisionBlock(nn.Module):
    """A residual block that halves the voxels along each axis.

    Args:
        channels: Channels in, a multiple of the groups.
        out_channels: Channels out, fewer, likewise.
        groups: Groups of the normalisation.
    """

    def __init__(self, channels: int, out_channels: int, groups: int = 32) -> None:
        super().__init__()
        # Lists, because published checkpoints number these layers so.
        self.act_layers = nn.ModuleList([VoxelGroupNorm32(groups, channels), nn.SiLU()])
        self.out_layers = nn.ModuleList(
            [
                SparseConv3d(channels, out_channels),
                VoxelGroupNorm32(groups, out_channels),
                nn.SiLU(),
                SparseConv3d(out_channels, out_channels),
            ]
        )
        self.skip_connection = SparseConv3d(channels, out_channels, 1)

    def forward(self, x: Tensor, grid: SparseGrid) -> Tensor:
        """[1, N, channels] over `grid` to [1, 8 N, out_channels] over `grid.subdivided()`."""
        norm, act = self.act_layers
        first, second_norm, second_act, second = self.out_layers
        h = first.on_children(act(norm(x)), grid)
        h = second(second_act(second_norm(h)), grid.subdivided())
        changed: Tensor = h + self.skip_connection.on_children(x, grid)
        return changed


class MeshDecoder(SparseTransformer):
    """A FlexiCubes grid of four times the latent's resolution, and its surface."""

    def __init__(self, config: MeshDecoderConfig) -> None:
        super().__init__(config)
        channels = config.model_channels
        self.upsample = nn.ModuleList(
            [SubdivisionBlock(channels, channels // 4), SubdivisionBlock(channels // 4, channels // 8)]
        )
        per_cube = 8 + 8 * 3 + WEIGHTS_PER_CUBE + 8 * _ATTRIBUTES
        self.out_layer = nn.Linear(channels // 8, per_cube)

    def torso(self) -> Iterable[nn.Module]:
        """All blocks."""
        return self.blocks, self.upsample

    def forward(self, latent: Tensor, grid: SparseGrid) -> PaintedMesh:
        """Decode; differentiable with respect to the latent.

        Args:
            latent: [N, latent_channels], float32, over `grid`, not normalised.
            grid: N voxels of a grid of `resolution`, which spans [-0.5, 0.5]^3.

        Returns:
            The surface, float32; without vertices if there is none.
        """
        surface = self.surface(latent, grid)
        return PaintedMesh(surface.vertices, surface.faces, surface.attributes[:, :_COLOR])

    def surface(self, latent: Tensor, grid: SparseGrid) -> Isosurface:
        """The same with six attributes in [0, 1]: sRGB, and a normal n as (n + 1) / 2."""
        h = self.features(latent, grid)
        for block in self.upsample:
            h = block(h, grid)
            grid = grid.subdivided()
        output = self.out_layer(h.float())[0]  # [64 N, channels of a cube]
        return extract_sparse(grid.coords, _cube_features(output, grid.resolution), grid.resolution)


def _cube_features(output: Tensor, resolution: int) -> CubeFeatures:
    """What the channels [K, 101] of the last layer are."""
    sdf, deformation, weights, attributes = output.split((8, 24, WEIGHTS_PER_CUBE, 8 * _ATTRIBUTES), 1)
    return CubeFeatures(
        sdf=sdf - 1 / resolution,  # without a signal all is inside, by one cube
        deformation=deformation.unflatten(1, (8, 3)),
        attributes=attributes.unflatten(1, (8, _ATTRIBUTES)),
        weights=weights[:, _WEIGHTS],
    )
