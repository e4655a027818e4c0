import torch

from models.geometry.rotation import cross_matrix, rigid_about, rotation_between, rotation_matrix


def test_rotations_are_the_exponential_of_the_cross_product():
    for size in (0.0, 1e-6, 5e-3, 0.02, 1.0, 3.0):
        vector = size * torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=1)
        assert torch.allclose(
            rotation_matrix(vector), torch.linalg.matrix_exp(cross_matrix(vector)), atol=1e-12
        )


def test_the_derivative_holds_at_zero_and_across_the_series():
    for size in (0.0, 0.009, 0.011, 1.0):
        vector = (size * torch.tensor([[0.6, 0.0, -0.8]], dtype=torch.float64)).requires_grad_()
        assert torch.autograd.gradcheck(rotation_matrix, vector)


def test_a_motion_turns_about_its_centre():
    center = torch.tensor([1.0, 2.0, 3.0])
    vector, shift = torch.tensor([[0.0, 0.0, torch.pi / 2]]), torch.tensor([[0.0, 0.5, 0.0]])
    motion = rigid_about(vector, shift, center)[0]
    moved = motion @ torch.tensor([2.0, 2.0, 3.0, 1.0])  # one unit along x from the centre
    assert torch.allclose(moved, torch.tensor([1.0, 3.5, 3.0, 1.0]), atol=1e-6)


def test_the_rotation_between_two_directions_is_the_smallest():
    start, end = torch.nn.functional.normalize(torch.randn(2, 30, 3, dtype=torch.float64), dim=-1)
    found = rotation_between(start, end)
    torch.testing.assert_close((found @ start[..., None])[..., 0], end)
    torch.testing.assert_close(found @ found.mT, torch.eye(3, dtype=torch.float64).expand(30, 3, 3))
    trace = found.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close((trace - 1) / 2, (start * end).sum(1))
