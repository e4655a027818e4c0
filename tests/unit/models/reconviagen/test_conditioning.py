"""The conditions of both flows in miniature: which tokens they read, and how views enter."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.reconviagen.conditioning import (
    LAYERS,
    SPECIAL_TOKENS,
    LatentCondition,
    LatentConditionConfig,
    StructureCondition,
    StructureConditionConfig,
)

STRUCTURE = StructureConditionConfig(
    channels=32, ctx_channels=24 + 8, num_heads=2, qk_rms_norm=True, num_init_tokens=10
)
LATENT = LatentConditionConfig(channels=8, ctx_channels=24 + 8)
VIEWS, TOKENS = 3, SPECIAL_TOKENS + 4


@pytest.fixture
def features():
    return [torch.randn(VIEWS, TOKENS, 24) for _ in LAYERS], torch.randn(VIEWS, TOKENS, 8)


def built(kind, config):
    network = kind(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.requires_grad_(False)


def test_the_structure_ignores_special_tokens_and_the_order_of_views(features):
    geometry, appearance = features
    network = built(StructureCondition, STRUCTURE)
    found = network(geometry, appearance)
    assert found.shape == (10, 32)
    order = torch.randperm(VIEWS)
    changed = [x[order].clone() for x in (*geometry, appearance)]
    for x in changed:
        x[:, :SPECIAL_TOKENS] = 9.0
    torch.testing.assert_close(network(changed[:-1], changed[-1]), found)


@pytest.mark.parametrize("index", range(len(LAYERS)))
def test_every_layer_of_geometry_matters_to_both_conditions(features, index):
    geometry, appearance = features
    changed = list(geometry)
    changed[index] = changed[index] + 1
    for kind, config in ((StructureCondition, STRUCTURE), (LatentCondition, LATENT)):
        network = built(kind, config)
        assert not torch.allclose(network(changed, appearance), network(geometry, appearance), atol=1e-3)


def test_the_latent_condition_of_a_token_depends_on_that_token_alone(features):
    geometry, appearance = features
    network = built(LatentCondition, LATENT)
    whole = network(geometry, appearance)
    assert whole.shape == (VIEWS, TOKENS, 8)
    one = network([x[1:2, 6:7] for x in geometry], appearance[1:2, 6:7])
    torch.testing.assert_close(whole[1:2, 6:7], one)


def test_geometry_corrects_appearance_layer_after_layer(features):
    geometry, appearance = features
    network = built(LatentCondition, LATENT)
    expected = appearance
    for (linear, _), layer in zip(network.linear_blocks, geometry, strict=True):
        joined = torch.cat([layer, expected], -1)
        expected = appearance + (joined @ linear.weight.T + linear.bias).clamp_min(0)
    torch.testing.assert_close(network(geometry, appearance), expected)


@pytest.mark.parametrize(("kind", "config"), [(StructureCondition, STRUCTURE), (LatentCondition, LATENT)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_half_precision_conditions_are_nearly_the_same(features, kind, config, dtype, tolerance):
    network = built(kind, config)
    expected = network(*features)
    half = network.to_precision(dtype)(*features)
    assert half.dtype == torch.float32
    assert (half - expected).abs().max() < tolerance * expected.abs().max()


def test_the_published_sizes_have_the_published_parameters():
    with torch.device("meta"):
        structure = StructureCondition(
            StructureConditionConfig(1024, 3072, 16, mlp_ratio=4, qk_rms_norm=True, use_fp16=True)
        ).state_dict()
        latent = LatentCondition(LatentConditionConfig(1024, 3072, use_fp16=True)).state_dict()
    assert (len(structure), sum(x.numel() for x in structure.values())) == (73, 88_150_016)
    assert structure["multiview_cond_tokens"].shape == (1, 4096, 1024)
    assert structure["cond_blocks.3.cross_attn.to_kv.weight"].shape == (2048, 3072)
    assert not any("adaLN" in name for name in structure)
    assert {name: tuple(x.shape) for name, x in latent.items()} == {
        name: shape
        for i in range(4)
        for name, shape in (
            (f"linear_blocks.{i}.0.weight", (1024, 3072)),
            (f"linear_blocks.{i}.0.bias", (1024,)),
        )
    }


@pytest.mark.parametrize("change", [{"attn_mode": "windowed"}, {"use_rope": True}, {"qkv_bias": False}])
def test_structure_conditions_that_were_never_published_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(STRUCTURE, **change)
