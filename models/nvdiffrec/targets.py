"""The views as the optimisation loops want them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Views
from models.geometry.camera import Cameras
from models.raster.checks import MAX_SIDE
from models.render import SAMPLES, to_image

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


def make_targets(views: Views, center: Tensor, scale: float, *, cell: float, use_depth: bool) -> Targets:
    """Bring views into the normalised frame `x' = (x - center) / scale`.

    Args:
        views: The views.
        center, scale: The frame.
        cell: Side of a grid cell in the normalised frame; decides the samples a pixel needs.
        use_depth: Whether depth maps count.
    """
    cameras = views.cameras.normalized(center, scale)
    distance = torch.linalg.vector_norm(cameras.positions, dim=-1)
    radius = 3**0.5  # of the cube [-1, 1]^3
    near = max(float(distance.min()) - radius, 0.01 * radius)
    depth = torch.zeros_like(views.masks)
    if use_depth and views.depths is not None:
        depth = views.depths / scale
    alpha = to_image(views.masks)
    depth = to_image(depth)
    return Targets(
        color=(to_image(views.images) * alpha[..., None]).contiguous(),
        alpha=alpha.contiguous(),
        depth=depth.contiguous(),
        depth_weight=_trusted(depth, alpha),
        clip_from_world=cameras.clip_from_world(near, float(distance.max()) + radius),
        samples=_samples(cell, cameras, float(distance.median())),
    )


def _samples(cell: float, cameras: Cameras, distance: float) -> int:
    """One sample a pixel where the surface's triangles are clearly larger than pixels, else `SAMPLES`."""
    pixels = cell * float(cameras.intrinsics[:, 0, 0].mean()) / distance
    if pixels >= _PIXELS_PER_CELL or SAMPLES * max(cameras.width, cameras.height) > MAX_SIDE:
        return 1
    return SAMPLES


def _trusted(depth: Tensor, alpha: Tensor) -> Tensor:
    """Measured pixels whose eight neighbours are measured too: depth at a silhouette belongs to nobody."""
    measured = ((depth > 0) & (alpha > 0.5)).to(depth.dtype)
    return -F.max_pool2d(-measured[:, None], 3, stride=1, padding=1)[:, 0]


def batches(targets: Targets, size: int, generator: torch.Generator) -> Iterator[Targets]:
    """Endless batches of at most `size` views, in rounds: each view comes once before a new round begins."""
    count = len(targets)
    if size >= count:
        while True:
            yield targets
    order: list[int] = []
    while True:
        while len(order) < size:
            order += torch.randperm(count, generator=generator).tolist()
        yield targets[torch.tensor(order[:size], device=targets.color.device)]
        order = order[size:]
