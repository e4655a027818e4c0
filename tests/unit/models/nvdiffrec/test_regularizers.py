import math

import pytest
import torch

from models.nvdiffrec.losses import depth_loss, psnr
from models.nvdiffrec.regularizers import crease_loss, laplacian_loss, sign_loss, total_variation


def test_laplacian_agrees_with_a_loop_over_neighbours():
    vertices = torch.randn(6, 3)
    edges = torch.tensor([[0, 1], [0, 2], [1, 2], [2, 3], [3, 4]])  # vertex 5 has no neighbour
    expected = 0.0
    for v in range(6):
        near = [b if a == v else a for a, b in edges.tolist() if v in (a, b)]
        if near:
            expected += float((vertices[near].mean(0) - vertices[v]).square().sum())
    assert float(laplacian_loss(vertices, edges)) == pytest.approx(expected / 6, rel=1e-5)


def test_sign_loss_counts_only_cut_edges():
    sdf = torch.tensor([1.0, 2.0, -0.5, -1.0]).reshape(1, 1, 4)  # only the edge in the middle is cut
    expected = -math.log(1 - 1 / (1 + math.exp(-2.0))) - math.log(1 / (1 + math.exp(0.5)))
    assert float(sign_loss(sdf)) == pytest.approx(expected, rel=1e-5)
    assert float(sign_loss(sdf.abs())) == 0


def test_sign_loss_sees_the_edges_of_all_three_axes():
    sdf = torch.ones(3, 3, 3)
    sdf[1, 1, 1] = -1.0  # six cut edges
    assert float(sign_loss(sdf)) == pytest.approx(2 * math.log(1 + math.e), rel=1e-5)
    for axis in range(3):
        assert float(sign_loss(torch.ones(2, 2, 2).index_fill(axis, torch.tensor([0]), -1.0))) > 0


def test_sign_loss_pulls_both_ends_together():
    sdf = torch.tensor([0.3, -0.2], requires_grad=True)
    sign_loss(sdf.reshape(2, 1, 1)).backward()
    assert sdf.grad[0] > 0  # descent lowers the positive end
    assert sdf.grad[1] < 0


def test_crease_loss_is_the_bend_between_neighbours():
    normals = torch.tensor([[0.0, 0, 1], [0, 0, 1], [1, 0, 0]])
    assert float(crease_loss(normals, torch.tensor([[0, 1], [1, 2]]))) == pytest.approx(0.5)


def test_depth_loss_ignores_what_is_too_far_or_not_weighted():
    depth = torch.tensor([1.0, 1.0, 1.0, 1.0], requires_grad=True)
    target = torch.tensor([1.05, 3.0, 0.98, 1.05])
    loss = depth_loss(depth, target, torch.tensor([1.0, 1.0, 1.0, 0.0]), cutoff=0.1)
    assert float(loss.detach()) == pytest.approx((0.05 + 0.02) / 4, rel=1e-4)
    loss.backward()
    assert (depth.grad != 0).tolist() == [True, False, True, False]


def test_total_variation_of_a_ramp_is_its_slope():
    ramp = torch.arange(5.0)[None, :, None].expand(4, 5, 3) * 0.1
    assert float(total_variation(ramp)) == pytest.approx(0.1)


def test_psnr_is_capped():
    assert psnr(0.01) == pytest.approx(20)
    assert psnr(0.0) == pytest.approx(100)
