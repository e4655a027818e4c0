import math

import numpy as np
import pytest
import torch
import trimesh
import xatlas
from torch import Tensor

from models.geometry.mesh import vertex_normals
from models.geometry.tangents import vertex_tangents


def torus() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A torus with xatlas' charts, and its smooth normals."""
    shape = trimesh.creation.torus(1.0, 0.4, major_sections=24, minor_sections=16)
    _, uv_faces, uvs = xatlas.parametrize(shape.vertices.astype(np.float32), shape.faces.astype(np.uint32))
    vertices = torch.tensor(np.asarray(shape.vertices), dtype=torch.float32)
    faces = torch.tensor(np.asarray(shape.faces), dtype=torch.int32)
    return (
        vertices,
        faces,
        torch.tensor(uvs),
        torch.tensor(uv_faces.astype(np.int32)),
        vertex_normals(vertices, faces),
    )


def naive_tangents(
    vertices: Tensor, faces: Tensor, uvs: Tensor, uv_faces: Tensor, normals: Tensor
) -> np.ndarray:
    """One face and one corner at a time."""
    p, t, n = vertices.double().numpy(), uvs.double().numpy(), normals.double().numpy()
    total, turn = np.zeros((len(t), 4)), np.zeros(len(t))
    for face, slot in zip(faces.numpy(), uv_faces.numpy(), strict=True):
        jacobian = np.stack([t[slot[1]] - t[slot[0]], t[slot[2]] - t[slot[0]]])  # rows: edges in (u, v)
        edges = np.stack([p[face[1]] - p[face[0]], p[face[2]] - p[face[0]]])
        along_u = np.linalg.solve(jacobian, edges)[0]  # dP/du
        for corner in range(3):
            normal = n[face[corner]]

            def flat(x: np.ndarray, normal: np.ndarray = normal) -> np.ndarray:
                x = x - (x @ normal) * normal
                return x / np.linalg.norm(x)

            a = flat(p[face[(corner + 1) % 3]] - p[face[corner]])
            b = flat(p[face[(corner + 2) % 3]] - p[face[corner]])
            angle = math.acos(np.clip(a @ b, -1, 1))
            total[slot[corner], :3] += angle * flat(along_u)
            turn[slot[corner]] -= angle * np.sign(np.linalg.det(jacobian))
    total[:, :3] /= np.linalg.norm(total[:, :3], axis=1, keepdims=True)
    total[:, 3] = np.where(turn < 0, -1, 1)
    return total


def test_tangents_equal_a_naive_loop() -> None:
    surface = torus()
    np.testing.assert_allclose(vertex_tangents(*surface).numpy(), naive_tangents(*surface), atol=2e-5)


def test_tangents_are_unit_vectors_across_the_normals() -> None:
    vertices, faces, uvs, uv_faces, normals = torus()
    tangents = vertex_tangents(vertices, faces, uvs, uv_faces, normals)
    torch.testing.assert_close(tangents[:, :3].norm(dim=1), torch.ones(len(uvs)))
    corner_normals = normals[faces.long()]
    dot = (tangents[uv_faces.long()][..., :3] * corner_normals).sum(-1)
    assert dot.abs().max() < 1e-5
    assert set(tangents[:, 3].unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("mirrored", [False, True])
def test_u_grows_along_the_tangent_and_v_falls_along_the_bitangent(mirrored: bool) -> None:
    """A square that faces +z, its texture upright: u to the right (+x), v from its top row (+y) downwards."""
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    u = 1 - vertices[:, 0] if mirrored else vertices[:, 0]
    normals = torch.tensor([0.0, 0, 1]).expand(4, 3)
    tangents = vertex_tangents(vertices, faces, torch.stack([u, 1 - vertices[:, 1]], 1), faces, normals)
    right = -1.0 if mirrored else 1.0
    torch.testing.assert_close(tangents, torch.tensor([right, 0, 0, right]).expand(4, 4))
    bitangent = torch.cross(normals, tangents[:, :3], dim=1) * tangents[:, 3:]
    torch.testing.assert_close(bitangent, torch.tensor([0.0, 1, 0]).expand(4, 3))


@pytest.mark.parametrize("scale", [1e-8, 1e6])
def test_scale_does_not_matter(scale: float) -> None:
    vertices, faces, uvs, uv_faces, normals = torus()
    plain = vertex_tangents(vertices, faces, uvs, uv_faces, normals)
    scaled = vertex_tangents(vertices * scale, faces, uvs, uv_faces, normals)
    torch.testing.assert_close(scaled, plain, atol=1e-4, rtol=0)


def test_faces_without_area_in_the_texture_still_get_a_perpendicular() -> None:
    vertices, faces, uvs, uv_faces, normals = torus()
    tangents = vertex_tangents(vertices, faces, torch.zeros_like(uvs), uv_faces, normals)
    torch.testing.assert_close(tangents[:, :3].norm(dim=1), torch.ones(len(uvs)))
    assert ((tangents[uv_faces.long()][..., :3] * normals[faces.long()]).sum(-1)).abs().max() < 1e-5


def test_gradients_are_those_of_finite_differences() -> None:
    vertices, faces, uvs, uv_faces, _ = (x.double() if x.is_floating_point() else x for x in torus())
    keep = uv_faces[:6]
    used, small_uv = torch.unique(keep.long(), return_inverse=True)
    points, small = torch.unique(faces[:6].long(), return_inverse=True)
    chosen = vertices[points].requires_grad_()

    def directions(vertices: Tensor) -> Tensor:
        normals = vertex_normals(vertices, small)
        return vertex_tangents(vertices, small, uvs[used], small_uv, normals)[:, :3]

    assert torch.autograd.gradcheck(directions, (chosen,))
