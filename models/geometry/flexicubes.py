"""FlexiCubes: a differentiable isosurface of a signed-distance grid: dual marching cubes with weights.

Reference: Shen et al., "Flexible Isosurface Extraction for Gradient-Based Mesh Optimization", SIGGRAPH 2023.
Interpolation weights `alpha` move the crossings along grid edges, `beta` the dual vertex inside its patch,
`gamma` chooses how a quad is split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.geometry.dual_tables import CORNERS, EDGES, dual_tables

WEIGHTS_PER_CUBE = 21
"""alpha for 8 corners, beta for 12 edges, gamma for 1 quad split."""

_EDGE_AT = {(edge // 4, int(low)): edge for edge, (low, _) in enumerate(EDGES)}
"""Number of a cube's edge by its axis and its lower corner."""

_AROUND = ((-1, -1), (0, -1), (0, 0), (-1, 0))
"""Offsets of the four cubes around a grid edge, counter-clockwise seen along -axis."""

_ALPHA_BETA_RANGE = 0.99  # weights stay in (0.01, 1.99): positive, so that crossings stay on their edges


@dataclass(frozen=True)
class Isosurface:
    """An extracted surface.

    Attributes:
        vertices: [N, 3], differentiable with respect to all inputs.
        faces: [F, 3] int32, counter-clockwise seen from outside (positive distance).
        deviation: Scalar, the paper's L_dev: how unevenly a dual vertex lies between its crossings.
        dual_vertices: Number of leading vertices that are dual vertices; the rest are centres of quads.
        attributes: [N, A], what else was given at the grid's vertices, interpolated as the positions are.
    """

    vertices: Tensor
    faces: Tensor
    deviation: Tensor
    dual_vertices: int
    attributes: Tensor


@dataclass(frozen=True, eq=False)
class CutCubes:
    """The S cubes that a surface cuts.

    Attributes:
        number: [S] int64, ascending.
        case: [S] int64, bit c is set where corner c is inside.
    """

    number: Tensor
    case: Tensor


class FlexiCubes:
    """Extracts surfaces from grids of one size.

    Grid vertices are numbered `x + y * S + z * S * S` with `S = resolution + 1`, cubes likewise with
    `S = resolution`; positions in the unit grid span [-1, 1] along each axis.

    Args:
        resolution: Cubes along each axis.
        device: Where the index tables live.
    """

    def __init__(self, resolution: int, device: torch.device | str = "cpu") -> None:
        self.resolution = resolution
        self.device = torch.device(device)
        tables = dual_tables()
        self._patch = torch.tensor(tables.patch, device=device).long()  # [2, 256, 12]
        self._count = torch.tensor(tables.count, device=device).long()  # [2, 256]
        self._joined_face = torch.tensor(tables.joined_face, device=device).long()  # [256]
        self._edges = torch.tensor(EDGES, device=device).long()  # [12, 2]
        side = resolution + 1
        self._vertex_stride = torch.tensor([1, side, side * side], device=device)
        self._cube_stride = torch.tensor([1, resolution, resolution * resolution], device=device)
        # CUDA has no integer matrix product, hence the sums here and below.
        self._corner_offset = (torch.tensor(CORNERS, device=device) * self._vertex_stride).sum(-1)  # [8]

    @property
    def vertex_count(self) -> int:
        """Number of grid vertices."""
        return (self.resolution + 1) ** 3

    @property
    def cube_count(self) -> int:
        """Number of cubes."""
        return self.resolution**3

    def grid_positions(self) -> Tensor:
        """Positions of the grid's vertices, [(R + 1)^3, 3], in [-1, 1]."""
        axis = torch.linspace(-1, 1, self.resolution + 1, device=self.device)
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        return torch.stack([x, y, z], -1).reshape(-1, 3)

    def border(self) -> Tensor:
        """Which grid vertices lie on the grid's border, [(R + 1)^3] bool."""
        index = torch.arange(self.resolution + 1, device=self.device)
        edge = (index == 0) | (index == self.resolution)
        return (edge[:, None, None] | edge[None, :, None] | edge[None, None, :]).reshape(-1)

    def extract(self, positions: Tensor, sdf: Tensor, weights: Tensor, *, training: bool) -> Isosurface:
        """Extract the zero level set.

        Args:
            positions: Grid vertices [(R + 1)^3, 3], possibly deformed by less than half a cell.
            sdf: Signed distance [(R + 1)^3], negative inside; must be positive on the border.
            weights: Raw weights [R^3, 21], zero for plain dual contouring with equal weights.
            training: Split each quad into four triangles about a centre, so that `gamma` gets a gradient;
                otherwise into two along the better diagonal.

        Raises:
            ValueError: a shape is wrong.
        """
        self._check(positions, sdf, weights)
        cut = self.cut_cubes(sdf.detach() < 0)
        # One lookup of the weights: each would cost a gradient of the whole grid's size.
        local = weights[cut.number]
        return self.surface(cut, self.corners(cut.number), positions, sdf, local, training=training)

    def cut_cubes(self, inside: Tensor) -> CutCubes:
        """The cubes that the surface cuts, from which grid vertices are inside, [(R + 1)^3] bool."""
        side = self.resolution + 1
        grid = inside.reshape(side, side, side).to(torch.uint8)
        case = torch.zeros((self.resolution,) * 3, dtype=torch.uint8, device=grid.device)
        for corner, (x, y, z) in enumerate(CORNERS.tolist()):
            case |= grid[z : z + side - 1, y : y + side - 1, x : x + side - 1] << corner
        case = case.reshape(-1)
        number = torch.nonzero((case != 0) & (case != 255)).squeeze(1)
        return CutCubes(number, case[number].long())

    def cube_numbers(self, coords: Tensor) -> Tensor:
        """Numbers of cubes at coordinates [S, 3], [S] int64."""
        return (coords.long() * self._cube_stride).sum(1)

    def vertex_places(self, vertices: Tensor) -> Tensor:
        """Coordinates of grid vertices [P] in units of cubes, [P, 3] int64."""
        side = self.resolution + 1
        return torch.stack([vertices % side, vertices // side % side, vertices // (side * side)], 1)

    def corners(self, cubes: Tensor) -> Tensor:
        """Grid vertices at the corners of cubes [S], [S, 8] int64."""
        first = (self._place(cubes) * self._vertex_stride).sum(1)
        return first[:, None] + self._corner_offset

    def surface(
        self, cut: CutCubes, corners: Tensor, values: Tensor, sdf: Tensor, weights: Tensor, *, training: bool
    ) -> Isosurface:
        """Extract the zero level set from the cubes that it cuts.

        Args:
            cut: Those cubes, from `cut_cubes`.
            corners: [S, 8] int64, where `values` and `sdf` hold each cube's corners.
            values: [P, 3 + A], positions and attributes.
            sdf: Signed distance [P].
            weights: Raw weights of those cubes, [S, 21].
            training: See `extract`.

        Returns:
            The surface, open where it leaves the grid.
        """
        row_of_cube = torch.full((self.cube_count,), -1, dtype=torch.int32, device=corners.device)
        row_of_cube[cut.number] = torch.arange(cut.number.numel(), dtype=torch.int32, device=corners.device)
        rule = self._rules(cut, row_of_cube)
        patch = self._patch[rule, cut.case]  # [S, 12]
        count = self._count[rule, cut.case]
        vertex_of_edge = torch.where(patch >= 0, patch + (count.cumsum(0) - count)[:, None], -1)
        alpha = torch.tanh(weights[:, :8]) * _ALPHA_BETA_RANGE + 1
        beta = torch.tanh(weights[:, 8:20]) * _ALPHA_BETA_RANGE + 1
        gamma = torch.sigmoid(weights[:, 20]) * 0.99 + 0.005

        row, edge = torch.nonzero(vertex_of_edge >= 0, as_tuple=True)  # [K] crossings as seen by each cube
        vertex = vertex_of_edge[row, edge]
        total = int(count.sum())
        crossing = self._crossings(values, sdf, alpha, corners, row, edge)  # [K, 3 + A]
        weight = beta[row, edge]
        dual = crossing.new_zeros(total, crossing.shape[1]).index_add(0, vertex, crossing * weight[:, None])
        dual = dual / weight.new_zeros(total).index_add(0, vertex, weight)[:, None]
        deviation = self._deviation(dual[:, :3], crossing[:, :3], vertex)

        quads = self._quads(cut, row_of_cube, vertex_of_edge)  # [Q, 4]
        gamma_of_vertex = gamma.repeat_interleave(count, output_size=total)
        points, faces = _triangulate(dual, quads, gamma_of_vertex[quads], training=training)
        return Isosurface(points[:, :3], faces.int(), deviation, total, points[:, 3:])

    def _check(self, positions: Tensor, sdf: Tensor, weights: Tensor) -> None:
        expected = {
            "positions": (positions, (self.vertex_count, 3)),
            "sdf": (sdf, (self.vertex_count,)),
            "weights": (weights, (self.cube_count, WEIGHTS_PER_CUBE)),
        }
        for name, (tensor, shape) in expected.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must be of shape {shape}, got {tuple(tensor.shape)}")

    def _place(self, cubes: Tensor) -> Tensor:
        """Coordinates of cubes [S] in the grid, [S, 3]."""
        r = self.resolution
        return torch.stack([cubes % r, cubes // r % r, cubes // (r * r)], 1)

    def _rules(self, cut: CutCubes, row_of_cube: Tensor) -> Tensor:
        """Rule of each cube: 1 where both sides of a face would join all its edges, else 0."""
        joined = self._joined_face[cut.case]
        rows = torch.nonzero(joined >= 0).squeeze(1)
        rule = torch.zeros_like(cut.case)
        if rows.numel() == 0:
            return rule
        cubes, face = cut.number[rows], joined[rows]
        axis, upper = face // 2, face % 2
        coordinate = cubes // self._cube_stride[axis] % self.resolution + 2 * upper - 1
        exists = (coordinate >= 0) & (coordinate < self.resolution)
        neighbour = torch.where(exists, cubes + (2 * upper - 1) * self._cube_stride[axis], cubes)
        # It is cut as well: it has the face whose corners differ.
        other = joined[row_of_cube[neighbour].long()]
        rule[rows] = (exists & (other == (face ^ 1))).long()
        return rule

    def _crossings(
        self, values: Tensor, sdf: Tensor, alpha: Tensor, corners: Tensor, row: Tensor, edge: Tensor
    ) -> Tensor:
        """Values where cut edges meet the surface, [K, 3 + A]; differentiable."""
        ends = self._edges[edge]  # [K, 2]
        index = corners[row[:, None], ends]
        distance = sdf[index] * alpha[row[:, None], ends]
        value = values[index]  # [K, 2, 3 + A]
        weighted: Tensor = distance[:, :1] * value[:, 1] - distance[:, 1:] * value[:, 0]
        return weighted / (distance[:, :1] - distance[:, 1:])

    @staticmethod
    def _deviation(dual: Tensor, crossing: Tensor, vertex: Tensor) -> Tensor:
        distance = torch.linalg.vector_norm(crossing - dual[vertex] + 1e-12, dim=1)
        total = dual.shape[0]
        number = distance.new_zeros(total).index_add(0, vertex, torch.ones_like(distance))
        mean = distance.new_zeros(total).index_add(0, vertex, distance) / number
        return (distance - mean[vertex]).abs().sum() / max(distance.numel(), 1)

    def _quads(self, cut: CutCubes, row_of_cube: Tensor, vertex_of_edge: Tensor) -> Tensor:
        """One quad per cut grid edge: the dual vertices of the four cubes around it, [Q, 4]."""
        place = self._place(cut.number)
        quads = []
        for axis in range(3):
            u, v = (axis + 1) % 3, (axis + 2) % 3
            # Each cube looks at the edge at its lowest corner. Cubes beyond the border are missing.
            is_cut = vertex_of_edge[:, _EDGE_AT[axis, 0]] >= 0
            rows = torch.nonzero(is_cut & (place[:, u] > 0) & (place[:, v] > 0)).squeeze(1)
            corners = []
            # Where it begins decides how a quad is split whose diagonals weigh the same.
            for du, dv in _AROUND if axis == 1 else (*_AROUND[1:], _AROUND[0]):
                cube = cut.number[rows] + du * self._cube_stride[u] + dv * self._cube_stride[v]
                local = (-du << u) + (-dv << v)  # the edge's lower corner as that cube numbers it
                corners.append(vertex_of_edge[row_of_cube[cube].long(), _EDGE_AT[axis, local]])
            quad = torch.stack(corners, 1)
            outward = cut.case[rows] & 1 == 1  # inside at the lower end: the surface looks along +axis
            quads.append(torch.where(outward[:, None], quad, quad.flip(1)))
        return torch.cat(quads)


def _triangulate(dual: Tensor, quads: Tensor, gamma: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
    """Split quads [Q, 4] into triangles; `gamma` [Q, 4] belongs to their vertices."""
    first, second = gamma[:, 0] * gamma[:, 2], gamma[:, 1] * gamma[:, 3]
    if not training:
        diagonal = (first > second)[:, None]
        one = torch.where(diagonal, quads[:, [0, 1, 2]], quads[:, [0, 1, 3]])
        two = torch.where(diagonal, quads[:, [0, 2, 3]], quads[:, [1, 2, 3]])
        return dual, torch.cat([one, two])
    corner = dual[quads]  # [Q, 4, 3]
    centre = (corner[:, 0] + corner[:, 2]) * first[:, None] + (corner[:, 1] + corner[:, 3]) * second[:, None]
    centre = centre / (2 * (first + second)[:, None])
    middle = torch.arange(quads.shape[0], device=quads.device) + dual.shape[0]
    faces = torch.cat([torch.stack([quads[:, i], quads[:, (i + 1) % 4], middle], 1) for i in range(4)])
    return torch.cat([dual, centre]), faces
