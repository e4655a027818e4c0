"""Cut a surface into charts that an orthographic projection lays flat without overlap.

Many small regions are grown over the surface at once (a Voronoi diagram of seeds by geodesic distance in
position and normal), then merged greedily while all normals of a region stay in one cone; what the projection
would fold or lay twice is cut again. So the cost of a face does not grow with its chart, which is what makes
general methods slow.

Related: Sander et al., Texture Mapping Progressive Meshes, 2001 (merging of charts); Cohen-Steiner et al.,
Variational Shape Approximation, 2004 (regions by normals, Lloyd's iteration over them).
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags_array
from scipy.sparse.csgraph import dijkstra

from models.geometry.adjacency import FacePairs, components, face_pairs
from models.geometry.injectivity import doubled_areas, overlapping_pieces

_MOST_SMOOTHING_ROUNDS = 8  # a region follows the surface's shape, not the roughness of single faces
_FACES_PER_SEED = 60
_FEWEST_SEEDS, _MOST_SEEDS = (
    50,
    600,
)  # merging costs time by the square root of faces or less, whatever the mesh
_LLOYD_ROUNDS = 2
_NORMAL_WEIGHT = 1.0  # distance of opposite normals / 2, in units of the square root of the surface's area
_CONE_COSINE = 0.4  # smoothed normals stay within 66 degrees of their chart's direction
_STEEP_COSINE = 0.15  # single faces steeper than this have their corners moved,
_FOLDED_COSINE = 0.02  # and leave their chart if that leaves them steeper than this
_RELAXING_ROUNDS = 10
_SHORT_SEAMS = 1.0  # weight of a long common border against a bend, when regions merge


@dataclass(frozen=True)
class Charts:
    """Charts, each laid flat in a plane of its own, at the surface's scale.

    Attributes:
        points: [M, 2] float64, world units; counter-clockwise faces stay counter-clockwise.
        corners: [F, 3] int64, indices into `points`.
        chart: [F] int64, the chart of each face, 0 to K - 1.
    """

    points: NDArray[np.float64]
    corners: NDArray[np.int64]
    chart: NDArray[np.int64]


def cut_charts(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> Charts:
    """Cut a mesh into charts. The same mesh gives the same charts, to the bit.

    Args:
        vertices: [N, 3] world units.
        faces: [F, 3], any triangle mesh, closed or not; a face without area becomes a chart of its own.
    """
    surface = _Surface(vertices - vertices.mean(0), faces)
    return _without_overlap(surface, _merge(surface, _grow(surface)))


class _Surface:
    """A mesh with what chart making asks about it."""

    def __init__(self, vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> None:
        a, b, c = (vertices[faces[:, corner]] for corner in range(3))
        self.vertices, self.faces = vertices, faces
        self.centers = (a + b + c) / 3
        self.area_vectors = np.cross(b - a, c - a) / 2
        self.areas = np.linalg.norm(self.area_vectors, axis=1)
        self.normals = _unit(self.area_vectors)
        self.pairs = face_pairs(faces)
        self.smooth_normals = _smoothed(self.area_vectors, self.pairs)
        self.scale = math.sqrt(self.areas.sum()) or 1.0

    def connected(self, region: NDArray[np.int64]) -> NDArray[np.int64]:
        """Regions cut into their connected parts, numbered from 0."""
        first, second = self.pairs.first, self.pairs.second
        inside = region[first] == region[second]
        return components(first[inside], second[inside], len(self.faces))

    def flatten(self, faces: NDArray[np.int64], region: NDArray[np.int64]) -> Charts:
        """Lay some of the faces [S] flat along the directions of their regions [S]."""
        direction = _unit(_sums(region, self.area_vectors[faces]))
        aside = np.eye(3)[np.abs(direction).argmin(1)]
        right = _unit(np.cross(aside, direction))
        up = np.cross(direction, right)
        count = len(self.vertices)
        key = region[:, None] * count + self.faces[faces]
        unique, corners = np.unique(key, return_inverse=True)
        owner, vertex = np.divmod(unique, count)
        position = self.vertices[vertex]
        points = np.stack([(position * right[owner]).sum(1), (position * up[owner]).sum(1)], 1)
        flat = Charts(points, corners.reshape(-1, 3), region)
        return _relaxed(flat, self.areas[faces])


def _relaxed(flat: Charts, areas: NDArray[np.float64]) -> Charts:
    """Move the corners of folded and very steep faces between their neighbours, for a few rounds.

    Roughness of single faces, which a reconstruction always has, would otherwise need charts of its own.
    """
    points = flat.points.copy()
    spread = _neighbour_means(flat.corners, len(points))
    for _ in range(_RELAXING_ROUNDS):
        steep = _steepness(points, flat.corners, areas) < _STEEP_COSINE
        if not steep.any():
            break
        moving = np.unique(flat.corners[steep])
        points[moving] = (points[moving] + (spread[moving] @ points)) / 2
    return Charts(points, flat.corners, flat.chart)


def _steepness(
    points: NDArray[np.float64], corners: NDArray[np.int64], areas: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Areas of the faces in the plane by those in space, [F]: a projection's cosine, < 0 if turned over."""
    ratio: NDArray[np.float64] = doubled_areas(*points[corners].transpose(1, 0, 2)) / (2 * areas).clip(1e-300)
    return ratio


def _neighbour_means(corners: NDArray[np.int64], count: int) -> csr_matrix:
    """Rows that average a point's neighbours; at a boundary, the neighbours along it."""
    start, end = corners.ravel(), corners[:, [1, 2, 0]].ravel()
    graph = csr_matrix((np.ones(len(start)), (start, end)), shape=(count, count))
    graph = graph + graph.T  # 1 along the boundary, 2 inside
    boundary = graph.multiply(graph == 1)
    at_boundary = np.asarray(boundary.sum(1)).ravel() > 0
    graph = diags_array((~at_boundary).astype(float)) @ graph + boundary
    return csr_matrix(diags_array(1 / np.asarray(graph.sum(1)).ravel().clip(1e-300)) @ graph)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-300)
    return result


def _sums(label: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the rows of `values` [F, C] by label, [K, C]."""
    return np.stack([np.bincount(label, column) for column in values.T], 1)


def _smoothed(area_vectors: NDArray[np.float64], pairs: FacePairs) -> NDArray[np.float64]:
    """Unit normals of the faces, each the mean of its surroundings."""
    count = len(area_vectors)
    rows = np.concatenate([pairs.first, pairs.second, np.arange(count)])
    columns = np.concatenate([pairs.second, pairs.first, np.arange(count)])
    spread = csr_matrix((np.full(len(rows), 0.25), (rows, columns)), shape=(count, count))
    total = area_vectors
    rounds = round(math.sqrt(count) / 16)  # a coarse mesh has edges rather than roughness
    for _ in range(min(_MOST_SMOOTHING_ROUNDS, rounds)):
        total = spread @ total
    return _unit(total)


def _grow(surface: _Surface) -> NDArray[np.int64]:
    """Many small connected regions, [F], by Lloyd's iteration over geodesic Voronoi cells of faces."""
    pairs, count = surface.pairs, len(surface.faces)
    place = np.concatenate(
        [surface.centers / surface.scale, _NORMAL_WEIGHT / 2 * surface.smooth_normals], 1
    )  # [F, 6]
    bend = 1 - (surface.smooth_normals[pairs.first] * surface.smooth_normals[pairs.second]).sum(1)
    step = np.linalg.norm(place[pairs.first, :3] - place[pairs.second, :3], axis=1) + _NORMAL_WEIGHT * bend
    graph = csr_matrix((step + 1e-12, (pairs.first, pairs.second)), shape=(count, count))
    seeds = _first_seeds(surface)
    for _ in range(_LLOYD_ROUNDS):
        seeds = _most_central(place, surface.areas, _nearest_seed(graph, seeds))
    return _nearest_seed(graph, seeds)


def _first_seeds(surface: _Surface) -> NDArray[np.int64]:
    """Faces to grow from: some at random, and one at least in each connected component."""
    count = len(surface.faces)
    wanted = min(count, max(_FEWEST_SEEDS, min(_MOST_SEEDS, count // _FACES_PER_SEED)))
    seeds = np.random.default_rng(0).choice(count, wanted, replace=False)
    component = surface.connected(np.zeros(count, np.int64))
    _, first = np.unique(component, return_index=True)
    unseeded = np.setdiff1d(np.arange(len(first)), component[seeds])
    return np.sort(np.concatenate([seeds, first[unseeded]]))


def _nearest_seed(graph: csr_matrix, seeds: NDArray[np.int64]) -> NDArray[np.int64]:
    """The seed, numbered from 0, that each face [F] is nearest to."""
    _, _, source = dijkstra(graph, directed=False, indices=seeds, min_only=True, return_predecessors=True)
    nearest: NDArray[np.int64] = np.searchsorted(seeds, source)
    return nearest


def _most_central(
    place: NDArray[np.float64], areas: NDArray[np.float64], region: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The face of each region that is nearest to the region's mean, sorted."""
    weight = areas + 1e-9 * areas.mean() + 1e-300  # a region of faces without area has a mean as well
    mean = _sums(region, place * weight[:, None]) / np.bincount(region, weight)[:, None]
    distance = ((place - mean[region]) ** 2).sum(1)
    order = np.lexsort((distance, region))
    return np.sort(order[np.unique(region[order], return_index=True)[1]])


@dataclass
class _Region:
    """A region while regions merge: its normals in chunks, the sum of area vectors, area, and its borders."""

    normals: list[NDArray[np.float64]]
    vector: NDArray[np.float64]
    area: float
    borders: dict[int, float]
    perimeter: float
    version: int = 0


def _merge(surface: _Surface, region: NDArray[np.int64]) -> NDArray[np.int64]:
    """Merge neighbours greedily, the least bent first, while all normals of a region stay in a cone."""
    alive = _regions(surface, region)
    parent = np.arange(len(alive))
    heap = [(_merge_cost(alive, i, j), i, j, 0, 0) for i, one in alive.items() for j in one.borders if i < j]
    heapq.heapify(heap)
    while heap:
        _, i, j, version_i, version_j = heapq.heappop(heap)
        if i not in alive or j not in alive:
            continue
        if (alive[i].version, alive[j].version) != (version_i, version_j) or not _fit(alive[i], alive[j]):
            continue
        _absorb(alive, i, j)
        parent[j] = i
        for other in alive[i].borders:
            low, high = min(i, other), max(i, other)
            cost = _merge_cost(alive, low, high)
            heapq.heappush(heap, (cost, low, high, alive[low].version, alive[high].version))
    while (parent != parent[parent]).any():
        parent = parent[parent]
    return np.unique(parent[region], return_inverse=True)[1]


def _regions(surface: _Surface, region: NDArray[np.int64]) -> dict[int, _Region]:
    """The regions by number, with the lengths of their common borders."""
    count = int(region.max()) + 1
    order = np.argsort(region, kind="stable")
    normals = np.split(surface.smooth_normals[order], np.cumsum(np.bincount(region, minlength=count))[:-1])
    vectors, areas = _sums(region, surface.area_vectors), np.bincount(region, surface.areas)
    regions = {i: _Region([normals[i]], vectors[i], float(areas[i]), {}, 0.0) for i in range(count)}
    ends = surface.vertices[surface.pairs.edges]
    length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
    one, other = region[surface.pairs.first], region[surface.pairs.second]
    cut = one != other
    key = np.minimum(one, other)[cut] * count + np.maximum(one, other)[cut]
    unique, inverse = np.unique(key, return_inverse=True)
    for pair, border in zip(unique.tolist(), np.bincount(inverse, length[cut]).tolist(), strict=True):
        i, j = divmod(pair, count)
        for a, b in ((i, j), (j, i)):
            regions[a].borders[b] = border
            regions[a].perimeter += border
    return regions


def _merge_cost(regions: dict[int, _Region], i: int, j: int) -> float:
    """Bend that a merger adds, by the smaller one's area, less the share of its border that vanishes."""
    a, b = regions[i], regions[j]
    bend = _length(a.vector) + _length(b.vector) - _length(a.vector + b.vector)
    shared = a.borders[j] / max(min(a.perimeter, b.perimeter), 1e-300)
    return bend / max(min(a.area, b.area), 1e-300) - _SHORT_SEAMS * shared


def _length(vector: NDArray[np.float64]) -> float:
    return math.hypot(*vector.tolist())


def _fit(a: _Region, b: _Region) -> bool:
    """Whether the normals of both lie within the cone around their common direction."""
    vector = a.vector + b.vector
    limit = _CONE_COSINE * _length(vector)
    return all((chunk @ vector).min() >= limit for one in (a, b) for chunk in one.normals)


def _absorb(regions: dict[int, _Region], i: int, j: int) -> None:
    """Make region j part of region i."""
    a, b = regions[i], regions.pop(j)
    a.normals = [*a.normals, *b.normals]
    if len(a.normals) > 8:
        a.normals = [np.concatenate(a.normals)]
    a.vector, a.area = a.vector + b.vector, a.area + b.area
    a.perimeter += b.perimeter - 2 * a.borders.pop(j)
    a.version += 1
    for other, border in b.borders.items():
        if other != i:
            neighbour = regions[other].borders
            del neighbour[j]
            neighbour[i] = a.borders[other] = a.borders.get(other, 0.0) + border


def _without_overlap(surface: _Surface, region: NDArray[np.int64]) -> Charts:
    """Cut off what a projection folds, and halve what it lays twice, until nothing of either is left."""
    count = len(region)
    region, doubtful = surface.connected(region), np.arange(count)
    while len(doubtful):
        _, local = np.unique(region[doubtful], return_inverse=True)
        flat = surface.flatten(doubtful, local)
        folded = _steepness(flat.points, flat.corners, surface.areas[doubtful]) < _FOLDED_COSINE
        faces, folds = np.bincount(local), np.bincount(local, folded)
        bad = (folds > 0) | overlapping_pieces(flat.points, flat.corners, flat.chart)
        bad &= faces > 1  # a single face is as flat as can be
        halved = bad & ((folds == 0) | (folds == faces))
        region[doubtful[folded & bad[local]]] += count
        for members in _groups(region, doubtful[halved[local]]):
            region[_farther_half(surface.centers, members)] += 2 * count
        doubtful = doubtful[bad[local]]
        region = surface.connected(region)
    return surface.flatten(np.arange(count), region)


def _groups(region: NDArray[np.int64], faces: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The faces by region."""
    if not len(faces):
        return []
    order = faces[np.argsort(region[faces], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(region[order])) + 1)


def _farther_half(centers: NDArray[np.float64], members: NDArray[np.int64]) -> NDArray[np.int64]:
    """The half of some faces that lies farther along their longest extent."""
    offset = centers[members] - centers[members].mean(0)
    axis = np.linalg.svd(offset, full_matrices=False)[2][0]
    return members[np.argsort(offset @ axis, kind="stable")[len(members) // 2 :]]
