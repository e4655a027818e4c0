"""The latent's flow in miniature, against what it says in other words."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from random_weights import randomize

from models.reconviagen.latent_flow import LatentFlow, LatentFlowConfig
from models.sparse.grid import SparseGrid

MINIATURE = LatentFlowConfig(
    resolution=16,
    in_channels=8,
    out_channels=8,
    model_channels=32,
    cond_channels=24,
    num_blocks=2,
    num_heads=2,
    io_block_channels=[16],
    qk_rms_norm=True,
)
PUBLISHED = LatentFlowConfig(
    resolution=64,
    in_channels=8,
    out_channels=8,
    model_channels=1024,
    cond_channels=1024,
    num_blocks=24,
    num_heads=16,
    mlp_ratio=4,
    patch_size=2,
    num_io_res_blocks=2,
    io_block_channels=[128],
    pe_mode="ape",
    qk_rms_norm=True,
    use_fp16=True,
)


@pytest.fixture
def grid():
    return SparseGrid(torch.nonzero(torch.rand(16, 16, 16) < 0.05), 16)


def test_the_row_without_a_condition_is_that_of_a_condition_of_zeros(grid):
    flow = randomize(LatentFlow(MINIATURE))
    latent, tokens = torch.randn(len(grid), 8), torch.randn(3, 20, 24)
    conditional, unconditional = flow.bind(tokens, grid)(latent, 0.6, unconditional=True)
    zeros, nothing = flow.bind(torch.zeros(1, 20, 24), grid)(latent, 0.6, unconditional=False)
    assert nothing is None
    assert conditional.shape == latent.shape
    torch.testing.assert_close(unconditional, zeros)
    assert not torch.allclose(conditional, unconditional, rtol=0.1)


def test_views_are_averaged_hence_their_order_and_repetition_do_not_matter(grid):
    flow = randomize(LatentFlow(MINIATURE))
    latent, tokens = torch.randn(len(grid), 8), torch.randn(2, 20, 24)
    one, _ = flow.bind(tokens, grid)(latent, 0.6, unconditional=False)
    other, _ = flow.bind(tokens[[1, 0, 1, 0]], grid)(latent, 0.6, unconditional=False)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_the_order_of_voxels_does_not_matter(grid):
    flow = randomize(LatentFlow(MINIATURE))
    latent, tokens = torch.randn(len(grid), 8), torch.randn(2, 20, 24)
    order = torch.randperm(len(grid))
    shuffled = SparseGrid(grid.coords[order], 16)
    one, _ = flow.bind(tokens, grid)(latent, 0.6, unconditional=False)
    other, _ = flow.bind(tokens, shuffled)(latent[order], 0.6, unconditional=False)
    torch.testing.assert_close(one[order], other, atol=1e-5, rtol=1e-5)


def test_unpacking_treats_voxels_before_unpooling_with_the_same_result(grid):
    flow = randomize(LatentFlow(MINIATURE))
    block, coarse = flow.out_blocks[0], grid.coarsened()
    x, embedding = torch.randn(2, len(coarse.grid), 64), torch.randn(32)
    plain = coarse.unpool(x)
    h = block.conv1(F.silu(block.norm1(plain)), grid)
    scale, shift = block.emb_layers(embedding).chunk(2)
    h = block.conv2(F.silu(block.norm2(h) * (1 + scale) + shift), grid)
    torch.testing.assert_close(
        block(x, embedding, grid), h + block.skip_connection(plain), atol=1e-4, rtol=1e-4
    )


def test_two_levels_of_packing_come_back_to_the_grid(grid):
    config = replace(MINIATURE, patch_size=4, io_block_channels=[12, 20], num_io_res_blocks=3)
    flow = randomize(LatentFlow(config))
    velocity, _ = flow.bind(torch.randn(1, 5, 24), grid)(torch.randn(len(grid), 8), 0.5, unconditional=False)
    assert velocity.shape == (len(grid), 8)
    assert torch.isfinite(velocity).all()


def test_gradients_reach_the_latent(grid):
    flow = randomize(LatentFlow(MINIATURE))
    latent = torch.randn(len(grid), 8, requires_grad=True)
    velocity, _ = flow.bind(torch.randn(1, 5, 24), grid)(latent, 0.5, unconditional=False)
    (gradient,) = torch.autograd.grad(velocity.square().sum(), latent)
    assert gradient.abs().sum(1).min() > 0


def test_half_precision_is_near_and_leaves_the_ends_alone(grid):
    flow = randomize(LatentFlow(MINIATURE))
    latent, tokens = torch.randn(len(grid), 8), torch.randn(2, 20, 24)
    full, _ = flow.bind(tokens, grid)(latent, 0.6, unconditional=False)
    half, _ = flow.to_precision(torch.bfloat16).bind(tokens, grid)(latent, 0.6, unconditional=False)
    assert flow.input_blocks[0].conv1.conv["weight"].dtype == torch.bfloat16
    assert flow.out_layer.weight.dtype == half.dtype == torch.float32
    assert (half - full).norm() < 0.05 * full.norm()


def test_the_published_network_has_its_size_and_names():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in LatentFlow(PUBLISHED).state_dict().items()}
    assert len(shapes) == 526
    assert shapes["input_blocks.1.conv1.conv.weight"] == (1024, 3, 3, 3, 128)
    assert shapes["input_blocks.1.emb_layers.1.weight"] == (2048, 1024)
    assert shapes["input_blocks.1.skip_connection.weight"] == (1024, 128)
    assert shapes["out_blocks.0.conv1.conv.weight"] == (128, 3, 3, 3, 2048)
    assert shapes["out_blocks.1.norm1.weight"] == (256,)
    assert shapes["blocks.23.self_attn.q_rms_norm.gamma"] == (16, 64)
    assert shapes["out_layer.weight"] == (8, 128)


@pytest.mark.parametrize(
    "changed", [{"share_mod": True}, {"pe_mode": "rope"}, {"use_skip_connection": False}, {"patch_size": 4}]
)
def test_variants_that_were_never_published_are_refused(changed):
    with pytest.raises(ValueError, match=next(iter(changed))):
        replace(MINIATURE, **changed)
