from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.metrics import MAX_PSNR_DB, depth_error, mask_iou, psnr_db, ssim

HEIGHT, WIDTH = 17, 14


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Two images that are alike but not equal."""
    reference = np.random.rand(HEIGHT, WIDTH, 3).astype(np.float32)
    noisy = np.clip(reference + 0.1 * np.random.randn(HEIGHT, WIDTH, 3), 0, 1).astype(np.float32)
    return noisy, reference


@pytest.fixture
def region() -> np.ndarray:
    """A disc well inside the image."""
    row, column = np.mgrid[:HEIGHT, :WIDTH]
    return (row - 8) ** 2 + (column - 7) ** 2 < 16


def test_psnr_equals_a_naive_loop(pair: tuple[np.ndarray, np.ndarray], region: np.ndarray) -> None:
    image, reference = pair
    squares = [
        (float(image[r, c, k]) - float(reference[r, c, k])) ** 2
        for r in range(HEIGHT)
        for c in range(WIDTH)
        for k in range(3)
        if region[r, c]
    ]
    expected = 10 * math.log10(1 / (sum(squares) / len(squares)))
    assert psnr_db(image, reference, region) == pytest.approx(expected, abs=1e-4)


def test_ssim_equals_a_naive_loop(pair: tuple[np.ndarray, np.ndarray], region: np.ndarray) -> None:
    image, reference = pair
    values = [
        naive_ssim(image[r - 3 : r + 4, c - 3 : c + 4, k], reference[r - 3 : r + 4, c - 3 : c + 4, k])
        for r in range(HEIGHT)
        for c in range(WIDTH)
        for k in range(3)
        if region[r, c]
    ]
    assert ssim(image, reference, region) == pytest.approx(np.mean(values), abs=1e-4)


def naive_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al., 2004, equation 13, with the unbiased covariance and a flat window."""
    x, y = x.astype(float), y.astype(float)
    c1, c2 = 0.01**2, 0.03**2
    covariance = np.cov(x.ravel(), y.ravel())
    luminance = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
    structure = (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2)
    return float(luminance * structure)


def test_pixels_outside_of_the_region_do_not_matter_to_psnr(
    pair: tuple[np.ndarray, np.ndarray], region: np.ndarray
) -> None:
    image, reference = pair
    before = psnr_db(image, reference, region)
    image[~region] = 0
    assert psnr_db(image, reference, region) == before


def test_equal_images_have_the_largest_values(
    pair: tuple[np.ndarray, np.ndarray], region: np.ndarray
) -> None:
    image, _ = pair
    assert psnr_db(image, image, region) == MAX_PSNR_DB
    assert ssim(image, image, region) == pytest.approx(1)


def test_ssim_of_an_image_smaller_than_its_window() -> None:
    image = np.random.rand(3, 2, 3).astype(np.float32)
    region = np.ones((3, 2), bool)
    assert ssim(image, image, region) == pytest.approx(1)
    assert ssim(image, 1 - image, region) < 1


def test_iou_equals_a_naive_loop() -> None:
    a, b = np.random.rand(2, 9, 9) > 0.5
    both = sum(bool(x and y) for x, y in zip(a.flat, b.flat, strict=True))
    either = sum(bool(x or y) for x, y in zip(a.flat, b.flat, strict=True))
    assert mask_iou(a, b) == both / either


def test_iou_of_empty_masks() -> None:
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert mask_iou(empty, empty) == 1
    assert mask_iou(empty, full) == 0


def test_depth_error_counts_only_pixels_of_the_region_with_both_depths() -> None:
    depth = np.float32([[2, 2, 0], [2, 5, 2]])
    reference = np.float32([[2.5, 0, 2], [1.75, 2, 9]])
    region = np.array([[True, True, True], [True, True, False]])
    assert depth_error(depth, reference, region) == pytest.approx((0.5 + 0.25 + 3) / 3)
    assert depth_error(depth, reference, np.zeros_like(region)) is None
