"""What kind of surface a triangle mesh is: closed, manifold, of which genus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.geometry.adjacency import components, edge_keys, face_pairs, first_of_each


@dataclass(frozen=True)
class Topology:
    """Counts that tell surfaces apart.

    Attributes:
        components: Sets of faces that hang together by edges.
        boundary_edges: Edges of one face.
        crowded_edges: Edges of more than two faces.
        twisted_edges: Edges that two faces run through in the same direction.
        pinched_vertices: Vertices whose faces fall into several fans, which touch in the vertex only.
        euler: Euler characteristic: used vertices - edges + faces.
    """

    components: int
    boundary_edges: int
    crowded_edges: int
    twisted_edges: int
    pinched_vertices: int
    euler: int

    @property
    def closed(self) -> bool:
        """Whether every edge has exactly two faces."""
        return self.boundary_edges == 0 and self.crowded_edges == 0

    @property
    def manifold(self) -> bool:
        """Whether the faces around every edge and every vertex form one sheet (which may have a boundary)."""
        return self.crowded_edges == 0 and self.pinched_vertices == 0

    @property
    def genus(self) -> int | None:
        """Handles of all components together; None unless closed, manifold and oriented."""
        if not (self.closed and self.manifold and self.twisted_edges == 0):
            return None
        return self.components - self.euler // 2


def describe(faces: NDArray[np.int64]) -> Topology:
    """Count what tells surfaces apart, for faces [F, 3] that use no vertex twice."""
    vertices = int(faces.max(initial=-1)) + 1
    directed = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    _, uses = np.unique(edge_keys(np.sort(directed, axis=1), vertices), return_counts=True)
    _, runs = np.unique(edge_keys(directed, vertices), return_counts=True)
    pairs = face_pairs(faces)
    used = int(np.count_nonzero(np.bincount(faces.ravel())))
    return Topology(
        components=int(components(pairs.first, pairs.second, len(faces)).max(initial=-1)) + 1,
        boundary_edges=int((uses == 1).sum()),
        crowded_edges=int((uses > 2).sum()),
        twisted_edges=int((runs > 1).sum()),
        pinched_vertices=int((_fans(faces, vertices) > 1).sum()),
        euler=used - len(uses) + len(faces),
    )


def irregular_vertices(faces: NDArray[np.int64], vertices: int) -> NDArray[np.bool_]:
    """Vertices [vertices] that keep a surface from being manifold: at a crowded edge, or pinched."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    _, inverse, uses = np.unique(edge_keys(edges, vertices), return_inverse=True, return_counts=True)
    irregular = _fans(faces, vertices) > 1
    irregular[edges[uses[inverse] > 2]] = True
    return irregular


def corner_fans(faces: NDArray[np.int64], *, regular_only: bool = False) -> NDArray[np.int64]:
    """Label [3 F] of the fan that each corner is in: a vertex's faces that hang together by edges at it.

    Args:
        faces: [F, 3].
        regular_only: Let fans continue only across edges that two faces run through in opposite directions.
    """
    pairs = face_pairs(faces)
    ends = [
        [3 * face + (faces[face] == pairs.edges[:, [end]]).argmax(1) for face in (pairs.first, pairs.second)]
        for end in (0, 1)
    ]  # the corners that meet across an edge, at either of its ends
    if regular_only:
        key = edge_keys(pairs.edges, int(faces.max(initial=0)) + 1)
        _, inverse, chain = np.unique(key, return_inverse=True, return_counts=True)
        # A face runs from the smaller end to the greater one if its next corner is the greater one.
        forward = [(low + 1) % 3 == high % 3 for low, high in zip(*ends, strict=True)]
        regular = (chain[inverse] == 1) & (forward[0] != forward[1])
        ends = [[corner[regular] for corner in end] for end in ends]
    first, second = (np.concatenate([end[side] for end in ends]) for side in (0, 1))
    return components(first, second, faces.size)


def _fans(faces: NDArray[np.int64], vertices: int) -> NDArray[np.int64]:
    """Number of fans of faces around each vertex [vertices]."""
    corner = first_of_each(corner_fans(faces))
    return np.bincount(faces.ravel()[corner], minlength=vertices)
