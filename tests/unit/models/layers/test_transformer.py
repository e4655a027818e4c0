"""Transformer blocks: conditions that are bound once, rows without a condition, views that are averaged."""

import pytest
import torch
from torch import nn

from models.layers.attention import Lengths, attention
from models.layers.transformer import (
    CrossAttention,
    CrossBlock,
    CrossBlockConfig,
    ModulatedCrossBlock,
    TransformerBlock,
)

CONFIG = CrossBlockConfig(16, 12, 2, qk_rms_norm=True, qk_rms_norm_cross=True)


def randomised(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def modulated_block():
    return randomised(ModulatedCrossBlock(CONFIG)), torch.randn(16)


@pytest.mark.parametrize("qk_rms_norm", [False, True])
def test_attention_to_a_condition_of_zeros_is_the_same_for_all_queries(qk_rms_norm):
    layer = randomised(CrossAttention(16, 12, 2, qk_rms_norm=qk_rms_norm))
    context = layer.bind(torch.zeros(3, 7, 12))
    x = torch.randn(1, 9, 16)
    torch.testing.assert_close(layer(x, context), context.absent.expand(1, 9, 16))
    torch.testing.assert_close(layer.bind(torch.randn(1, 4, 12)).absent, context.absent)


def test_attention_to_views_is_the_mean_of_attention_to_each():
    layer = randomised(CrossAttention(16, 12, 2))
    views, x = torch.randn(3, 7, 12), torch.randn(1, 9, 16)
    each = [layer(x, layer.bind(view[None])) for view in views]
    torch.testing.assert_close(layer(x, layer.bind(views)), torch.stack(each).mean(0))


def test_rows_of_a_modulated_block_do_not_see_each_other():
    block, embedding = modulated_block()
    tokens, x = torch.randn(1, 7, 12), torch.randn(2, 9, 16)
    bind = block.cross_attn.bind
    found = block(x, embedding, bind(tokens))
    torch.testing.assert_close(found[:1], block(x[:1], embedding, bind(tokens)))
    torch.testing.assert_close(found[1:], block(x[1:], embedding, bind(torch.zeros_like(tokens))))


def test_a_modulated_block_follows_its_formula():
    block, embedding = modulated_block()
    context, x = block.cross_attn.bind(torch.randn(2, 7, 12)), torch.randn(1, 9, 16)
    found = block(x, embedding, context)
    weight, bias = block.adaLN_modulation[1].weight, block.adaLN_modulation[1].bias
    shift1, scale1, gate1, shift3, scale3, gate3 = (weight @ nn.functional.silu(embedding) + bias).split(16)
    x = x + gate1 * block.self_attn(block.norm1(x) * (1 + scale1) + shift1)
    x = x + block.cross_attn(block.norm2(x), context)
    x = x + gate3 * block.mlp(block.norm3(x) * (1 + scale3) + shift3)
    torch.testing.assert_close(found, x)


def test_windows_are_given_to_a_block_as_its_attention():
    block = randomised(TransformerBlock(16, 2, qk_rms_norm=True))
    sizes = (4, 1, 6)
    lengths, x = Lengths.of(sizes, "cpu"), torch.randn(1, 11, 16)
    found = block(x, lambda q, k, v: attention(q, k, v, lengths=lengths))
    apart = torch.cat([block(part) for part in x.split(sizes, 1)], 1)
    torch.testing.assert_close(found, apart)


@pytest.mark.parametrize("kind", [CrossBlock, ModulatedCrossBlock])
def test_gradients_flow_through_a_whole_block(kind):
    block = randomised(kind(CONFIG)).double()
    embedding = [torch.randn(16, dtype=torch.float64)] if kind is ModulatedCrossBlock else []
    x = torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, 4, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, tokens: block(x, *embedding, block.cross_attn.bind(tokens)), (x, tokens), fast_mode=True
    )
