"""Depth maps as sensors give them: how noisy they are, and how to make them smooth and whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Callback
from models.geometry.camera import Cameras

_REACH = 2  # a window is (2 * _REACH + 1)^2 pixels
_SPREAD = 1.2  # standard deviation of a window's weights, pixels of its own spacing
_INLIER = 3.0  # measurements further than this many noise levels from the local plane are another surface
_MIN_SUPPORT = 5.0  # measurements that a plane needs
_OFF_CENTRE = 0.5  # a hole whose neighbours' centroid lies further off (pixels) is at a rim: not filled
_FINE = 0.15  # noise below this, in pixels on the object, is not smoothed
_COARSE = 2.0  # noise from which a second, wider window is worth its bias; the third at twice this
SAME_SURFACE = 0.03  # depths that differ by less than this share are of the same surface
_ROWS = 1 << 17  # pixels that are fitted together


def depth_noise(depths: Tensor, masks: Tensor) -> Tensor:
    """Standard deviation of the depth maps' noise from pixel to pixel, [V], the depth's unit.

    Second differences along rows and columns are noise wherever the surface is smooth; their median does not
    see the edges. A view with hardly any measurement gives zero.

    Args:
        depths: [V, H, W] z-depth, 0 where nothing was measured.
        masks: [V, H, W] coverage by the object.
    """
    levels = []
    for depth, mask in zip(depths, masks, strict=True):
        valid = (depth > 0) & (mask >= 0.5)
        bends = []
        for d, v in ((depth, valid), (depth.T, valid.T)):
            whole = v[:, :-2] & v[:, 1:-1] & v[:, 2:]
            bends.append((d[:, :-2] - 2 * d[:, 1:-1] + d[:, 2:])[whole].abs())
        bend = torch.cat(bends)
        levels.append(bend.median() * (1.4826 / 6**0.5) if bend.numel() > 16 else depth.new_zeros(()))
    return torch.stack(levels)


def clean_depths(
    depths: Tensor, masks: Tensor, cameras: Cameras, *, callback: Callback | None = None
) -> Tensor:
    """Smooth noisy depth maps, replace outliers and fill small holes; edges stay.

    Each pixel gets the value of a plane fitted to its window by robust weighted least squares (bilateral
    weights, Tomasi and Manduchi 1998, on a plane instead of a constant, so that slopes are not flattened).
    Noisier maps get further passes with windows twice as wide (the à-trous scheme of Dammertz et al. 2010).
    A map without noise keeps its measurements; only its holes are filled.

    Args:
        depths: [V, H, W] z-depth, 0 where nothing was measured.
        masks: [V, H, W] coverage by the object; other pixels become 0.
        cameras: The cameras of the maps: they tell how large a pixel is on the object; of pixels that are not
            square the longer side counts.
        callback: Called after every view; what it raises is let through.

    Returns:
        [V, H, W] z-depth, 0 where nothing can be told.
    """
    noise = depth_noise(depths, masks)
    cleaned = []
    focals = cameras.intrinsics[:, [0, 1], [0, 1]].amin(1)
    for depth, mask, level, focal in zip(depths, masks, noise, focals, strict=True):
        inside = mask >= 0.5
        depth = torch.where(inside, depth, torch.zeros_like(depth))
        known = depth[depth > 0]
        if known.numel():
            pixel = float(known.median() / focal)
            depth = _cleaned(depth, inside, float(level), pixel)
        cleaned.append(depth)
        if callback:
            callback(len(cleaned) / len(depths), "cleaning depth maps", {})
    return torch.stack(cleaned)


def resize_depths(depths: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth maps at a smaller size: the mean over a new pixel's area of what was measured on one surface.

    Taking the nearest measurement instead would shift the map by up to half an old pixel against the image.

    Args:
        depths: [V, H, W] z-depth, 0 where nothing was measured.
        size: New height and width, not larger than the old.

    Returns:
        [V, *size]; 0 where nothing was measured within a new pixel.
    """
    depth = depths[:, None]
    front = F.adaptive_max_pool2d(torch.where(depth > 0, 1 / depth.clamp(min=1e-30), 0), size)
    # A block across an edge has two depths, whose mean would float between them: keep the nearer surface.
    whole = F.interpolate(front, depth.shape[-2:], mode="nearest-exact")
    same = (depth > 0) & ((depth * whole - 1).abs() < SAME_SURFACE)
    share = F.interpolate(same.to(depth.dtype), size, mode="area")
    mean = F.interpolate(depth * same, size, mode="area") / share.clamp(min=1e-6)
    return torch.where(share > 0, mean, torch.zeros_like(mean))[:, 0]


def _cleaned(depth: Tensor, inside: Tensor, noise: float, pixel: float) -> Tensor:
    """One map [H, W]; `noise` and the size of a `pixel` on the object in the depth's unit."""
    if noise < _FINE * pixel:
        fitted = _fit(depth, inside & (depth == 0), 1, pixel)
        return torch.where(depth > 0, depth, fitted)
    passes = 1 + (noise > _COARSE * pixel) + (noise > 2 * _COARSE * pixel)
    level = noise
    for index in range(passes):
        fitted = _fit(depth, inside, 2**index, max(level, pixel), denoise=index == 0)
        depth = torch.where(fitted > 0, fitted, depth)
        level *= 0.4  # what a pass leaves of the noise, roughly
    return depth


def _fit(depth: Tensor, where: Tensor, spacing: int, scale: float, *, denoise: bool = True) -> Tensor:
    """Local planes' values at the pixels `where`, [H, W]; 0 elsewhere and where support is missing.

    Args:
        depth: [H, W].
        where: [H, W] bool.
        spacing: Distance between the window's pixels.
        scale: Expected deviation of a measurement from its plane.
        denoise: Whether the window's first guess is its median, or the pixel's own measurement.
    """
    margin = _REACH * spacing
    padded = F.pad(depth[None, None], (margin,) * 4)[0, 0]
    width = padded.shape[1]
    step = torch.arange(-_REACH, _REACH + 1, device=depth.device) * spacing
    dy, dx = (axis.reshape(-1) for axis in torch.meshgrid(step, step, indexing="ij"))
    near = torch.exp(-(dx**2 + dy**2) / (2 * (_SPREAD * spacing) ** 2))
    row, column = where.nonzero(as_tuple=True)
    result = torch.zeros_like(depth)
    for r, c in zip(row.split(_ROWS), column.split(_ROWS), strict=True):
        index = ((r + margin) * width + c + margin)[:, None] + dy * width + dx  # [M, K]
        value = _plane(padded.reshape(-1)[index], dx, dy, near, spacing, scale, denoise)
        result[r, c] = value
    return result


def _plane(
    sample: Tensor, dx: Tensor, dy: Tensor, near: Tensor, spacing: int, scale: float, denoise: bool
) -> Tensor:
    """Values [M] of the planes through windows `sample` [M, K] at their centres; 0 without support."""
    valid = sample > 0
    own = sample[:, sample.shape[1] // 2]
    middle = torch.where(valid, sample, torch.nan).nanmedian(1).values.nan_to_num()
    guess = middle if denoise else torch.where(own > 0, own, middle)
    offset = sample - guess[:, None]
    x, y = dx.to(sample.dtype) / spacing, dy.to(sample.dtype) / spacing
    basis = torch.stack([torch.ones_like(x), x, y], -1)  # [K, 3]
    outer = (basis[:, :, None] * basis[:, None]).reshape(-1, 9)
    ridge = torch.diag(sample.new_tensor([1e-6, 1e-2, 1e-2]))
    model = torch.zeros_like(sample)
    # A slope's own rise over the window is no outlier: the first weights are wide, the second judge by plane.
    for width in (2 * _INLIER * scale * spacing**0.5, _INLIER * scale):
        weight = valid * near * (1 - ((offset - model) / width).square()).clamp(min=0).square()
        normal = (weight @ outer).reshape(-1, 3, 3) + ridge
        moment = (weight * offset) @ basis
        plane = torch.linalg.solve(normal, moment[..., None])[..., 0]
        model = plane @ basis.T
    total = weight.sum(1)
    support = (weight > 0.25 * near).sum(1)
    centroid = torch.hypot(weight @ x, weight @ y) / total.clamp(min=1e-12)
    sound = support >= _MIN_SUPPORT
    # An own measurement may be refined one-sidedly (at a rim); a hole must not be extrapolated.
    sound &= (own > 0) | (centroid < _OFF_CENTRE)
    return torch.where(sound, guess + plane[:, 0], torch.zeros_like(own))
