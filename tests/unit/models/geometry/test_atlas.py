import numpy as np
import pytest
import torch
import trimesh
from flattened import claims, stretches
from scipy.ndimage import distance_transform_edt

from models.geometry.adjacency import components
from models.geometry.atlas import bake, unwrap
from models.geometry.mesh import Mesh
from models.raster import make_backend


def icosphere() -> Mesh:
    return as_mesh(trimesh.creation.icosphere(subdivisions=2))


def bumpy_torus() -> Mesh:
    shape = trimesh.creation.torus(1.0, 0.4, major_sections=64, minor_sections=32)
    x = np.asarray(shape.vertices)
    shape.vertices = x * (1 + 0.05 * np.sin(7 * x[:, :1]) * np.cos(6 * x[:, 1:2]))
    return as_mesh(shape)


def as_mesh(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(
        torch.tensor(np.asarray(shape.vertices), dtype=torch.float32),
        torch.tensor(np.asarray(shape.faces), dtype=torch.int32),
    )


def chart_of_faces(uv_faces: np.ndarray, uvs: int) -> np.ndarray:
    """The chart of each face [F], charts being what hangs together in the texture."""
    return components(uv_faces[:, :2].ravel(), uv_faces[:, 1:].ravel(), uvs)[uv_faces[:, 0]]


def test_charts_lie_in_the_unit_square_and_keep_the_order_of_faces():
    mesh = icosphere()
    uvs, uv_faces = unwrap(mesh, 256)
    assert uv_faces.shape == mesh.faces.shape
    assert uv_faces.dtype == torch.int32
    assert uvs.min() >= 0
    assert uvs.max() <= 1
    a, b, c = uvs[uv_faces.long()].unbind(1)
    area = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).abs() / 2
    assert (area > 0).all()
    assert 0.3 < area.sum() < 1  # charts do not overlap, and most of the atlas is used


@pytest.mark.parametrize("mesh", [icosphere(), bumpy_torus()], ids=["sphere", "torus"])
def test_every_texel_has_one_face_at_most_and_every_face_its_texels(mesh: Mesh):
    uvs, uv_faces = (x.numpy() for x in unwrap(mesh, 512))
    count, owner = claims(uvs, uv_faces, 512)
    assert count.max() == 1
    assert len(np.unique(owner)) - 1 > 0.99 * len(uv_faces)  # less a few slivers between texel centres
    assert (owner >= 0).mean() > 0.4


@pytest.mark.parametrize("resolution", [256, 1024, 2048])
def test_charts_keep_their_distance(resolution: int):
    uvs, uv_faces = (x.numpy() for x in unwrap(icosphere(), resolution))
    _, owner = claims(uvs, uv_faces, resolution)
    chart = np.where(owner >= 0, chart_of_faces(uv_faces, len(uvs))[owner], -1)
    for one in np.unique(chart[chart >= 0])[:6]:
        distance = distance_transform_edt(chart != one)
        assert distance[(chart >= 0) & (chart != one)].min() >= 2.5


def test_stretch_is_bounded():
    mesh = bumpy_torus()
    uvs, uv_faces = unwrap(mesh, 1024)
    values = stretches(mesh.vertices.numpy(), mesh.faces.numpy(), uvs.numpy(), uv_faces.numpy())
    area, angle = values.prod(1), values[:, 0] / values[:, 1]
    assert np.quantile(area, 0.01) > 0.4
    assert area.max() < 1.5
    assert np.quantile(angle, 0.99) < 2.5
    assert angle.mean() < 1.25


def test_the_same_mesh_gives_the_same_atlas_wherever_it_stands():
    mesh = bumpy_torus()
    uvs, uv_faces = unwrap(mesh, 512)
    again = unwrap(mesh, 512)
    assert torch.equal(uvs, again[0])
    assert torch.equal(uv_faces, again[1])
    # Sixteen is exact in float32, so that the shape is the same to the bit.
    far = Mesh((mesh.vertices * 2**-3).round(decimals=4) + 16, mesh.faces)
    near = Mesh(far.vertices - 16, mesh.faces)
    values = [
        stretches(m.vertices.numpy(), m.faces.numpy(), *(x.numpy() for x in unwrap(m, 512)))
        for m in (far, near)
    ]
    assert abs(values[0].mean() - values[1].mean()) < 0.02


def test_a_baked_texture_looked_up_at_the_corners_gives_the_function_back():
    mesh = icosphere()
    uvs, uv_faces = unwrap(mesh, 256)
    texture = bake(
        make_backend("warp", "cpu"), mesh.vertices, mesh.faces, uvs, uv_faces, 256, lambda p: (p + 1) / 2
    )
    centre = uvs[uv_faces.long()].mean(1)
    row, column = (centre[:, 1] * 256).long(), (centre[:, 0] * 256).long()
    expected = (mesh.vertices[mesh.faces.long()].mean(1) + 1) / 2
    torch.testing.assert_close(texture[row, column], expected, atol=0.02, rtol=0)
    assert (texture > 0).any(-1).all()  # gaps are filled


def test_gaps_near_a_chart_take_the_colour_of_its_nearest_texel():
    mesh = bumpy_torus()
    uvs, uv_faces = unwrap(mesh, 256)
    filled = bake(
        make_backend("warp", "cpu"), mesh.vertices, mesh.faces, uvs, uv_faces, 256, lambda p: p
    ).numpy()
    _, owner = claims(uvs.numpy(), uv_faces.numpy(), 256)
    distance, (row, column) = distance_transform_edt(owner < 0, return_indices=True)
    near = (distance > 1.5) & (
        distance < 3
    )  # texels at 1 may hold a centre on an edge, which the tests leave out
    gap, nearest = filled[near], filled[row[near], column[near]]
    assert near.sum() > 1000
    assert (np.abs(gap - nearest).max(1) < 1e-6).mean() > 0.9
    assert np.abs(gap - nearest).max() < 0.15  # two equally near texels of one chart, and no other chart's
