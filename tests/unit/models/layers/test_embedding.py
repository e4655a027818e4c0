"""Embeddings of time and place, against loops."""

import math

import torch
from torch import nn

from models.layers.embedding import TimestepEmbedder, absolute_position_embedding


def test_positions_are_sines_and_cosines_axis_after_axis():
    coords = torch.tensor([[0, 1, 2], [63, 5, 17]], dtype=torch.int32)
    found = absolute_position_embedding(coords, 32)  # five rates an axis, two channels of nothing
    assert found.shape == (2, 32)
    for row, coord in zip(found, coords.tolist(), strict=True):
        expected = []
        for place in coord:
            rates = [10000 ** (-k / 5) for k in range(5)]
            expected += [math.sin(place * r) for r in rates] + [math.cos(place * r) for r in rates]
        torch.testing.assert_close(row, torch.tensor([*expected, 0.0, 0.0]), atol=1e-5, rtol=0)


def test_time_is_cosines_and_then_sines_before_the_network():
    embedder = TimestepEmbedder(6, frequencies=6)
    for layer in (embedder.mlp[0], embedder.mlp[2]):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    t = 371.5
    waves = torch.tensor([f(t * 10000 ** (-k / 3)) for f in (math.cos, math.sin) for k in range(3)])
    torch.testing.assert_close(embedder(t), nn.functional.silu(waves), atol=1e-4, rtol=0)
