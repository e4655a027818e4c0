"""Rotary embedding: what it keeps, what it depends on, and its formula written out."""

import math

import pytest
import torch

from models.reconviagen.rotary import grid_rotation, rotate

CPU = torch.device("cpu")


def test_products_depend_on_the_difference_of_places_only():
    rotation = grid_rotation(6, 5, special=2, head_dim=16, device=CPU)
    query, key = torch.randn(2, 1, 16)
    queries = rotate(query.expand(32, 1, 16), rotation)[2:, 0].reshape(6, 5, 16)
    keys = rotate(key.expand(32, 1, 16), rotation)[2:, 0].reshape(6, 5, 16)
    product = torch.einsum("ijd,kld->ijkl", queries, keys)
    torch.testing.assert_close(product[:5, :4, :5, :4], product[1:, 1:, 1:, 1:], atol=1e-5, rtol=1e-5)
    assert (product[0, 0, 0, 0] - product[0, 0, 1, 0]).abs() > 1e-3
    assert (product[0, 0, 1, 0] - product[0, 0, 0, 1]).abs() > 1e-3


def test_lengths_are_kept_and_special_tokens_are_not_turned():
    rotation = grid_rotation(3, 4, special=5, head_dim=8, device=CPU)
    x = torch.randn(2, 17, 3, 8)
    turned = rotate(x, rotation)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :5], x[:, :5])
    assert not torch.isclose(turned[:, 5:], x[:, 5:]).all(-1).any()


def test_first_half_turns_with_the_row_and_second_with_the_column():
    rotation = grid_rotation(2, 3, special=0, head_dim=8, device=CPU)
    x = torch.randn(6, 1, 8)
    turned = rotate(x, rotation)
    for token, (row, column) in enumerate((r, c) for r in (1, 2) for c in (1, 2, 3)):
        for axis, place in enumerate((row, column)):
            for k in range(2):
                angle = place * 100.0 ** (-2 * k / 4)
                a, b = x[token, 0, 4 * axis + k], x[token, 0, 4 * axis + 2 + k]
                expected_a = a * math.cos(angle) - b * math.sin(angle)
                expected_b = b * math.cos(angle) + a * math.sin(angle)
                torch.testing.assert_close(turned[token, 0, 4 * axis + k], expected_a, atol=1e-6, rtol=1e-5)
                torch.testing.assert_close(
                    turned[token, 0, 4 * axis + 2 + k], expected_b, atol=1e-6, rtol=1e-5
                )


def test_heads_that_cannot_be_split_in_four_are_refused():
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        grid_rotation(2, 2, special=0, head_dim=6, device=CPU)
