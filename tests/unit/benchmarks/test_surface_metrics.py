import math

import numpy as np
import pytest
import trimesh

from benchmarks.reconstruction.surface_metrics import SurfaceSamples, compare_surfaces, sample_surface

COUNT = 20_000


def sphere(radius, seed):
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    return sample_surface(np.asarray(mesh.vertices), np.asarray(mesh.faces), seed=seed, count=COUNT)


def square(seed, *, tilt=0.0, at=0.0, flipped=False, count=COUNT):
    """A unit square in the plane x, y, tilted about the x axis."""
    c, s = math.cos(tilt), math.sin(tilt)
    vertices = np.array([[at, 0, 0], [at + 1, 0, 0], [at + 1, c, s], [at, c, s]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    return sample_surface(vertices, faces[:, ::-1] if flipped else faces, seed=seed, count=count)


def test_samplings_of_equal_surfaces_score_the_floor_of_random_points():
    metrics = compare_surfaces(sphere(1.0, 1), sphere(1.0, 2))
    floor = 0.5 * math.sqrt(4 * math.pi / COUNT)  # mean distance to the nearest of random points in a plane
    assert metrics["accuracy"] == pytest.approx(floor, rel=0.03)
    assert metrics["completeness"] == pytest.approx(floor, rel=0.03)
    assert metrics["normal_consistency"] > 0.999
    assert metrics["f_score"] > 0.8


def test_concentric_spheres_are_their_difference_apart():
    metrics = compare_surfaces(sphere(1.0, 1), sphere(1.3, 2))
    assert metrics["accuracy"] == pytest.approx(0.3, rel=0.01)
    assert metrics["completeness"] == pytest.approx(0.3, rel=0.01)
    assert metrics["chamfer"] == (metrics["accuracy"] + metrics["completeness"]) / 2
    assert metrics["f_score"] == 0
    assert metrics["normal_consistency"] > 0.999


@pytest.mark.parametrize("flipped", [False, True])
def test_normal_consistency_is_the_cosine_whichever_way_faces_point(flipped):
    tilt = math.radians(25)
    metrics = compare_surfaces(square(1, tilt=tilt, flipped=flipped), square(2))
    assert metrics["normal_consistency"] == pytest.approx(math.cos(tilt), abs=1e-9)


def test_f_score_joins_precision_and_recall():
    half = square(1, count=50_000)
    near, far = square(2, count=50_000), square(3, at=5.0, count=50_000)
    truth = SurfaceSamples(
        np.concatenate([near.points, far.points]), np.concatenate([near.normals, far.normals])
    )
    metrics = compare_surfaces(half, truth)
    assert metrics["f_score"] == pytest.approx(2 / 3, abs=0.01)  # precision 1, recall 1/2
    assert metrics["accuracy"] < 0.01 < metrics["completeness"]


def test_points_are_uniform_by_area():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [10, 0, 0], [13, 0, 0], [10, 1, 0]], float)
    samples = sample_surface(vertices, np.array([[0, 1, 2], [3, 4, 5]]), seed=0, count=COUNT)
    assert (samples.points[:, 0] > 5).mean() == pytest.approx(0.75, abs=0.01)
    assert samples.points.shape == samples.normals.shape == (COUNT, 3)
