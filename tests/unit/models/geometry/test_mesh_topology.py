import numpy as np
import pytest
import trimesh

from models.geometry.topology import describe, irregular_vertices

TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])


def faces_of(shape: trimesh.Trimesh) -> np.ndarray:
    return np.asarray(shape.faces, np.int64)


@pytest.mark.parametrize(
    ("shape", "genus"), [(trimesh.creation.icosphere(2), 0), (trimesh.creation.torus(1.0, 0.3), 1)]
)
def test_closed_surfaces_have_their_genus(shape: trimesh.Trimesh, genus: int) -> None:
    topology = describe(faces_of(shape))
    assert topology.closed
    assert topology.manifold
    assert topology.components == 1
    assert topology.genus == genus
    assert topology.euler == shape.euler_number


def test_genus_adds_up_over_components() -> None:
    torus = faces_of(trimesh.creation.torus(1.0, 0.3))
    topology = describe(np.concatenate([torus, torus + torus.max() + 1, TETRAHEDRON + 2 * torus.max() + 2]))
    assert (topology.components, topology.genus) == (3, 2)


def test_a_hole_leaves_a_manifold_that_is_not_closed() -> None:
    topology = describe(faces_of(trimesh.creation.icosphere(2))[1:])
    assert topology.boundary_edges == 3
    assert topology.manifold
    assert not topology.closed
    assert topology.genus is None


def test_two_tetrahedra_that_share_a_vertex_are_pinched_there() -> None:
    other = np.where(TETRAHEDRON == 0, 0, TETRAHEDRON + 3)
    faces = np.concatenate([TETRAHEDRON, other])
    topology = describe(faces)
    assert topology.pinched_vertices == 1
    assert topology.closed
    assert not topology.manifold
    assert np.flatnonzero(irregular_vertices(faces, 7)).tolist() == [0]


def test_two_tetrahedra_that_share_an_edge_crowd_it() -> None:
    other = np.where(TETRAHEDRON <= 1, TETRAHEDRON, TETRAHEDRON + 2)
    faces = np.concatenate([TETRAHEDRON, other])
    topology = describe(faces)
    assert (topology.crowded_edges, topology.twisted_edges) == (1, 2)
    assert not topology.closed
    assert not topology.manifold
    assert np.flatnonzero(irregular_vertices(faces, 6)).tolist() == [0, 1]


def test_a_face_turned_over_twists_its_edges() -> None:
    faces = TETRAHEDRON.copy()
    faces[0] = faces[0, ::-1]
    topology = describe(faces)
    assert topology.twisted_edges == 3
    assert topology.closed
    assert topology.genus is None


def test_no_faces_are_no_surface() -> None:
    topology = describe(np.empty((0, 3), np.int64))
    assert (topology.components, topology.euler, topology.closed) == (0, 0, True)
