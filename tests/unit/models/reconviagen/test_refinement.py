"""Corrections of the flows: towards a known surface, and towards what the views show."""

import math
from dataclasses import replace

import pytest
import torch
from random_weights import randomize
from torch import Tensor

from models.geometry.camera import Cameras, intrinsics_from_fov, look_at
from models.reconviagen.gaussian_decoder import GaussianDecoder, GaussianDecoderConfig
from models.reconviagen.gaussians import Gaussians
from models.reconviagen.refinement import (
    AppearanceCorrection,
    RefinementConfig,
    StructureCorrection,
    _pulled_back,
    dice_loss,
)
from models.reconviagen.refinement_targets import Targets, seen_voxels, surface_voxels
from models.reconviagen.sampler import Correction, SamplerConfig, predict_data, sample
from models.reconviagen.splatting import render_gaussians
from models.reconviagen.structure_decoder import StructureDecoder, StructureDecoderConfig
from models.reconviagen.vit import VisionTransformer, VitConfig
from models.sparse.grid import SparseGrid
from schemas.errors import JobCancelled

SIGMA = 1e-5
SIZE = 28
SAMPLER = SamplerConfig(steps=8, guidance=1.0, sigma_min=SIGMA)
GAUSSIANS = GaussianDecoderConfig(
    resolution=16,
    model_channels=32,
    latent_channels=8,
    num_blocks=2,
    num_heads=2,
    representation_config={
        "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
        "perturb_offset": True,
        "voxel_size": 1.5,
        "num_gaussians": 2,
        "3d_filter_kernel_size": 9e-4,
        "scaling_bias": 0.02,
        "opacity_bias": 0.5,
        "scaling_activation": "softplus",
    },
)


def silent(fraction: float, message: str, metrics: dict[str, float]) -> None:
    pass


class GaussianFlow:
    """The exact flow to normally distributed data; one to a single point would not follow where it is led."""

    def __init__(self, mean: Tensor, spread: float) -> None:
        self.mean, self.spread = mean, spread

    def __call__(self, x: Tensor, t: float, *, unconditional: bool) -> tuple[Tensor, Tensor | None]:
        noise = SIGMA + (1 - SIGMA) * t
        weight = (1 - t) * self.spread**2 / (((1 - t) * self.spread) ** 2 + noise**2)
        data = self.mean + weight * (x - (1 - t) * self.mean)
        return ((1 - SIGMA) * x - data) / noise, None


def sampled(mean: Tensor, spread: float, correction: Correction | None) -> Tensor:
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    return sample(GaussianFlow(mean, spread), noise, SAMPLER, silent, name="x", correction=correction)


# --- Structure


def ball(resolution: int, x: float) -> Tensor:
    """Occupancy [R, R, R] of a ball that stands off the middle by x along the first axis."""
    axis = (torch.arange(resolution) + 0.5) / resolution - 0.5
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    return (grid - torch.tensor([x, 0, 0])).norm(dim=-1) < 0.25


def everywhere(resolution: int) -> Tensor:
    return torch.ones((resolution,) * 3, dtype=torch.bool)


def test_the_structure_is_drawn_to_the_known_surface() -> None:
    truth, generated = ball(8, 0.1), ball(8, -0.1)
    mean = 0.1 * (generated.float() * 2 - 1)[None]  # a latent of one channel, which the decoder sharpens
    correction = StructureCorrection(lambda latent: 20 * latent[0], truth, everywhere(8), SIGMA)
    without = dice_loss((sampled(mean, 0.1, None)[0] > 0).float(), truth.float())
    corrected = dice_loss((sampled(mean, 0.1, correction)[0] > 0).float(), truth.float())
    assert without > 0.3
    assert corrected < 0.4 * without


def test_the_loss_falls_through_a_real_structure_decoder() -> None:
    decoder = randomize(StructureDecoder(StructureDecoderConfig(1, 4, 1, (16, 8), 1))).requires_grad_(False)
    correction = StructureCorrection(decoder, ball(8, 0.0), everywhere(8), SIGMA)
    x, velocity = torch.randn(4, 4, 4, 4), torch.randn(4, 4, 4, 4)
    changed = correction(x, 0.3, velocity, silent)
    assert len(correction.curve) == 5
    assert correction.curve[-1] < correction.curve[0] - 0.005
    after = decoder(predict_data(x, 0.3, changed, SIGMA)).sigmoid()
    assert dice_loss(after, ball(8, 0.0).float()) < correction.curve[-1]


def test_early_steps_are_left_alone() -> None:
    correction = StructureCorrection(lambda latent: latent[0], ball(4, 0.0), everywhere(4), SIGMA)
    velocity = torch.randn(1, 4, 4, 4)
    assert correction(torch.randn(1, 4, 4, 4), 0.51, velocity, silent) is velocity
    assert not torch.equal(correction(torch.randn(1, 4, 4, 4), 0.5, velocity, silent), velocity)


def test_what_no_view_sees_stays() -> None:
    """A shell, of which one of four views has depth; the others stand beside it and have masks alone."""
    resolution = 16
    axis = (torch.arange(resolution) + 0.5) / resolution - 0.5
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    radius = grid.norm(dim=-1)
    shell = (radius > 0.2) & (radius < 0.27)
    cameras = cameras_around(4)
    far = cameras.unproject(torch.ones(4, SIZE, SIZE)) - cameras.positions[:, None, None]
    b = (far * cameras.positions[:, None, None]).sum(-1)
    a, c = far.square().sum(-1), cameras.positions.square().sum(-1)[:, None, None] - 0.28**2
    root = b * b - a * c
    depths = torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / a, 0.0)
    masks = (root > 0).float()
    depths[1:] = 0
    targets = Targets(torch.zeros(4, 3, SIZE, SIZE), masks, masks >= 0, depths, cameras)
    surface, seen = surface_voxels(targets.points(), resolution), seen_voxels(targets, resolution)
    away = (grid @ cameras.positions[0]) / cameras.positions[0].norm()
    front, back = shell & (away > 0.15), shell & (away < -0.1)
    assert seen[front].float().mean() > 0.5
    assert not seen[back].any()
    mean = 0.1 * (shell.float() * 2 - 1)[None]
    correction = StructureCorrection(lambda latent: 20 * latent[0], surface, seen, SIGMA)
    found = sampled(mean, 0.1, correction)[0] > 0
    without = sampled(mean, 0.1, None)[0] > 0
    assert torch.equal(found[back], without[back])
    blind = StructureCorrection(lambda latent: 20 * latent[0], surface, everywhere(resolution), SIGMA)
    lost = sampled(mean, 0.1, blind)[0] > 0
    assert (lost & back).sum() < 0.8 * (without & back).sum()


def test_what_lies_beyond_the_full_image_is_not_seen() -> None:
    cameras = cameras_around(1)
    empty = torch.zeros(1, SIZE, SIZE)
    inside = torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    inside[:, :, : SIZE // 2] = False
    targets = Targets(torch.zeros(1, 3, SIZE, SIZE), empty, inside, None, cameras)
    seen = seen_voxels(targets, 8)
    assert 0.3 < seen.float().mean() < 0.6
    assert seen_voxels(replace(targets, inside=empty == 0), 8).float().mean() > 0.85


def test_an_unknown_surface_is_refused() -> None:
    with pytest.raises(ValueError, match="empty surface"):
        StructureCorrection(lambda latent: latent[0], ~everywhere(4), everywhere(4), SIGMA)


# --- Appearance


def cameras_around(views: int) -> Cameras:
    turns = [2 * math.pi * (i + 0.2) / views for i in range(views)]
    eyes = [torch.tensor([2 * math.cos(a), 2 * math.sin(a), 0.6]).numpy() for a in turns]
    up = torch.tensor([0, 0, 1.0]).numpy()
    poses = torch.stack([torch.tensor(look_at(eye, 0 * eye, up), dtype=torch.float32) for eye in eyes])
    intrinsics = torch.tensor(intrinsics_from_fov(math.radians(35), SIZE, SIZE), dtype=torch.float32)
    return Cameras(poses, intrinsics.expand(views, 3, 3).contiguous(), SIZE, SIZE)


def decoded(latent: Tensor) -> Gaussians:
    """Gaussians whose parts the latent [N, 14] moves."""
    generator = torch.Generator().manual_seed(11)
    places, colors, scales, rotations, opacities = latent.split([3, 3, 3, 4, 1], 1)
    return Gaussians(
        (torch.rand(places.shape, generator=generator) - 0.5) * 0.5 + 0.1 * places,
        0.06 * torch.exp(0.2 * scales),
        torch.nn.functional.normalize(torch.tensor([1.0, 0, 0, 0]) + 0.2 * rotations, dim=-1),
        torch.sigmoid(2 + opacities[:, 0]),
        torch.sigmoid(colors),
    )


def targets_of(latent: Tensor, views: int, depth: bool = False) -> Targets:
    cameras = cameras_around(views)
    color, alpha, distance = render_gaussians(decoded(latent), cameras, torch.zeros(3))
    depths = torch.where(alpha > 0.5, distance, torch.zeros(())) if depth else None
    return Targets(color.clamp(0, 1).permute(0, 3, 1, 2), alpha, alpha >= 0, depths, cameras)


@pytest.fixture(scope="module")
def encoder() -> VisionTransformer:
    torch.manual_seed(5)
    vit = VisionTransformer(VitConfig(SIZE, 7, 32, depth=2, num_heads=2, num_register_tokens=3))
    return randomize(vit).requires_grad_(False)


@pytest.fixture(scope="module")
def truth() -> Tensor:
    torch.manual_seed(6)
    return torch.randn(12, 14)


def one_step(correction: AppearanceCorrection, latent: Tensor) -> Tensor:
    """The velocity that a correction makes of rest at the latent."""
    return correction(latent, 0.25, torch.zeros_like(latent), silent)


def test_a_displaced_object_is_drawn_to_the_views(encoder: VisionTransformer, truth: Tensor) -> None:
    generated = truth + 0.3 * torch.randn(truth.shape)
    targets = targets_of(truth, 3)
    correction = AppearanceCorrection(decoded, targets, encoder.patch_tokens, SIGMA)

    def error(latent: Tensor) -> Tensor:
        return (targets_of(latent, 3).images - targets.images).abs().mean()

    without, corrected = (error(sampled(generated, 0.3, by)) for by in (None, correction))
    assert len(correction.curve) == 5 * 4  # steps from t = 0.5 on
    assert correction.curve[4] < correction.curve[0]
    assert corrected < 0.8 * without


def test_depth_tells_what_one_view_cannot(encoder: VisionTransformer) -> None:
    truth = torch.zeros(12, 14)
    targets = targets_of(truth, 1, depth=True)
    away = -targets.cameras.camera_to_world[0, :3, 2]  # the viewing direction
    displaced = truth.clone()
    displaced[:, :3] += 0.4 * away  # 0.04 model units
    errors = {}
    for weight in (0.0, 5.0):
        config = RefinementConfig(depth=weight, size=SIZE)
        correction = AppearanceCorrection(decoded, targets, encoder.patch_tokens, SIGMA, config)
        found = sampled(displaced, 0.3, correction)
        errors[weight] = abs(float(((found - truth)[:, :3] @ away).mean()))
    assert errors[5.0] < 0.6 * errors[0.0]


def test_the_loss_falls_through_a_real_gaussian_decoder(encoder: VisionTransformer) -> None:
    decoder = randomize(GaussianDecoder(GAUSSIANS)).requires_grad_(False)
    grid = SparseGrid((ball(16, 0.0) & ~ball(16, 0.05)).nonzero(), 16)
    truth, cameras = torch.randn(len(grid), 8), cameras_around(2)
    color, alpha, _ = render_gaussians(decoder(truth, grid), cameras, torch.zeros(3))
    targets = Targets(color.clamp(0, 1).permute(0, 3, 1, 2), alpha, alpha >= 0, None, cameras)
    correction = AppearanceCorrection(lambda x: decoder(x, grid), targets, encoder.patch_tokens, SIGMA)
    one_step(correction, truth + torch.randn(truth.shape))
    assert correction.curve == sorted(correction.curve, reverse=True)
    assert correction.curve[-1] < 0.9 * correction.curve[0]


def test_a_view_that_contradicts_is_left_out(encoder: VisionTransformer, truth: Tensor) -> None:
    start = truth + 0.2
    good = targets_of(truth, 3)
    spoilt = replace(good, images=torch.cat([good.images[:2], 1 - good.images[2:]]))
    tokens = encoder.patch_tokens
    limit = RefinementConfig(limit=0.8)
    with_it = one_step(AppearanceCorrection(decoded, spoilt, tokens, SIGMA, limit), start)
    without = one_step(AppearanceCorrection(decoded, good[:2], tokens, SIGMA, limit), start)
    torch.testing.assert_close(with_it, without)
    believed = one_step(
        AppearanceCorrection(decoded, spoilt, tokens, SIGMA, RefinementConfig(limit=9.0)), start
    )
    assert (believed - without).abs().max() > 0.01


def test_drawings_beyond_the_full_image_do_not_count(encoder: VisionTransformer, truth: Tensor) -> None:
    whole = targets_of(truth, 2)
    inside = whole.inside.clone()
    inside[..., : SIZE // 2] = False
    cut = replace(whole, images=whole.images * inside[:, None], masks=whole.masks * inside, inside=inside)
    losses = []
    for targets in (whole, cut, replace(cut, inside=whole.inside)):
        correction = AppearanceCorrection(decoded, targets, encoder.patch_tokens, SIGMA)
        one_step(correction, truth)
        losses.append(correction.curve[0])
    assert losses[1] < losses[0] + 1e-4
    assert losses[2] > losses[0] + 0.05


def test_where_no_view_counts_nothing_changes(encoder: VisionTransformer, truth: Tensor) -> None:
    config = RefinementConfig(limit=-1.0)
    correction = AppearanceCorrection(decoded, targets_of(truth, 2), encoder.patch_tokens, SIGMA, config)
    assert torch.equal(one_step(correction, truth + 0.2), torch.zeros_like(truth))


def test_the_number_of_views_at_a_time_does_not_matter(encoder: VisionTransformer, truth: Tensor) -> None:
    targets = targets_of(truth, 3, depth=True)
    found = [
        one_step(
            AppearanceCorrection(
                decoded, targets, encoder.patch_tokens, SIGMA, RefinementConfig(views_per_pass=width)
            ),
            truth + 0.2,
        )
        for width in (1, 2, 4)
    ]
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=1e-4, rtol=0)


def test_the_original_velocity_holds_on(encoder: VisionTransformer, truth: Tensor) -> None:
    targets = targets_of(truth, 2)
    moved = {}
    for keep in (0.2, 1e3):
        config = RefinementConfig(keep=keep, steps=6)
        correction = AppearanceCorrection(decoded, targets, encoder.patch_tokens, SIGMA, config)
        moved[keep] = float(one_step(correction, truth + 0.3).abs().mean())
    assert moved[1e3] < 0.75 * moved[0.2]


def test_a_cancel_comes_through_after_each_pass(encoder: VisionTransformer, truth: Tensor) -> None:
    heard: list[float] = []

    def cancel(fraction: float, message: str, metrics: dict[str, float]) -> None:
        heard.append(fraction)
        if len(heard) == 4:
            raise JobCancelled

    config = RefinementConfig(views_per_pass=1)
    correction = AppearanceCorrection(decoded, targets_of(truth, 2), encoder.patch_tokens, SIGMA, config)
    with pytest.raises(JobCancelled):
        correction(truth, 0.25, torch.zeros_like(truth), cancel)
    assert heard == pytest.approx([0.1, 0.2, 0.2, 0.3])  # two passes, the step, a pass


def test_the_same_start_gives_the_same_end(encoder: VisionTransformer, truth: Tensor) -> None:
    found = [
        sampled(truth, 0.3, AppearanceCorrection(decoded, targets_of(truth, 2), encoder.patch_tokens, SIGMA))
        for _ in range(2)
    ]
    assert torch.equal(*found)


def test_small_gradients_survive_half_precision() -> None:
    weight = torch.randn(8, 8, dtype=torch.float16)
    start = torch.randn(4, 8, requires_grad=True)
    output = (start.half() @ weight).float()
    gradient = 1e-9 * torch.randn(4, 8)
    assert not torch.autograd.grad(output, start, gradient, retain_graph=True)[0].any()
    found = _pulled_back([output], [gradient], start)
    torch.testing.assert_close(found * 1e9, gradient @ weight.float().T * 1e9, atol=0.02, rtol=0.01)


# --- Voxels of the surface


def test_points_fill_the_voxels_that_they_lie_in() -> None:
    points = torch.tensor([[-0.5, -0.5, -0.5], [0.49, -0.26, 0.0], [0.5, 0, 0], [0, -0.6, 0]])
    grid = surface_voxels(points, 4)
    assert grid.nonzero().tolist() == [[0, 0, 0], [3, 0, 2]]
