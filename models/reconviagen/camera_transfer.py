"""Cameras in one frame from the same cameras in another, some of them wrong.

A network that is shown renderings with known cameras together with photographs gives cameras for all of them
in a frame of its own. The similarity between what it says of the renderings and what is true carries the
photographs' cameras over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
_PAIRS = 500  # of cameras that propose at most
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

    def to(self, device: torch.device | str) -> CameraFit:
        """The same fit on another device."""
        return CameraFit(self.similarity.to(device), self.angle.to(device), self.offset.to(device))


def fit_cameras(source: Cameras, target: Cameras) -> CameraFit:
    """The similarity that brings most of `source` onto `target`, positions and rotations together.

    Every two cameras (of many cameras some pairs, drawn at random) propose one; the proposal that most
    cameras agree with is refined by reweighted least squares. Computed on the CPU: the matrices are tiny.

    Args:
        source, target: M cameras each, of the same views; at least two at different places.

    Returns:
        The fit, on the source's device.

    Raises:
        ModelError: CAMERA_ESTIMATION_FAILED: fewer than two, or all in one place.
    """
    ours, theirs = source.camera_to_world.double().cpu(), target.camera_to_world.double().cpu()
    spread = torch.linalg.vector_norm(theirs[:, :3, 3] - theirs[:, :3, 3].mean(0), dim=1).median()
    fits = _weighted(ours, theirs, _pair_weights(len(ours)), spread)
    if not len(fits.scale):
        raise ModelError(
            ErrorCode.CAMERA_ESTIMATION_FAILED,
            "The estimated cameras all stand in one place.",
            rule="two places",
        )
    best = fits[fits.error.clamp(max=1).sum(1).argmin()]
    for _ in range(_ROUNDS):
        finer = _weighted(ours, theirs, 1 / (1 + best.error).square(), spread)
        best = finer if len(finer.scale) else best
    return best.single().to(source.camera_to_world.device)


def _pair_weights(count: int) -> Tensor:
    """Weights [B, M] that each choose two of `count` cameras."""
    pairs = torch.combinations(torch.arange(count))
    if len(pairs) > _PAIRS:
        pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:_PAIRS]]
    return torch.zeros(len(pairs), count, dtype=torch.float64).scatter_(1, pairs, 1.0)


@dataclass(frozen=True)
class _Fits:
    """B proposals `x -> scale * rotation @ x + translation` for M cameras, float64.

    Attributes:
        scale, rotation, translation: [B], [B, 3, 3], [B, 3].
        angle, offset: [B, M] as of `CameraFit`.
    """

    scale: Tensor
    rotation: Tensor
    translation: Tensor
    angle: Tensor
    offset: Tensor

    def __getitem__(self, index: Tensor) -> _Fits:
        """Some of the proposals, by a mask [B] or the number [] of one."""
        rows = index.reshape(-1)
        parts = (self.scale, self.rotation, self.translation, self.angle, self.offset)
        return _Fits(*(part[rows] for part in parts))

    @property
    def error(self) -> Tensor:
        """[B, M] square errors, 1 where cameras become mistakes."""
        return _error(self.angle, self.offset)

    def single(self) -> CameraFit:
        """The only proposal."""
        similarity = Similarity(self.scale[0].float(), self.rotation[0].float(), self.translation[0].float())
        return CameraFit(similarity, self.angle[0], self.offset[0])


def _weighted(source: Tensor, target: Tensor, weight: Tensor, spread: Tensor) -> _Fits:
    """Least squares over poses [M, 4, 4] by B weights [B, M] each, without those that have no solution: where
    the weighted cameras are in one place, or mirrored."""
    share = weight / weight.sum(1, keepdim=True)
    place, wanted = source[:, :3, 3], target[:, :3, 3]
    mean, goal = share @ place, share @ wanted  # [B, 3]
    extent = (share * (place - mean[:, None]).square().sum(2)).sum(1).sqrt()
    solvable = _spread_out(extent, mean) & _spread_out(spread, goal)
    share, mean, goal, extent = share[solvable], mean[solvable], goal[solvable], extent[solvable]
    a, b = place - mean[:, None], wanted - goal[:, None]  # [B, M, 3]
    # Positions in units of their own extent and rotation matrices weigh about the same.
    relative = target[:, :3, :3] @ source[:, :3, :3].transpose(1, 2)
    turned = torch.einsum("bm,mij->bij", share, relative)
    moved = torch.einsum("bm,bmi,bmj->bij", share, b, a) / (extent * spread)[:, None, None]
    left, _, right = torch.linalg.svd(turned + moved)
    sign = torch.ones_like(mean)
    sign[:, 2] = torch.linalg.det(left @ right).sign()
    rotation = (left * sign[:, None]) @ right
    along = a @ rotation.transpose(1, 2)
    scale = (share * (along * b).sum(2)).sum(1) / extent.square()
    gap = torch.linalg.vector_norm(scale[:, None, None] * along - b, dim=2)
    # The rotation that remains of each camera: R source target^T has this trace.
    cosine = (torch.einsum("bij,mij->bm", rotation, relative) - 1) / 2
    translation = goal - scale[:, None] * (rotation @ mean[..., None])[..., 0]
    fits = _Fits(scale, rotation, translation, cosine.clamp(-1, 1).acos(), gap / spread)
    return fits[scale > 0]


def _spread_out(extent: Tensor, place: Tensor) -> Tensor:
    """Whether positions about places [B, 3] are not all the same, up to rounding; false if not finite."""
    return extent >= 1e-6 * place.abs().amax(1).clamp(min=1)


def _error(angle: Tensor, offset: Tensor) -> Tensor:
    """Square error of cameras, 1 where they become mistakes."""
    return (angle / _ANGLE).square() + (offset / _SHARE).square()


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
