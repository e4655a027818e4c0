import numpy as np
import torch
import trimesh

from models.geometry.mesh import Mesh
from models.geometry.visibility import seen_faces, without_hidden
from models.raster import make_backend

RASTER = make_backend("warp", "cpu")


def mesh(*shapes):
    whole = trimesh.util.concatenate(shapes)
    return Mesh(
        torch.tensor(np.asarray(whole.vertices), dtype=torch.float32),
        torch.tensor(np.asarray(whole.faces), dtype=torch.int32),
    )


def sphere(radius, at=0.0):
    return trimesh.creation.icosphere(4, radius).apply_translation([at, 0, 0])


def opened(shape):
    """With a hole of about ten degrees, so that the shell is not closed."""
    hole = shape.triangles_center[:, 2] > 0.985
    return trimesh.Trimesh(shape.vertices, shape.faces[~hole], process=False)


def test_an_inner_shell_goes_though_the_outer_one_has_a_hole():
    outer = opened(sphere(1.0))
    outer.remove_unreferenced_vertices()
    outside = mesh(outer, sphere(0.3, at=1.6))
    result = without_hidden(RASTER, mesh(outer, sphere(0.5), sphere(0.3, at=1.6)))
    assert torch.equal(result.faces, outside.faces)
    torch.testing.assert_close(result.vertices, outside.vertices)


def test_what_is_seen_stays_as_it_is():
    whole = mesh(sphere(1.0), sphere(0.2, at=1.5))
    result = without_hidden(RASTER, whole)
    assert torch.equal(result.vertices, whole.vertices)
    assert torch.equal(result.faces, whole.faces)
    single = mesh(sphere(1.0))
    assert without_hidden(RASTER, single) is single


def test_a_view_sees_the_faces_turned_to_it():
    whole = mesh(sphere(1.0))
    matrix = torch.diag(torch.tensor([0.8, 0.8, -0.5, 1.0]))[None]  # looks down -z
    seen = seen_faces(RASTER, whole, matrix, (256, 256))
    height = whole.vertices[whole.faces.long()][..., 2].mean(1)
    assert seen[height > 0.2].all()
    assert not seen[height < -0.05].any()
