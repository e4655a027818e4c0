import logging
import time

import numpy as np
import pytest
import torch
import trimesh

from models.geometry.cleaning import clean
from models.geometry.mesh import Mesh
from models.geometry.topology import describe

FAR = torch.tensor([[5.0, 0, 0], [-5, 0, 0], [0, 5, 1]])


def sphere(radius: float = 1.0, at: float = 0.0, subdivisions: int = 2) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions, radius).apply_translation([at, 0, 0])


def turned_inside_out(shape: trimesh.Trimesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(shape.vertices, shape.faces[:, ::-1], process=False)


def mesh(*shapes: trimesh.Trimesh) -> Mesh:
    whole = trimesh.util.concatenate(shapes)
    return from_arrays(whole.vertices, whole.faces)


def from_arrays(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    return Mesh(
        torch.tensor(np.asarray(vertices), dtype=torch.float32),
        torch.tensor(np.asarray(faces), dtype=torch.int32),
    )


def bowl() -> trimesh.Trimesh:
    """A sphere without its cap."""
    ball = sphere(subdivisions=4)
    return trimesh.Trimesh(ball.vertices, ball.faces[ball.triangles_center[:, 2] < 0.5], process=False)


def kept_faces(result: Mesh) -> int:
    return len(result.faces)


def test_a_clean_surface_stays_as_it_is() -> None:
    torus = mesh(trimesh.creation.torus(1.0, 0.4))
    result = clean(torus, FAR)
    assert torch.equal(result.vertices, torus.vertices)
    assert torch.equal(result.faces, torus.faces)


def test_floaters_go_and_parts_of_the_object_stay() -> None:
    object_ = mesh(sphere(), sphere(0.3, at=3), sphere(0.05, at=-3))
    result = clean(object_, FAR)
    assert describe(result.faces.long().numpy()).components == 2
    assert result.vertices[:, 0].min() > -1.1
    assert len(torch.unique(result.faces)) == len(result.vertices)


@pytest.mark.parametrize("void", [True, False], ids=["a void", "an island"])
def test_surfaces_that_nobody_can_see_go(void: bool) -> None:
    inner = sphere(0.5)
    result = clean(mesh(sphere(), turned_inside_out(inner) if void else inner, sphere(0.2)), FAR)
    assert kept_faces(result) == len(sphere().faces)
    torch.testing.assert_close(result.vertices.norm(dim=1), torch.ones(len(result.vertices)))


def test_what_is_inside_stays_if_a_camera_is_there_too() -> None:
    room = mesh(turned_inside_out(sphere(2.0)), sphere(0.5))
    assert kept_faces(clean(room, torch.tensor([[1.0, 0, 0]]))) == len(room.faces)
    assert kept_faces(clean(room, FAR)) == len(room.faces) // 2


def test_what_is_inside_an_open_shell_stays() -> None:
    assert describe(clean(mesh(bowl(), sphere(0.2)), FAR).faces.long().numpy()).components == 2


def test_a_shape_in_the_box_but_not_inside_stays() -> None:
    ring = trimesh.creation.torus(1.0, 0.2)
    assert describe(clean(mesh(ring, sphere(0.3)), FAR).faces.long().numpy()).components == 2


def test_faces_without_area_doubles_and_unused_vertices_go() -> None:
    ball = sphere()
    extra = [ball.faces[3], np.roll(ball.faces[7], 1), [5, 5, 9], [2, 9, 9]]
    back_to_back = [[162, 163, 164], [164, 163, 162]]
    vertices = np.concatenate([ball.vertices, [[3.0, 0, 0], [3, 1, 0], [3, 0, 1], [9, 9, 9]]])
    result = clean(from_arrays(vertices, np.concatenate([ball.faces, extra, back_to_back])), FAR)
    np.testing.assert_array_equal(result.faces, ball.faces)
    np.testing.assert_allclose(result.vertices, ball.vertices, atol=1e-7)


def test_solids_that_touch_in_a_vertex_or_an_edge_are_cut_apart(caplog: pytest.LogCaptureFixture) -> None:
    cube = trimesh.creation.box()
    beside = cube.copy().apply_translation([1, 1, 0])  # shares an edge
    above = cube.copy().apply_translation([-1, -1, -1])  # shares a vertex
    whole = trimesh.util.concatenate([cube, beside, above])
    whole.merge_vertices()
    touching = describe(np.asarray(whole.faces, np.int64))
    assert touching.crowded_edges == 1
    assert touching.pinched_vertices > 0
    with caplog.at_level(logging.WARNING):
        result = describe(clean(from_arrays(whole.vertices, whole.faces), FAR).faces.long().numpy())
    assert result.manifold
    assert result.closed
    assert (result.components, result.genus) == (3, 0)
    assert "split where the surface touches itself" in caplog.text


def test_small_holes_are_closed_and_large_ones_stay_open() -> None:
    ball = sphere(subdivisions=4)
    pricked = np.delete(ball.faces, [11, 500, 501, 2000], axis=0)
    closed = clean(from_arrays(ball.vertices, pricked), FAR)
    topology = describe(closed.faces.long().numpy())
    assert topology.closed
    assert topology.manifold
    assert topology.genus == 0
    assert topology.twisted_edges == 0
    assert trimesh.Trimesh(closed.vertices, closed.faces).volume == pytest.approx(ball.volume, rel=1e-3)
    assert not describe(clean(mesh(bowl()), FAR).faces.long().numpy()).closed


def test_eighty_thousand_triangles_take_a_fraction_of_a_second() -> None:
    large = mesh(sphere(subdivisions=6), turned_inside_out(sphere(0.4, subdivisions=3)))
    start = time.process_time()
    result = clean(large, FAR)
    assert time.process_time() - start < 3  # about 0.4 s on one core; room for a loaded machine
    assert kept_faces(result) == 81920


def test_of_generated_surfaces_wide_holes_are_closed_too() -> None:
    shape = sphere(subdivisions=5)
    open_ = shape.triangles_center[:, 2] < 0.7
    whole = mesh(trimesh.Trimesh(shape.vertices, shape.faces[open_], process=False))
    assert not describe(clean(whole, FAR).faces.long().numpy()).closed
    assert describe(clean(whole, FAR, largest_hole=250).faces.long().numpy()).genus == 0
