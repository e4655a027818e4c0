import torch

from models.geometry.rigs import cameras_around, spread_directions
from models.geometry.rotation import rotation_matrix
from models.geometry.similarity import Similarity, fit_similarity


def test_a_known_similarity_is_found():
    points = torch.randn(50, 3, dtype=torch.float64)
    rotation = rotation_matrix(torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64))
    shift = torch.tensor([1.0, -4.0, 2.0], dtype=torch.float64)
    found = fit_similarity(points, 2.5 * points @ rotation.T + shift)
    for part, true in zip(found, (torch.tensor(2.5).double(), rotation, shift), strict=True):
        assert torch.allclose(part, true, atol=1e-10)


def test_a_mirror_image_is_not_answered_by_a_reflection():
    points = torch.randn(50, 3, dtype=torch.float64)
    _, rotation, _ = fit_similarity(points, points * torch.tensor([1.0, 1.0, -1.0]))
    assert torch.linalg.det(rotation) > 0.99


def a_similarity():
    rotation = rotation_matrix(torch.tensor([0.3, -2.0, 1.0]))
    return Similarity(torch.tensor(2.5), rotation, torch.tensor([1.0, -4.0, 2.0]))


def test_the_inverse_and_the_matrix_agree_with_the_map():
    similarity, points = a_similarity(), torch.randn(20, 3)
    torch.testing.assert_close(similarity.inverse().points(similarity.points(points)), points)
    matrix = similarity.matrix()
    torch.testing.assert_close(points @ matrix[:3, :3].T + matrix[:3, 3], similarity.points(points))
    assert torch.equal(Similarity.identity().points(points), points)


def test_mapped_cameras_see_the_mapped_world_as_before():
    similarity, points = a_similarity(), torch.randn(20, 3)
    cameras = cameras_around(spread_directions(5), torch.zeros(3), 2.0, size=64)
    pixel, depth = cameras.project(points)
    found, scaled = similarity.cameras(cameras).project(similarity.points(points))
    torch.testing.assert_close(found, pixel, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(scaled, 2.5 * depth)
