from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models.geometry.depth_maps import clean_depths, depth_noise, resize_depths
from schemas.errors import JobCancelled
from tests.spheres import sphere_views
from tests.unit.models.nvdiffrec.camera_noise import with_noisy_depth
from tests.unit.pipeline.textured_meshes import spot_views


@pytest.fixture(scope="module")
def views():
    return spot_views()


def error(found, views):
    both = (found > 0) & (views.depths > 0) & (views.masks >= 0.5)
    return (found - views.depths)[both].abs()


@pytest.mark.parametrize("noise", [0.003, 0.01])
def test_the_noise_of_a_map_is_measured(views, noise):
    noisy = with_noisy_depth(views, noise=noise)
    level = depth_noise(noisy.depths, noisy.masks)
    true = noise * views.depths[views.depths > 0].median()
    assert ((level / true - 1).abs() < 0.15).all()
    assert (depth_noise(views.depths, views.masks) < 0.002).all()  # what curvature looks like


def test_exact_depth_is_kept_to_the_bit(views):
    found = clean_depths(views.depths, views.masks, views.cameras)
    measured = (views.depths > 0) & (views.masks >= 0.5)
    assert torch.equal(found[measured], views.depths[measured])


def test_noise_falls_and_holes_close(views):
    noisy = with_noisy_depth(views)
    found = clean_depths(noisy.depths, noisy.masks, noisy.cameras)
    assert error(found, views).mean() < 0.5 * error(noisy.depths, views).mean()
    on_object = (views.depths > 0) & (views.masks >= 0.5)
    assert (found > 0)[on_object].float().mean() > 0.93
    assert not (found > 0)[views.masks < 0.5].any()


def test_holes_of_an_exact_map_are_filled_by_the_surface(views):
    holed = with_noisy_depth(views, noise=0.0)
    found = clean_depths(holed.depths, holed.masks, holed.cameras)
    filled = (found > 0) & (holed.depths == 0) & (views.depths > 0) & (views.masks >= 0.5)
    pixel = 3.2 / views.cameras.intrinsics[0, 0, 0]
    assert filled.sum() > 1000
    assert (found - views.depths)[filled].abs().median() < 0.1 * pixel


def test_an_edge_between_two_surfaces_stays():
    views = sphere_views()
    depth = torch.where(torch.arange(64) < 30, 3.0, 3.5).repeat(1, 64, 1)
    noisy = depth * (1 + 0.01 * torch.randn(depth.shape))
    found = clean_depths(noisy, torch.ones_like(depth), views.cameras[[0]])
    assert (found - depth).abs().mean() < 0.012
    assert (found - depth)[:, :, 26:34].abs().mean() < 0.02


def test_outliers_are_replaced(views):
    spoilt = views.depths * torch.where(torch.rand(views.depths.shape) < 0.02, 1.2, 1.0)
    spoilt = with_noisy_depth(replace(views, depths=spoilt), noise=0.003, holes=0.0)
    found = clean_depths(spoilt.depths, views.masks, views.cameras)
    assert (error(spoilt.depths, views) > 0.3).float().mean() > 0.015
    assert (error(found, views) > 0.3).float().mean() < 0.004


def test_every_cleaned_map_is_reported_and_may_be_the_last(views):
    seen = []
    clean_depths(
        views.depths, views.masks, views.cameras, callback=lambda share, *_: seen.append(round(share * 6))
    )
    assert seen == [1, 2, 3, 4, 5, 6]

    def stop(*_):
        raise JobCancelled

    with pytest.raises(JobCancelled):
        clean_depths(views.depths, views.masks, views.cameras, callback=stop)


def test_noise_is_judged_by_the_longer_side_of_a_pixel(views):
    """Noise of a fifth of a square pixel is smoothed, of a tenth of a longer one kept."""
    pixel = 3.2 / views.cameras.intrinsics[0, 0, 0]
    noisy = with_noisy_depth(views, noise=float(0.2 * pixel / 3.2), holes=0.0)
    assert not torch.equal(clean_depths(noisy.depths, noisy.masks, noisy.cameras), noisy.depths)
    for axis in (0, 1):
        intrinsics = views.cameras.intrinsics.clone()
        intrinsics[:, axis, axis] /= 2
        found = clean_depths(noisy.depths, noisy.masks, replace(noisy.cameras, intrinsics=intrinsics))
        assert torch.equal(found[noisy.depths > 0], (noisy.depths * (noisy.masks >= 0.5))[noisy.depths > 0])


def test_a_map_without_measurements_stays_empty(views):
    empty = torch.zeros_like(views.depths)
    assert not clean_depths(empty, views.masks, views.cameras).any()
    assert not depth_noise(empty, views.masks).any()


def test_a_smaller_map_shows_the_same_plane_in_the_same_place():
    row, column = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    plane = (3 + 0.002 * column + 0.001 * row)[None]
    for size in (32, 16):
        coarse_row, coarse_column = torch.meshgrid(
            *(2 * [(torch.arange(size) + 0.5) * 64 / size]), indexing="ij"
        )
        expected = 3 + 0.002 * coarse_column + 0.001 * coarse_row
        inner = (resize_depths(plane, (size, size))[0] - expected)[1:-1, 1:-1]
        assert inner.abs().max() < 1e-5


def test_a_smaller_map_does_not_float_between_two_surfaces():
    depth = torch.where(torch.arange(64) < 31, 3.0, 4.0).repeat(1, 64, 1)
    depth[:, ::3, ::5] = 0
    small = resize_depths(depth, (16, 16))
    assert ((small == 3.0) | (small == 4.0)).all()
    assert (resize_depths(torch.zeros(1, 64, 64), (16, 16)) == 0).all()
    assert F.interpolate(depth[:, None], (16, 16), mode="area").unique().numel() > 2  # what it avoids
