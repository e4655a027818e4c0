import numpy as np
import torch
import trimesh

from models.geometry.mesh import Mesh, unique_edges, vertex_normals


def as_mesh(source: trimesh.Trimesh) -> Mesh:
    return Mesh(
        torch.tensor(np.asarray(source.vertices), dtype=torch.float32),
        torch.tensor(np.asarray(source.faces), dtype=torch.int32),
    )


def test_vertex_normals_agree_with_a_loop_over_faces():
    mesh = as_mesh(trimesh.creation.icosphere(subdivisions=1))
    expected = np.zeros(mesh.vertices.shape)
    points = mesh.vertices.double().numpy()
    for face in mesh.faces.numpy():
        a, b, c = points[face]
        for corner in face:
            expected[corner] += np.cross(b - a, c - a)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vertex_normals(mesh.vertices, mesh.faces), expected, atol=1e-6)


def test_unique_edges_agree_with_a_set():
    faces = torch.randint(0, 30, (60, 3), dtype=torch.int32)
    faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])]
    expected = {tuple(sorted((int(f[i]), int(f[(i + 1) % 3])))) for f in faces for i in range(3)}
    found = [tuple(edge) for edge in unique_edges(faces).tolist()]
    assert len(found) == len(set(found))
    assert set(found) == expected
