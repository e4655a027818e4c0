"""The paint of what no view sees."""

import torch
import trimesh

from models.geometry.mesh import Mesh
from models.raster import make_backend
from models.texturing.unseen import continued, seen_vertices


def sphere():
    shape = trimesh.creation.icosphere(3)
    return Mesh(
        torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(shape.faces, dtype=torch.int32)
    )


def test_a_view_from_above_sees_the_upper_half():
    mesh = sphere()
    # Looks down -z without perspective: clip x, y are x, y; nearer is higher.
    matrix = torch.diag(torch.tensor([0.8, 0.8, -0.5, 1.0]))[None]
    seen = seen_vertices(make_backend("warp", "cpu"), mesh, matrix, (256, 256))
    height = mesh.vertices[:, 2]
    assert seen[height > 0.2].all()
    assert not seen[height < -0.2].any()


def test_unknown_values_are_the_mean_of_their_neighbours():
    mesh = sphere()
    known = mesh.vertices[:, 2] > -0.3
    values = mesh.vertices * 0.3 + 0.5
    found = continued(mesh, values, known)
    torch.testing.assert_close(found[known], values[known])
    edges = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False).vertex_neighbors
    for vertex in torch.nonzero(~known)[:, 0].tolist():
        torch.testing.assert_close(found[vertex], found[edges[vertex]].mean(0), atol=1e-5, rtol=0)


def test_an_even_paint_stays_even_and_an_unseen_part_keeps_its_own():
    one = sphere()
    two = Mesh(
        torch.cat([one.vertices, one.vertices + 5]), torch.cat([one.faces, one.faces + len(one.vertices)])
    )
    known = torch.zeros(len(two.vertices), dtype=torch.bool)
    known[:100] = True
    values = torch.full((len(two.vertices), 3), 0.25)
    values[100 : len(one.vertices)] = 0.9
    values[len(one.vertices) :] = 0.7
    found = continued(two, values, known)
    torch.testing.assert_close(found[: len(one.vertices)], torch.full((len(one.vertices), 3), 0.25))
    torch.testing.assert_close(found[len(one.vertices) :], values[len(one.vertices) :])
