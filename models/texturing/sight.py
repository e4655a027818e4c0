"""What one image says of the colours of a surface, and how far it can be trusted.

A view is trusted where it looks at the surface squarely, from near, and away from everything where a small
error of shape or camera would show the wrong thing: the mask's rim, the image's border, and steps in depth.
All weights fall to zero continuously there, so that views blend into each other without edges (Baumberg,
"Blending images for texturing 3D models", BMVC 2002).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry.camera import Cameras

_STEP = 8.0  # neighbouring pixels whose depths differ by more pixels than this see different surfaces
_GRAZING = 0.15  # cosine of the viewing angle at which a view says nothing any more
_SQUARE = 0.5  # and from which on it is not held against it,
_ERODED_PX = 1.0  # pixels next to a rim mix two surfaces
_FEATHER = 0.015  # width of the ramp behind that, as a share of the image's longer side
_BIAS_PX = 1.5  # how far behind what a pixel shows a point may lie, in pixels of depth on a square view
_STEEPEST = 8.0  # slope beyond which that grows no further
_COARSE = 2.0  # pixels of a standard deviation that a blurred image keeps


@dataclass(frozen=True)
class Looks:
    """What a view says of K points.

    Attributes:
        smooth: [K, 3] colours without detail.
        detail: [K, 3] what the image adds to them.
        trust: [K] in (0, 1], how surely the view sees the point, however small.
        weight: [K] positive: trust times the share of the point's surroundings in the image's area, pixels
            per square world unit.
    """

    smooth: Tensor
    detail: Tensor
    trust: Tensor
    weight: Tensor


class Sight:
    """One image, prepared for questions.

    Args:
        image: [H, W, 3] sRGB, not premultiplied; meaningful where the mask is.
        mask: [H, W] coverage by the object.
        depth: [H, W] z-depth of the surface that is to be painted, 0 where it is not.
        camera: The one camera.
        blur: Standard deviation of what counts as smooth, world units.
    """

    def __init__(self, image: Tensor, mask: Tensor, depth: Tensor, camera: Cameras, blur: float) -> None:
        self._camera = camera
        self._focal = float(camera.intrinsics[0, [0, 1], [0, 1]].mean())
        pixel = depth / self._focal  # [H, W] on the object, world units
        trusted = (mask >= 0.5) & (depth > 0) & ~_steps(depth, _STEP * pixel)
        # A border of two pixels counts as not trusted: beyond it nobody has looked.
        distance = _distance_inside(F.pad(trusted, (1, 1, 1, 1)))[1:-1, 1:-1]
        feather = max(_FEATHER * max(mask.shape), 2.0)
        trust = _smoothstep((distance - _ERODED_PX) / feather)
        sigma = blur / float(pixel[depth > 0].median()) if bool((depth > 0).any()) else 1.0
        # Half precision for colours: there may be hundreds of views. Depths need more.
        self._image = torch.cat([image, trust[..., None]], -1).half()
        self._depth = depth[..., None]
        self._smooth, self._block = _blurred(image, trusted, sigma)

    def __call__(self, points: Tensor, normals: Tensor) -> tuple[Tensor, Looks]:
        """Look at points of the surface.

        Args:
            points: [N, 3].
            normals: [N, 3] unit normals there.

        Returns:
            Which of the points are seen, [K] int64, and what is said of these.
        """
        pixel, depth = (part[0] for part in self._camera.project(points))
        to_camera = F.normalize(self._camera.positions - points, dim=1)
        cosine = (to_camera * normals).sum(1)
        size = pixel.new_tensor([self._camera.width, self._camera.height])
        inside = (depth > 0) & ((pixel > 0) & (pixel < size)).all(1) & (cosine > _GRAZING)
        index = torch.nonzero(inside)[:, 0]
        pixel, depth, cosine = pixel[index], depth[index], cosine[index]
        found = _bilinear(self._image, pixel)  # [K, 4]
        slope = ((1 - cosine.square()).clamp(min=0).sqrt() / cosine).clamp(max=_STEEPEST)
        behind = (depth - _bilinear(self._depth, pixel)[:, 0]) * self._focal / depth
        # Soft, for the depth that pixels show is as coarse as they are.
        visible = 1 - _smoothstep(behind / (_BIAS_PX * (1 + slope)) - 1)
        trust = visible * _smoothstep((cosine - _GRAZING) / (_SQUARE - _GRAZING)) * found[:, 3]
        weight = trust * cosine * (self._focal / depth).square()
        seen = weight > 0
        blurred = _bilinear(self._smooth, pixel[seen] / self._block)
        smooth, image = blurred[:, :3] / blurred[:, 3:].clamp(min=1e-4), found[seen, :3]
        return index[seen], Looks(smooth, image - smooth, trust[seen], weight[seen])


def _steps(depth: Tensor, limit: Tensor) -> Tensor:
    """Pixels [H, W] beside which the depth jumps by more than `limit` [H, W], or ends."""
    padded = F.pad(depth[None, None], (1, 1, 1, 1))[0, 0]
    around = (padded[1:-1, 2:], padded[1:-1, :-2], padded[2:, 1:-1], padded[:-2, 1:-1])
    return torch.stack([(other - depth).abs() > limit for other in around]).any(0)


def _distance_inside(region: Tensor) -> Tensor:
    """Distance of the pixels of `region` [H, W] from its outside, pixels, 0 outside."""
    plane = region.cpu().numpy().astype(np.uint8)
    return torch.tensor(cv2.distanceTransform(plane, cv2.DIST_L2, 5), device=region.device)


def _smoothstep(x: Tensor) -> Tensor:
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _blurred(image: Tensor, region: Tensor, sigma: float) -> tuple[Tensor, int]:
    """Gaussian means of an image over a region, as coarse as these allow.

    Args:
        image: [H, W, 3].
        region: [H, W] bool, the pixels that count.
        sigma: Standard deviation, pixels.

    Returns:
        [h, w, 4] float16: the means times the share of pixels that count, and that share; and how many pixels
        make a side of one of theirs.
    """
    weight = region.to(image.dtype)[..., None]
    stack = torch.cat([image * weight, weight], -1).permute(2, 0, 1)[:, None]  # [4, 1, H, W]
    block = max(1, int(sigma / _COARSE))
    height, width = region.shape
    stack = F.avg_pool2d(F.pad(stack, (0, -width % block, 0, -height % block)), block)
    left = math.sqrt(max(sigma**2 - (block**2 - 1) / 12, 0.25)) / block  # blocks are a blur themselves
    reach = math.ceil(3 * left)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, device=image.device) / left).square() / 2)
    kernel = (kernel / kernel.sum()).to(image.dtype)
    stack = F.conv2d(stack, kernel[None, None, None], padding=(0, reach))
    stack = F.conv2d(stack, kernel[None, None, :, None], padding=(reach, 0))
    return stack[:, 0].permute(1, 2, 0).half(), block


def _bilinear(maps: Tensor, place: Tensor) -> Tensor:
    """Values [K, C] float32 of `maps` [H, W, C] at places [K, 2], pixels; beyond the rim those of the rim.

    torch's own would want the places as coarse as the maps.
    """
    height, width = maps.shape[:2]
    corner = (place - 0.5).floor()
    right, below = (place - 0.5 - corner).unsqueeze(-1).unbind(1)  # [K, 1] each
    x, y = corner.long().unbind(1)
    columns = [(x + step).clamp(0, width - 1) for step in (0, 1)]
    values = maps.flatten(0, 1)
    first, second = (
        torch.lerp(*(values[row * width + column].float() for column in columns), right)
        for row in ((y + step).clamp(0, height - 1) for step in (0, 1))
    )
    return torch.lerp(first, second, below)
