"""The decoders of the structured latent in miniature, against slower words for the same."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from random_weights import randomize

from models.geometry.flexicubes import Isosurface
from models.reconviagen.gaussian_decoder import GaussianDecoder, GaussianDecoderConfig
from models.reconviagen.mesh_decoder import MeshDecoder, MeshDecoderConfig, SubdivisionBlock, VoxelGroupNorm32
from models.sparse.grid import SparseGrid

REPRESENTATION = {
    "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
    "perturb_offset": True,
    "voxel_size": 1.5,
    "num_gaussians": 32,
    "2d_filter_kernel_size": 0.1,
    "3d_filter_kernel_size": 9e-4,
    "scaling_bias": 4e-3,
    "opacity_bias": 0.1,
    "scaling_activation": "softplus",
}
GAUSSIANS = GaussianDecoderConfig(
    resolution=16,
    model_channels=32,
    latent_channels=8,
    num_blocks=2,
    num_heads=2,
    representation_config=REPRESENTATION,
)
MESH = MeshDecoderConfig(
    resolution=16,
    model_channels=256,
    latent_channels=8,
    num_blocks=2,
    num_heads=2,
    representation_config={"use_color": True},
)
PUBLISHED = {"resolution": 64, "model_channels": 768, "num_blocks": 12, "num_heads": 12, "use_fp16": True}


@pytest.fixture
def grid():
    return SparseGrid(torch.nonzero(torch.rand(16, 16, 16) < 0.02), 16)


def windowed_twin(network: GaussianDecoder | MeshDecoder, latent: torch.Tensor, grid: SparseGrid):
    """The body with attention over all voxels, masked to windows."""
    x = network.input_layer(latent)
    places = grid.coords.float()
    share = x.shape[1] // 6
    rates = 10000.0 ** -(torch.arange(share) / share)
    waves = [f(places[:, axis, None] * rates) for axis in range(3) for f in (torch.sin, torch.cos)]
    x = x + F.pad(torch.cat(waves, 1), (0, x.shape[1] - 6 * share))
    for index, block in enumerate(network.blocks):
        window = (grid.coords + 4 * (index % 2)) // 8
        together = (window[:, None] == window[None]).all(-1)
        query, key, value = (
            part.unflatten(1, (2, -1)).transpose(0, 1)
            for part in block.attn.to_qkv(block.norm1(x)).chunk(3, 1)
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=together)
        x = x + block.attn.to_out(found.transpose(0, 1).flatten(1))
        x = x + block.mlp(block.norm2(x))
    return x


@pytest.mark.parametrize("network", [GaussianDecoder(GAUSSIANS), MeshDecoder(MESH)])
def test_attention_of_the_body_stays_within_shifted_windows(network, grid):
    randomize(network)
    latent = torch.randn(len(grid), 8)
    torch.testing.assert_close(
        network.features(latent, grid)[0], windowed_twin(network, latent, grid), atol=1e-4, rtol=1e-4
    )


def test_gaussians_without_a_signal_are_those_that_the_representation_says(grid):
    decoder = randomize(GaussianDecoder(GAUSSIANS))
    for parameter in decoder.out_layer.parameters():
        parameter.zero_()
    gaussians = decoder(torch.randn(len(grid), 8), grid)
    number = 32 * len(grid)
    assert len(gaussians) == number
    scale = (4e-3**2 + 9e-4**2) ** 0.5
    torch.testing.assert_close(gaussians.scales, torch.full((number, 3), scale), atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(gaussians.opacities, torch.full((number,), 0.1))
    torch.testing.assert_close(gaussians.colors, torch.full((number, 3), 0.5))
    torch.testing.assert_close(gaussians.rotations, torch.tensor([[1.0, 0, 0, 0]]).expand(number, 4))


def test_gaussians_without_a_signal_fill_their_voxel_evenly(grid):
    decoder = randomize(GaussianDecoder(GAUSSIANS))
    for parameter in decoder.out_layer.parameters():
        parameter.zero_()
    means = decoder(torch.randn(len(grid), 8), grid).means.reshape(len(grid), 32, 3)
    corner = grid.coords[:, None] / 16 - 0.5
    inside = (means - corner) * 16  # in voxels
    assert inside.min() >= 0
    assert inside.max() <= 1
    octants = ((inside > 0.5) * torch.tensor([1, 2, 4])).sum(2)
    assert (F.one_hot(octants, 8).sum(1) >= 3).all()  # of 32 points about 4 lie in each eighth


def test_gaussians_stay_near_their_voxel_whatever_the_signal(grid):
    decoder = randomize(GaussianDecoder(GAUSSIANS))
    gaussians = decoder(100 * torch.randn(len(grid), 8), grid)
    centre = ((grid.coords + 0.5) / 16 - 0.5).repeat_interleave(32, 0)
    assert (gaussians.means - centre).abs().max() <= 0.75 / 16 + 1e-6
    assert (gaussians.scales >= 9e-4).all()
    torch.testing.assert_close(gaussians.rotations.norm(dim=1), torch.ones(len(gaussians)))


@pytest.mark.parametrize("network", [GaussianDecoder(GAUSSIANS), MeshDecoder(MESH)])
def test_gradients_through_the_body_are_those_of_its_twin(network, grid):
    # They are computed from activations that were made a second time.
    randomize(network)
    latent = torch.randn(len(grid), 8, requires_grad=True)
    cotangent = torch.randn(len(grid), network.config.model_channels)
    ours = torch.autograd.grad((network.features(latent, grid)[0] * cotangent).sum(), latent)
    twin = torch.autograd.grad((windowed_twin(network, latent, grid) * cotangent).sum(), latent)
    torch.testing.assert_close(ours, twin, atol=1e-3, rtol=1e-3)


def test_gradients_of_gaussians_agree_with_finite_differences(grid):
    decoder = GaussianDecoder(GAUSSIANS).double()
    few = SparseGrid(grid.coords[:2], 16)
    output = torch.randn(2, 448, dtype=torch.float64, requires_grad=True)

    def parts(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = decoder._activate(x, few)
        return found.means, found.scales, found.rotations, found.opacities, found.colors

    assert torch.autograd.gradcheck(parts, output, fast_mode=True)


def test_group_norm_is_that_of_torch_on_exchanged_dimensions():
    norm = randomize(VoxelGroupNorm32(4, 16))
    x = 3 + 2 * torch.randn(1, 50, 16)
    twin = F.group_norm(x.transpose(1, 2), 4, norm.weight, norm.bias).transpose(1, 2)
    torch.testing.assert_close(norm(x), twin)
    torch.testing.assert_close(norm(x.bfloat16()).float(), twin, atol=0.05, rtol=0.02)


def test_subdivision_treats_parents_with_the_same_result_as_their_children(grid):
    block = randomize(SubdivisionBlock(64, 32))
    x = torch.randn(1, len(grid), 64)
    norm, act = block.act_layers
    first, second_norm, _, second = block.out_layers
    fine = grid.subdivided()
    h = second_norm(first(act(norm(x)).repeat_interleave(8, 1), fine))
    h = second(F.silu(h), fine) + block.skip_connection(x.repeat_interleave(8, 1), fine)
    torch.testing.assert_close(block(x, grid), h, atol=1e-4, rtol=1e-4)


def surface_with(decoder: MeshDecoder, grid: SparseGrid, channels: dict[int, float]) -> Isosurface:
    """The surface where some channels of the last layer are constant and all others 0."""
    for parameter in decoder.out_layer.parameters():
        parameter.zero_()
    for channel, value in channels.items():
        decoder.out_layer.bias[channel] = value
    return decoder.surface(torch.randn(len(grid), 8), grid)


def test_a_mesh_encloses_the_voxels_that_are_inside():
    decoder = randomize(MeshDecoder(MESH))
    ball = ((torch.cartesian_prod(*[torch.arange(16)] * 3) + 0.5) / 16 - 0.5).norm(dim=1) < 0.3
    grid = SparseGrid(torch.nonzero(ball.reshape(16, 16, 16)), 16)
    surface = surface_with(decoder, grid, {})
    a, b, c = surface.vertices[surface.faces.long()].unbind(1)
    volume = (a * torch.cross(b, c, dim=1)).sum() / 6
    # The surface crosses the edges to the outside's 1 at a 65th of a small voxel, so to speak: at the border.
    assert volume == pytest.approx(len(grid) / 16**3, rel=0.03)
    edges = surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).sort(1).values
    assert (torch.unique(edges, dim=0, return_counts=True)[1] == 2).all()


def test_colours_are_the_first_three_attributes(grid):
    decoder = randomize(MeshDecoder(MESH))
    grid = SparseGrid(grid.coords.clamp(1, 14).unique(dim=0), 16)
    colored = {8 + 24 + 21 + 6 * corner: 50.0 for corner in range(8)}
    surface = surface_with(decoder, grid, colored)
    expected = torch.tensor([1, 0.5, 0.5, 0.5, 0.5, 0.5]).expand_as(surface.attributes)
    # A vertex mixes that of the occupied corner with the neutral one outside, by a 65th.
    torch.testing.assert_close(surface.attributes, expected, atol=0.02, rtol=0)
    mesh = decoder(torch.randn(len(grid), 8), grid)
    torch.testing.assert_close(mesh.colors, surface.attributes[:, :3])
    torch.testing.assert_close(mesh.vertices, surface.vertices)


def test_without_an_inside_there_is_no_mesh(grid):
    decoder = randomize(MeshDecoder(MESH))
    surface = surface_with(decoder, grid, dict.fromkeys(range(8), 1.0))
    assert surface.faces.shape == (0, 3)


def test_half_precision_is_near_and_leaves_the_ends_alone(grid):
    decoder = randomize(MeshDecoder(MESH))
    latent = torch.randn(len(grid), 8)
    full = decoder.features(latent, grid)
    half = decoder.to_precision(torch.bfloat16).features(latent, grid)
    assert decoder.upsample[0].out_layers[0].conv["weight"].dtype == half.dtype == torch.bfloat16
    assert decoder.upsample[0].out_layers[1].weight.dtype == torch.float32
    assert decoder.out_layer.weight.dtype == torch.float32
    assert (half - full).norm() < 0.05 * full.norm()
    assert decoder(latent, grid).vertices.dtype == torch.float32


def test_the_published_decoders_have_their_sizes_and_names():
    with torch.device("meta"):
        mesh = MeshDecoder(replace(MESH, **PUBLISHED)).state_dict()
    gaussians = GaussianDecoder(replace(GAUSSIANS, **PUBLISHED)).state_dict()
    assert len(mesh) == 120
    assert tuple(mesh["upsample.0.out_layers.0.conv.weight"].shape) == (192, 3, 3, 3, 768)
    assert tuple(mesh["upsample.1.skip_connection.conv.weight"].shape) == (96, 1, 1, 1, 192)
    assert tuple(mesh["upsample.1.act_layers.0.weight"].shape) == (192,)
    assert tuple(mesh["upsample.1.out_layers.3.conv.bias"].shape) == (96,)
    assert tuple(mesh["out_layer.weight"].shape) == (101, 96)
    assert len(gaussians) == 101
    assert tuple(gaussians["out_layer.weight"].shape) == (448, 768)
    assert tuple(gaussians["offset_perturbation"].shape) == (32, 3)
    assert tuple(gaussians["blocks.11.attn.to_qkv.weight"].shape) == (2304, 768)


def test_variants_that_were_never_published_are_refused():
    with pytest.raises(ValueError, match="use_color"):
        replace(MESH, representation_config={"use_color": False})
    with pytest.raises(ValueError, match="attn_mode"):
        replace(MESH, attn_mode="full")
    with pytest.raises(ValueError, match="scaling_activation"):
        replace(GAUSSIANS, representation_config={**REPRESENTATION, "scaling_activation": "exp"})
    without = {name: value for name, value in REPRESENTATION.items() if name != "voxel_size"}
    with pytest.raises(ValueError, match="lacks voxel_size"):
        replace(GAUSSIANS, representation_config=without)
