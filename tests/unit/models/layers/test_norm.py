"""Norms in any precision, and which parameters half precision leaves alone."""

import pytest
import torch
from torch import nn

from models.layers.norm import ChannelLayerNorm32, LayerNorm32, MultiHeadRMSNorm
from models.layers.precision import MixedPrecision


def randomised(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_normalised_in_float32(dtype, affine):
    norm = randomised(LayerNorm32(64, elementwise_affine=affine, eps=1e-6))
    # Their squares are beyond float16, and sums in half precision would lose what tells them apart.
    x = (5000 + 300 * torch.randn(7, 64)).to(dtype)
    found = norm(x)
    assert found.dtype == dtype
    expected = norm(x.float())
    # Only the result and the parameters may have been rounded.
    rounding = 2 * torch.finfo(dtype).eps * expected.abs().max()
    assert (found.float() - expected).abs().max() < rounding


def test_modulation_scales_and_shifts_the_normalised_features():
    norm, x = LayerNorm32(8, elementwise_affine=False, eps=1e-6), torch.randn(2, 5, 8)
    shift, scale = torch.randn(2, 8)
    torch.testing.assert_close(norm.modulated(x, shift, scale), norm(x) * (1 + scale) + shift)


def test_a_volume_is_normalised_voxel_by_voxel():
    norm, volume = randomised(ChannelLayerNorm32(6)), torch.randn(1, 6, 2, 3, 4)
    found = norm(volume)
    for x, y, z in torch.cartesian_prod(*map(torch.arange, (2, 3, 4))).tolist():
        torch.testing.assert_close(
            found[0, :, x, y, z], nn.LayerNorm.forward(norm, volume[0, :, x, y, z].clone())
        )


def test_each_head_has_the_length_of_its_factors():
    norm, x = MultiHeadRMSNorm(16, 3), 7 * torch.randn(5, 3, 16)
    torch.testing.assert_close(norm(x).norm(dim=-1), torch.full((5, 3), 4.0))
    randomised(norm)
    expected = x / x.square().mean(-1, keepdim=True).sqrt() * norm.gamma
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_vectors_of_any_length_are_normalised_in_any_precision(dtype):
    norm = MultiHeadRMSNorm(64, 1)
    direction = torch.randn(64)
    for length in (1e-3, 1.0, 3e3):
        x = (direction * length).to(dtype)[None, None]
        expected = direction / direction.square().mean().sqrt()
        torch.testing.assert_close(norm(x)[0, 0].float(), expected, atol=0.02, rtol=0.02)
    assert not norm(torch.zeros(1, 1, 64, dtype=dtype)).any()


class Network(MixedPrecision):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), LayerNorm32(4), MultiHeadRMSNorm(4, 1), nn.Conv3d(4, 4, 1))

    def torso(self):
        return (self.body,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_only_what_multiplies_matrices_in_the_torso_becomes_half(dtype):
    network = Network().to_precision(dtype)
    assert network.dtype == dtype
    half = {name for name, parameter in network.named_parameters() if parameter.dtype == dtype}
    assert half == {"body.0.weight", "body.0.bias", "body.3.weight", "body.3.bias"}
    assert {p.dtype for p in network.to_precision(torch.float32).parameters()} == {torch.float32}
