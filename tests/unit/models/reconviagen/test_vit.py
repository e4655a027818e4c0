"""The vision transformer in miniature: attention against torch, tokens, positions, precision, names."""

import pytest
import torch
from random_weights import randomize
from torch import nn
from torch.nn import functional

from models.reconviagen.renaming import DINOV2
from models.reconviagen.rotary import grid_rotation
from models.reconviagen.vit import VisionTransformer, VitConfig
from models.reconviagen.vit_block import Block, SelfAttention

MINIATURE = VitConfig(img_size=28, patch_size=7, embed_dim=32, depth=2, num_heads=2, num_register_tokens=3)


@pytest.fixture
def vit():
    return randomize(VisionTransformer(MINIATURE))


def torch_attention(ours: SelfAttention) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(32, ours.num_heads, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    return theirs.eval()


def test_attention_is_that_of_torch():
    ours = randomize(SelfAttention(32, 4, qk_norm=False))
    x = torch.randn(3, 7, 32)
    expected, _ = torch_attention(ours)(x, x, x)
    torch.testing.assert_close(ours(x, None, joint=False), expected, atol=1e-6, rtol=1e-5)


def test_joint_attention_is_attention_of_one_long_sequence():
    ours = randomize(SelfAttention(32, 4, qk_norm=True))
    x = torch.randn(3, 7, 32)
    torch.testing.assert_close(
        ours(x, None, joint=True), ours(x.reshape(1, 21, 32), None, joint=False).reshape(3, 7, 32)
    )


def test_joint_attention_turns_the_tokens_of_each_view_by_their_place_in_it():
    ours = randomize(SelfAttention(32, 4, qk_norm=True))
    rotation = grid_rotation(2, 3, special=1, head_dim=8, device=torch.device("cpu"))
    x = torch.randn(1, 7, 32)
    twice = ours(x.repeat(2, 1, 1), rotation, joint=True)  # every key is there twice: the mean is the same
    torch.testing.assert_close(twice, ours(x, rotation, joint=False).repeat(2, 1, 1), atol=1e-6, rtol=1e-5)


def test_normalised_queries_do_not_feel_the_length_of_the_projection():
    ours = randomize(SelfAttention(32, 4, qk_norm=True))
    x = torch.randn(2, 7, 32)
    before = ours(x, None, joint=False)
    ours.qkv.weight[:64] *= 50
    ours.qkv.bias[:64] *= 50
    torch.testing.assert_close(ours(x, None, joint=False), before, atol=1e-3, rtol=1e-3)


def test_a_block_whose_layer_scales_are_zero_changes_nothing():
    block = randomize(Block(32, 2, 4.0, eps=1e-6))
    block.ls1.gamma.zero_()
    block.ls2.gamma.zero_()
    x = torch.randn(2, 5, 32)
    assert torch.equal(block(x), x)


def test_tokens_of_a_view_do_not_depend_on_the_other_views(vit):
    images = torch.rand(3, 3, 28, 28)
    torch.testing.assert_close(vit(images)[1:2], vit(images[1:2]), atol=1e-5, rtol=1e-5)


def test_patches_are_read_row_by_row_and_normalised_as_imagenet():
    vit = randomize(VisionTransformer(VitConfig(28, 7, 32, depth=0, num_heads=2, num_register_tokens=3)))
    images = torch.rand(2, 3, 28, 28)
    tokens = vit(images)
    assert tokens.shape == (2, 1 + 3 + 16, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    patch = (images[1, :, 7:14, 21:28] - mean[:, None, None]) / std[:, None, None]  # row 1, column 3
    projected = torch.einsum("kcij,cij->k", vit.patch_embed.proj.weight, patch) + vit.patch_embed.proj.bias
    torch.testing.assert_close(tokens[1, 4 + 7], projected + vit.pos_embed[0, 1 + 7], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens[0, 0], vit.cls_token[0, 0] + vit.pos_embed[0, 0])
    torch.testing.assert_close(tokens[1, 1:4], vit.register_tokens[0])  # registers have no place


def test_positions_of_another_grid_are_interpolated(vit):
    vit.pos_embed[:, 1:] = 2.5
    assert vit._positions(3, 6).shape == (1, 1 + 18, 32)
    torch.testing.assert_close(vit._positions(3, 6)[:, 1:], torch.full((1, 18, 32), 2.5))
    row = torch.arange(4.0).repeat_interleave(4)
    vit.pos_embed[0, 1:] = row[:, None]
    found = vit._positions(8, 2)[0, 1:, 0].reshape(8, 2)
    assert (found.diff(dim=0) > 0).all()
    torch.testing.assert_close(found[:, 0], found[:, 1])
    assert vit(torch.rand(1, 3, 21, 42)).shape == (1, 1 + 3 + 18, 32)


def test_images_that_are_not_whole_patches_are_refused(vit):
    with pytest.raises(ValueError, match="30 x 28 pixels"):
        vit(torch.rand(1, 3, 28, 30))
    with pytest.raises(ValueError, match=r"\[V, 3, H, W\]"):
        vit(torch.rand(1, 28, 28, 3))


def test_encoded_tokens_are_standardised_without_the_last_norm(vit):
    images = torch.rand(2, 3, 28, 28)
    encoded = vit.encode(images)
    torch.testing.assert_close(encoded.mean(-1), torch.zeros(2, 20), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoded.var(-1, unbiased=False), torch.ones(2, 20), atol=1e-3, rtol=0)
    vit.norm.weight.zero_()
    assert torch.equal(vit.encode(images), encoded)


def test_patch_tokens_are_behind_the_last_norm(vit):
    images = torch.rand(2, 3, 28, 28)
    expected = functional.layer_norm(vit(images)[:, 4:], (32,), vit.norm.weight, vit.norm.bias, 1e-6)
    torch.testing.assert_close(vit.patch_tokens(images), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_and_keeps_float32_where_it_matters(vit, dtype):
    images = torch.rand(2, 3, 28, 28)
    full = vit(images)
    vit.to_precision(dtype)
    half = vit(images)
    assert half.dtype == torch.float32
    assert (half - full).norm() / full.norm() < 1e-2
    kept = {name for name, tensor in vit.state_dict().items() if tensor.dtype == torch.float32}
    halved = {name for name, tensor in vit.state_dict().items() if tensor.dtype == dtype}
    assert all(".attn." in name or ".mlp." in name or "patch_embed" in name for name in halved)
    assert not any("attn" in name or "mlp" in name for name in kept)
    assert vit.dtype == dtype


def test_gradients_reach_the_images(vit):
    images = torch.rand(1, 3, 28, 28, requires_grad=True)
    vit.encode(images)[0, 5].square().mul(torch.arange(32)).sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).float().mean() > 0.9


def hugging_face_names(depth: int) -> list[str]:
    """The tensors of `facebook/dinov2-with-registers-large`, written out."""
    names = [
        "embeddings.cls_token",
        "embeddings.mask_token",
        "embeddings.position_embeddings",
        "embeddings.register_tokens",
        "embeddings.patch_embeddings.projection.weight",
        "embeddings.patch_embeddings.projection.bias",
        "layernorm.weight",
        "layernorm.bias",
    ]
    parts = ["attention.attention.query", "attention.attention.key", "attention.attention.value"]
    parts += ["attention.output.dense", "norm1", "norm2", "mlp.fc1", "mlp.fc2"]
    for layer in range(depth):
        names += [f"encoder.layer.{layer}.{part}.{kind}" for part in parts for kind in ("weight", "bias")]
        names += [f"encoder.layer.{layer}.layer_scale{i}.lambda1" for i in (1, 2)]
    return names


def test_published_names_are_ours_after_renaming():
    with torch.device("meta"):
        ours = VisionTransformer(VitConfig()).state_dict()
    sources = DINOV2.sources(hugging_face_names(24))
    assert sources.keys() == ours.keys()
    assert sources["blocks.23.attn.qkv.bias"] == tuple(
        f"encoder.layer.23.attention.attention.{part}.bias" for part in ("query", "key", "value")
    )
    assert ours["pos_embed"].shape == (1, 1 + 37 * 37, 1024)
    assert ours["blocks.0.attn.qkv.weight"].shape == (3 * 1024, 1024)
    assert (
        sum(tensor.numel() for tensor in ours.values()) == 304_372_736 - 1024
    )  # DINOv2's without mask_token
