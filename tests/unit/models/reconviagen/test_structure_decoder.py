"""The structure's decoder in miniature: where voxels come from, gradients, precision, published names."""

import pytest
import torch

from models.reconviagen.structure_decoder import Enlargement, StructureDecoder, StructureDecoderConfig

MINIATURE = StructureDecoderConfig(
    out_channels=1, latent_channels=4, num_res_blocks=1, channels=(16, 8), num_res_blocks_middle=1
)
PUBLISHED = StructureDecoderConfig(
    out_channels=1,
    latent_channels=8,
    num_res_blocks=2,
    num_res_blocks_middle=2,
    channels=[512, 128, 32],
    use_fp16=True,
)


def test_an_enlarged_voxel_becomes_eight_of_its_own_channels():
    layer = Enlargement(3, 2)
    volume = torch.randn(1, 3, 2, 3, 4)
    made, found = layer.conv(volume), layer(volume)
    assert found.shape == (1, 2, 4, 6, 8)
    for channel, x, y, z in torch.cartesian_prod(*map(torch.arange, (2, 4, 6, 8))).tolist():
        source = 8 * channel + 4 * (x % 2) + 2 * (y % 2) + z % 2
        assert found[0, channel, x, y, z] == made[0, source, x // 2, y // 2, z // 2]


def test_a_change_of_the_latent_is_seen_around_its_own_voxel_only():
    decoder = StructureDecoder(MINIATURE).requires_grad_(False)
    latent = torch.randn(4, 16, 16, 16)
    changed = latent.clone()
    changed[:, 3, 12, 8] += 1
    difference = (decoder(changed) - decoder(latent)).abs() > 1e-6
    assert difference.shape == (32, 32, 32)
    # The coarse convolutions reach 1 + 2 + 2 + 1 voxels, each two fine ones, and the fine ones 2 + 1 more.
    places = difference.nonzero()
    centre = torch.tensor([6, 24, 16])
    assert (places - centre).abs().max() <= 2 * 6 + 1 + 3
    assert difference[6:8, 24:26, 16:18].any()


def test_gradients_reach_the_latent():
    decoder = StructureDecoder(MINIATURE).requires_grad_(False)
    latent, step = torch.randn(2, 4, 4, 4, 4)
    weights = torch.randn(8, 8, 8)
    latent.requires_grad_()
    (gradient,) = torch.autograd.grad((weights * decoder(latent)).sum(), latent)
    with torch.no_grad():
        rise = (weights * (decoder(latent + 1e-2 * step) - decoder(latent - 1e-2 * step))).sum() / 2e-2
    torch.testing.assert_close((gradient * step).sum(), rise, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_a_half_precision_decoder_gives_nearly_the_same_logits(dtype, tolerance):
    decoder = StructureDecoder(MINIATURE).requires_grad_(False)
    latent = torch.randn(4, 4, 4, 4)
    expected = decoder(latent)
    half = decoder.to_precision(dtype)(latent)
    assert half.dtype == torch.float32
    assert (half - expected).abs().max() < tolerance * expected.abs().max()


def test_the_published_size_has_the_published_parameters():
    with torch.device("meta"):
        state = StructureDecoder(PUBLISHED).to_precision(torch.float16).state_dict()
    assert len(state) == 74
    assert sum(x.numel() for x in state.values()) == 73_671_201
    shapes = {name: tuple(x.shape) for name, x in state.items() if name.endswith(("conv.weight", "0.weight"))}
    assert shapes == {
        "blocks.2.conv.weight": (1024, 512, 3, 3, 3),
        "blocks.5.conv.weight": (256, 128, 3, 3, 3),
        "out_layer.0.weight": (32,),
    }
    assert {name for name, x in state.items() if x.dtype == torch.float32 and "norm" not in name} == {
        f"{layer}.{kind}"
        for layer in ("input_layer", "out_layer.0", "out_layer.2")
        for kind in ("weight", "bias")
    }


def test_group_norms_are_refused():
    with pytest.raises(ValueError, match="norm_type"):
        StructureDecoderConfig(1, 8, 2, (32,), norm_type="group")
