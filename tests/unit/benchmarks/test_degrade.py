from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from benchmarks.reconstruction.alignment import rotation_angles
from benchmarks.reconstruction.datasets import Truth
from benchmarks.reconstruction.degrade import CannotDegrade, Degradation, degrade, noisy_cameras
from benchmarks.reconstruction.surface_metrics import SurfaceSamples
from models.base import Views
from models.geometry.camera import Cameras

CENTER, RADIUS = np.array([0.5, 0.0, -0.5]), 2.0
TRUTH = Truth(SurfaceSamples(np.zeros((1, 3)), np.zeros((1, 3))), CENTER, RADIUS)
SIZE = 160


def ring(views):
    """Cameras at different distances from the object."""
    pose = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    pose[:, 0, 3] = torch.linspace(3, 9, views)
    return Cameras(pose, torch.eye(3).repeat(views, 1, 1), SIZE, SIZE)


@pytest.fixture
def views():
    """Six views of a disc at depth 5 before a measured background at depth 8."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    disc = ((x - 80) ** 2 + (y - 80) ** 2 < 70**2).float().repeat(6, 1, 1)
    images = torch.full((6, SIZE, SIZE, 3), 0.5)
    return Views(tuple("abcdef"), images, disc, torch.where(disc > 0, 5.0, 8.0), ring(6))


def test_cameras_have_the_stated_noise():
    exact = ring(4000)
    noisy = noisy_cameras(exact, Degradation(0.5, 0.01), CENTER)
    before, after = exact.camera_to_world.numpy(), noisy.camera_to_world.numpy()
    angles = rotation_angles(after[:, :3, :3], before[:, :3, :3])
    assert np.sqrt((angles**2).mean()) == pytest.approx(0.5, rel=0.03)
    assert (angles < 0.5).mean() == pytest.approx(0.683, abs=0.02)  # normally distributed
    step = np.linalg.norm(after[:, :3, 3] - before[:, :3, 3], axis=1)
    share = step / np.linalg.norm(before[:, :3, 3] - CENTER, axis=1)
    assert np.sqrt((share**2).mean()) == pytest.approx(0.01, rel=0.03)
    identity = np.tile(np.eye(3), (len(after), 1, 1))
    np.testing.assert_allclose(after[:, :3, :3] @ after[:, :3, :3].transpose(0, 2, 1), identity, atol=1e-12)


def test_turning_leaves_cameras_in_place_and_moving_leaves_them_upright(views):
    turned = degrade(views, Degradation(camera_noise_degrees=1), TRUTH).cameras
    assert torch.equal(turned.positions, views.cameras.positions)
    moved = degrade(views, Degradation(camera_noise_distance=0.01), TRUTH).cameras
    assert torch.equal(moved.camera_to_world[:, :3, :3], views.cameras.camera_to_world[:, :3, :3])


def test_depth_noise_is_a_share_of_the_diameter(views):
    worse = degrade(views, Degradation(depth_noise=0.01), TRUTH)
    noise = worse.depths - views.depths
    assert noise.std() == pytest.approx(0.01 * 2 * RADIUS, rel=0.02)
    assert abs(noise.mean()) < 1e-3
    assert torch.equal(worse.images, views.images)


def test_what_was_not_measured_stays_unmeasured_and_depth_never_turns_negative(views):
    shallow = replace(views, depths=torch.where(views.masks > 0, 0.01, 0.0))
    worse = degrade(shallow, Degradation(depth_noise=0.1), TRUTH).depths
    assert (worse[views.masks == 0] == 0).all()
    assert (worse >= 0).all()


def test_each_view_has_one_wrong_factor():
    depths = torch.rand(3000, 2, 2) + 1
    views = Views(("",) * 3000, torch.zeros(3000, 2, 2, 3), torch.ones(3000, 2, 2), depths, ring(3000))
    factor = degrade(views, Degradation(depth_scale=0.05), None).depths / depths
    assert torch.allclose(factor, factor[:, :1, :1].expand_as(factor), rtol=1e-5)
    assert factor[:, 0, 0].log().std() == pytest.approx(0.05, rel=0.05)
    assert abs(factor[:, 0, 0].log().mean()) < 0.005


def test_holes_take_the_stated_share_of_the_object_in_patches_and_single_pixels(views):
    worse = degrade(views, Degradation(depth_holes=0.3), None).depths
    holes = (worse == 0).numpy()
    on_object = views.masks.numpy() > 0
    assert not holes[~on_object].any()
    for hole, pixels in zip(holes, on_object, strict=True):
        assert hole.sum() == round(0.3 * pixels.sum())
        inner = binary_erosion(hole, np.ones((3, 3)), iterations=2).sum()  # 5x5 pixels of hole
        assert inner > 0.1 * hole.sum()  # of independent pixels, 0.3 ** 24 are the middle of such a square
        neighbours = sum(np.roll(hole, step, axis) for step in (-1, 1) for axis in (0, 1))
        assert (hole & (neighbours == 0)).sum() > 0.1 * hole.sum()
    assert (holes[0] != holes[1]).any()


def test_the_same_seed_gives_the_same_input_and_another_seed_another(views):
    everything = Degradation(0.5, 0.01, 0.05, 0.01, 0.3, seed=4)
    one, two = degrade(views, everything, TRUTH), degrade(views, everything, TRUTH)
    assert torch.equal(one.depths, two.depths)
    assert torch.equal(one.cameras.camera_to_world, two.cameras.camera_to_world)
    other = degrade(views, replace(everything, seed=5), TRUTH)
    assert not torch.equal(one.cameras.camera_to_world, other.cameras.camera_to_world)


def test_one_degradation_does_not_change_the_random_numbers_of_another(views):
    both = degrade(views, Degradation(camera_noise_degrees=0.5, depth_noise=0.01, depth_holes=0.3), TRUTH)
    alone = degrade(views, Degradation(depth_holes=0.3), TRUTH)
    assert torch.equal(both.depths == 0, alone.depths == 0)


def test_depth_can_be_left_out_and_nothing_is_changed_without_a_degradation(views):
    assert degrade(views, Degradation(no_depth=True), None).depths is None
    same = degrade(views, Degradation(), None)
    assert same.cameras is views.cameras
    assert same.depths is views.depths


def test_what_cannot_be_degraded_is_refused(views):
    with pytest.raises(CannotDegrade, match=r"mesh\.ply is needed"):
        degrade(views, Degradation(camera_noise_degrees=1), None)
    with pytest.raises(CannotDegrade, match="there is none"):
        degrade(replace(views, depths=None), Degradation(depth_holes=0.3), TRUTH)
    with pytest.raises(CannotDegrade, match="there is none"):
        degrade(views, Degradation(depth_scale=0.1, no_depth=True), TRUTH)


def test_the_figures_name_what_is_worse_and_the_seed():
    assert Degradation(seed=3).figures() == {}
    assert Degradation(depth_holes=0.3, seed=3).figures() == {"depth_holes": 0.3, "seed": 3}
