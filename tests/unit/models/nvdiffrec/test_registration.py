from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models.geometry.depth_maps import clean_depths, resize_depths
from models.nvdiffrec.registration import register
from schemas.errors import JobCancelled
from tests.unit.models.nvdiffrec.camera_noise import reprojection_error, with_noisy_cameras, with_noisy_depth
from tests.unit.pipeline.textured_meshes import spot_mesh, spot_views


@pytest.fixture(scope="module")
def views():
    return spot_views()


@pytest.fixture(scope="module")
def points():
    return spot_mesh(16).vertices[::7]


def cleaned(views):
    return replace(views, depths=clean_depths(views.depths, views.masks, views.cameras))


def with_depth_in(views, kept):
    depths = torch.zeros_like(views.depths)
    depths[kept] = views.depths[kept]
    return replace(views, depths=depths)


def test_exact_views_stay_as_they_are(views):
    found = register(views, refine="auto")
    assert not found.inconsistent
    assert not found.corrected
    assert found.before_px < 0.4
    assert torch.equal(found.views.cameras.camera_to_world, views.cameras.camera_to_world)
    assert torch.equal(found.views.depths, views.depths)


def test_noisy_depth_is_not_taken_for_noisy_cameras(views):
    found = register(cleaned(with_noisy_depth(views)), refine="auto")
    assert not found.inconsistent
    assert torch.equal(found.views.cameras.camera_to_world, views.cameras.camera_to_world)


def test_noisy_cameras_are_found_and_corrected(views, points):
    noisy = with_noisy_cameras(views)
    assert reprojection_error(views.cameras, noisy.cameras, points) > 1.2
    found = register(noisy, refine="auto")
    assert found.inconsistent
    assert found.corrected
    assert found.shift_px > 1.2
    assert found.after_px < 0.4 < found.before_px
    assert reprojection_error(views.cameras, found.views.cameras, points) < 0.12
    assert torch.equal(found.depth_scale, torch.ones(len(views)))


def test_noisy_cameras_with_noisy_depth(views, points):
    noisy = cleaned(with_noisy_depth(with_noisy_cameras(views)))
    found = register(noisy, refine="auto")
    assert found.corrected
    assert reprojection_error(views.cameras, found.views.cameras, points) < 0.35


def test_a_wrong_focal_length_is_found(views, points):
    found = register(with_noisy_cameras(views, focal=1.02), refine="on")
    assert found.focal_factor == pytest.approx(1 / 1.02, abs=0.004)
    assert reprojection_error(views.cameras, found.views.cameras, points) < 0.12


def test_wrong_units_of_depth_are_found_and_cameras_left_alone(views):
    wrong = torch.tensor([1.2, 0.8, 1.0, 0.9, 1.1, 1.05])
    scaled = replace(views, depths=views.depths * wrong[:, None, None])
    for refine in ("auto", "off"):
        found = register(scaled, refine=refine)
        assert not found.corrected
        assert (found.depth_scale * wrong - 1).abs().max() < 0.003
        measured = views.depths > 0
        assert (found.views.depths - views.depths)[measured].abs().max() < 0.01


def test_off_leaves_noisy_cameras(views):
    noisy = with_noisy_cameras(views)
    found = register(noisy, refine="off")
    assert not found.corrected
    assert torch.equal(found.views.cameras.camera_to_world, noisy.cameras.camera_to_world)


def test_figures_tell_what_was_found(views):
    found = register(with_noisy_cameras(views), refine="auto")
    figures = found.figures()
    assert figures["registration/before_px"] == found.before_px > figures["registration/after_px"]
    assert figures["registration/cameras_inconsistent"] == figures["registration/cameras_corrected"] == 1
    assert figures["registration/focal_factor"] == found.focal_factor != 1
    assert figures["registration/depth_scale_min"] == figures["registration/depth_scale_max"] == 1


def test_the_same_seed_gives_the_same_bits(views):
    noisy = with_noisy_cameras(views)
    first, second = register(noisy, refine="on"), register(noisy, refine="on")
    assert torch.equal(first.views.cameras.camera_to_world, second.views.cameras.camera_to_world)


def test_exact_silhouettes_agree(views):
    found = register(replace(views, depths=None), refine="auto")
    assert found.before_px < 0.05
    assert not found.inconsistent
    assert not found.corrected
    assert found.views.depths is None


def test_without_depth_silhouettes_find_most_of_the_error(views, points):
    noisy = replace(with_noisy_cameras(views), depths=None)
    found = register(noisy, refine="auto")
    assert found.inconsistent
    assert found.corrected
    assert found.after_px < 0.2 * found.before_px
    before = reprojection_error(views.cameras, noisy.cameras, points)
    assert reprojection_error(views.cameras, found.views.cameras, points) < 0.5 * before


def test_views_that_tell_nothing_are_left_alone(views):
    for mask in (torch.ones_like(views.masks), torch.zeros_like(views.masks)):
        found = register(replace(views, masks=mask), refine="on")
        assert not found.corrected
        assert torch.equal(found.depth_scale, torch.ones(len(views)))


def test_a_view_without_depth_is_registered_by_its_silhouette(views, points):
    noisy = with_noisy_cameras(views)
    depths = noisy.depths.clone()
    depths[2] = 0
    found = register(replace(noisy, depths=depths), refine="auto")
    assert found.corrected
    assert reprojection_error(views.cameras, found.views.cameras, points) < 0.2


SOME = [[0], [0, 1], [0, 2, 4]]


@pytest.mark.parametrize("kept", [*SOME, [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]])
def test_asking_for_corrections_never_spoils_exact_cameras(views, points, kept):
    found = register(with_depth_in(views, kept), refine="on")
    assert reprojection_error(views.cameras, found.views.cameras, points) < 0.06
    assert torch.equal(found.depth_scale, torch.ones(len(views)))


@pytest.mark.parametrize("kept", SOME)
def test_depth_in_few_views_does_not_harm_what_silhouettes_find(views, points, kept):
    noisy = with_noisy_cameras(views)
    without = register(replace(noisy, depths=None), refine="auto")
    found = register(with_depth_in(noisy, kept), refine="auto")
    assert found.corrected
    assert found.shift_px == pytest.approx(without.shift_px, abs=1e-4)
    assert reprojection_error(without.views.cameras, found.views.cameras, points) < 0.001
    assert (found.depth_scale - 1).abs().max() < 0.02  # what the cameras' remaining errors make of it


@pytest.mark.parametrize("kept", SOME)
def test_wrong_units_of_depth_in_few_views_are_found(views, kept):
    few = with_depth_in(views, kept)
    found = register(replace(few, depths=1.2 * few.depths), refine="auto")
    assert not found.corrected
    assert (1.2 * found.depth_scale[kept] - 1).abs().max() < 0.01
    assert found.depth_scale.max() == 1


@pytest.mark.parametrize("depth", [True, False])
def test_progress_is_told_and_work_may_be_stopped(views, depth):
    noisy = with_noisy_cameras(views if depth else replace(views, depths=None))
    shares = []
    register(noisy, refine="auto", callback=lambda share, *_: shares.append(share))
    assert len(shares) > 15
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)

    def stop(share, *_):
        if share > 0:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        register(noisy, refine="auto", callback=stop)


def test_pixels_that_are_not_square_change_no_finding(views):
    """The same views stored with half as many rows."""
    size = (views.cameras.height // 2, views.cameras.width)
    flat = replace(
        views,
        images=F.interpolate(views.images.permute(0, 3, 1, 2), size, mode="area").permute(0, 2, 3, 1),
        masks=F.interpolate(views.masks[:, None], size, mode="area")[:, 0],
        depths=resize_depths(views.depths, size),
        cameras=views.cameras.resized(size[1], size[0]),
    )
    found = register(flat, refine="auto")
    assert not found.inconsistent
    assert not found.corrected
    assert register(with_noisy_cameras(flat), refine="auto").corrected
