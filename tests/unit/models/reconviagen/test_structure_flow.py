"""The structure's flow in miniature: guidance rows, bound conditions, precision, published names."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.reconviagen.structure_flow import StructureFlow, StructureFlowConfig

MINIATURE = StructureFlowConfig(
    resolution=4,
    in_channels=8,
    model_channels=32,
    cond_channels=24,
    out_channels=8,
    num_blocks=2,
    num_heads=2,
    qk_rms_norm=True,
)
PUBLISHED = StructureFlowConfig(
    resolution=16,
    in_channels=8,
    model_channels=1024,
    cond_channels=1024,
    out_channels=8,
    num_blocks=24,
    num_heads=16,
    mlp_ratio=4,
    patch_size=1,
    pe_mode="ape",
    qk_rms_norm=True,
    use_fp16=True,
)


@pytest.fixture
def flow():
    network = StructureFlow(MINIATURE)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)
    return network.requires_grad_(False)


@pytest.fixture
def latent():
    return torch.randn(8, 4, 4, 4)


@pytest.mark.parametrize("t", [1.0, 0.3])
def test_the_row_without_a_condition_is_that_of_a_condition_of_zeros(flow, latent, t):
    tokens = torch.randn(50, 24)
    conditional, unconditional = flow.bind(tokens)(latent, t, unconditional=True)
    zeros, nothing = flow.bind(torch.zeros_like(tokens))(latent, t, unconditional=False)
    assert nothing is None
    assert conditional.shape == unconditional.shape == latent.shape
    torch.testing.assert_close(unconditional, zeros)
    assert not torch.allclose(conditional, unconditional, rtol=0.1)


def test_a_condition_is_bound_for_all_times(flow, latent):
    tokens = torch.randn(50, 24)
    bound = flow.bind(tokens)
    for t in (0.9, 0.5, 0.9):
        found, _ = bound(latent, t, unconditional=False)
        fresh, _ = flow.bind(tokens)(latent, t, unconditional=False)
        torch.testing.assert_close(found, fresh, atol=0, rtol=0)
        both, _ = bound(latent, t, unconditional=True)
        torch.testing.assert_close(found, both)


def test_tokens_of_a_condition_have_no_order(flow, latent):
    tokens = torch.randn(50, 24)
    one, _ = flow.bind(tokens)(latent, 0.5, unconditional=False)
    other, _ = flow.bind(tokens[torch.randperm(50)])(latent, 0.5, unconditional=False)
    torch.testing.assert_close(one, other)


def test_voxels_know_where_they_are(flow):
    constant = torch.ones(8, 4, 4, 4)
    found, _ = flow.bind(torch.randn(50, 24))(constant, 0.5, unconditional=False)
    voxels = found.flatten(1).T
    assert torch.pdist(voxels).min() > 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_a_half_precision_torso_takes_and_gives_float32(flow, latent, dtype, tolerance):
    tokens = torch.randn(50, 24)
    expected = flow.bind(tokens)(latent, 0.4, unconditional=True)
    flow.to_precision(dtype)
    assert flow.input_layer.weight.dtype == flow.blocks[0].norm2.weight.dtype == torch.float32
    assert flow.blocks[0].mlp.mlp[0].weight.dtype == dtype
    for half, full in zip(flow.bind(tokens)(latent, 0.4, unconditional=True), expected, strict=True):
        assert half.dtype == torch.float32
        assert (half - full).abs().max() < tolerance * full.abs().max()


def test_the_published_size_has_the_published_parameters():
    with torch.device("meta"):
        state = StructureFlow(PUBLISHED).to_precision(torch.float16).state_dict()
    assert len(state) == 489
    assert sum(x.numel() for x in state.values()) == 555_543_560 + 16**3 * 1024
    shapes = {name: tuple(x.shape) for name, x in state.items() if name.startswith("blocks.23.")}
    assert {name.removeprefix("blocks.23."): shape for name, shape in shapes.items()} == {
        "norm2.weight": (1024,),
        "norm2.bias": (1024,),
        "self_attn.to_qkv.weight": (3072, 1024),
        "self_attn.to_qkv.bias": (3072,),
        "self_attn.q_rms_norm.gamma": (16, 64),
        "self_attn.k_rms_norm.gamma": (16, 64),
        "self_attn.to_out.weight": (1024, 1024),
        "self_attn.to_out.bias": (1024,),
        "cross_attn.to_q.weight": (1024, 1024),
        "cross_attn.to_q.bias": (1024,),
        "cross_attn.to_kv.weight": (2048, 1024),
        "cross_attn.to_kv.bias": (2048,),
        "cross_attn.to_out.weight": (1024, 1024),
        "cross_attn.to_out.bias": (1024,),
        "mlp.mlp.0.weight": (4096, 1024),
        "mlp.mlp.0.bias": (4096,),
        "mlp.mlp.2.weight": (1024, 4096),
        "mlp.mlp.2.bias": (1024,),
        "adaLN_modulation.1.weight": (6144, 1024),
        "adaLN_modulation.1.bias": (6144,),
    }


@pytest.mark.parametrize("change", [{"patch_size": 2}, {"pe_mode": "rope"}, {"share_mod": True}])
def test_variants_that_were_never_published_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(MINIATURE, **change)
