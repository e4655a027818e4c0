"""Whether pieces of a surface, laid into the plane, cover any point twice.

A connected piece is laid out without overlap if and only if

1. no triangle is turned over,
2. around each vertex the triangles follow each other without overlap, and
3. its boundary does not meet itself.

The three are enough: by the first two the layout is an immersion, and the number of times that it covers a
point is the boundary's winding number there. If the boundary's loops are disjoint and simple, their turning
numbers add up to the Euler characteristic, which leaves exactly one loop that runs counter-clockwise, so that
no point is covered twice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from models.geometry.adjacency import edge_keys

_ANGLE_SLACK = 1e-7  # radians, for rounding


def overlapping_pieces(
    points: NDArray[np.float64], triangles: NDArray[np.int64], piece: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Find the pieces that overlap themselves.

    Args:
        points: [M, 2] positions in the plane, each used by one piece only.
        triangles: [F, 3] indices into `points`, counter-clockwise where not turned over.
        piece: [F] the piece of each triangle, 0 to K - 1; each piece is connected by edges.

    Returns:
        [K] bool. A piece that touches itself, or has a triangle without area, counts as overlapping.
    """
    bad = np.zeros(int(piece.max(initial=-1)) + 1, bool)
    corner = points[triangles]
    bad[piece[doubled_areas(*corner.transpose(1, 0, 2)) <= 0]] = True
    bad[np.repeat(piece, 3)[_crowded_corners(corner, triangles)]] = True
    edges = triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    key = edge_keys(np.sort(edges, axis=1), len(points))
    _, inverse, count = np.unique(key, return_inverse=True, return_counts=True)
    uses, owner = count[inverse], np.repeat(piece, 3)
    bad[owner[uses > 2]] = True
    boundary = uses == 1
    bad[_meeting_boundaries(points, edges[boundary], owner[boundary])] = True
    return bad


def doubled_areas(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Twice the areas [K] of the triangles a, b, c [K, 2] of a plane; positive if counter-clockwise."""
    area: NDArray[np.float64] = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (
        c[:, 0] - a[:, 0]
    )
    return area


def _crowded_corners(corner: NDArray[np.float64], triangles: NDArray[np.int64]) -> NDArray[np.int64]:
    """Corners, as indices into the flattened [F, 3], whose sector overlaps the next around their vertex."""
    forward, back = corner[:, [1, 2, 0]] - corner, corner[:, [2, 0, 1]] - corner
    start = np.arctan2(forward[..., 1], forward[..., 0]).ravel()
    cross = forward[..., 0] * back[..., 1] - forward[..., 1] * back[..., 0]
    end = start + np.arctan2(np.abs(cross), (forward * back).sum(2)).ravel()
    vertex = triangles.ravel()
    order = np.lexsort((start, vertex))
    vertex, start, end = vertex[order], start[order], end[order]
    last = np.append(vertex[1:] != vertex[:-1], True)
    following = np.append(start[1:], 0.0)
    first_of = np.flatnonzero(np.append(True, last[:-1]))
    following[last] = start[first_of] + 2 * np.pi
    crowded: NDArray[np.int64] = order[end > following + _ANGLE_SLACK]
    return crowded


def _meeting_boundaries(
    points: NDArray[np.float64], edges: NDArray[np.int64], piece: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Pieces with two boundary edges that meet elsewhere than in a common vertex."""
    start, end = points[edges[:, 0]], points[edges[:, 1]]
    i, j = _close_pairs(start, end, piece)
    apart = (edges[i][:, :, None] != edges[j][:, None, :]).all((1, 2))
    i, j = i[apart], j[apart]
    a, b, c, d = start[i], end[i], start[j], end[j]
    meet = (doubled_areas(a, b, c) * doubled_areas(a, b, d) <= 0) & (
        doubled_areas(c, d, a) * doubled_areas(c, d, b) <= 0
    )
    # Edges along one line pass the test above wherever they lie on it.
    meet &= (np.minimum(a, b) <= np.maximum(c, d)).all(1) & (np.minimum(c, d) <= np.maximum(a, b)).all(1)
    found: NDArray[np.int64] = piece[i[meet]]
    return found


def _close_pairs(
    start: NDArray[np.float64], end: NDArray[np.float64], piece: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of segments of one piece that might meet, found by the middles of bits of about equal length."""
    length = np.linalg.norm(end - start, axis=1)
    if not length.any():
        return np.empty(0, np.int64), np.empty(0, np.int64)
    # Never more than five bits a segment on average, however uneven the lengths.
    spacing = max(2 * float(np.median(length)), float(length.mean()) / 4)
    bits = np.ceil(length / spacing).astype(np.int64).clip(1)
    segment = np.repeat(np.arange(len(start)), bits)
    at = (np.arange(len(segment)) - np.repeat(np.cumsum(bits) - bits, bits) + 0.5) / bits[segment]
    middle = start[segment] + at[:, None] * (end - start)[segment]
    far_apart = piece[segment] * (4 * spacing)  # a third axis keeps the pieces away from each other
    tree = cKDTree(np.column_stack([middle, far_apart]))
    pairs = segment[tree.query_pairs(spacing * 1.001, output_type="ndarray")]
    pairs = np.unique(np.sort(pairs, axis=1), axis=0) if len(pairs) else pairs.reshape(0, 2)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return pairs[:, 0], pairs[:, 1]
