"""How far an object as it is drawn differs from what the views show, at one resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry.carving import silhouette_distance
from models.painted import PaintedMesh, draw_painted
from models.raster import RasterBackend, Topology
from models.reconviagen.crops import Crops
from models.render import to_image

_LEVELS = 4  # of the pyramid in which images are compared: the coarsest reaches 2^3 pixels
_COLOR = 0.3  # weight of colours against coverage
_DEPTH = 1.0  # weight of the mean depth difference, a share of the object's size, against coverage
_FARTHEST = 0.1  # share of the object's size beyond which depth is another surface's
_ELSEWHERE = 5.0  # pixels beyond which a silhouette is another one: the rim of a hole that has just opened
_TOGETHER = 1 << 22  # pixels and vertices that are drawn at a time: a few hundred MiB with gradients
_SHRUNK = 32  # crops that are made smaller at a time: there may be hundreds, of five megabytes each
_GAINS = (0.6, 1.6)  # exposures that a drawing may differ by, so that paint and not light is compared


@dataclass(frozen=True)
class Observed:
    """V views of one size in the renderer's row order (row 0 at the bottom).

    Attributes:
        image: [V, H, W, 4] sRGB premultiplied by coverage, and coverage.
        depth: [V, H, W] z-depth, 0 where unknown.
        inside: [V, H, W] bool, false where a view shows what is beyond the full image, of which nothing is
            known.
    """

    image: Tensor
    depth: Tensor
    inside: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.image.shape[1], self.image.shape[2]

    def __getitem__(self, index: list[int]) -> Observed:
        return Observed(self.image[index], self.depth[index], self.inside[index])


def observed(crops: Crops, depths: Tensor | None, side: int) -> Observed:
    """Crops at a smaller size.

    Args:
        crops: What was cut out of the views.
        depths: [V, H, W] z-depth of the full images, 0 where unknown; None without any.
        side: Of the result, pixels.
    """
    small = [
        F.interpolate(torch.cat([images * masks[:, None], masks[:, None]], 1), (side, side), mode="area")
        for images, masks in zip(crops.images.split(_SHRUNK), crops.masks.split(_SHRUNK), strict=True)
    ]
    image = to_image(torch.cat(small).permute(0, 2, 3, 1)).contiguous()
    inside = to_image(crops.inside(side))
    depth = image.new_zeros(image.shape[:3])
    if depths is not None:
        depth = to_image(crops.nearest(depths, side)) * (image[..., 3] > 0.99)
    return Observed(image, depth, inside)


class Drawing:
    """Draws an object and holds it against the views.

    Args:
        raster: The rasterizer; everything is on its device.
        mesh: The object.
        views: What it is held against.
        diameter: Of the object in the views' unit of depth.
    """

    def __init__(
        self, raster: RasterBackend, mesh: PaintedMesh, views: Observed, diameter: float = 1.0
    ) -> None:
        self.raster, self.mesh, self.views, self._diameter = raster, mesh, views, diameter
        self._topology: Topology = raster.make_topology(mesh.faces, mesh.vertices.shape[0])

    def draw(self, matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image, depth and coverage as of `models.painted.draw_painted`, of K times V `matrices`."""
        return draw_painted(self.raster, self.mesh, matrices, self.views.size, self._topology)

    def mismatch(self, matrices: Tensor) -> Tensor:
        """How far every view is off, [K, V]; 0 is equal, about 1 is nothing alike.

        Coverage is compared in a pyramid of resolutions: only the drawn silhouette's pixels have a
        gradient, and the coarse levels tell them of what is further away.

        Args:
            matrices: [K, V, 4, 4] from the object's space to clip space, for K proposals.
        """
        with torch.no_grad():
            parts = [self._mismatch(*each) for each in self._batches(matrices)]
        return torch.cat(parts).reshape(matrices.shape[:2])

    def slope(self, matrices: Tensor) -> Tensor:
        """Gradient [K, V, 4, 4] of `mismatch`, each view's own."""
        parts = []
        for part, views in self._batches(matrices.detach()):
            with torch.enable_grad():
                (found,) = torch.autograd.grad(self._mismatch(part.requires_grad_(), views).sum(), [part])
            parts.append(found)
        return torch.cat(parts).reshape(matrices.shape)

    def _batches(self, matrices: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Matrices [B, 4, 4] and their views' numbers [B], as many as are drawn at a time."""
        count, views = matrices.shape[:2]
        number = torch.arange(views, device=matrices.device).repeat(count)
        height, width = self.views.size
        together = max(1, _TOGETHER // (height * width + len(self.mesh.vertices)))
        return list(zip(matrices.flatten(0, 1).split(together), number.split(together), strict=True))

    def _mismatch(self, matrices: Tensor, views: Tensor) -> Tensor:
        """`mismatch` [B] of `matrices` [B, 4, 4] for the views of these numbers [B], differentiable."""
        image, depth, covered = self.draw(matrices)
        inside = self.views.inside[views]
        target = self.views.image[views]
        gained = torch.cat(
            [image[..., :3] * _gains(image.detach(), target)[:, None, None], image[..., 3:]], -1
        )
        difference = ((gained - target) * inside[..., None]).permute(0, 3, 1, 2)
        weight = difference.new_tensor([_COLOR / 3] * 3 + [1.0])[:, None, None]
        total = sum(
            (F.avg_pool2d(difference, 2**level).square() * weight).sum(1).mean((1, 2))
            for level in range(_LEVELS)
            if min(self.views.size) >= 2**level
        )
        area = target[..., 3].mean((1, 2)).clamp(min=1e-3)
        return total / area + _DEPTH * self._depth_error(depth, covered, self.views.depth[views])

    def _depth_error(self, depth: Tensor, covered: Tensor, known: Tensor) -> Tensor:
        """Mean difference of depth where both are known, as a share of the diameter, bounded, [B]."""
        both = ((known > 0) & (covered[..., 0] > 0)).to(depth.dtype)
        off = (depth[..., 0] - known).abs() / self._diameter
        return (off.clamp(max=_FARTHEST) * both).sum((1, 2)) / both.sum((1, 2)).clamp(min=1)

    @torch.no_grad()
    def overlap(self, matrices: Tensor) -> Tensor:
        """Intersection over union [V] of drawn and seen masks, for `matrices` [V, 4, 4]."""
        return torch.cat([self._overlap(*each) for each in self._batches(matrices[None])])

    def _overlap(self, matrices: Tensor, views: Tensor) -> Tensor:
        inside = self.views.inside[views]
        drawn = (self.draw(matrices)[0][..., 3] > 0.5) & inside
        seen = self.views.image[views][..., 3] > 0.5
        return (drawn & seen).sum((1, 2)) / (drawn | (seen & inside)).sum((1, 2)).clamp(min=1)

    @torch.no_grad()
    def rim_distance(self, matrices: Tensor) -> Tensor:
        """How far the drawn silhouette is from the seen one, for `matrices` [V, 4, 4].

        Returns:
            [V] root mean square, pixels of this resolution, each at most 5.
        """
        return torch.cat([self._rim_distance(*each) for each in self._batches(matrices[None])])

    def _rim_distance(self, matrices: Tensor, views: Tensor) -> Tensor:
        drawn, inside = self.draw(matrices)[0][..., 3], self.views.inside[views]
        # Beyond the full image what is drawn goes on as what is seen: the image's border is no silhouette.
        seen = torch.where(inside, self.views.image[views][..., 3], drawn)
        ours, theirs = silhouette_distance(drawn), silhouette_distance(seen)
        rim = ((ours.abs() < 1) & inside).to(ours.dtype)
        square = (ours - theirs).clamp(-_ELSEWHERE, _ELSEWHERE).square() * rim
        return (square.sum((1, 2)) / rim.sum((1, 2)).clamp(min=1)).sqrt()


def _gains(image: Tensor, target: Tensor) -> Tensor:
    """Factors [B, 3] that bring drawn colours [B, H, W, 4] to the seen ones where both are."""
    both = (image[..., 3:] > 0.5) & (target[..., 3:] > 0.5)
    ours, theirs = image[..., :3] * both, target[..., :3] * both
    product, square = (ours * theirs).sum((1, 2)), ours.square().sum((1, 2))
    return torch.where(square > 1e-6, product / square.clamp(min=1e-6), 1.0).clamp(*_GAINS)
