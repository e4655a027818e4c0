"""Pinhole cameras and the conversions between their conventions.

Kept: camera-to-world, OpenGL axes (x right, y up, z back), intrinsics in pixels with the first pixel's centre
at (0.5, 0.5) and row 0 at the top. Everything else is offered by name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_GL_TO_CV = (1.0, -1.0, -1.0, 1.0)


@dataclass(frozen=True)
class Cameras:
    """V pinhole cameras that share one image size.

    Attributes:
        camera_to_world: [V, 4, 4] float32, OpenGL axes; the upper left 3x3 is a rotation.
        intrinsics: [V, 3, 3] float32, pixels: `fl_x fl_y cx cy` of a matrix without skew.
        width, height: Size of the images, pixels.
    """

    camera_to_world: Tensor
    intrinsics: Tensor
    width: int
    height: int

    def __len__(self) -> int:
        return self.camera_to_world.shape[0]

    def __getitem__(self, index: slice | list[int] | Tensor) -> Cameras:
        return Cameras(self.camera_to_world[index], self.intrinsics[index], self.width, self.height)

    def to(self, device: torch.device | str) -> Cameras:
        """The same cameras on another device."""
        return Cameras(self.camera_to_world.to(device), self.intrinsics.to(device), self.width, self.height)

    @property
    def positions(self) -> Tensor:
        """Camera centres in the world, [V, 3]."""
        return self.camera_to_world[:, :3, 3]

    @property
    def world_to_camera(self) -> Tensor:
        """Inverse poses, OpenGL axes, [V, 4, 4]."""
        return torch.linalg.inv(self.camera_to_world)

    @property
    def world_to_camera_opencv(self) -> Tensor:
        """Inverse poses in OpenCV axes (x right, y down, z forward), [V, 4, 4]."""
        flip = torch.tensor(_GL_TO_CV, device=self.camera_to_world.device)
        return flip[:, None] * self.world_to_camera

    def resized(self, width: int, height: int) -> Cameras:
        """Cameras of the same views at another image size."""
        scale = torch.tensor(
            [[width / self.width], [height / self.height], [1.0]], device=self.intrinsics.device
        )
        return Cameras(self.camera_to_world, self.intrinsics * scale, width, height)

    def normalized(self, center: Tensor, scale: float) -> Cameras:
        """Cameras of the world `x' = (x - center) / scale`; rotations stay rotations."""
        pose = self.camera_to_world.clone()
        pose[:, :3, 3] = (pose[:, :3, 3] - center) / scale
        return Cameras(pose, self.intrinsics, self.width, self.height)

    def projection(self, near: float, far: float) -> Tensor:
        """OpenGL projection matrices, [V, 4, 4], for images whose row 0 is at the bottom.

        Args:
            near, far: Positive distances of the clip planes along the viewing direction, world units.
        """
        k = self.intrinsics
        p = torch.zeros(len(self), 4, 4, device=k.device, dtype=k.dtype)
        p[:, 0, 0] = 2 * k[:, 0, 0] / self.width
        p[:, 1, 1] = 2 * k[:, 1, 1] / self.height
        p[:, 0, 2] = 1 - 2 * k[:, 0, 2] / self.width
        p[:, 1, 2] = 2 * k[:, 1, 2] / self.height - 1
        p[:, 2, 2] = -(far + near) / (far - near)
        p[:, 2, 3] = -2 * far * near / (far - near)
        p[:, 3, 2] = -1
        return p

    def clip_from_world(self, near: float, far: float) -> Tensor:
        """World to clip space, [V, 4, 4]; clip `w` is the z-depth."""
        return self.projection(near, far) @ self.world_to_camera

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project world points into every view.

        Args:
            points: [N, 3], world units.

        Returns:
            Pixel coordinates [V, N, 2] (x right, y down, first pixel's centre at 0.5) and z-depth [V, N].
        """
        view = self.world_to_camera_opencv
        camera = torch.einsum("vij,nj->vni", view[:, :3, :3], points) + view[:, None, :3, 3]  # [V, N, 3]
        depth = camera[..., 2]
        safe = torch.where(depth.abs() < 1e-9, torch.full_like(depth, 1e-9), depth)
        focal = torch.stack([self.intrinsics[:, 0, 0], self.intrinsics[:, 1, 1]], -1)  # [V, 2]
        centre = self.intrinsics[:, :2, 2]
        return camera[..., :2] / safe[..., None] * focal[:, None] + centre[:, None], depth

    def unproject(self, depth: Tensor) -> Tensor:
        """World points of z-depth maps.

        Args:
            depth: [V, H, W] z-depth, world units, row 0 at the top.

        Returns:
            [V, H, W, 3] points, world units.
        """
        x = torch.arange(self.width, device=depth.device) + 0.5
        y = torch.arange(self.height, device=depth.device) + 0.5
        k = self.intrinsics
        camera_x = (x[None, None] - k[:, 0, 2, None, None]) / k[:, 0, 0, None, None] * depth
        camera_y = (k[:, 1, 2, None, None] - y[None, :, None]) / k[:, 1, 1, None, None] * depth
        camera = torch.stack([camera_x, camera_y, -depth, torch.ones_like(depth)], -1)  # OpenGL axes
        return torch.einsum("vij,vhwj->vhwi", self.camera_to_world[:, :3], camera)


def look_at(position: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Camera-to-world matrix [4, 4], OpenGL axes, of a camera at `position` that looks at `target`.

    Raises:
        ValueError: `up` is parallel to the viewing direction, or the camera stands on its target.
    """
    back = np.asarray(position, float) - np.asarray(target, float)
    right = np.cross(up, back)
    if np.linalg.norm(right) < 1e-9 * max(np.linalg.norm(back), 1e-9):
        raise ValueError("look_at needs an up vector that is not parallel to the viewing direction")
    back /= np.linalg.norm(back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, np.asarray(position, float)], 1)
    return matrix


def intrinsics_from_fov(fov_x: float, width: int, height: int) -> np.ndarray:
    """Intrinsic matrix [3, 3] of a horizontal field of view (radians), square pixels, centred."""
    focal = width / (2 * np.tan(fov_x / 2))
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
