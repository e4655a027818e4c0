"""Undistorted images show what a pinhole would; OpenCV's own functions are the reference."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.distortion import Distortion
from pipeline.settings import Limits
from pipeline.undistort import plan_undistortion, remapped
from schemas.errors import ErrorCode, InvalidJob

WIDTH, HEIGHT = 120, 90
INTRINSICS = np.array([[100.0, 0, 63.0], [0, 104.0, 43.0], [0, 0, 1]])

LENSES = {
    "barrel": Distortion(radial=(-0.25, 0.06, 0.0, 0.0)),
    "pincushion": Distortion(radial=(0.15, 0.02, 0.0, 0.0)),
    "tangential": Distortion(radial=(-0.1, 0.02, 0.003, 0.0), tangential=(0.004, -0.006)),
    "fisheye": Distortion(True, (0.02, -0.004, 0.001, 0.0002)),
}


def reference_points(lens: Distortion, points: np.ndarray, ideal: bool) -> np.ndarray:
    """OpenCV's distorted places of ideal points [N, 2], or the ideal places of distorted ones."""
    points = points[:, None].astype(np.float64)
    k1, k2, k3, k4 = lens.radial
    if lens.fisheye:
        function = cv2.fisheye.undistortPoints if ideal else cv2.fisheye.distortPoints
        return function(points, np.eye(3), np.array([k1, k2, k3, k4]))[:, 0]
    coefficients = np.array([k1, k2, *lens.tangential, k3])
    if ideal:
        stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 200, 1e-12)
        return cv2.undistortPoints(points, np.eye(3), coefficients, criteria=stop)[:, 0]
    space = np.concatenate([points, np.ones_like(points[..., :1])], -1)
    return cv2.projectPoints(space, np.zeros(3), np.zeros(3), np.eye(3), coefficients)[0][:, 0]


def plan(lens: Distortion, intrinsics: np.ndarray = INTRINSICS, width: int = WIDTH, height: int = HEIGHT):
    return plan_undistortion("images/0.png", lens, intrinsics, width, height)


@pytest.fixture(params=LENSES)
def lens(request) -> Distortion:
    return LENSES[request.param]


def test_points_are_distorted_as_by_opencv_and_back(lens):
    points = np.random.default_rng(0).uniform(-0.6, 0.6, (200, 2))
    moved = lens.distort(points)
    np.testing.assert_allclose(moved, reference_points(lens, points, ideal=False), atol=1e-9)
    np.testing.assert_allclose(lens.undistort(moved), points, atol=1e-5)


def scene(points: np.ndarray) -> np.ndarray:
    """Brightness of the plane z = 1."""
    x, y = points[..., 0], points[..., 1]
    return (0.5 + 0.2 * np.sin(17 * x + 3 * y) + 0.2 * np.cos(13 * y - 5 * x)).astype(np.float32)


def pixel_points(intrinsics: np.ndarray, width: int, height: int) -> np.ndarray:
    """Points [H, W, 2] of the plane z = 1 at the pixels' centres, which lie at +0.5."""
    v, u = np.mgrid[:height, :width] + 0.5
    return np.stack(
        [(u - intrinsics[0, 2]) / intrinsics[0, 0], (v - intrinsics[1, 2]) / intrinsics[1, 1]], -1
    )


def test_an_undistorted_image_is_the_pinholes(lens):
    points = pixel_points(INTRINSICS, WIDTH, HEIGHT)
    taken = scene(reference_points(lens, points.reshape(-1, 2), ideal=True).reshape(points.shape))
    undistortion = plan(lens)
    made = remapped(taken, undistortion.maps())
    assert made.shape == (undistortion.height, undistortion.width)
    wanted = scene(pixel_points(undistortion.intrinsics, undistortion.width, undistortion.height))
    # A shift by half a pixel would be an error of 0.03 in the mean.
    assert np.abs(made - wanted)[2:-2, 2:-2].max() < 0.02
    assert np.abs(made - wanted).mean() < 0.002


def test_every_pixel_has_been_seen(lens):
    x, y = plan(lens).maps()
    assert x.min() > -0.51
    assert x.max() < WIDTH - 0.49
    assert y.min() > -0.51
    assert y.max() < HEIGHT - 0.49


def test_the_window_touches_the_border_on_all_sides(lens):
    x, y = plan(lens).maps()
    assert max(x[:, 0].min(), y[0].min(), WIDTH - 1 - x[:, -1].max(), HEIGHT - 1 - y[-1].max()) < 2


def test_depth_is_never_mixed():
    depth = np.where(np.mgrid[:HEIGHT, :WIDTH].sum(0) % 7 < 3, 0.0, 2.5).astype(np.float32)
    made = remapped(depth, plan(LENSES["tangential"]).maps(), nearest=True)
    assert set(np.unique(made)) == {0.0, 2.5}


def test_the_middle_stays_as_sharp_as_it_was():
    wide = plan(Distortion(True), np.array([[50.0, 0, 60], [0, 50, 45], [0, 0, 1]]))
    assert wide.width > WIDTH
    assert wide.intrinsics[0, 0] == pytest.approx(50, rel=0.02)
    mild = plan(Distortion(radial=(-0.01, 0.0, 0.0, 0.0)))
    assert (mild.width, mild.height) == (WIDTH, HEIGHT)


def test_a_fisheye_beyond_the_half_sphere_shows_its_middle():
    circular = plan(Distortion(True), np.array([[30.0, 0, 60], [0, 30, 45], [0, 0, 1]]))
    left, _, right, _ = circular.window
    assert -1.74 < left < -1.5
    assert 1.5 < right < 1.74


def test_what_is_enlarged_keeps_within_the_bounds_on_an_image():
    intrinsics = np.array([[10_000.0, 0, 8192], [0, 10_000, 32], [0, 0, 1]])
    free = plan(Distortion(True, (-0.2, 0.0, 0.0, 0.0)), intrinsics, 16384, 64)
    assert free.width > 32767  # OpenCV undistorts no image of this width
    bound = free.within(Limits())
    assert bound.width == Limits().max_image_side
    assert bound.window == free.window
    made = remapped(np.full((64, 16384), 0.5, np.float32), bound.maps())
    assert made.shape == (bound.height, bound.width)
    np.testing.assert_allclose(made, 0.5, atol=1e-6)
    few = free.within(Limits(max_image_pixels=1_000_000))
    assert 990_000 < few.width * few.height <= 1_000_000
    shrunk = np.diag([few.width / free.width, few.height / free.height, 1.0])
    np.testing.assert_allclose(few.intrinsics, shrunk @ free.intrinsics)


def test_what_is_within_the_bounds_stays_as_it_is(lens):
    assert plan(lens).within(Limits()) == plan(lens)


@pytest.mark.parametrize(
    "lens",
    [
        Distortion(radial=(-2.0, 0.0, 0.0, 0.0)),
        Distortion(radial=(0.0, 0.0, -9.0, 0.0)),
        Distortion(radial=(90.0, 0.0, 0.0, 0.0)),
        Distortion(tangential=(0.9, 0.0)),
        Distortion(tangential=(0.0, -50.0)),
        Distortion(True, (-4.0, 0.0, 0.0, 0.0)),
    ],
    ids=["folds", "folds late", "huge", "tangential", "huge tangential", "fisheye folds"],
)
def test_lenses_that_cannot_be_are_refused_by_name_and_rule(lens):
    with pytest.raises(InvalidJob) as caught:
        plan(lens)
    assert caught.value.code is ErrorCode.INVALID_CAMERAS
    assert "images/0.png" in caught.value.message
    assert caught.value.details["rule"] in caught.value.message


COEFFICIENT = st.floats(-100, 100) | st.floats(-1, 1) | st.floats(-1e-300, 1e-300)


@settings(deadline=None, max_examples=200)
@given(
    st.booleans(),
    st.tuples(COEFFICIENT, COEFFICIENT, COEFFICIENT, COEFFICIENT),
    st.tuples(COEFFICIENT, COEFFICIENT),
    st.floats(0.1, 100),
)
def test_any_lens_is_undone_within_the_image_or_refused(fisheye, radial, tangential, focal_share):
    lens = Distortion(fisheye, radial, (0.0, 0.0) if fisheye else tangential)
    intrinsics = np.array([[20 * focal_share, 0, 9.0], [0, 20 * focal_share, 5], [0, 0, 1]])
    try:
        x, y = plan(lens, intrinsics, 20, 12).maps()
    except InvalidJob:
        return
    assert x.shape[1] <= 2 * 20
    assert -2 <= x.min() <= x.max() <= 21
    assert -2 <= y.min() <= y.max() <= 13
