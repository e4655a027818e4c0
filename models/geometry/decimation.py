"""Fewer triangles for the same surface."""

from __future__ import annotations

import logging

import fast_simplification
import numpy as np
from numpy.typing import NDArray

from models.geometry.adjacency import face_pairs
from models.geometry.compaction import compacted
from models.geometry.mesh import Mesh
from models.geometry.topology import Topology, describe, irregular_vertices

LOGGER = logging.getLogger(__name__)

# How steeply the library raises the error that a collapse may make, one pass after the other: gently first,
# for the better surface, and harder where that stops short of the target.
_AGGRESSIVENESS = (3.0, 5.0, 7.0)
_NEAR_TARGET = 1.05
_RESTORING_ROUNDS = 10
_FOLDED_COSINE = -0.8  # neighbouring faces that turn by more than 143 degrees lie on each other


def decimate(mesh: Mesh, target_triangles: int) -> Mesh:
    """Collapse edges until a mesh has no more than about `target_triangles`.

    Collapses may pinch a surface together. There the vertices of the input are brought back, so that a closed
    and manifold mesh stays one of the same genus, at the price of a few triangles more than asked for. Where
    even that fails, the mesh stays as it is, and the log says so.

    Args:
        mesh: A mesh, best cleaned before.
        target_triangles: At least 4. A mesh with no more triangles than this comes back as it is.

    Returns:
        The mesh on the same device, without unused vertices. The same input gives the same bits.

    Raises:
        ValueError: `target_triangles` is below 4.

    Reference: Garland and Heckbert, Surface Simplification Using Quadric Error Metrics, 1997.
    """
    if target_triangles < 4:
        raise ValueError(f"no closed surface has fewer than 4 triangles; got a target of {target_triangles}")
    if len(mesh.faces) <= target_triangles:
        return mesh
    vertices = mesh.vertices.detach().cpu().double().numpy()
    faces = mesh.faces.cpu().long().numpy()
    before = describe(faces)
    best: tuple[NDArray[np.float64], NDArray[np.int64]] | None = None
    for aggressiveness in _AGGRESSIVENESS:
        points, triangles = _simplify(vertices, faces, target_triangles, aggressiveness)
        after = describe(triangles)
        if not _kept(before, after):
            LOGGER.info("decimation at %g would make %s of %s", aggressiveness, after, before)
        elif best is None or len(triangles) < len(best[1]):
            best = points, triangles
        if best is not None and len(best[1]) <= _NEAR_TARGET * target_triangles:
            break
    if best is None:
        LOGGER.warning("the mesh keeps its %d triangles: decimation would break its surface", len(faces))
        return mesh
    return compacted(*best, mesh)


def _kept(before: Topology, after: Topology) -> bool:
    """Whether a surface is what it was, as far as it was anything."""
    return (
        after.components == before.components
        and before.genus in (None, after.genus)  # an open surface has none; collapses may close its holes
        and after.closed >= before.closed
        and after.manifold >= before.manifold
    )


def _simplify(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], target: int, aggressiveness: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Collapse edges by the library, then undo collapses where they broke the surface."""
    low, high = vertices.min(0), vertices.max(0)
    scale = float((high - low).max()) or 1.0  # the library's errors are absolute
    unit = (vertices - low) / scale
    points, _, collapses = fast_simplification.simplify(
        unit, faces.astype(np.int32), target_count=target, agg=aggressiveness, return_collapses=True
    )
    _, _, group = fast_simplification.replay_simplification(unit, faces.astype(np.int32), collapses)
    points, triangles = _restore(unit, faces, np.asarray(points, np.float64), group.astype(np.int64))
    return points * scale + low, triangles


def _restore(
    vertices: NDArray[np.float64],
    faces: NDArray[np.int64],
    points: NDArray[np.float64],
    group: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Bring back the vertices that were collapsed into irregular or folded places.

    A decimated mesh is its input with vertices taken together in groups; taking a group apart again undoes
    those collapses and no others.

    Args:
        vertices, faces: The input, [N, 3] and [F, 3].
        points: [G, 3] where each group of vertices came to lie.
        group: [N] the group of each vertex; -1 where nothing was left of its surroundings.
    """
    apart = group < 0
    for _ in range(_RESTORING_ROUNDS):
        members = np.flatnonzero(apart)
        group = group.copy()
        group[members] = len(points) + np.arange(len(members))
        points = np.concatenate([points, vertices[members]])
        triangles = _grouped(faces, group)
        bad = irregular_vertices(triangles, len(points)) | _folded_vertices(points, triangles)
        apart = (bad & (np.bincount(group, minlength=len(points)) > 1))[group]
        if not apart.any():
            break
    return points, triangles


def _grouped(faces: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """The faces between groups, less those that have fallen flat."""
    a, b, c = group[faces].T
    grouped: NDArray[np.int64] = np.stack([a, b, c], 1)[(a != b) & (b != c) & (c != a)]
    return grouped


def _folded_vertices(points: NDArray[np.float64], triangles: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Vertices [len(points)] of edges where the surface folds back on itself, and of faces without area."""
    a, b, c = points[triangles].transpose(1, 0, 2)
    normals = np.cross(b - a, c - a)
    length = np.linalg.norm(normals, axis=1)
    normals /= length[:, None].clip(1e-300)
    pairs = face_pairs(triangles)
    folded = (normals[pairs.first] * normals[pairs.second]).sum(1) < _FOLDED_COSINE
    found = np.zeros(len(points), bool)
    found[pairs.edges[folded]] = True
    found[triangles[length < 1e-14]] = True  # of a surface one unit large
    return found
