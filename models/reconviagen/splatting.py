"""Drawing 3D Gaussians, differentiably: by gsplat on CUDA where it is installed, else in plain torch.

Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", SIGGRAPH 2023: the image of a
Gaussian is a 2D Gaussian (Zwicker et al., "EWA Volume Splatting", 2001), and what covers a pixel is blended
from front to back. Every 2D Gaussian is widened by a low-pass of `KERNEL` and dimmed by as much as that makes
it larger (Yu et al., "Mip-Splatting", CVPR 2024): so were TRELLIS' Gaussians trained.

Both implementations follow gsplat: opacities are cut off at `MAX_ALPHA`; a Gaussian is drawn where its
opacity is `MIN_ALPHA` or more; a pixel is done where less than `MIN_TRANSMITTANCE` of the light gets through.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.geometry.camera import Cameras
from models.reconviagen.gaussians import Gaussians
from models.reconviagen.pose_encoding import rotation_of_quaternion
from models.render import Rendering

LOGGER = logging.getLogger(__name__)

KERNEL = 0.1  # square pixels, variance of the low-pass
NEAR = 0.01  # model units, z-depth; Gaussians whose centre is nearer are not drawn
MAX_ALPHA = 0.999
MIN_ALPHA = 1 / 255
MIN_TRANSMITTANCE = 1e-4

_REACH = 3.33  # standard deviations; where a Gaussian of opacity 1 falls below MIN_ALPHA
_BEYOND = 0.15  # of the image's size: how far outside of it the projection is still linearised where it is
_PAIRS = 1 << 20  # of a Gaussian and a pixel at a time in plain torch, about 200 bytes each

_GSPLAT = "gsplat"


@cache
def gsplat_installed() -> bool:
    """Whether gsplat is there and draws; it may be absent, or built for another torch, CUDA or GPU.

    Without compiled kernels it does not count: it would compile them during a job.
    """
    if importlib.util.find_spec(_GSPLAT) is None:
        return False
    try:
        importlib.import_module(f"{_GSPLAT}.csrc")
        if torch.cuda.is_available():
            _draw_one_by_gsplat(torch.device("cuda"))
    except (ImportError, OSError, RuntimeError) as error:
        LOGGER.warning("gsplat is installed but does not run, and is not used: %s", error)
        return False
    return True


def render_gaussians(gaussians: Gaussians, cameras: Cameras, background: Tensor) -> Rendering:
    """Images of Gaussians, differentiable with respect to all of their parameters.

    On CUDA with gsplat installed, float32 only and not the same to the last bit every time; else in plain
    torch, in the Gaussians' own precision.

    Args:
        gaussians: G Gaussians; colours below 0 count as 0.
        cameras: V cameras in the Gaussians' world, on their device.
        background: [3] colour.
    """
    if gaussians.means.device.type == "cuda" and gsplat_installed():
        return _draw_by_gsplat(gaussians, cameras, background)
    return draw_in_torch(gaussians, cameras, background)


def _draw_one_by_gsplat(device: torch.device) -> None:
    """Draw one Gaussian, and wait for it."""
    one = torch.ones(1, 3, device=device)
    turn = torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=device)
    pose = torch.eye(4, device=device)[None]
    intrinsics = torch.tensor([[[16.0, 0.0, 8.0], [0.0, 16.0, 8.0], [0.0, 0.0, 1.0]]], device=device)
    ahead = torch.tensor([[0.0, 0.0, -2.0]], device=device)
    gaussian = Gaussians(ahead, 0.1 * one, turn, 0.5 * one[:, 0], one)
    _draw_by_gsplat(gaussian, Cameras(pose, intrinsics, 16, 16), torch.zeros(3, device=device)).alpha.cpu()


def _draw_by_gsplat(gaussians: Gaussians, cameras: Cameras, background: Tensor) -> Rendering:
    drawn, alpha, _ = importlib.import_module(_GSPLAT).rasterization(
        gaussians.means,
        gaussians.rotations,
        gaussians.scales,
        gaussians.opacities,
        gaussians.colors.clamp(min=0),
        cameras.world_to_camera_opencv.contiguous(),
        cameras.intrinsics.contiguous(),
        cameras.width,
        cameras.height,
        near_plane=NEAR,
        eps2d=KERNEL,
        rasterize_mode="antialiased",
        packed=False,
        backgrounds=background.expand(len(cameras), 3).contiguous(),
        render_mode="RGB+D",
    )
    alpha = alpha[..., 0]
    return Rendering(drawn[..., :3], alpha, _mean_depth(drawn[..., 3], alpha))


def draw_in_torch(gaussians: Gaussians, cameras: Cameras, background: Tensor) -> Rendering:
    """As `render_gaussians`, in plain torch on any device.

    Every pair of a Gaussian and a pixel that it covers is an entry of a list, which is sorted by pixel and
    depth; blending is a running sum of logarithms over it. The image is drawn in bands, and once more for the
    gradient, so that memory stays bounded.
    """
    views = [_draw_view(gaussians, cameras, view) for view in range(len(cameras))]
    blended = torch.stack(views)  # [V, H, W, 5]
    color, alpha = blended[..., :3], blended[..., 4]
    color = color + (1 - alpha[..., None]) * background
    return Rendering(color, alpha, _mean_depth(blended[..., 3], alpha))


def _mean_depth(accumulated: Tensor, alpha: Tensor) -> Tensor:
    """Depth from the sum of depths weighted by their shares."""
    return accumulated / torch.where(alpha > 0, alpha, torch.ones_like(alpha))


class _Splats(NamedTuple):
    """S projected Gaussians of one view, from front to back.

    Attributes:
        centers: [S, 2] pixels.
        conics: [S, 3] inverse covariance: xx, xy, yy.
        opacities: [S] of the widened Gaussians.
        attributes: [S, 5] colour, z-depth and 1: what is blended.
        boxes: [S, 4] int64: first column, first row, last column, last row, all inclusive, inside the image.
    """

    centers: Tensor
    conics: Tensor
    opacities: Tensor
    attributes: Tensor
    boxes: Tensor


def _draw_view(gaussians: Gaussians, cameras: Cameras, view: int) -> Tensor:
    """What one view blends, [H, W, 5]: colour, accumulated depth and alpha."""
    splats = _project(gaussians, cameras, view)
    bands = [
        _remembering_little(splats, first, last, cameras.width)
        for first, last in _bands(splats.boxes, cameras.height)
    ]
    return torch.cat(bands).view(cameras.height, cameras.width, 5)


def _remembering_little(splats: _Splats, first: int, last: int, width: int) -> Tensor:
    """`_blend_rows`, whose inner results are computed again for the gradient."""
    blended: Tensor = checkpoint(
        _blend_rows, *splats, first, last, width, use_reentrant=False, preserve_rng_state=False
    )
    return blended


def _project(gaussians: Gaussians, cameras: Cameras, view: int) -> _Splats:
    """Those Gaussians of a view that cover any of its pixels."""
    pose = cameras.world_to_camera_opencv[view].to(gaussians.means.dtype)
    camera = gaussians.means @ pose[:3, :3].T + pose[:3, 3]  # [G, 3] x right, y down, z forward
    front = (camera[:, 2] >= NEAR).nonzero()[:, 0]
    order = front[torch.argsort(camera[front, 2].detach(), stable=True)]
    camera, depth = camera[order], camera[order, 2:]  # [S, 3], [S, 1]
    focal, middle = _pinhole(cameras, view, camera.dtype)
    centers = camera[:, :2] / depth * focal + middle
    turned = pose[:3, :3] @ rotation_of_quaternion(gaussians.rotations[order].roll(-1, -1))
    axes = turned * gaussians.scales[order, None]  # [S, 3, 3], a standard deviation along each column
    xx, xy, yy, dimming = _widened(_spread(axes, centers, depth, cameras, view))
    opacities = gaussians.opacities[order] * dimming
    conics = torch.stack([yy, -xy, xx], -1) / (xx * yy - xy * xy)[:, None]
    attributes = torch.cat([gaussians.colors[order].clamp(min=0), depth, torch.ones_like(depth)], -1)
    with torch.no_grad():
        reach = (2 * (opacities / MIN_ALPHA).clamp(min=1).log()).sqrt().clamp(max=_REACH)
        radius = (reach[:, None] * torch.stack([xx, yy], -1).sqrt()).ceil()
        first = (centers - radius).floor().clamp(min=0)
        last = torch.minimum((centers + radius).ceil(), _size(cameras, centers.device)) - 1
        kept = ((opacities >= MIN_ALPHA) & (last >= first).all(-1)).nonzero()[:, 0]
        boxes = torch.cat([first, last], -1)[kept].long()
    return _Splats(centers[kept], conics[kept], opacities[kept], attributes[kept], boxes)


def _spread(axes: Tensor, centers: Tensor, depth: Tensor, cameras: Cameras, view: int) -> Tensor:
    """Axes [S, 3, 3] of Gaussians as seen in the image, [S, 2, 3] pixels; linear about their centres.

    Far outside of the image it is made linear at its rim instead: slanted ones would grow without bounds.
    """
    focal, middle = _pinhole(cameras, view, axes.dtype)
    size = _size(cameras, axes.device)
    nearby = torch.minimum(torch.maximum(centers, -_BEYOND * size), (1 + _BEYOND) * size)
    slope = (nearby - middle) / focal  # [S, 2] x / z and y / z
    return focal[:, None] / depth[..., None] * (axes[:, :2] - slope[..., None] * axes[:, 2:])


def _widened(spread: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Covariance xx, xy, yy [S] in the image behind the low-pass, and the factor that this dims by."""
    covariance = spread @ spread.transpose(1, 2)
    xx, xy, yy = covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]
    area = xx * yy - xy * xy
    xx, yy = xx + KERNEL, yy + KERNEL
    return xx, xy, yy, (area / (xx * yy - xy * xy)).clamp(min=1e-12).sqrt()


def _pinhole(cameras: Cameras, view: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Focal lengths and principal point of a view, each [2], pixels."""
    intrinsics = cameras.intrinsics[view].to(dtype)
    return intrinsics[:2, :2].diagonal(), intrinsics[:2, 2]


def _size(cameras: Cameras, device: torch.device) -> Tensor:
    return torch.tensor([cameras.width, cameras.height], device=device)


def _bands(boxes: Tensor, height: int) -> list[tuple[int, int]]:
    """Ranges of rows, last excluded, with at most `_PAIRS` pairs each, if they have more than one row."""
    widths = boxes[:, 2] - boxes[:, 0] + 1
    change = torch.zeros(height + 1, dtype=torch.int64, device=boxes.device)
    change.index_add_(0, boxes[:, 1], widths).index_add_(0, boxes[:, 3] + 1, -widths)
    bands, first, pairs = [], 0, 0
    for row, count in enumerate(change.cumsum(0)[:height].tolist()):
        if pairs + count > _PAIRS and row > first:
            bands.append((first, row))
            first, pairs = row, 0
        pairs += count
    return [*bands, (first, height)]


def _blend_rows(
    centers: Tensor,
    conics: Tensor,
    opacities: Tensor,
    attributes: Tensor,
    boxes: Tensor,
    first: int,
    last: int,
    width: int,
) -> Tensor:
    """Blend the pixels of rows `first` to `last`, the latter excluded, to [rows * width, 5]."""
    with torch.no_grad():
        splat, x, y = _pairs(boxes, first, last)
        drawn = _alpha(splat, x, y, centers, conics, opacities) >= MIN_ALPHA
        splat, x, y = splat[drawn], x[drawn], y[drawn]
        pixel = (y - first) * width + x
        order = torch.argsort(pixel, stable=True)  # splats come from front to back already
        splat, x, y, pixel = splat[order], x[order], y[order], pixel[order]
        counts = torch.bincount(pixel, minlength=(last - first) * width)
        before = (counts.cumsum(0) - counts)[pixel]  # entries of earlier pixels
    alpha = _alpha(splat, x, y, centers, conics, opacities)
    # In double precision: the sum runs on over all pixels, and differences of it are taken.
    running = torch.cat([alpha.new_zeros(1, dtype=torch.float64), torch.log1p(-alpha.double()).cumsum(0)])
    start = running[before]
    passed = (running[:-1] - start).exp()
    with torch.no_grad():
        open_ = (running[1:] - start).exp() > MIN_TRANSMITTANCE
    weight = alpha * (passed * open_).to(alpha.dtype)
    blended = alpha.new_zeros((last - first) * width, attributes.shape[1])
    return blended.index_add(0, pixel, weight[:, None] * attributes[splat])


def _pairs(boxes: Tensor, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splat, column and row of all pairs of a splat and a pixel of its box in these rows, splat by splat."""
    top, bottom = boxes[:, 1].clamp(min=first), boxes[:, 3].clamp(max=last - 1)
    widths = boxes[:, 2] - boxes[:, 0] + 1
    counts = widths * (bottom - top + 1).clamp(min=0)
    splat = torch.repeat_interleave(torch.arange(len(boxes), device=boxes.device), counts)
    inside = torch.arange(len(splat), device=boxes.device) - (counts.cumsum(0) - counts)[splat]
    return splat, boxes[splat, 0] + inside % widths[splat], top[splat] + inside // widths[splat]


def _alpha(splat: Tensor, x: Tensor, y: Tensor, centers: Tensor, conics: Tensor, opacities: Tensor) -> Tensor:
    """Opacity of splats at the centres of pixels, one for each pair."""
    center, conic = centers[splat], conics[splat]
    dx, dy = x + 0.5 - center[:, 0], y + 0.5 - center[:, 1]
    distance = (conic[:, 0] * dx * dx + conic[:, 2] * dy * dy) / 2 + conic[:, 1] * dx * dy
    return (opacities[splat] * torch.exp(-distance)).clamp(max=MAX_ALPHA)
