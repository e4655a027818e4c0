"""Crops around the object: what they show, where it came from, and what is refused."""

import pytest
import torch

from models.base import Views
from models.geometry.camera import Cameras
from models.reconviagen.crops import Crops, crop_views
from schemas.errors import ErrorCode, InvalidJob


def views(images: torch.Tensor, masks: torch.Tensor) -> Views:
    names = tuple(f"view{index}.png" for index in range(len(images)))
    return Views(names, images, masks, None, None)


def box_mask(height: int, width: int, *boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """Masks [V, H, W] of boxes (left, top, right, bottom), both ends inside."""
    masks = torch.zeros(len(boxes), height, width)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top : bottom + 1, left : right + 1] = 1
    return masks


def places(count: int, height: int, width: int) -> torch.Tensor:
    """Images whose red and green are the pixel's centre, in steps of 1/255."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([(x - 0.5) / 255, (y - 0.5) / 255, torch.ones_like(x)], -1).repeat(count, 1, 1, 1)


def cameras(count: int, width: int, height: int) -> Cameras:
    intrinsics = torch.tensor([[90.0, 0, 61], [0, 85, 33], [0, 0, 1]]).repeat(count, 1, 1)
    return Cameras(torch.eye(4).repeat(count, 1, 1), intrinsics, width, height)


@pytest.fixture
def three():
    """A box well inside, one cut by the image's corner, and one that fills the whole width."""
    masks = box_mask(100, 120, (30, 20, 70, 80), (60, 40, 119, 99), (0, 40, 119, 60))
    return crop_views(views(places(3, 100, 120), masks), size=140)


def test_crops_are_squares_of_eight_bits_on_black(three):
    assert three.images.shape == (3, 3, 140, 140)
    assert three.masks.shape == (3, 140, 140)
    assert three.size == 140
    levels = torch.cat([three.images.flatten(), three.masks.flatten()]) * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    outside = three.masks <= 0.79
    assert outside.any()
    assert (three.images.permute(0, 2, 3, 1)[outside] == 0).all()


def test_the_box_has_the_published_margin_and_rounding(three):
    # Box 30..70 x 20..80: centre (50, 50), longer side 60, with its margin 66, half of it 33.
    assert (three.windows[0].left, three.windows[0].top, three.windows[0].side) == (17, 17, 66)
    # 60..119 x 40..99: side int(59 * 1.1) = 64, half 32, centre (89.5, 69.5), cut at the image's ends.
    assert (three.windows[1].left, three.windows[1].top, three.windows[1].side) == (57, 37, 63)
    # 0..119 x 40..60: as wide as the image; half 65 around row 50 leaves the image at top and bottom.
    assert (three.windows[2].left, three.windows[2].top, three.windows[2].side) == (0, -10, 120)


def test_a_crop_shows_what_its_window_says(three):
    centre = torch.arange(140) + 0.5
    for image, mask, window in zip(three.images, three.masks, three.windows, strict=True):
        inside = mask == 1
        inside[:2], inside[-2:], inside[:, :2], inside[:, -2:] = False, False, False, False
        assert inside.any()
        x = window.left + centre * window.side / 140 - 0.5
        y = window.top + centre * window.side / 140 - 0.5
        shown = image * 255
        assert ((shown[0] - x[None, :])[inside].abs() <= 1.01).all()
        assert ((shown[1] - y[:, None])[inside].abs() <= 1.01).all()
        assert (shown[2][inside] >= 254).all()


def test_cameras_of_full_images_come_back_from_the_crops(three):
    full = cameras(3, 120, 100)
    back = three.to_full(three.to_crops(full))
    assert (back.width, back.height) == (120, 100)
    torch.testing.assert_close(back.intrinsics, full.intrinsics, atol=1e-4, rtol=1e-6)
    assert torch.equal(back.camera_to_world, full.camera_to_world)


def test_cameras_of_crops_see_points_where_the_crops_show_them(three):
    full = cameras(3, 120, 100)
    in_crops = three.to_crops(full)
    assert (in_crops.width, in_crops.height) == (140, 140)
    points = torch.randn(20, 3) * torch.tensor([1, 1, 0.2]) - torch.tensor([0, 0, 3.0])
    pixel, _ = full.project(points)
    found, _ = in_crops.project(points)
    for view, window in enumerate(three.windows):
        corner = torch.tensor([window.left, window.top])
        expected = (pixel[view] - corner) * 140 / window.side
        torch.testing.assert_close(found[view], expected, atol=1e-3, rtol=1e-5)


def test_a_centred_principal_point_of_a_crop_is_the_middle_of_its_window(three):
    centred = Cameras(
        torch.eye(4).repeat(3, 1, 1),
        torch.tensor([[200.0, 0, 70], [0, 200, 70], [0, 0, 1]]).repeat(3, 1, 1),
        140,
        140,
    )
    full = three.to_full(centred)
    for view, window in enumerate(three.windows):
        middle = torch.tensor([window.left + window.side / 2, window.top + window.side / 2])
        torch.testing.assert_close(full.intrinsics[view, :2, 2], middle)
        focal = 200 * window.side / 140
        torch.testing.assert_close(
            full.intrinsics[view, :2, :2], torch.diag(torch.tensor([focal, focal])), atol=1e-4, rtol=0
        )


def test_partial_coverage_counts_only_above_the_threshold():
    masks = box_mask(60, 60, (20, 20, 39, 39))
    masks[0, 5:20] = 0.8  # 204 of 255: not yet the object
    crops = crop_views(views(places(1, 60, 60), masks), size=70)
    assert crops.windows[0].top == 19
    masks[0, 5:20, 30] = 205 / 255
    assert crop_views(views(places(1, 60, 60), masks), size=70).windows[0].top == 4


def test_a_mask_of_the_whole_image_is_the_whole_image():
    crops = crop_views(views(places(1, 50, 80), torch.ones(1, 50, 80)), size=70)
    assert (crops.windows[0].left, crops.windows[0].top, crops.windows[0].side) == (0, -15, 80)


@pytest.mark.parametrize(
    ("box", "sentence"),
    [
        (None, "The mask of view1.png shows no object."),
        ((10, 10, 11, 24), "The object in the mask of view1.png is only 2 x 15 pixels in size."),
    ],
)
def test_a_mask_that_shows_no_object_or_next_to_nothing_is_refused(box, sentence):
    masks = box_mask(40, 40, (10, 10, 30, 30), box or (0, 0, -1, -1))
    with pytest.raises(InvalidJob) as refusal:
        crop_views(views(places(2, 40, 40), masks))
    assert refusal.value.code == ErrorCode.MASK_MISSING
    assert refusal.value.message == sentence
    assert refusal.value.details["file"] == "view1.png"


def test_a_small_object_is_taken():
    assert crop_views(views(places(1, 40, 40), box_mask(40, 40, (10, 10, 11, 25)))).windows[0].side == 16


def test_pixels_beyond_the_full_image_are_known(three):
    inside = three.inside(30)
    assert inside[:2].all()  # the second one ends where the image does
    # Rows of 120 / 30 pixels, from 10 above the image to 10 below it, of which it has 100.
    assert inside[2].all(1).tolist() == [False] * 3 + [True] * 24 + [False] * 3
    assert torch.equal(inside[2].all(1), inside[2].any(1))


def test_parts_of_maps_are_the_nearest_values(three):
    row = torch.arange(100.0)[:, None].expand(3, 100, 120) + 1
    found = three.nearest(row, 66)
    torch.testing.assert_close(found[0, :, 0], torch.arange(66.0) + 17 + 1)
    assert (found[2, :5] == 0).all()  # above the image
    assert found[2, 6].tolist() == [1.0 + int(-10 + 6.5 * 120 / 66)] * 66


def test_crops_are_of_the_published_size():
    crops: Crops = crop_views(views(places(1, 40, 40), box_mask(40, 40, (10, 10, 30, 30))))
    assert crops.images.shape == (1, 3, 518, 518)
