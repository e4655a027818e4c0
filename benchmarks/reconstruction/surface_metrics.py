"""How alike two surfaces are, measured between points drawn from both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial import cKDTree

SAMPLES = 100_000
"""Points drawn from each surface, uniformly by area."""

F_SCORE_DISTANCE = 0.02
"""Points nearer than this to the other surface count as right, world units."""

Points = NDArray[np.float64]


@dataclass(frozen=True)
class SurfaceSamples:
    """Points drawn from a surface.

    Attributes:
        points: [K, 3], world units.
        normals: [K, 3], unit length: those of the faces that the points lie on.
    """

    points: Points
    normals: Points

    @cached_property
    def tree(self) -> cKDTree:
        """Finds the nearest of the points."""
        return cKDTree(self.points)


def sample_surface(
    vertices: Points, faces: NDArray[np.integer], *, seed: int, count: int = SAMPLES
) -> SurfaceSamples:
    """Draw points from a triangle mesh, uniformly by area.

    Args:
        vertices: [N, 3].
        faces: [F, 3].
        seed: Two surfaces that are compared take different seeds: equal meshes would else measure 0, and not
            the floor that the number of points sets.
        count: How many points.
    """
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    points, face = trimesh.sample.sample_surface(mesh, count, seed=seed)
    return SurfaceSamples(np.asarray(points, np.float64), np.asarray(mesh.face_normals[face], np.float64))


def compare_surfaces(made: SurfaceSamples, truth: SurfaceSamples) -> dict[str, float]:
    """Distances and agreement of normals between nearest points.

    Returns:
        accuracy: Mean distance of the made surface's points from the truth, world units.
        completeness: Mean distance of the truth's points from the made surface.
        chamfer: The mean of the two.
        f_score: Harmonic mean of the shares of points nearer than `F_SCORE_DISTANCE`, both directions
            (Knapitsch et al., Tanks and Temples, 2017).
        normal_consistency: Mean absolute cosine between the normals of nearest points, mean of both
            directions (Mescheder et al., Occupancy Networks, 2019).
    """
    to_truth, nearest_truth = truth.tree.query(made.points, workers=-1)
    to_made, nearest_made = made.tree.query(truth.points, workers=-1)
    precision = float((to_truth < F_SCORE_DISTANCE).mean())
    recall = float((to_made < F_SCORE_DISTANCE).mean())
    cosines = (
        np.abs((made.normals * truth.normals[nearest_truth]).sum(1)).mean(),
        np.abs((truth.normals * made.normals[nearest_made]).sum(1)).mean(),
    )
    return {
        "accuracy": float(to_truth.mean()),
        "completeness": float(to_made.mean()),
        "chamfer": float(to_truth.mean() + to_made.mean()) / 2,
        "f_score": 2 * precision * recall / max(precision + recall, 1e-9),
        "normal_consistency": float(np.mean(cosines)),
    }
