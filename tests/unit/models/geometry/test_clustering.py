import torch
import trimesh

from models.geometry.clustering import clustered


def test_a_fine_sphere_becomes_a_coarse_one_of_the_same_shape_and_paint():
    shape = trimesh.creation.icosphere(6)
    points = torch.tensor(shape.vertices, dtype=torch.float32)
    painted = torch.cat([points, points[:, 2:] * 0.5], 1)
    vertices, faces = clustered(painted, torch.tensor(shape.faces, dtype=torch.int32), 24)
    assert faces.dtype == torch.int32
    assert len(faces) < len(shape.faces) / 10
    assert torch.equal(faces.unique(), torch.arange(len(vertices)).int())
    assert (vertices[:, :3].norm(dim=1) - 1).abs().max() < 0.01
    torch.testing.assert_close(vertices[:, 3], 0.5 * vertices[:, 2], atol=1e-5, rtol=0)
    ordered = faces.sort(1).values
    assert len(ordered.unique(dim=0)) == len(faces)
    assert (ordered[:, 1:] > ordered[:, :-1]).all()
    coarse = trimesh.Trimesh(vertices[:, :3].numpy(), faces.numpy(), process=False)
    outward = (coarse.face_normals * coarse.triangles_center).sum(1)
    assert (outward > 0).mean() > 0.99
    assert abs(coarse.volume - shape.volume) < 0.02 * shape.volume


def test_a_mesh_of_one_point_is_nothing():
    vertices, faces = clustered(torch.zeros(3, 3), torch.tensor([[0, 1, 2]], dtype=torch.int32), 10)
    assert len(vertices) == 1
    assert len(faces) == 0
