import numpy as np
import pytest

from pipeline.distortion import Distortion
from pipeline.poses import intrinsics_of
from pipeline.resample import common_size, filtered_color, resized, resized_nearest, same_aspect
from pipeline.transforms import Frame, Lens
from schemas.errors import ErrorCode, InvalidJob


def frame_of(width: int, height: int, *, focal: float) -> Frame:
    """A frame whose lens is stated for an image of a size."""
    lens = Lens(
        width=width,
        height=height,
        fl_x=focal,
        fl_y=focal,
        cx=width / 2,
        cy=height / 2,
        angle_x=None,
        angle_y=None,
        distortion=Distortion(),
    )
    return Frame("images/0.jpg", None, None, np.eye(4), lens)


def linear(width: int, height: int) -> np.ndarray:
    """Values that grow with the place of the pixel's centre, as shares of the image."""
    v, u = np.mgrid[:height, :width] + 0.5
    return (u / width + 2 * v / height).astype(np.float32)


def test_the_common_size_takes_nothing_from_any_view():
    assert common_size([(640, 480), (480, 640), (100, 50)], 10**9) == (640, 640)


def test_the_common_size_keeps_within_its_bound():
    sizes = [(4000, 3000)] * 20
    width, height = common_size(sizes, 60_000_000)
    assert 20 * width * height <= 60_000_000
    assert width / height == pytest.approx(4 / 3, rel=1e-3)
    assert width > 1990


@pytest.mark.parametrize("size", [(64, 48), (17, 31), (200, 150), (300, 20), (33, 120)])
def test_pixels_stay_where_they_are(size):
    made = resized(linear(100, 80), size)
    assert made.shape == (size[1], size[0])
    # A border of two source pixels, where there is nothing to interpolate with.
    inner = linear(*size)
    away = (inner > 0.2) & (inner < 2.8)
    v, u = np.mgrid[: size[1], : size[0]]
    away &= (np.abs(u / size[0] - 0.5) < 0.44) & (np.abs(v / size[1] - 0.5) < 0.44)
    np.testing.assert_allclose(made[away], inner[away], atol=3e-3)


def test_what_shrinks_is_averaged():
    values = np.random.default_rng(0).random((40, 60, 3)).astype(np.float32)
    np.testing.assert_allclose(
        resized(values, (15, 20)), values.reshape(20, 2, 15, 4, 3).mean((1, 3)), atol=1e-6
    )


def test_depth_takes_the_nearest_pixel():
    depth = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(resized_nearest(depth, (8, 6)), depth.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(resized_nearest(depth.repeat(3, 0).repeat(3, 1), (4, 3)), depth)
    assert resized_nearest(depth, (4, 3)) is depth


def test_colours_of_the_object_are_not_mixed_with_those_around_it():
    coverage = np.zeros((8, 8), np.float32)
    coverage[:, :3] = 1
    color = np.where(coverage[..., None] > 0, [0.2, 0.4, 0.6], [1.0, 0.0, 1.0]).astype(np.float32)

    def smooth(array):
        return resized(array, (4, 4))

    made, share = filtered_color(color, coverage, smooth), smooth(coverage)
    np.testing.assert_allclose(made[share > 0.25], np.tile([0.2, 0.4, 0.6], (8, 1)), atol=1e-6)
    assert share[0].tolist() == [1, 0.5, 0, 0]
    np.testing.assert_allclose(made[:, 3], np.tile([1.0, 0.0, 1.0], (4, 1)), atol=1e-6)
    mixed = filtered_color(color, None, smooth)
    np.testing.assert_allclose(mixed[0, 1], [0.6, 0.2, 0.8], atol=1e-6)


def test_extreme_views_do_not_multiply_their_sides():
    sizes = [(16384, 1), (1, 16384), (64, 64)]
    width, height = common_size(sizes, 10**9)
    assert width * height <= 4 * 16384
    assert width == height


def test_portrait_and_landscape_pictures_lose_nothing():
    assert common_size([(4000, 1800), (1800, 4000)], 10**9) == (4000, 4000)


ONE_IMAGE = [
    ((1920, 1440), (256, 192)),
    ((640, 480), (213, 160)),
    ((6000, 4000), (1600, 1067)),
    ((5472, 3648), (1600, 1067)),
    ((8256, 5504), (1600, 1067)),
    ((4000, 6000), (1067, 1600)),
    ((3999, 6000), (499, 750)),  # rounded down
    ((100, 67), (100.0, 66.7)),
    ((1, 1), (1, 1)),
]
TWO_IMAGES = [
    ((640, 480), (640, 360)),
    ((480, 640), (640, 480)),
    ((64, 64), (64, 60)),
    ((1, 1), (100, 199)),
    ((2, 2), (199, 100)),
    ((6000, 4000), (1600, 1060)),
    ((6000, 4000), (6000, 4010)),
]


@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize(
    ("first", "second", "one"),
    [(*pair, True) for pair in ONE_IMAGE] + [(*pair, False) for pair in TWO_IMAGES],
)
def test_sizes_of_one_image_have_one_aspect_ratio(first, second, one, turned):
    if turned:
        first, second = first[::-1], second[::-1]
    assert same_aspect(first, second) is one
    assert same_aspect(second, first) is one


@pytest.mark.parametrize("size", [(6000, 4000), (5472, 3648), (8256, 5504)])
@pytest.mark.parametrize("lens_is_smaller", [True, False])
def test_a_lens_stated_at_another_size_of_the_image_is_scaled(size, lens_is_smaller):
    stated, actual = ((1600, 1067), size) if lens_is_smaller else (size, (1600, 1067))
    intrinsics = intrinsics_of(frame_of(*stated, focal=stated[0]), *actual)
    assert intrinsics[0, 0] == pytest.approx(actual[0])
    assert intrinsics[1, 1] == pytest.approx(actual[0], rel=1e-3)
    np.testing.assert_allclose(intrinsics[:2, 2], np.array(actual) / 2)


def test_a_lens_stated_for_another_shape_is_refused():
    with pytest.raises(InvalidJob) as caught:
        intrinsics_of(frame_of(1600, 1200, focal=1600), 6000, 4000)
    assert caught.value.code is ErrorCode.VIEW_MISMATCH
    assert caught.value.details["file"] == "images/0.jpg"
