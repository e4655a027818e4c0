import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from benchmarks.reconstruction.image_metrics import (
    depth_error,
    mask_iou,
    over_white,
    psnr_db,
    ssim,
    ssim_map,
)


def photographs(views=3, height=40, width=52):
    """Smooth random images with flat white regions, and noisy copies: as renderings over white are."""
    random = np.random.default_rng(1)
    image = gaussian_filter(random.random((views, height, width, 3)), (0, 2, 2, 0))
    image[:, :12] = 1.0
    noisy = (image + 0.05 * random.normal(size=image.shape)).clip(0, 1)
    noisy[:, :6] = 1.0
    return torch.from_numpy(image), torch.from_numpy(noisy)


def test_ssim_equals_scikit_images():
    image, noisy = photographs()
    whole, _ = ssim(noisy, image, torch.ones(image.shape[:3], dtype=torch.bool))
    for view in range(len(image)):
        expected, full = structural_similarity(
            image[view].numpy(), noisy[view].numpy(), channel_axis=-1, data_range=1, full=True
        )
        assert whole[view].item() == pytest.approx(expected, abs=1e-12)
        np.testing.assert_allclose(ssim_map(noisy, image)[view], full.mean(-1)[3:-3, 3:-3], atol=1e-11)


def test_ssim_of_float32_images_on_flat_background_is_precise():
    image, noisy = photographs()
    exact, _ = ssim(noisy, image, image[..., 0] < 2)
    single, _ = ssim(noisy.float(), image.float(), image[..., 0] < 2)
    assert (exact - single).abs().max() < 1e-6


def test_ssim_inside_a_region_averages_its_pixels_whose_window_lies_within_the_image():
    image, noisy = photographs()
    region = torch.zeros(image.shape[:3], dtype=torch.bool)
    region[:, 20, 2:5] = True  # columns 3 and 4 have a whole window; column 2 has not
    _, inside = ssim(noisy, image, region)
    assert torch.equal(inside, ssim_map(noisy, image)[:, 17, 0:2].mean(1))


def test_psnr_of_a_constant_difference():
    image = torch.full((2, 8, 9, 3), 0.5)
    other = image.clone()
    other[1] += 0.1
    assert psnr_db(other, image).tolist() == pytest.approx([120.0, 20.0], abs=1e-4)


def test_psnr_inside_a_region_ignores_what_lies_outside():
    image = torch.full((1, 8, 8, 3), 0.5)
    other = image.clone()
    other[:, :4] += 0.1
    other[:, 4:] -= 0.4
    region = torch.zeros(1, 8, 8, dtype=torch.bool)
    region[:, :4] = True
    assert psnr_db(other, image, region).item() == pytest.approx(20.0, abs=1e-4)
    assert psnr_db(other, image, ~region).item() == pytest.approx(-20 * np.log10(0.4), abs=1e-4)
    assert psnr_db(other, image, torch.zeros_like(region)).isnan().all()


def test_straight_alpha_blends_over_white():
    color = torch.tensor([0.2, 0.4, 0.6]).expand(1, 2, 2, 3)
    alpha = torch.tensor([[[0.0, 1.0], [0.5, 0.25]]])
    expected = [[[1, 1, 1], [0.2, 0.4, 0.6]], [[0.6, 0.7, 0.8], [0.8, 0.85, 0.9]]]
    assert torch.allclose(over_white(color, alpha)[0], torch.tensor(expected))


def test_overlap_of_masks():
    one, two = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    one[0, :2], two[0, 1:3] = 1.0, 0.6
    assert mask_iou(one, two).tolist() == pytest.approx([1 / 3, 1.0])


def test_depth_is_compared_where_both_exist():
    depth, reference = torch.tensor([[[2.0, 0.0], [3.0, 4.0]]]), torch.tensor([[[2.5, 1.0], [0.0, 4.1]]])
    assert depth_error(depth, reference).item() == pytest.approx(0.3, abs=1e-6)
    assert depth_error(depth, torch.zeros_like(depth)).isnan().all()
