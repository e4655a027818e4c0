import torch

from models.geometry.rotation import rotation_matrix
from models.geometry.similarity import fit_similarity


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
