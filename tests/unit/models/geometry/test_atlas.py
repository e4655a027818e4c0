import numpy as np
import torch
import trimesh

from models.geometry.atlas import bake, unwrap
from models.geometry.mesh import Mesh
from models.raster import make_backend


def icosphere() -> Mesh:
    sphere = trimesh.creation.icosphere(subdivisions=2)
    return Mesh(
        torch.tensor(np.asarray(sphere.vertices), dtype=torch.float32),
        torch.tensor(np.asarray(sphere.faces), dtype=torch.int32),
    )


def test_charts_lie_in_the_unit_square_and_keep_the_order_of_faces():
    mesh = icosphere()
    uvs, uv_faces = unwrap(mesh, 256)
    assert uv_faces.shape == mesh.faces.shape
    assert uvs.min() >= 0
    assert uvs.max() <= 1
    a, b, c = uvs[uv_faces.long()].unbind(1)
    area = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).abs() / 2
    assert (area > 0).all()
    assert 0.3 < area.sum() < 1  # charts do not overlap, and most of the atlas is used


def test_a_baked_texture_looked_up_at_the_corners_gives_the_function_back():
    mesh = icosphere()
    uvs, uv_faces = unwrap(mesh, 256)
    texture = bake(make_backend("warp", "cpu"), mesh, uvs, uv_faces, 256, lambda p: (p + 1) / 2)
    centre = uvs[uv_faces.long()].mean(1)
    row, column = (centre[:, 1] * 256).long(), (centre[:, 0] * 256).long()
    expected = (mesh.vertices[mesh.faces.long()].mean(1) + 1) / 2
    torch.testing.assert_close(texture[row, column], expected, atol=0.02, rtol=0)
    assert (texture > 0).any(-1).all()  # gaps are filled
