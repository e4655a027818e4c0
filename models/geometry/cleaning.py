"""Tidy an extracted surface."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.geometry.adjacency import components, edge_keys, first_of_each
from models.geometry.compaction import compacted
from models.geometry.mesh import Mesh
from models.geometry.topology import corner_fans

LOGGER = logging.getLogger(__name__)

_SMALLEST_SHARE = 0.02  # of the largest component's area
_WITNESSES = 32  # vertices of a component that are asked whether they are inside another


def clean(mesh: Mesh, eyes: Tensor, *, largest_hole: int = 24) -> Mesh:
    """Make an extracted surface one that a user wants.

    In this order: degenerate and doubled faces go; a vertex or edge where sheets touch is cut apart;
    components too small to be part of the object go; components that no camera can see, because they are
    inside a closed one, go; small holes are closed; unused vertices go.

    Args:
        mesh: Any triangle mesh with at least one proper face.
        eyes: [V, 3] positions of the cameras.
        largest_hole: Edges round a hole that is closed. In what was measured a wider hole is where nothing
            was seen, and a lid over it would be made up; what was generated is made up anyway.

    Returns:
        A mesh on the same device whose edges have two faces at most and whose vertices one fan of faces.
    """
    faces = _distinct_faces(mesh.faces.cpu().long().numpy())
    surface = _cut_apart(_Surface(mesh.vertices.detach().cpu().double().numpy(), faces))
    surface = _without_floaters(surface)
    surface = _without_inner(surface, eyes.detach().cpu().double().numpy())
    whole = _closed(surface, largest_hole)
    return compacted(whole.vertices, whole.faces, mesh)


@dataclass(frozen=True)
class _Surface:
    """Vertices [N, 3] and faces [F, 3] on the CPU."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]

    def component_of_faces(self) -> NDArray[np.int64]:
        """Label [F]: faces hang together by vertices."""
        start, end = self.faces[:, :2].ravel(), self.faces[:, 1:].ravel()
        label = components(start, end, len(self.vertices))[self.faces[:, 0]]
        rank: NDArray[np.int64] = np.cumsum(np.bincount(label) > 0) - 1
        return rank[label]

    def kept(self, keep: NDArray[np.bool_]) -> _Surface:
        """The same without some of its faces [F]."""
        return _Surface(self.vertices, self.faces[keep])


def _distinct_faces(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Faces of three vertices, each once; of faces that lie back to back none, for they enclose nothing."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    ordered = np.sort(faces, axis=1)
    count = int(faces.max(initial=0)) + 1
    pair = np.unique(edge_keys(ordered[:, :2], count), return_inverse=True)[1]
    triple = edge_keys(np.stack([pair, ordered[:, 2]], 1), count)
    _, first, group = np.unique(triple, return_index=True, return_inverse=True)
    low = faces.argmin(1)[:, None]
    even = np.take_along_axis(faces, (low + 1) % 3, 1) < np.take_along_axis(faces, (low + 2) % 3, 1)
    turns = [np.bincount(group, even[:, 0] == side) > 0 for side in (True, False)]
    keep = np.zeros(len(faces), bool)
    keep[first] = True
    return faces[keep & ~(turns[0] & turns[1])[group]]


def _cut_apart(surface: _Surface) -> _Surface:
    """Give each fan of faces around a vertex a vertex of its own; fans end at crowded edges."""
    fan = corner_fans(surface.faces, regular_only=True)
    owner = surface.faces.ravel()[first_of_each(fan)]
    before = int(np.count_nonzero(np.bincount(surface.faces.ravel())))
    if len(owner) == before:
        return surface
    LOGGER.warning("%d vertices were split where the surface touches itself", len(owner) - before)
    return _Surface(surface.vertices[owner], fan.reshape(-1, 3))


def _without_floaters(surface: _Surface) -> _Surface:
    """Drop components whose area is a small share of the largest one's."""
    a, b, c = surface.vertices[surface.faces].transpose(1, 0, 2)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    component = surface.component_of_faces()
    total = np.bincount(component, area)
    return surface.kept((total >= _SMALLEST_SHARE * total.max())[component])


def _without_inner(surface: _Surface, eyes: NDArray[np.float64]) -> _Surface:
    """Drop components inside a closed one, unless a camera is in there with them."""
    component = surface.component_of_faces()
    count = int(component.max()) + 1
    if count == 1:
        return surface
    parts = [surface.faces[component == i] for i in range(count)]
    witnesses = [surface.vertices[_spread(np.unique(part))] for part in parts]
    hidden = np.zeros(count, bool)
    for outer, part in enumerate(parts):
        corners = surface.vertices[part]
        low, high = corners.min((0, 1)), corners.max((0, 1))
        boxed = [i for i, x in enumerate(witnesses) if i != outer and (x > low).all() and (x < high).all()]
        if not boxed or not _is_closed(part) or _inside(corners, eyes).any():
            continue
        for inner in boxed:
            hidden[inner] |= bool(_inside(corners, witnesses[inner]).all())
    return surface.kept(~hidden[component])


def _spread(vertices: NDArray[np.int64]) -> NDArray[np.int64]:
    return vertices[np.linspace(0, len(vertices) - 1, min(_WITNESSES, len(vertices))).astype(np.int64)]


def _is_closed(faces: NDArray[np.int64]) -> bool:
    return len(_boundary(faces)) == 0


def _boundary(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Edges of one face, [B, 2], in the direction in which a face beyond them would run through them."""
    edges = faces[:, [1, 0, 2, 1, 0, 2]].reshape(-1, 2)
    key = edge_keys(np.sort(edges, axis=1), int(faces.max(initial=0)) + 1)
    _, inverse, uses = np.unique(key, return_inverse=True, return_counts=True)
    boundary: NDArray[np.int64] = edges[uses[inverse] == 1]
    return boundary


def _inside(corners: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points [K, 3] are inside a closed surface [F, 3, 3]: by the crossings of a ray to one side."""
    # A direction that no mesh is aligned with, so that the ray meets no edge.
    tilt = np.linalg.qr(np.array([[0.61, 0.33, 0.72], [-0.29, 0.89, -0.16], [0.47, 0.21, 0.56]]))[0]
    corners, points = corners @ tilt, points @ tilt
    plane, height = corners[..., :2], corners[..., 2]
    found = np.zeros(len(points), bool)
    boxed = ((points > corners.min((0, 1))) & (points < corners.max((0, 1)))).all(1)
    for index in np.flatnonzero(boxed):
        offset = plane - points[index, :2]
        x, y = offset[..., 0], offset[..., 1]
        side = x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)  # [F, 3], of the edges 01, 12, 20
        hit = (side > 0).all(1) | (side < 0).all(1)
        weight = side[hit][:, [1, 2, 0]]  # opposite corners 0, 1, 2
        level = (weight * height[hit]).sum(1) / weight.sum(1)
        found[index] = np.sign(weight[level > points[index, 2]].sum(1)).sum() != 0
    return found


def _closed(surface: _Surface, largest_hole: int) -> _Surface:
    """Close small holes, each by a fan about the middle of its rim."""
    rim = _boundary(surface.faces)
    if not len(rim):
        return surface
    loop = np.unique(components(rim[:, 0], rim[:, 1], len(surface.vertices))[rim[:, 0]], return_inverse=True)[
        1
    ]
    edges = np.bincount(loop)
    small = (edges >= 3) & (edges <= largest_hole)
    lid = np.cumsum(small) - 1  # the number of a small hole's new vertex
    middle = np.stack([np.bincount(loop, axis) for axis in surface.vertices[rim[:, 0]].T], 1) / edges[:, None]
    filled = small[loop]
    tip = len(surface.vertices) + lid[loop[filled]]
    fans = np.concatenate([rim[filled], tip[:, None]], 1)
    LOGGER.info("%d of %d holes were closed", small.sum(), len(edges))
    return _Surface(np.concatenate([surface.vertices, middle[small]]), np.concatenate([surface.faces, fans]))
