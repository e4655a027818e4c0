import numpy as np
import pytest
import trimesh
from flattened import claims

from models.geometry.charts import Charts, cut_charts


def bumpy_sphere(roughness: float, *, subdivisions: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """A sphere with bumps; roughness is the noise of single vertices, in lengths of an edge."""
    shape = trimesh.creation.icosphere(subdivisions)
    x = np.asarray(shape.vertices)
    radius = 1 + 0.2 * np.sin(4 * x[:, 0]) * np.cos(5 * x[:, 1] + x[:, 2])
    noise = np.random.default_rng(3).normal(size=x.shape) * roughness * shape.edges_unique_length.mean()
    return x * radius[:, None] + noise, np.asarray(shape.faces, np.int64)


def helix() -> tuple[np.ndarray, np.ndarray]:
    """A ramp that climbs three times round: seen from above, three layers."""
    turn = np.linspace(0, 6 * np.pi, 300)
    rows = [np.stack([r * np.cos(turn), r * np.sin(turn), 0.1 * turn], 1) for r in np.linspace(1, 2, 8)]
    first = (np.arange(299)[:, None] * 8 + np.arange(7)).reshape(-1, 1)
    faces = np.concatenate([first + np.array([0, 1, 9]), first + np.array([0, 9, 8])])
    return np.stack(rows, 1).reshape(-1, 3), faces


def most_claimed(charts: Charts) -> int:
    """The largest number of faces of one chart over one point."""
    most = 0
    for chart in range(charts.chart.max() + 1):
        corners = charts.corners[charts.chart == chart]
        low, high = charts.points[corners].min((0, 1)), charts.points[corners].max((0, 1))
        count, _ = claims((charts.points - low) / (high - low).max(), corners, 128)
        most = max(most, int(count.max()))
    return most


@pytest.mark.parametrize("roughness", [0.0, 0.15, 0.6])
def test_no_chart_covers_a_point_twice_however_rough_the_surface(roughness: float) -> None:
    charts = cut_charts(*bumpy_sphere(roughness, subdivisions=3))
    assert most_claimed(charts) == 1


def test_layers_of_a_helix_come_apart() -> None:
    vertices, faces = helix()
    charts = cut_charts(vertices, faces)
    assert most_claimed(charts) == 1
    assert 3 <= charts.chart.max() + 1 < 20


def test_faces_keep_order_winding_and_size() -> None:
    vertices, faces = bumpy_sphere(0.0)
    charts = cut_charts(vertices, faces)
    assert charts.corners.shape == faces.shape
    a, b, c = charts.points[charts.corners].transpose(1, 2, 0)
    flat = ((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])) / 2
    p, q, r = vertices[faces].transpose(1, 0, 2)
    area = np.linalg.norm(np.cross(q - p, r - p), axis=1) / 2
    assert (flat > 0.1 * area).all()
    assert (flat < 1.01 * area).all()


def piece_edges(faces: np.ndarray) -> np.ndarray:
    return faces[:, [0, 1, 1, 2]].reshape(-1, 2)


def test_charts_are_connected_and_few_on_a_smooth_surface() -> None:
    vertices, faces = bumpy_sphere(0.0)
    charts = cut_charts(vertices, faces)
    assert charts.chart.max() + 1 <= 40
    for chart in range(charts.chart.max() + 1):
        assert len(trimesh.graph.connected_components(piece_edges(faces[charts.chart == chart]))) == 1


def test_each_point_belongs_to_one_vertex_and_one_chart() -> None:
    vertices, faces = bumpy_sphere(0.15)
    charts = cut_charts(vertices, faces)
    users = np.stack([charts.corners.ravel(), faces.ravel(), np.repeat(charts.chart, 3)], 1)
    assert len(np.unique(users, axis=0)) == len(charts.points)


def test_the_same_mesh_gives_the_same_charts() -> None:
    surface = bumpy_sphere(0.15)
    one, two = cut_charts(*surface), cut_charts(*surface)
    np.testing.assert_array_equal(one.points, two.points)
    np.testing.assert_array_equal(one.chart, two.chart)


def test_broken_meshes_get_charts_all_the_same() -> None:
    vertices, faces = bumpy_sphere(0.0, subdivisions=2)
    flat = vertices.copy()
    flat[faces[0]] = flat[faces[0, 0]]  # a face without area
    pasted = np.concatenate([faces, faces[:20], faces[40:60, ::-1], [[0, 0, 1]]])  # edges of four faces
    soup = np.random.default_rng(0).normal(size=(300, 3))
    for mesh in (
        (flat, faces),
        (vertices, pasted),
        (soup, np.arange(300).reshape(-1, 3)),
        (soup, [[0, 1, 2]]),
    ):
        charts = cut_charts(mesh[0], np.asarray(mesh[1]))
        assert charts.corners.shape == np.shape(mesh[1])
        assert np.isfinite(charts.points).all()
