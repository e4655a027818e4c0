"""Similarity of images against scikit-image, and the perceptual distance's properties."""

import numpy as np
import torch
from skimage.metrics import structural_similarity as reference
from torch import Tensor
from torch.nn import functional

from models.reconviagen.image_losses import patch_directions, perceptual_distance, structural_similarity


def pictures(count: int) -> Tensor:
    """Smooth noise [B, 3, 40, 36] in [0, 1]."""
    return functional.interpolate(torch.rand(count, 3, 8, 6), (40, 36), mode="bicubic").clamp(0, 1)


def test_structural_similarity_is_that_of_scikit_image() -> None:
    images = pictures(2)
    others = (images + 0.1 * torch.randn(images.shape)).clamp(0, 1)
    black = (5, 5, 5, 5)  # as wide as a window reaches: the reference mirrors at borders, this one does not
    found = structural_similarity(images, others)
    for index, (x, y) in enumerate(zip(images, others, strict=True)):
        _, similarity = reference(
            *(functional.pad(image, black).permute(1, 2, 0).double().numpy() for image in (x, y)),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=-1,
            full=True,
        )
        np.testing.assert_allclose(float(found[index]), similarity[5:-5, 5:-5].mean(), atol=2e-4)


def test_structural_similarity_of_equal_images_is_one() -> None:
    images = pictures(2)
    torch.testing.assert_close(structural_similarity(images, images), torch.ones(2))
    assert structural_similarity(images, 1 - images).max() < 0.5


def pooled(images: Tensor) -> Tensor:
    """An encoder: colours of patches, four pixels a side."""
    return functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)


def test_perceptual_distance_grows_with_the_difference_and_is_zero_without() -> None:
    images = pictures(1)
    target = patch_directions(pooled, images)
    other = pictures(1)
    distances = [
        float(perceptual_distance(pooled, (1 - share) * images + share * other, target))
        for share in (0.0, 0.3, 1.0)
    ]
    assert abs(distances[0]) < 1e-6
    assert distances == sorted(distances)
    assert distances[2] > 0.01
    torch.testing.assert_close(  # the length of tokens does not matter, only their direction
        perceptual_distance(pooled, 0.5 * images, target), torch.zeros(1), atol=1e-6, rtol=0
    )


def test_perceptual_distance_tells_the_images_apart() -> None:
    images = pictures(3)
    target = patch_directions(pooled, images)
    changed = images.clone()
    changed[1] = changed[1].flip(0)
    distance = perceptual_distance(pooled, changed, target)
    assert distance[1] > 0.01
    torch.testing.assert_close(distance[[0, 2]], torch.zeros(2), atol=1e-6, rtol=0)
