"""Which faces of a mesh touch, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True)
class FacePairs:
    """Pairs of faces that share an edge.

    Attributes:
        first, second: [P] int64, the two faces.
        edges: [P, 2] int64, the two vertices of the shared edge, the smaller first.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    edges: NDArray[np.int64]


def face_pairs(faces: NDArray[np.int64]) -> FacePairs:
    """The faces across each edge of a mesh [F, 3]; at an edge of m faces the m - 1 pairs of a chain."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    key = edge_keys(edges, int(faces.max(initial=0)) + 1)
    order = np.argsort(key, kind="stable")
    at = np.flatnonzero(key[order[1:]] == key[order[:-1]])
    face = np.tile(np.arange(len(faces)), 3)
    return FacePairs(face[order[at]], face[order[at + 1]], edges[order[at]])


def edge_keys(edges: NDArray[np.int64], vertices: int) -> NDArray[np.int64]:
    """One number for each edge [E, 2]: comparing numbers is far faster than comparing rows."""
    keys: NDArray[np.int64] = edges[:, 0] * vertices + edges[:, 1]
    return keys


def first_of_each(label: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the first thing with each label, for labels that are 0 to some number without gaps.

    Unlike `np.unique` it sorts nothing.
    """
    first = np.empty(int(label.max(initial=-1)) + 1, np.int64)
    first[label[::-1]] = np.arange(len(label) - 1, -1, -1)
    return first


def components(first: NDArray[np.int64], second: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Label [count] of the connected component of each of `count` things, joined in pairs.

    Labels are 0 to the number of components less one.
    """
    graph = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(count, count))
    label: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return label
