"""The whole method on an analytic sphere: small enough for seconds, real in every part."""

import pytest
import torch

from models.nvdiffrec.color_field import ColorField
from models.nvdiffrec.config import NvdiffrecConfig, make_config, texture_resolution
from models.nvdiffrec.model import Nvdiffrec
from models.nvdiffrec.targets import batches, make_targets
from schemas.errors import JobCancelled
from schemas.options import NvdiffrecOptions, ReconviagenOptions
from tests.unit.models.geometry.test_carving import CENTER, RADIUS, sphere_views

SMALL = NvdiffrecOptions(
    grid_resolution=20, geometry_iterations=12, texture_iterations=6, texture_resolution=128
)


def quiet(fraction, message, metrics):
    pass


@pytest.fixture(scope="module")
def sphere():
    return Nvdiffrec("cpu").reconstruct(sphere_views(), SMALL, quiet)


def test_the_sphere_comes_back_in_the_cameras_frame(sphere):
    radius = (sphere.mesh.vertices - CENTER).norm(dim=1)
    assert (radius - RADIUS).abs().mean() < 0.01
    assert (radius - RADIUS).abs().max() < 0.06
    assert sphere.raster == "warp"


def test_the_texture_is_the_colour_of_the_views(sphere):
    assert (sphere.mesh.base_color - 0.5).abs().mean() < 0.05
    assert sphere.curves["texture/psnr_db"][-1] > sphere.curves["geometry/psnr_db"][0]


def test_the_same_seed_gives_the_same_bits(sphere):
    again = Nvdiffrec("cpu").reconstruct(sphere_views(), SMALL, quiet)
    assert torch.equal(again.mesh.vertices, sphere.mesh.vertices)
    assert torch.equal(again.mesh.faces, sphere.mesh.faces)
    assert torch.equal(again.mesh.base_color, sphere.mesh.base_color)


def test_without_depth_the_hull_is_enough():
    options = SMALL.model_copy(update={"use_depth": False})
    made = Nvdiffrec("cpu").reconstruct(sphere_views(), options, quiet)
    radius = (made.mesh.vertices - CENTER).norm(dim=1)
    assert (radius - RADIUS).abs().mean() < 0.06  # six silhouettes leave corners


def test_a_cancel_in_any_step_stops_at_once():
    for stop_at in (0, 5, 14, 18):
        calls = 0

        def cancel(fraction, message, metrics, stop_at=stop_at):
            nonlocal calls
            if calls == stop_at:
                raise JobCancelled("user")
            calls += 1

        with pytest.raises(JobCancelled):
            Nvdiffrec("cpu").reconstruct(sphere_views(), SMALL, cancel)
        assert calls == stop_at


def test_progress_never_falls_and_ends_at_one():
    seen = []
    Nvdiffrec("cpu").reconstruct(sphere_views(), SMALL, lambda f, m, k: seen.append(f))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_views_are_compared_at_the_resolution_asked_for():
    options = SMALL.model_copy(update={"train_resolution": 32})
    made = Nvdiffrec("cpu").reconstruct(sphere_views(), options, quiet)
    radius = (made.mesh.vertices - CENTER).norm(dim=1)
    assert (radius - RADIUS).abs().mean() < 0.03


def test_options_of_another_model_are_a_mistake_of_the_caller():
    with pytest.raises(TypeError, match="ReconviagenOptions"):
        Nvdiffrec("cpu").reconstruct(sphere_views(), ReconviagenOptions(), quiet)


def test_torch_is_left_as_it_was():
    assert not torch.are_deterministic_algorithms_enabled()


def test_targets_trust_depth_only_away_from_silhouettes():
    views = sphere_views()
    targets = make_targets(views, CENTER, 1.0, cell=0.1, use_depth=True)
    trusted, seen = targets.depth_weight.flip(1) > 0, views.masks > 0.5
    assert (trusted & ~seen).sum() == 0
    assert 0.7 < trusted.sum() / seen.sum() < 0.95
    assert make_targets(views, CENTER, 1.0, cell=0.1, use_depth=False).depth_weight.sum() == 0


def test_small_triangles_get_more_samples_than_large_ones():
    views = sphere_views()
    assert make_targets(views, CENTER, 1.0, cell=0.05, use_depth=False).samples == 2
    assert make_targets(views, CENTER, 1.0, cell=0.2, use_depth=False).samples == 1


def test_batches_show_every_view_once_before_any_comes_again():
    targets = make_targets(sphere_views(), CENTER, 1.0, cell=0.1, use_depth=False)
    source = batches(targets, 2, torch.Generator().manual_seed(0))
    round_of_views = torch.cat([next(source).clip_from_world for _ in range(3)])
    assert torch.unique(round_of_views, dim=0).shape[0] == 6


def test_color_field_learns_a_function_of_position():
    field = ColorField(resolutions=(8, 16), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(field.parameters(), lr=2e-2)
    points = torch.rand(2000, 3) * 2 - 1
    wanted = (points.sin() + 1) / 2
    for _ in range(60):
        optimizer.zero_grad()
        loss = (field(points) - wanted).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1e-3


def test_defaults_of_options_and_configuration_are_the_same():
    config = make_config(NvdiffrecOptions(), 128, 128)
    assert config == NvdiffrecConfig()
    assert texture_resolution(512, 384) == 1024
    assert texture_resolution(4000, 3000) == 2048
    assert texture_resolution(30, 40) == 256
    assert texture_resolution(512, 512, wanted=1000) == 1024
