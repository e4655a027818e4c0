"""Tables of dual marching cubes, derived instead of listed.

A cube's corners and edges are numbered by bits: corner `c` lies at `(c & 1, c >> 1 & 1, c >> 2 & 1)`. The
surface cuts an edge whose corners differ in sign. On each face the cut edges are linked in pairs; following
the links round the cube gives closed loops, and each loop (a *patch*) gets one dual vertex. A face whose
diagonal corners agree can be linked in two ways: `rule 0` cuts off its inside corners, `rule 1` its outside
corners.
Neighbours see the same face, so one rule for all cubes always fits together.

One case remains in which the dual surface is not manifold: two cubes share such a face, and in both of them
all four cut edges belong to one patch. Then both switch to rule 1, which separates them.

References: Nielson, "Dual Marching Cubes", 2004; Wenger, "Isosurfaces", 2013 (the non-manifold case).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

CORNERS = np.array([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)])
"""[8, 3] offsets of a cube's corners."""

EDGES = np.array([[c, c | 1 << axis] for axis in range(3) for c in range(8) if not c >> axis & 1])
"""[12, 2] corners of a cube's edges; edges 4a..4a+3 run along axis a, their first corner is the lower one."""

_FACES = [
    [c for c in range(8) if (c >> axis & 1) == side] for axis in range(3) for side in range(2)
]  # face 2a + s: the corners whose coordinate a is s


class DualTables(NamedTuple):
    """Per rule (2) and case (256 patterns of inside corners; bit c is corner c).

    Attributes:
        patch: [2, 256, 12] int8, the patch that an edge belongs to; -1 where it is not cut.
        count: [2, 256] int8, number of patches, 0 to 4.
        joined_face: [256] int8, the face (2 * axis + side) on which rule 0 joins all four cut edges in one
            patch; -1 where there is none.
    """

    patch: np.ndarray
    count: np.ndarray
    joined_face: np.ndarray


def _face_links(case: int, face: list[int], rule: int) -> list[tuple[int, int]]:
    """Pairs of cut edges of one face that the surface links."""
    cut = [e for e, (a, b) in enumerate(EDGES) if a in face and b in face and (case >> a ^ case >> b) & 1]
    if len(cut) < 4:
        return [(cut[0], cut[1])] if cut else []
    # Ambiguous: link the two edges that meet in a corner of the sign that is cut off.
    corners = [c for c in face if (case >> c & 1) != rule]
    pairs = [[e for e in cut if c in EDGES[e]] for c in corners]
    return [(pair[0], pair[1]) for pair in pairs]


def _patches(case: int, rule: int) -> np.ndarray:
    """Patch of each edge, [12]; patches are numbered by their lowest edge."""
    links = [link for face in _FACES for link in _face_links(case, face, rule)]
    label = list(range(12))
    for _ in range(12):
        for a, b in links:
            label[a] = label[b] = min(label[a], label[b])
    cut = sorted({edge for link in links for edge in link})
    order = sorted({label[edge] for edge in cut})
    return np.array([order.index(label[e]) if e in cut else -1 for e in range(12)], np.int8)


def _joined_face(case: int, patch: np.ndarray) -> int:
    for index, face in enumerate(_FACES):
        edges = [e for e, (a, b) in enumerate(EDGES) if a in face and b in face]
        if (patch[edges] >= 0).all() and len(set(patch[edges])) == 1:
            return index
    return -1


@cache
def dual_tables() -> DualTables:
    """Derive the tables, once: it takes some tens of milliseconds. They are shared: not to be changed."""
    patch = np.array([[_patches(case, rule) for case in range(256)] for rule in range(2)])
    joined = np.array([_joined_face(case, patch[0, case]) for case in range(256)], np.int8)
    return DualTables(patch, (patch.max(axis=2) + 1).astype(np.int8), joined)
