"""Where an object stands before cameras, found from nothing: many rotations are tried, the best are kept.

Candidates are compared by splatting some thousand points of the object into small images, which needs no
rasterizer and is done for many candidates at once. For each rotation, place and size follow from the masks'
middles and extents in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry.camera import Cameras
from models.geometry.similarity import Similarity
from models.painted import PaintedMesh
from models.reconviagen.comparison import Observed
from models.reconviagen.pose_encoding import rotation_of_quaternion
from models.render import to_image

_POINTS = 3000
_TOGETHER = 1 << 20  # points times views that are looked at together
_CENTRINGS = 2
_DEPTH_WEIGHT = 4.0  # of the mean depth difference, a share of the object's size, against the overlap
_COLOR_WEIGHT = 0.5  # of the mean colour difference
_SURFACE = 0.05  # share of the object's size within which points are of the front surface
_RIDGE = 1e-3  # of what a single view leaves open


@dataclass(frozen=True)
class Samples:
    """Points of an object.

    Attributes:
        points: [P, 3] about their middle, in units of `radius`.
        colors: [P, 3].
        middle: [3] object space.
        radius: Root mean square distance from there, object units.
    """

    points: Tensor
    colors: Tensor
    middle: Tensor
    radius: float


def sample(mesh: PaintedMesh, seed: int = 0) -> Samples:
    """Points spread evenly over a surface."""
    a, b, c = mesh.vertices[mesh.faces.long()].unbind(1)
    area = torch.linalg.vector_norm(torch.linalg.cross(b - a, c - a), dim=1).double().cpu()
    generator = torch.Generator().manual_seed(seed)
    face = torch.multinomial(area, _POINTS, replacement=True, generator=generator)
    u, v = torch.rand(2, _POINTS, generator=generator)
    over = u + v > 1
    u, v = torch.where(over, 1 - u, u), torch.where(over, 1 - v, v)
    weight = torch.stack([1 - u - v, u, v], 1).to(mesh.vertices.device)
    corner = mesh.faces[face.to(mesh.faces.device)].long()
    points = (mesh.vertices[corner] * weight[..., None]).sum(1)
    colors = (mesh.colors[corner] * weight[..., None]).sum(1)
    middle = points.mean(0)
    radius = float((points - middle).square().sum(1).mean().sqrt())
    return Samples((points - middle) / radius, colors, middle, radius)


@dataclass(frozen=True)
class Placements:
    """C ways to put an object into the cameras' world.

    Attributes:
        rotation: [C, 3, 3] from the object's axes to the world's.
        center: [C, 3] where the samples' middle comes to lie, world.
        radius: [C] root mean square distance of the samples from there, world units.
        score: [C] what speaks for them; larger is better, 1 is perfect.
    """

    rotation: Tensor
    center: Tensor
    radius: Tensor
    score: Tensor

    def __getitem__(self, index: Tensor) -> Placements:
        return Placements(self.rotation[index], self.center[index], self.radius[index], self.score[index])

    def similarities(self, samples: Samples) -> list[Similarity]:
        """The maps from the object's space to the world."""
        scale = self.radius / samples.radius
        shift = self.center - scale[:, None] * (self.rotation @ samples.middle)
        return [Similarity(*parts) for parts in zip(scale, self.rotation, shift, strict=True)]


def placing_steps(views: int, rotations: int) -> int:
    """How often `place` calls `tick`."""
    return math.ceil(rotations / _chunk(views))


def _chunk(views: int) -> int:
    return max(1, _TOGETHER // (_POINTS * views))


def place(
    samples: Samples, cameras: Cameras, views: Observed, rotations: Tensor, tick: Callable[[], None]
) -> Placements:
    """Put an object before cameras in every one of several rotations.

    Args:
        samples: The object.
        cameras: V cameras of the observed images' size. Of a single one the object's distance is open.
        views: What they see.
        rotations: [C, 3, 3].
        tick: Called after every so many rotations; what it raises is let through.
    """
    search = _Search(samples, cameras, views)
    parts = []
    for part in rotations.split(_chunk(len(cameras))):
        parts.append(search(part))
        tick()
    names = Placements.__annotations__
    return Placements(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


class _Search:
    def __init__(self, samples: Samples, cameras: Cameras, views: Observed) -> None:
        self._samples, self._cameras = samples, cameras
        self._target = to_image(views.image)
        self._depth = to_image(views.depth)
        self._inside = to_image(views.inside).flatten(1)  # [V, S S]
        self._side = cameras.width
        k = cameras.intrinsics
        self._focal, self._principal = k[:, [0, 1], [0, 1]], k[:, :2, 2]  # [V, 2]: x, y
        alpha = self._target[..., 3]
        step = torch.arange(self._side, device=alpha.device) + 0.5
        grid = torch.stack(torch.meshgrid(step, step, indexing="xy"), -1).reshape(1, -1, 2)
        # Pixels' places at depth 1, along the cameras' x and y: focal lengths may differ.
        aside = (grid - self._principal[:, None]) / self._focal[:, None]
        self._plane = aside * aside.new_tensor([1.0, -1.0])  # [V, S S, 2]
        self._pixel = 1 / self._focal.mean(1)  # [V] about the size of one there
        self._middle, self._extent = _moments(self._plane, alpha.flatten(1) * self._inside)  # [V, 2], [V]
        self._center, self._distance = self._triangulated()

    def _triangulated(self) -> tuple[Tensor, Tensor]:
        """Where the rays through the masks' middles come closest [3], and its z-depths [V]."""
        pose = self._cameras.camera_to_world
        ahead = F.pad(self._middle, (0, 1), value=-1.0)
        ray = F.normalize((pose[:, :3, :3] @ ahead[..., None])[..., 0], dim=1)
        across = torch.eye(3, device=ray.device) - ray[:, :, None] * ray[:, None]
        position = self._cameras.positions
        usual = (position + ray).mean(0)  # a single ray leaves the distance open
        matrix = across.sum(0) + _RIDGE * torch.eye(3, device=ray.device)
        right = (across @ position[..., None]).sum(0)[:, 0] + _RIDGE * usual
        center = torch.linalg.solve(matrix, right)
        return center, self._depth_of(center[None])[0]

    def _depth_of(self, center: Tensor) -> Tensor:
        """z-depths [C, V] of points [C, 3]."""
        pose = self._cameras.camera_to_world
        return ((self._cameras.positions - center[:, None]) * pose[:, :3, 2]).sum(-1).clamp(min=1e-6)

    def __call__(self, rotation: Tensor) -> Placements:
        count = len(rotation)
        center = self._center.expand(count, 3)
        radius = (self._extent * self._distance).median().expand(count) * math.sqrt(1.5)
        for _ in range(_CENTRINGS):
            center, radius = self._centred(rotation, center, radius)
        return Placements(rotation, center, radius, self._score(rotation, center, radius))

    def _seen(self, rotation: Tensor, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [C, V, P, 2] and z-depth [C, V, P] of the samples."""
        pose = self._cameras.camera_to_world
        turned = self._samples.points @ rotation.transpose(1, 2) * radius[:, None, None]  # [C, P, 3]
        world = turned + center[:, None]
        view = pose[:, :3, :3].transpose(1, 2)
        local = torch.einsum("vij,cpj->cvpi", view, world) - (view @ pose[:, :3, 3:])[..., 0][:, None]
        depth = (-local[..., 2]).clamp(min=1e-6)
        flat = local[..., :2] * local.new_tensor([1.0, -1.0]) / depth[..., None]
        return flat * self._focal[:, None] + self._principal[:, None], depth

    def _cells(self, pixel: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers [C, V, P] of the pixels that points lie in, and whether they lie in the image."""
        inside = ((pixel >= 0) & (pixel < self._side)).all(-1)
        column, row = pixel.long().clamp(0, self._side - 1).unbind(-1)
        return row * self._side + column, inside

    def _centred(self, rotation: Tensor, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Better places and sizes: the masks' middles and extents are met in the mean."""
        pixel, _ = self._seen(rotation, center, radius)
        cell, inside = self._cells(pixel)
        filled = inside.new_zeros(*cell.shape[:2], self._side**2, dtype=pixel.dtype)
        filled.scatter_reduce_(2, cell, inside.to(pixel.dtype), "amax")
        middle, extent = _moments(self._plane, filled * self._inside)  # [C, V, 2], [C, V]
        pose = self._cameras.camera_to_world
        off = (self._middle - middle) * self._depth_of(center)[..., None]  # world units, [C, V, 2]
        axes = pose[:, :3, :2]  # [V, 3, 2]
        matrix = (axes @ axes.transpose(1, 2)).sum(0) + _RIDGE * torch.eye(3, device=pose.device)
        right = torch.einsum("vij,cvj->ci", axes, off)
        ratio = (self._extent / torch.maximum(extent, 0.5 * self._pixel)).clamp(0.5, 2.0)
        return center + right @ torch.linalg.inv(matrix), radius * ratio.log().mean(1).exp()

    def _score(self, rotation: Tensor, center: Tensor, radius: Tensor) -> Tensor:
        pixel, depth = self._seen(rotation, center, radius)
        cell, inside = self._cells(pixel)
        cells = self._side**2
        far = torch.finfo(depth.dtype).max
        depth = torch.where(inside, depth, far)
        front = depth.new_full((*cell.shape[:2], cells), far).scatter_reduce(2, cell, depth, "amin")
        drawn = (front < far) & self._inside
        seen = (self._target[..., 3].reshape(1, -1, cells) > 0.5) & self._inside
        iou = (drawn & seen).sum(2) / (drawn | seen).sum(2).clamp(min=1)
        near = inside & (depth < front.gather(2, cell) + _SURFACE * radius[:, None, None])
        return (
            iou.mean(1)
            - _DEPTH_WEIGHT * self._depth_error(front, drawn, radius)
            - _COLOR_WEIGHT * self._color_error(cell, near, drawn & seen)
        )

    def _depth_error(self, front: Tensor, drawn: Tensor, radius: Tensor) -> Tensor:
        """Mean difference of depth in units of twice the radius, at most 0.25, [C]."""
        known = self._depth.reshape(1, -1, front.shape[2])
        both = drawn & (known > 0)
        off = ((front - known).abs() / (2 * radius[:, None, None])).clamp(max=0.25)
        return (off * both).sum((1, 2)) / both.sum((1, 2)).clamp(min=1)

    def _color_error(self, cell: Tensor, near: Tensor, both: Tensor) -> Tensor:
        """Mean absolute difference of colours over the pixels `both` [C, V, S S], [C]."""
        weight = near.to(self._target.dtype)
        count = both.new_zeros(both.shape, dtype=weight.dtype).scatter_add(2, cell, weight).clamp(min=1)
        total = torch.zeros_like(count)
        seen = self._target.flatten(1, 2)  # [V, S S, 4]
        for channel in range(3):
            value = (weight * self._samples.colors[:, channel]).expand_as(weight)
            mean = torch.zeros_like(count).scatter_add(2, cell, value) / count
            total = total + (mean - seen[..., channel] / seen[..., 3].clamp(min=0.5)).abs()
        return (total * both).sum((1, 2)) / (3 * both.sum((1, 2)).clamp(min=1))


def _moments(places: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [..., 2] and root mean square distance from there [...] of `places` [..., N, 2] by weights."""
    total = weight.sum(-1, keepdim=True).clamp(min=1e-6)
    mean = (places * weight[..., None]).sum(-2) / total
    square = ((places - mean[..., None, :]).square().sum(-1) * weight).sum(-1) / total[..., 0]
    return mean, square.sqrt()


def turns_about_z(count: int) -> Tensor:
    """Rotations [count, 3, 3] about z, evenly spread."""
    angle = torch.arange(count) * (2 * math.pi / count)
    zero, one = torch.zeros(count), torch.ones(count)
    rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero, zero, zero, one]
    return torch.stack(rows, 1).reshape(count, 3, 3)


def spread_rotations(count: int, seed: int = 0) -> Tensor:
    """Rotations [count, 3, 3] spread over all of them: a random sample thinned by distance."""
    drawn = np.random.default_rng(seed).normal(size=(20 * count, 4))
    quaternion = torch.tensor(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=torch.float32)
    chosen = [0]
    nearest = (quaternion @ quaternion[0]).abs()
    for _ in range(count - 1):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, (quaternion @ quaternion[chosen[-1]]).abs())
    return rotation_of_quaternion(quaternion[chosen])
