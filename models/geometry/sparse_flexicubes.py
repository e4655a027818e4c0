"""FlexiCubes on few cubes of a fine grid: features at the occupied cubes only, the rest of space is outside.

Method: Shen et al. 2023 as in `flexicubes`, with features per cube as in TRELLIS (Xiang et al., 2024). A
vertex takes the mean of what the occupied cubes around it say; other vertices are outside and do not move.
The surface may run on into cubes that only touch occupied ones; their weights are 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry.flexicubes import FlexiCubes, Isosurface

_OUTSIDE = 1.0  # signed distance where no occupied cube says one


class CubeFeatures(NamedTuple):
    """What K occupied cubes say; corner c lies at (c & 1, c >> 1 & 1, c >> 2 & 1).

    Attributes:
        sdf: Signed distance at the corners, [K, 8], negative inside.
        deformation: Displacement of the corners before `tanh`, which bounds it to half a cell, [K, 8, 3].
        attributes: What else is to be interpolated, at the corners, before a sigmoid, [K, 8, A].
        weights: Raw weights, [K, 21].
    """

    sdf: Tensor
    deformation: Tensor
    attributes: Tensor
    weights: Tensor


def extract_sparse(coords: Tensor, features: CubeFeatures, resolution: int) -> Isosurface:
    """Extract the zero level set.

    Memory beyond the features': a few bytes for each cube of the dense grid, hundreds for each occupied one.

    Args:
        coords: Occupied cubes, [K, 3] integers, distinct.
        features: Theirs, float32.
        resolution: Cubes of the grid along each axis; it spans [-0.5, 0.5]^3.

    Returns:
        The surface, its attributes in [0, 1]; open where it leaves the grid. Differentiable with respect to
        the features.
    """
    grid = FlexiCubes(resolution, coords.device)
    cubes = grid.cube_numbers(coords)
    corners = grid.corners(cubes)  # [K, 8]
    touched = torch.zeros(grid.vertex_count, dtype=torch.bool, device=coords.device)
    touched[corners.flatten()] = True
    vertices = torch.nonzero(touched).squeeze(1)  # [M]
    sdf, deformation, attributes = _means(features, _rows(vertices, corners))
    inside = torch.zeros_like(touched)
    inside[vertices] = sdf.detach() < 0

    cut = grid.cut_cubes(inside)
    around = grid.corners(cut.number)  # [S, 8]
    row = _rows(vertices, around).flatten()  # M: no occupied cube touches it
    moved = grid.vertex_places(around.flatten()) / resolution - 0.5
    moved = moved + 0.5 / resolution * torch.tanh(_with_last(deformation, 0.0)[row])
    painted = torch.sigmoid(_with_last(attributes, 0.0)[row])
    own_row = _rows(torch.sort(cubes).values, cut.number)
    weights = _with_last(features.weights[torch.argsort(cubes)], 0.0)[own_row]
    return grid.surface(
        cut,
        torch.arange(row.numel(), device=row.device).reshape(-1, 8),
        torch.cat([moved, painted], 1),
        _with_last(sdf, _OUTSIDE)[row],
        weights,
        training=False,
    )


def _rows(numbers: Tensor, wanted: Tensor) -> Tensor:
    """Where ascending `numbers` [M] hold each of `wanted`; M for those that they do not."""
    row = torch.searchsorted(numbers, wanted)
    found = numbers[row.clamp(max=numbers.numel() - 1)] == wanted
    return torch.where(found, row, numbers.numel())


def _with_last(values: Tensor, last: float) -> Tensor:
    """`values` [M, ...] and one row more."""
    return F.pad(values, (0, 0) * (values.dim() - 1) + (0, 1), value=last)


def _means(features: CubeFeatures, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signed distance [M], deformation [M, 3] and attributes [M, A] of the vertices.

    Args:
        features: Of the cubes.
        row: [K, 8], the vertex at each cube's corners; every vertex occurs.
    """
    said = torch.cat([features.sdf[..., None], features.deformation, features.attributes], 2)
    number = int(row.max()) + 1
    total = said.new_zeros(number, said.shape[2])
    count = said.new_zeros(number, 1)
    for corner in range(8):  # one at a time no vertex occurs twice, so that the sums do not depend on chance
        total = total.index_add(0, row[:, corner], said[:, corner])
        count = count.index_add(0, row[:, corner], torch.ones_like(said[:, 0, :1]))
    mean = total / count
    return mean[:, 0], mean[:, 1:4], mean[:, 4:]
