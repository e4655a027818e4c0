"""How alike rendered views and photographs are, many views at a time and where they lie (CPU or GPU).

The definitions are those of the usual benchmarks: sRGB in [0, 1], both images over white, blended in sRGB
with straight alpha; PSNR and SSIM of each view over the whole image, and over the pixels whose true coverage
is above one half ("mask"). Every function takes float images and returns one value per view.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.masks import FOREGROUND
from pipeline.metrics import SSIM_WINDOW

_SMALLEST_ERROR = 1e-12  # equal images score 120 dB
_C1, _C2 = 0.01**2, 0.03**2  # for a data range of 1


def over_white(color: Tensor, alpha: Tensor) -> Tensor:
    """Straight colours [V, H, W, 3] with coverage [V, H, W] over white."""
    return color * alpha[..., None] + (1 - alpha[..., None])


def psnr_db(image: Tensor, reference: Tensor, region: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio, dB, [V].

    Args:
        image, reference: [V, H, W, 3].
        region: [V, H, W] bool, pixels that count; all without it. A view without any gives NaN.
    """
    error = (image - reference).square().mean(-1)
    mean = error.mean((1, 2)) if region is None else region_mean(error, region)
    return -10 * mean.clamp(min=_SMALLEST_ERROR).log10()


def ssim_map(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity at every pixel whose window lies within the image, mean of the channels.

    Equal to scikit-image's `structural_similarity` with its defaults, `channel_axis=-1`, `data_range=1`:
    uniform 7x7 window, sample covariance (Wang et al., 2004). Its mean is the SSIM of the image.

    Args:
        image, reference: [V, H, W, 3], at least 7x7.

    Returns:
        [V, H - 6, W - 6], float64.
    """
    x, y = (t.permute(0, 3, 1, 2).double() for t in (image, reference))  # [V, 3, H, W]
    means = _window_mean(torch.cat([x, y, x * x, y * y, x * y], 1))
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = means.chunk(5, 1)
    sample = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    variances = sample * (mean_xx - mean_x**2 + mean_yy - mean_y**2)
    covariance = sample * (mean_xy - mean_x * mean_y)
    similarity = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return (similarity / ((mean_x**2 + mean_y**2 + _C1) * (variances + _C2))).mean(1)


def ssim(image: Tensor, reference: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Structural similarity, [V], over the whole image and over a region.

    Args:
        image, reference: [V, H, W, 3], at least 7x7.
        region: [V, H, W] bool; of its pixels, those whose window lies within the image count.
    """
    similarity = ssim_map(image, reference)
    border = SSIM_WINDOW // 2
    inner = region[:, border : region.shape[1] - border, border : region.shape[2] - border]
    return similarity.mean((1, 2)), region_mean(similarity, inner)


def mask_iou(alpha: Tensor, reference: Tensor) -> Tensor:
    """Intersection over union of two coverages [V, H, W], cut at one half, [V]; 1 where both are empty."""
    one, two = alpha > FOREGROUND, reference > FOREGROUND
    union = (one | two).sum((1, 2))
    return torch.where(union > 0, (one & two).sum((1, 2)) / union.clamp(min=1), 1.0)


def depth_error(depth: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference of two z-depths [V, H, W] where both are above 0, [V]; NaN if nowhere."""
    return region_mean((depth - reference).abs(), (depth > 0) & (reference > 0))


def region_mean(values: Tensor, region: Tensor) -> Tensor:
    """Mean of `values` [V, H, W] over a region [V, H, W] bool, [V]; NaN where the region is empty."""
    return (values * region).sum((1, 2)) / region.sum((1, 2))


def _window_mean(images: Tensor) -> Tensor:
    """Means over all windows that lie within images [V, C, H, W]; first along columns, then along rows."""
    return F.avg_pool2d(F.avg_pool2d(images, (SSIM_WINDOW, 1), stride=1), (1, SSIM_WINDOW), stride=1)
