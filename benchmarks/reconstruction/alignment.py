"""Bring what was reconstructed with noisy cameras into the world of the true ones, and measure the cameras.

Cameras that are refined from images are determined only up to a similarity transform. As in the work on
refining poses with radiance fields (Lin et al., BARF, 2021; Wang et al., NeRF--, 2021), the result is
therefore aligned with the truth by the similarity between its own cameras and the true ones, as far as they
look at the object, before it is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from models.geometry.camera import Cameras
from models.geometry.similarity import fit_similarity

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """`x_true = scale * rotation @ x_estimated + translation`.

    Attributes:
        scale: Positive.
        rotation: [3, 3].
        translation: [3], world units of the truth.
    """

    scale: float
    rotation: Array
    translation: Array

    @property
    def degrees(self) -> float:
        """Angle of the rotation."""
        return float(rotation_angles(self.rotation[None], np.eye(3)[None])[0])

    def points_to_true(self, points: Array) -> Array:
        """Points [N, 3] of the estimated world in the true one."""
        return self.scale * points @ self.rotation.T + self.translation

    def cameras_to_estimated(self, cameras: Cameras) -> Cameras:
        """Cameras of the true world in the estimated one; what they see there is `1 / scale` as deep."""
        pose = _poses(cameras)
        pose[:, :3, :3] = self.rotation.T @ pose[:, :3, :3]
        pose[:, :3, 3] = (pose[:, :3, 3] - self.translation) @ self.rotation / self.scale
        return _with_poses(cameras, pose)

    def cameras_to_true(self, cameras: Cameras) -> Cameras:
        """Cameras of the estimated world in the true one."""
        pose = _poses(cameras)
        pose[:, :3, :3] = self.rotation @ pose[:, :3, :3]
        pose[:, :3, 3] = self.points_to_true(pose[:, :3, 3])
        return _with_poses(cameras, pose)


@dataclass(frozen=True)
class PoseErrors:
    """Errors of cameras after alignment, root mean squares over the cameras.

    Attributes:
        degrees: Angle between estimated and true orientation.
        distance_share: Distance between estimated and true centre, as a share of the true centre's distance
            from the object's centre.
    """

    degrees: float
    distance_share: float


def align_cameras(estimated: Cameras, true: Cameras, points: Array | None = None) -> Similarity:
    """The similarity that brings estimated cameras nearest to the true ones.

    Least squares of Umeyama (1991) over the camera centres; the rotation is fitted to the orientations as
    well, with the same weight as the centres have when their spread is scaled to 1. Centres alone would leave
    the rotation open where they lie on one line.

    With `points` the same is then done over where each estimated camera would see them: turning a camera and
    shifting it look nearly the same, so that centres may be off where the object is not.

    Args:
        estimated, true: The same V cameras in the same order; at least two different centres.
        points: Of the object [N, 3], true world.

    Raises:
        ValueError: The numbers of cameras differ, or all centres are one.
    """
    if len(estimated) != len(true):
        raise ValueError(f"{len(estimated)} estimated cameras cannot be aligned with {len(true)} true ones")
    one, two = _poses(estimated), _poses(true)
    mean_one, mean_two = one[:, :3, 3].mean(0), two[:, :3, 3].mean(0)
    centred_one, centred_two = one[:, :3, 3] - mean_one, two[:, :3, 3] - mean_two
    spread_one, spread_two = (np.sqrt((c**2).sum(1).mean()) for c in (centred_one, centred_two))
    if min(spread_one, spread_two) <= 0:
        raise ValueError("cameras with one common centre do not fix a scale")
    positions = centred_two.T @ centred_one / (spread_one * spread_two)
    orientations = np.einsum("vij,vkj->ik", two[:, :3, :3], one[:, :3, :3])
    u, _, vt = np.linalg.svd(positions + orientations)
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    scale = float((centred_two * (centred_one @ rotation.T)).sum() / (centred_one**2).sum())
    by_centres = Similarity(scale, rotation, mean_two - scale * rotation @ mean_one)
    return by_centres if points is None else _aligned_by_points(one, two, scale, points)


def _aligned_by_points(estimated: Array, true: Array, scale: float, points: Array) -> Similarity:
    """The similarity over what V cameras see; `scale` is that of the worlds as far as it is known."""
    seen = (points[None] - true[:, None, :3, 3]) @ true[:, :3, :3]  # [V, N, 3], in each camera's own axes
    carried = np.einsum("vij,vnj->vni", estimated[:, :3, :3], seen / scale) + estimated[:, None, :3, 3]
    source = torch.from_numpy(carried.reshape(-1, 3))
    found = fit_similarity(source, torch.from_numpy(np.tile(points, (len(true), 1))))
    return Similarity(float(found[0]), found[1].numpy(), found[2].numpy())


def pose_errors(estimated: Cameras, true: Cameras, center: Array, points: Array | None = None) -> PoseErrors:
    """Errors of estimated cameras, aligned with the true ones first.

    Args:
        estimated, true: The same V cameras in the same order.
        center: The object's centre [3], world of the true cameras.
        points: See `align_cameras`.
    """
    aligned = _poses(align_cameras(estimated, true, points).cameras_to_true(estimated))
    exact = _poses(true)
    angles = rotation_angles(aligned[:, :3, :3], exact[:, :3, :3])
    moved = np.linalg.norm(aligned[:, :3, 3] - exact[:, :3, 3], axis=1)
    distance = np.linalg.norm(exact[:, :3, 3] - center, axis=1)
    return PoseErrors(_rms(angles), _rms(moved / distance))


def rotation_angles(one: Array, two: Array) -> Array:
    """Angles between rotations [V, 3, 3], degrees, [V]; precise for small ones too."""
    chord = np.linalg.norm(one - two, axis=(1, 2)) / np.sqrt(8)  # sine of half the angle
    angles: Array = np.degrees(2 * np.arcsin(np.clip(chord, 0, 1)))
    return angles


def _poses(cameras: Cameras) -> Array:
    return cameras.camera_to_world.detach().cpu().double().numpy().copy()


def _with_poses(cameras: Cameras, poses: Array) -> Cameras:
    like = cameras.camera_to_world
    return replace(cameras, camera_to_world=torch.from_numpy(poses).to(like.device, like.dtype))


def _rms(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))
