"""VGGT in miniature: what the order of views may change, heads, precision, published names."""

from dataclasses import replace

import pytest
import torch
from random_weights import randomize

from models.reconviagen.camera_head import CameraHead, CameraHeadConfig
from models.reconviagen.dense_head import DenseHeadConfig
from models.reconviagen.vggt import Vggt, VggtConfig, ignored_prefixes
from models.reconviagen.vit import VitConfig

MINIATURE = VggtConfig(
    patch_embed=VitConfig(28, 7, 32, depth=1, num_heads=2, num_register_tokens=4),
    depth=5,
    num_heads=2,
    layers=(0, 1, 3, 4),
    camera_head=CameraHeadConfig(trunk_depth=2, num_heads=4),
    dense_head=DenseHeadConfig(features=16, out_channels=(8, 12, 16, 16), last_channels=8),
    with_depth=True,
)


@pytest.fixture
def vggt():
    network = randomize(Vggt(MINIATURE))
    network.camera_head.pose_branch.fc2.weight *= 0.01  # near the encoding of a camera
    network.camera_head.pose_branch.fc2.bias.copy_(torch.tensor([0, 0, 1, 0, 0, 0, 1, 0.2, 0.25]))
    return network


@pytest.fixture
def images():
    return torch.rand(4, 3, 28, 35)


def everything(vggt, images):
    features = vggt.features(images)
    cameras = vggt.cameras(features)
    return {
        **{f"layer {index}": layer for index, layer in enumerate(features.layers)},
        "poses": cameras.camera_to_world,
        "intrinsics": cameras.intrinsics,
        **dict(zip(("points", "point confidence"), vggt.points(features), strict=True)),
        **dict(zip(("depths", "depth confidence"), vggt.depths(features), strict=True)),
    }


def test_the_order_of_views_other_than_the_first_does_not_matter(vggt, images):
    order = [0, 3, 1, 2]
    expected, found = everything(vggt, images), everything(vggt, images[order])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value[order], atol=2e-5, rtol=1e-4, msg=name)


def test_another_first_view_is_another_world(vggt, images):
    order = [1, 0, 2, 3]
    expected, found = everything(vggt, images), everything(vggt, images[order])
    for name, value in expected.items():
        assert (found[name] - value[order]).abs().max() > 1e-4, name


def test_every_view_sees_every_other(vggt, images):
    before = everything(vggt, images)
    images[2, :, 10:15, 10:15] += 0.5
    after = everything(vggt, images)
    for name in ("points", "poses", "layer 0"):
        change = (after[name] - before[name]).flatten(1).abs().amax(1)
        assert (change > 1e-6).all(), name


def test_features_are_the_pairs_of_the_asked_layers(vggt, images):
    features = vggt.features(images)
    assert (features.patch_start, features.grid) == (5, (4, 5))
    assert [tuple(layer.shape) for layer in features.layers] == [(4, 5 + 20, 64)] * 4
    assert [tuple(patches.shape) for patches in features.patches()] == [(4, 20, 64)] * 4
    # The last pair from its own input: what the pair before gave, which is kept too.
    blocks = vggt.aggregator
    rotation = None

    def catch(_module, args, kwargs):
        nonlocal rotation
        rotation = args[1]

    handle = blocks.frame_blocks[4].register_forward_pre_hook(catch, with_kwargs=True)
    vggt.features(images)
    handle.remove()
    within = blocks.frame_blocks[4](features.layers[2][..., 32:], rotation)
    across = blocks.global_blocks[4](within, rotation, joint=True)
    torch.testing.assert_close(features.layers[3], torch.cat([within, across], -1), atol=1e-5, rtol=1e-5)


def test_one_view_alone_is_enough(vggt, images):
    features = vggt.features(images[:1])
    assert vggt.points(features)[0].shape == (1, 28, 35, 3)
    assert len(vggt.cameras(features)) == 1


def test_heads_answer_with_depths_above_zero_and_confidences_of_one_or_more(vggt, images):
    found = everything(vggt, images)
    assert found["points"].shape == (4, 28, 35, 3)
    assert found["depths"].shape == found["point confidence"].shape == (4, 28, 35)
    assert (found["depths"] > 0).all()
    assert (found["point confidence"] >= 1).all()
    assert (found["depth confidence"] >= 1).all()
    assert (found["points"] < 0).any()


def test_points_are_the_inverse_of_the_logarithm_the_head_predicts(vggt, images):
    features = vggt.features(images)
    raw = vggt.point_head(features.patches(), features.grid, (28, 35))
    points, confidence = vggt.points(features)
    torch.testing.assert_close(points.sign() * points.abs().log1p(), raw[..., :3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close((confidence - 1).log(), raw[..., 3], atol=1e-3, rtol=1e-3)


def test_the_camera_head_adds_up_its_rounds():
    tokens = torch.randn(3, 64)
    one, two = (
        randomize(CameraHead(CameraHeadConfig(trunk_depth=1, num_heads=4, rounds=rounds), 64))
        for rounds in (1, 2)
    )
    first = one(tokens)
    # A second round that starts from a first which said nothing repeats the first: it adds the same again.
    two.embed_pose.weight.zero_()
    one.embed_pose.weight.zero_()
    first = one(tokens)
    torch.testing.assert_close(two(tokens)[:, :7], 2 * first[:, :7], atol=1e-5, rtol=1e-5)
    assert (first[:, 7:] >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_and_leaves_the_heads_alone(vggt, images, dtype):
    full = vggt.features(images)
    points = vggt.points(full)[0]
    vggt.to_precision(dtype)
    half = vggt.features(images)
    for a, b in zip(half.layers, full.layers, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() / b.norm() < 2e-2
    assert (vggt.points(half)[0] - points).norm() / points.norm() < 5e-2
    assert vggt.dtype == vggt.aggregator.patch_embed.dtype == dtype
    for name, parameter in vggt.named_parameters():
        matrix = name.startswith("aggregator") and any(
            part in name for part in (".qkv.", ".proj.", ".fc1.", ".fc2.")
        )
        assert parameter.dtype == (dtype if matrix else torch.float32), name


def test_layers_must_end_with_the_last():
    with pytest.raises(ValueError, match="must be the last of 5"):
        Vggt(replace(MINIATURE, layers=(0, 1, 2, 3)))


def test_the_published_shape_has_the_published_names():
    with torch.device("meta"):
        state = Vggt(VggtConfig(with_depth=True)).state_dict()
        without = Vggt(VggtConfig()).state_dict()
    assert len(state) == 1402
    assert {name for name in state if name not in without} == {
        n for n in state if n.startswith("depth_head.")
    }
    assert sum(tensor.numel() for tensor in state.values()) == 1_190_595_096
    shapes = {
        "aggregator.camera_token": (1, 2, 1, 1024),
        "aggregator.register_token": (1, 2, 4, 1024),
        "aggregator.patch_embed.pos_embed": (1, 1370, 1024),
        "aggregator.patch_embed.blocks.23.ls2.gamma": (1024,),
        "aggregator.frame_blocks.0.attn.q_norm.weight": (64,),
        "aggregator.global_blocks.23.mlp.fc1.weight": (4096, 1024),
        "camera_head.trunk.3.attn.qkv.weight": (6144, 2048),
        "camera_head.empty_pose_tokens": (1, 1, 9),
        "camera_head.poseLN_modulation.1.weight": (6144, 2048),
        "camera_head.pose_branch.fc2.weight": (9, 1024),
        "point_head.projects.1.weight": (512, 2048, 1, 1),
        "point_head.resize_layers.0.weight": (256, 256, 4, 4),
        "point_head.resize_layers.3.bias": (1024,),
        "point_head.scratch.layer4_rn.weight": (256, 1024, 3, 3),
        "point_head.scratch.refinenet1.resConfUnit1.conv2.bias": (256,),
        "point_head.scratch.output_conv2.2.weight": (4, 32, 1, 1),
        "depth_head.scratch.output_conv2.2.weight": (2, 32, 1, 1),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert "point_head.scratch.refinenet4.resConfUnit1.conv1.weight" not in state


def test_only_what_the_network_lacks_may_be_left_out():
    assert "depth_head." in ignored_prefixes(VggtConfig())
    assert "depth_head." not in ignored_prefixes(VggtConfig(with_depth=True))
    for config in (VggtConfig(), VggtConfig(with_depth=True)):
        with torch.device("meta"):
            names = Vggt(config).state_dict()
        assert not any(name.startswith(ignored_prefixes(config)) for name in names)
