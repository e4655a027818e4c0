from dataclasses import replace

import numpy as np
import pytest
import torch

from models.base import Views
from models.geometry.carving import Carver, object_bounds, object_frame, silhouette_distance
from schemas.errors import ModelError
from tests.spheres import CENTER, DIRECTIONS, RADIUS, SIZE, sphere_views


@pytest.mark.parametrize("scale", [1.0, 0.01, 250.0])
@pytest.mark.parametrize("use_depth", [True, False])
def test_bounds_hold_the_object_at_any_scale(scale, use_depth):
    views = sphere_views(scale)
    center, half = object_bounds(views, Carver(views, use_depth=use_depth))
    assert ((center - CENTER * scale).abs() + RADIUS * scale <= half).all()
    assert half < 1.4 * RADIUS * scale


def test_hull_never_cuts_into_the_object_and_depth_finds_its_surface():
    views = sphere_views()
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(400, 3, generator=generator), dim=1)
    cell = 3.0 / views.cameras.intrinsics[0, 0, 0]  # world units of a pixel at the object
    for use_depth in (True, False):
        carver = Carver(views, use_depth=use_depth)
        assert (carver(CENTER + direction * (RADIUS - 2 * cell)) < 0).all()
        assert (carver(CENTER + direction * (RADIUS + 0.5)) > 0).all()
    with_depth = Carver(views)(CENTER + direction * (RADIUS + 2 * cell))
    assert (with_depth > 0).float().mean() > 0.97


def test_a_cropped_view_says_nothing_about_what_it_does_not_see():
    views = sphere_views()
    cropped = Views(views.names[:1], views.images[:1], torch.ones(1, SIZE, SIZE), None, views.cameras[[0]])
    beside = views.cameras.positions[:1] + torch.tensor(
        [[2.5, 3.0, 0.0]]
    )  # before the camera, outside its image
    assert Carver(cropped)(beside) > 0  # no view at all: outside
    both = Views(
        views.names[:2],
        views.images[:2],
        torch.stack([torch.ones(SIZE, SIZE), views.masks[1]]),
        None,
        views.cameras[[0, 1]],
    )
    assert Carver(both)(CENTER[None]) < 0


def test_contradicting_masks_are_an_error_not_an_empty_mesh():
    views = sphere_views()
    masks = torch.zeros_like(views.masks)
    masks[0, 2:6, 2:6] = 1
    masks[1:, -6:-2, -6:-2] = 1
    broken = Views(views.names, views.images, masks, None, views.cameras)
    with pytest.raises(ModelError, match="contradict") as error:
        object_bounds(broken, Carver(broken))
    assert error.value.code == "MODEL_DIVERGED"


def test_silhouette_distance_agrees_with_a_search_over_pixels():
    mask = torch.zeros(1, 9, 9)
    mask[0, 3:6, 2:7] = 1
    field = silhouette_distance(mask)[0].numpy()
    inside = mask[0].numpy() > 0
    for y in range(9):
        for x in range(9):
            other = np.argwhere(inside != inside[y, x])
            nearest = np.hypot(*(other - [y, x]).T).min() - 0.5
            assert field[y, x] == pytest.approx(-nearest if inside[y, x] else nearest)


def test_points_are_judged_alike_in_one_piece_and_in_many(monkeypatch):
    views = sphere_views()
    points = CENTER + torch.randn(500, 3, generator=torch.Generator().manual_seed(2))
    whole = Carver(views)(points)
    monkeypatch.setattr("models.geometry.carving._CHUNK", 60)
    torch.testing.assert_close(Carver(views)(points), whole)


def test_partial_coverage_places_the_silhouette_within_a_pixel():
    edge = 20.3  # pixels from the left, in x
    coverage = (edge - torch.arange(64)).clamp(0, 1).repeat(64, 1)[None]
    field = silhouette_distance(coverage)[0]
    expected = (torch.arange(64) + 0.5 - edge).expand(64, 64)
    assert torch.allclose(field, expected, atol=1e-5)


def test_noisy_depth_is_averaged_where_views_agree():
    views = sphere_views(directions=[(x, -1, z) for x in (-0.3, 0.3) for z in (-0.3, 0.3)])
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(views.depths.shape, generator=generator)
    noisy = replace(views, depths=views.depths + noise * (views.depths > 0))
    direction = torch.tensor([0.0, -1.0, 0.0]) + 0.2 * torch.randn(800, 3, generator=generator)
    points = CENTER + torch.nn.functional.normalize(direction, dim=1) * RADIUS
    largest = torch.stack([Carver(noisy.subset([i]))(points) for i in range(len(views))]).amax(0)
    found = Carver(noisy)(points)
    assert largest.mean() > 0.01  # the largest of noisy claims carves into the object
    assert found.mean().abs() < 0.5 * largest.mean()
    assert found.std() < largest.std()


def test_a_thin_plate_seen_from_both_sides_is_kept():
    cameras = sphere_views().cameras[[0, 2]]  # from -y and from +y
    depth = torch.full((2, SIZE, SIZE), 2.97)
    plate = Views(("a", "b"), torch.zeros(2, SIZE, SIZE, 3), torch.ones(2, SIZE, SIZE), depth, cameras)
    carver = Carver(plate)
    offset = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.02, 0.0], [0.0, -0.02, 0.0]])
    assert (carver(CENTER + offset) < 0).all()
    assert (carver(CENTER + torch.tensor([[0.0, 0.04, 0.0], [0.0, -0.04, 0.0]])) > 0).all()


LEVEL = DIRECTIONS[:4]


@pytest.mark.parametrize("flatness", [2.0, 1.78])
def test_a_tall_object_is_held_whole_by_flat_focal_lengths(flatness):
    """The sphere's images with a shorter vertical focal length show an object that much taller."""
    views = replace(sphere_views(directions=LEVEL), depths=None)
    intrinsics = views.cameras.intrinsics.clone()
    intrinsics[:, 1, 1] /= flatness
    tall = replace(views, cameras=replace(views.cameras, intrinsics=intrinsics))
    height = flatness * RADIUS
    center, half = object_frame(tall)
    assert half > height
    center, half = object_bounds(tall, Carver(tall))
    assert (center - CENTER).abs().max() < 0.05
    assert height <= half < 1.4 * height
    up = torch.tensor([0.0, 0.0, 1.0])
    carver = Carver(tall)
    assert (carver(CENTER + up * height * torch.tensor([[-0.9], [0.9]])) < 0).all()
    assert (carver(CENTER + up * height * torch.tensor([[-1.15], [1.15]])) > 0).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_distances_do_not_depend_on_the_pixels_shape(axis):
    """The same views stored with half as many rows (columns) carve the same field, to half a large pixel."""
    views = replace(sphere_views(), depths=None)
    size = [SIZE, SIZE]
    size[axis] //= 2
    masks = torch.nn.functional.interpolate(views.masks[:, None], size, mode="area")[:, 0]
    images = torch.full((len(views), *size, 3), 0.5)
    flat = replace(views, masks=masks, images=images, cameras=views.cameras.resized(size[1], size[0]))
    generator = torch.Generator().manual_seed(0)
    points = CENTER + 0.6 * torch.randn(500, 3, generator=generator)
    pixel = 3.0 / flat.cameras.intrinsics[0, [0, 1], [0, 1]].min()
    expected = Carver(views)(points)
    assert (Carver(flat)(points) - expected).abs().max() < pixel
    assert (Carver(flat)(points) - expected).abs().mean() < 0.25 * pixel


@pytest.mark.parametrize("height", [2.0, 0.5])
def test_the_silhouette_of_flat_pixels_runs_between_them(height):
    mask = torch.zeros(1, 20, 20)
    mask[0, 8:12, 8:12] = 1
    field = silhouette_distance(mask, torch.tensor([height]))[0]
    assert torch.allclose(field[:8, 10], height * (7.5 - torch.arange(8)))
    assert torch.allclose(field[10, :8], 7.5 - torch.arange(8.0))
