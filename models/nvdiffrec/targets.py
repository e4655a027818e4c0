"""The views as the optimisation loops want them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import PosedViews
from models.geometry.camera import Cameras
from models.geometry.depth_maps import resize_depths
from models.render import affordable_samples, to_image

_PIXELS_PER_CELL = 4.0  # a cell's quads split into four triangles, each of a quarter of its area


@dataclass(frozen=True)
class Targets:
    """Views in the renderer's row order (row 0 at the bottom), premultiplied.

    Attributes:
        color: [V, H, W, 3] sRGB times coverage.
        alpha: [V, H, W] coverage.
        depth: [V, H, W] z-depth in the normalised frame; zeros without depth.
        depth_weight: [V, H, W] 1 where the depth can be trusted, else 0.
        clip_from_world: [V, 4, 4] matrices from the normalised frame.
        samples: Samples along each side of a pixel.
    """

    color: Tensor
    alpha: Tensor
    depth: Tensor
    depth_weight: Tensor
    clip_from_world: Tensor
    samples: int = 1

    def __len__(self) -> int:
        return self.color.shape[0]

    @property
    def sample_size(self) -> tuple[int, int]:
        """Height and width of what is rendered, samples."""
        return self.color.shape[1] * self.samples, self.color.shape[2] * self.samples

    def __getitem__(self, index: Tensor | slice) -> Targets:
        return Targets(
            self.color[index],
            self.alpha[index],
            self.depth[index],
            self.depth_weight[index],
            self.clip_from_world[index],
            self.samples,
        )


@dataclass(frozen=True)
class Frame:
    """The normalised frame `x' = (x - center) / scale`, in which the object fills [-1, 1].

    Attributes:
        center: [3] world units.
        scale: World units.
    """

    center: Tensor
    scale: float

    def to_world(self, points: Tensor) -> Tensor:
        """World positions of normalised `points` [..., 3]."""
        return points * self.scale + self.center


def make_targets(views: PosedViews, frame: Frame, *, cell: float, use_depth: bool) -> Targets:
    """Bring views into the normalised frame.

    Args:
        views: The views.
        frame: The frame.
        cell: Side of a grid cell in the normalised frame; decides the samples a pixel needs.
        use_depth: Whether depth maps count.
    """
    cameras = views.cameras.normalized(frame.center, frame.scale)
    distance = torch.linalg.vector_norm(cameras.positions, dim=-1)
    depth = torch.zeros_like(views.masks)
    if use_depth and views.depths is not None:
        depth = views.depths / frame.scale
    alpha = to_image(views.masks)
    depth = to_image(depth)
    return Targets(
        color=(to_image(views.images) * alpha[..., None]).contiguous(),
        alpha=alpha.contiguous(),
        depth=depth.contiguous(),
        depth_weight=_trusted(depth, alpha),
        clip_from_world=clip_matrices(cameras),
        samples=_samples(cell, cameras, float(distance.median())),
    )


def clip_matrices(cameras: Cameras) -> Tensor:
    """Matrices [V, 4, 4] to clip space of normalised cameras; near and far planes hold the whole grid."""
    distance = torch.linalg.vector_norm(cameras.positions, dim=-1)
    radius = 3**0.5  # of the cube [-1, 1]^3
    near = max(float(distance.min()) - radius, 0.01 * radius)
    return cameras.clip_from_world(near, float(distance.max()) + radius)


def _samples(cell: float, cameras: Cameras, distance: float) -> int:
    """One sample a pixel where the surface's triangles are clearly larger than pixels, else `SAMPLES`."""
    pixels = cell * float(cameras.intrinsics[:, 0, 0].mean()) / distance
    return 1 if pixels >= _PIXELS_PER_CELL else affordable_samples(cameras)


def _trusted(depth: Tensor, alpha: Tensor) -> Tensor:
    """Measured pixels whose eight neighbours are measured too: depth at a silhouette belongs to nobody."""
    measured = ((depth > 0) & (alpha > 0.5)).to(depth.dtype)
    return -F.max_pool2d(-measured[:, None], 3, stride=1, padding=1)[:, 0]


def batch_of(targets: Targets, size: int, step: int, seed: int) -> Targets:
    """The batch of at most `size` views that belongs to a step.

    Views come in rounds: each comes once, in an order of chance, before a new round begins.
    """
    count = len(targets)
    if size >= count:
        return targets
    first, last = step * size, (step + 1) * size
    rounds = range(first // count, (last - 1) // count + 1)
    order = torch.cat([_order(count, seed, number) for number in rounds])
    start = first - rounds[0] * count
    chosen = order[start : start + size]
    if targets.color.device.type == "cuda":
        chosen = chosen.pin_memory()  # else the copy waits for the device
    return targets[chosen.to(targets.color.device, non_blocking=True)]


def _order(count: int, seed: int, number: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + number))


def resized(views: PosedViews, longer_side: int) -> PosedViews:
    """The views with a longer side of at most `longer_side` pixels."""
    cameras = views.cameras
    if longer_side >= max(cameras.width, cameras.height):
        return views
    factor = longer_side / max(cameras.width, cameras.height)
    size = (max(1, round(cameras.height * factor)), max(1, round(cameras.width * factor)))

    def area(image: Tensor) -> Tensor:  # [V, H, W, C]
        return F.interpolate(image.permute(0, 3, 1, 2), size, mode="area").permute(0, 2, 3, 1)

    masks = area(views.masks[..., None])[..., 0]
    # Colours are averaged premultiplied, or the background would bleed over the silhouette.
    images = area(views.images * views.masks[..., None]) / masks[..., None].clamp(min=1e-6)
    depths = None
    if views.depths is not None:
        depths = resize_depths(views.depths, size)
    return PosedViews(views.names, images, masks, depths, cameras.resized(size[1], size[0]))
