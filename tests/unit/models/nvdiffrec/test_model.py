"""The whole method on an analytic sphere: small enough for seconds, real in every part."""

import pytest
import torch

from models.nvdiffrec.color_field import ColorField
from models.nvdiffrec.config import GridLevel, grid_levels, make_config, texture_resolution
from models.nvdiffrec.model import Nvdiffrec
from models.nvdiffrec.targets import Frame, batch_of, make_targets, resized
from schemas.errors import InvalidJob, JobCancelled
from schemas.options import NvdiffrecOptions, ReconviagenOptions
from tests.spheres import CENTER, RADIUS, sphere_views

FRAME = Frame(CENTER, 1.0)
SMALL = NvdiffrecOptions(
    materials="unlit",
    grid_resolution=20,
    geometry_iterations=12,
    texture_iterations=6,
    texture_resolution=128,
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
    views = sphere_views()
    views.images[:] = torch.where(views.masks[..., None] > 0, 0.5, 0.9)  # a background that must not bleed in
    small = resized(views, 32)
    assert small.images.shape == (6, 32, 32, 3)
    assert (small.cameras.width, small.cameras.height) == (32, 32)
    inside = small.masks > 0
    torch.testing.assert_close(small.images[inside], torch.full_like(small.images[inside], 0.5))
    points = CENTER + 0.3 * torch.eye(3)
    torch.testing.assert_close(small.cameras.project(points)[0], views.cameras.project(points)[0] / 2)
    assert resized(views, 200) is views


def test_a_rasterizer_that_is_not_there_is_refused_for_good():
    options = SMALL.model_copy(update={"raster": "nvdiffrast"})
    with pytest.raises(InvalidJob, match=r"options\.raster") as error:
        Nvdiffrec("cpu").reconstruct(sphere_views(), options, quiet)
    assert (error.value.code, error.value.retryable) == ("INVALID_OPTIONS", False)


def test_options_of_another_model_are_a_mistake_of_the_caller():
    with pytest.raises(TypeError, match="ReconviagenOptions"):
        Nvdiffrec("cpu").reconstruct(sphere_views(), ReconviagenOptions(), quiet)


def test_torch_is_left_as_it_was(sphere):
    assert not torch.are_deterministic_algorithms_enabled()


def test_targets_trust_depth_only_away_from_silhouettes():
    views = sphere_views()
    targets = make_targets(views, FRAME, cell=0.1, use_depth=True)
    trusted, seen = targets.depth_weight.flip(1) > 0, views.masks > 0.5
    assert (trusted & ~seen).sum() == 0
    assert 0.7 < trusted.sum() / seen.sum() < 0.95
    assert make_targets(views, FRAME, cell=0.1, use_depth=False).depth_weight.sum() == 0


def test_small_triangles_get_more_samples_than_large_ones():
    views = sphere_views()
    assert make_targets(views, FRAME, cell=0.05, use_depth=False).samples == 2
    assert make_targets(views, FRAME, cell=0.2, use_depth=False).samples == 1


@pytest.mark.parametrize("size", [2, 4, 5])
def test_batches_show_every_view_once_before_a_new_round_begins(size):
    # A size that does not divide the number of views once left the rest of each round out.
    targets = make_targets(sphere_views(), FRAME, cell=0.1, use_depth=False)
    shown = torch.cat([batch_of(targets, size, step, seed=0).clip_from_world for step in range(6)])
    for start in range(0, 6 * size, 6):
        assert torch.unique(shown[start : start + 6], dim=0).shape[0] == 6


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


def test_textures_are_as_large_as_the_views_can_fill():
    assert texture_resolution(512, 2.0) == 1024
    assert texture_resolution(4000, 2.0) == 2048
    assert texture_resolution(40, 2.0) == 256
    assert texture_resolution(512, 2.0, wanted=1000) == 1024


def test_grids_go_from_coarse_to_fine_where_there_is_no_depth():
    assert grid_levels(64, 240, use_depth=False) == (GridLevel(16, 80), GridLevel(32, 80), GridLevel(64, 80))
    assert [level.resolution for level in grid_levels(96, 400, use_depth=False)] == [12, 24, 48, 96]
    assert grid_levels(64, 150, use_depth=True) == (GridLevel(64, 150),)
    for iterations in (1, 2, 100):
        assert sum(level.iterations for level in grid_levels(64, iterations, use_depth=False)) == iterations


def test_depth_of_a_few_views_is_used_but_does_not_decide_the_shape():
    few = make_config(NvdiffrecOptions(), 512, depth_share=0.2)
    assert few.use_depth
    assert few.geometry == make_config(NvdiffrecOptions(), 512, depth_share=0.0).geometry
    assert len(few.geometry.levels) == 3


def test_a_normal_map_needs_light():
    assert (
        make_config(NvdiffrecOptions(preset="preview", normal_map=True), 64, depth_share=1.0).materials
        == "pbr"
    )
    with pytest.raises(ValueError, match="normal map"):
        NvdiffrecOptions(normal_map=True, materials="unlit")


def test_presets_give_way_to_what_a_job_sets():
    standard = make_config(NvdiffrecOptions(), 512, depth_share=1.0)
    assert standard.geometry.levels == (GridLevel(64, 150),)
    assert (standard.train_resolution, standard.texture.resolution, standard.materials) == (512, 1024, "pbr")
    preview = make_config(NvdiffrecOptions(preset="preview"), 512, depth_share=1.0)
    assert preview.train_resolution == 256
    assert preview.geometry.levels[-1].resolution == 40
    own = NvdiffrecOptions(
        preset="preview", grid_resolution=24, geometry_iterations=9, texture_iterations=7, materials="pbr"
    )
    config = make_config(own, 512, depth_share=1.0)
    assert config.geometry.levels == (GridLevel(24, 9),)
    assert (config.texture.iterations, config.materials) == (7, "pbr")


def test_cameras_are_corrected_along_with_the_shape_where_that_is_asked_for():
    views = sphere_views()
    options = SMALL.model_copy(update={"refine_cameras": "on", "use_depth": False, "geometry_iterations": 24})
    made = Nvdiffrec("cpu").reconstruct(views, options, quiet)
    assert made.cameras is not None
    assert len(made.cameras) == len(views)
    # They were exact: corrections stay small.
    moved = (made.cameras.positions - views.cameras.positions).norm(dim=1)
    assert 0 < moved.max() < 0.1
    given = Nvdiffrec("cpu").reconstruct(views, options.model_copy(update={"refine_cameras": "off"}), quiet)
    assert given.cameras is None
