"""Similarities of space, and the one between two sets of corresponding points."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.geometry.camera import Cameras


@dataclass(frozen=True)
class Similarity:
    """The map `x -> scale * rotation @ x + translation`.

    Attributes:
        scale: [], positive.
        rotation: [3, 3], no reflection.
        translation: [3].
    """

    scale: Tensor
    rotation: Tensor
    translation: Tensor

    @classmethod
    def identity(cls, device: torch.device | str = "cpu") -> Similarity:
        """The map that moves nothing, float32."""
        one = torch.ones((), device=device)
        return cls(one, torch.eye(3, device=device), torch.zeros(3, device=device))

    def matrix(self) -> Tensor:
        """The map of homogeneous coordinates, [4, 4]."""
        matrix = torch.eye(4, dtype=self.rotation.dtype, device=self.rotation.device)
        matrix[:3, :3], matrix[:3, 3] = self.scale * self.rotation, self.translation
        return matrix

    def points(self, points: Tensor) -> Tensor:
        """Where `points` [..., 3] come to lie."""
        return self.scale * points @ self.rotation.T + self.translation

    def cameras(self, cameras: Cameras) -> Cameras:
        """Cameras that see the mapped world as `cameras` see the world; depths are multiplied by `scale`."""
        pose = cameras.camera_to_world.clone()
        pose[:, :3, :3] = self.rotation @ pose[:, :3, :3]
        pose[:, :3, 3] = self.points(pose[:, :3, 3])
        return replace(cameras, camera_to_world=pose)

    def inverse(self) -> Similarity:
        """The map back."""
        rotation = self.rotation.T
        return Similarity(1 / self.scale, rotation, -(rotation @ self.translation) / self.scale)

    def to(self, device: torch.device | str) -> Similarity:
        """The same map on another device."""
        return Similarity(self.scale.to(device), self.rotation.to(device), self.translation.to(device))


def fit_similarity(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The similarity `x -> scale * rotation @ x + translation` that best brings `source` onto `target`.

    Args:
        source, target: Corresponding points [N, 3], not all on one line.

    Returns:
        Scale [], rotation [3, 3] (no reflection) and translation [3], by least squares.

    Reference: Umeyama, 1991.
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = source - source_mean, target - target_mean
    left, values, right = torch.linalg.svd(b.T @ a)
    sign = torch.ones_like(values)
    sign[2] = torch.sign(torch.linalg.det(left @ right))
    rotation = left @ torch.diag(sign) @ right
    scale = (values * sign).sum() / a.square().sum()
    return scale, rotation, target_mean - scale * rotation @ source_mean
