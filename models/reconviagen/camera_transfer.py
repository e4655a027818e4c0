"""Cameras in one frame from the same cameras in another, some of them wrong.

A network that is shown renderings with known cameras together with photographs gives cameras for all of them
in a frame of its own. The similarity between what it says of the renderings and what is true carries the
photographs' cameras over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry.camera import Cameras
from models.geometry.rotation import rotation_between
from models.geometry.similarity import Similarity
from models.reconviagen.crops import Crops
from schemas.errors import ErrorCode, ModelError

_ANGLE = math.radians(10.0)  # rotations that are off by more than this
_SHARE = 0.1  # and positions by more than this share of the cameras' distance, are mistakes
_ROUNDS = 8  # of reweighting


@dataclass(frozen=True)
class CameraFit:
    """How one set of cameras was brought onto another.

    Attributes:
        similarity: From the source's world to the target's.
        angle: [M] radians by which the brought cameras' directions are off.
        offset: [M] by how much their positions are off, as a share of the targets' median distance from
            their middle.
    """

    similarity: Similarity
    angle: Tensor
    offset: Tensor

    @property
    def agreeing(self) -> Tensor:
        """Which cameras are no mistakes, [M] bool."""
        return _error(self.angle, self.offset) < 1


def fit_cameras(source: Cameras, target: Cameras) -> CameraFit:
    """The similarity that brings most of `source` onto `target`, positions and rotations together.

    Every two cameras propose one; the proposal that most cameras agree with is refined by reweighted least
    squares.

    Args:
        source, target: M cameras each, of the same views; at least two at different places.

    Raises:
        ModelError: CAMERA_ESTIMATION_FAILED: fewer than two, or all in one place.
    """
    ours, theirs = source.camera_to_world.double(), target.camera_to_world.double()
    spread = torch.linalg.vector_norm(theirs[:, :3, 3] - theirs[:, :3, 3].mean(0), dim=1).median()
    best: tuple[float, CameraFit] | None = None
    for pair in torch.combinations(torch.arange(len(ours), device=ours.device)):
        weight = torch.zeros_like(ours[:, 0, 0])
        weight[pair] = 1.0
        fit = _weighted(ours, theirs, weight, spread)
        if fit is None:
            continue
        cost = float(_error(fit.angle, fit.offset).clamp(max=1).sum())
        if best is None or cost < best[0]:
            best = cost, fit
    if best is None:
        raise ModelError(
            ErrorCode.CAMERA_ESTIMATION_FAILED,
            "The estimated cameras all stand in one place.",
            rule="two places",
        )
    fit = best[1]
    for _ in range(_ROUNDS):
        weight = 1 / (1 + _error(fit.angle, fit.offset)).square()
        fit = _weighted(ours, theirs, weight, spread) or fit
    return replace(fit, similarity=_single(fit.similarity))


def _weighted(source: Tensor, target: Tensor, weight: Tensor, spread: Tensor) -> CameraFit | None:
    """Least squares over poses [M, 4, 4]; None where the weighted cameras are in one place."""
    share = weight / weight.sum()
    mean, goal = (share[:, None] * source[:, :3, 3]).sum(0), (share[:, None] * target[:, :3, 3]).sum(0)
    a, b = source[:, :3, 3] - mean, target[:, :3, 3] - goal
    extent = (share * a.square().sum(1)).sum().sqrt()
    if _is_point(extent, mean) or _is_point(spread, goal):
        return None
    # Positions in units of their own extent and rotation matrices weigh about the same.
    turned = (share[:, None, None] * target[:, :3, :3] @ source[:, :3, :3].transpose(1, 2)).sum(0)
    moved = (share[:, None, None] * b[:, :, None] * a[:, None]).sum(0) / (extent * spread)
    left, _, right = torch.linalg.svd(turned + moved)
    sign = torch.ones_like(mean)
    sign[2] = torch.sign(torch.linalg.det(left @ right))
    rotation = left @ torch.diag(sign) @ right
    along = a @ rotation.T
    scale = (share * (along * b).sum(1)).sum() / extent.square()
    if float(scale) <= 0:
        return None
    similarity = Similarity(scale, rotation, goal - scale * rotation @ mean)
    off = rotation @ source[:, :3, :3] @ target[:, :3, :3].transpose(1, 2)
    cosine = (off.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    gap = torch.linalg.vector_norm(similarity.points(source[:, :3, 3]) - target[:, :3, 3], dim=1)
    return CameraFit(similarity, cosine.clamp(-1, 1).acos(), gap / spread)


def _is_point(extent: Tensor, place: Tensor) -> bool:
    """Whether positions about a place [3] are all the same, up to rounding; true if they are not finite."""
    return not float(extent) >= 1e-6 * max(1.0, float(place.abs().max()))


def _error(angle: Tensor, offset: Tensor) -> Tensor:
    """Square error of cameras, 1 where they become mistakes."""
    return (angle / _ANGLE).square() + (offset / _SHARE).square()


def _single(similarity: Similarity) -> Similarity:
    return Similarity(similarity.scale.float(), similarity.rotation.float(), similarity.translation.float())


def uncropped(cameras: Cameras, crops: Crops) -> Cameras:
    """Cameras of full images from those that a network gave for crops of them.

    The network takes every image's middle for its principal point. A crop beside the middle of its image is
    what a camera that is turned towards it would have seen; turning it back and giving the full image
    its principal point changes nothing but the small difference between the two image planes.

    Args:
        cameras: Of the crops, principal points in the middle.
        crops: How they were cut.

    Returns:
        Cameras of the full images, principal points in the middle; one focal length for both axes.
    """
    whole = crops.to_full(cameras)
    middle = whole.intrinsics.new_tensor([crops.width / 2, crops.height / 2])
    focal = whole.intrinsics[:, [0, 1], [0, 1]].mean(1)
    aside = (whole.intrinsics[:, :2, 2] - middle) / focal[:, None] * focal.new_tensor([1.0, -1.0])
    towards = F.normalize(F.pad(aside, (0, 1), value=-1.0), dim=1)  # the crop's middle in camera axes
    ahead = torch.zeros_like(towards)
    ahead[:, 2] = -1
    pose = whole.camera_to_world.clone()
    pose[:, :3, :3] = pose[:, :3, :3] @ rotation_between(ahead, towards).transpose(1, 2)
    # On the plane of the full image what is off its middle appears larger.
    focal = focal * -towards[:, 2]
    intrinsics = torch.zeros_like(whole.intrinsics)
    intrinsics[:, [0, 1], [0, 1]] = focal[:, None]
    intrinsics[:, :2, 2], intrinsics[:, 2, 2] = middle, 1
    return Cameras(pose, intrinsics, crops.width, crops.height)
