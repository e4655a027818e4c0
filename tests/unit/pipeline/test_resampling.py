import numpy as np
import pytest

from pipeline.resample import common_size, filtered_color, resized, resized_nearest, same_aspect


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


def test_sizes_of_one_image_have_one_aspect_ratio():
    assert same_aspect((1920, 1440), (256, 192))
    assert same_aspect((256, 192), (1920, 1440))
    assert same_aspect((640, 480), (213, 160))
    assert not same_aspect((640, 480), (640, 360))
    assert not same_aspect((480, 640), (640, 480))
    assert not same_aspect((64, 64), (64, 60))
