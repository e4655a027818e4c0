"""The dense head in miniature."""

import pytest
import torch
from random_weights import randomize
from torch import nn
from torch.nn import functional

from models.reconviagen.dense_head import (
    DenseHead,
    DenseHeadConfig,
    FusionBlock,
    ResidualUnit,
    with_positions,
)

MINIATURE = DenseHeadConfig(features=16, out_channels=(8, 12, 16, 16), last_channels=8)


@pytest.fixture
def head():
    return randomize(DenseHead(MINIATURE, 24, outputs=4))


def layers(views: int, patches: int) -> list[torch.Tensor]:
    return [torch.randn(views, patches, 24) for _ in range(4)]


def test_views_computed_together_or_apart_give_the_same_maps(head):
    tokens = layers(5, 12)
    together = head(tokens, (3, 4), (42, 56), at_once=5)
    apart = head(tokens, (3, 4), (42, 56), at_once=2)
    assert together.shape == (5, 42, 56, 4)
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-4)


def test_all_four_layers_reach_the_result(head):
    tokens = layers(1, 16)
    before = head(tokens, (4, 4), (56, 56))
    for index in range(4):
        changed = [layer + (i == index) * torch.randn_like(layer) for i, layer in enumerate(tokens)]
        assert (head(changed, (4, 4), (56, 56)) - before).abs().mean() > 1e-3


def test_a_patch_changes_the_map_most_where_it_lies(head):
    tokens = layers(1, 8 * 8)
    before = head(tokens, (8, 8), (112, 112))
    for layer in tokens:
        layer[:, 8 * 1 + 6] += torch.randn(24) * 3  # row 1, column 6
    change = (head(tokens, (8, 8), (112, 112)) - before).square().sum(-1)[0]
    change = functional.avg_pool2d(change[None], 14)[0]
    assert divmod(int(change.argmax()), 8) == (1, 6)


def test_positions_are_sinusoids_of_cells_over_a_diagonal_of_two():
    x = torch.zeros(1, 8, 3, 5)
    found = with_positions(x, 5 / 3)[0]
    diagonal = (5**2 + 3**2) ** 0.5
    for row in range(3):
        for column in range(5):
            place = {0: (2 * column - 4) / diagonal, 1: (2 * row - 2) / diagonal}
            for axis in (0, 1):
                for k in range(2):
                    angle = torch.tensor(place[axis] * 100.0 ** (-k / 2), dtype=torch.float64)
                    sine, cosine = found[4 * axis + k, row, column], found[4 * axis + 2 + k, row, column]
                    torch.testing.assert_close(sine.double(), 0.1 * angle.sin(), atol=1e-7, rtol=0)
                    torch.testing.assert_close(cosine.double(), 0.1 * angle.cos(), atol=1e-7, rtol=0)


def test_convolving_before_enlarging_is_the_published_order_up_to_rounding():
    block = randomize(FusionBlock(16))
    coarse, fine = torch.randn(2, 2, 16, 6, 6)
    merged = block.resConfUnit2(coarse + block.resConfUnit1(fine))
    published = block.out_conv(functional.interpolate(merged, (11, 12), mode="bilinear", align_corners=True))
    torch.testing.assert_close(block(coarse, fine, (11, 12)), published, atol=1e-5, rtol=1e-5)


def test_the_residual_unit_adds_to_the_rectified_input():
    unit = ResidualUnit(4)
    for convolution in (unit.conv1, unit.conv2):
        nn.init.zeros_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(unit(x), x.relu())
