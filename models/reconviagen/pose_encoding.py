"""VGGT's pose encoding: nine numbers a view, and the cameras they stand for.

Translation (3) and quaternion (4, scalar last) from world to camera in OpenCV axes; vertical and horizontal
field of view (2), radians, with the principal point in the image's centre.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.geometry.camera import Cameras
from schemas.errors import ErrorCode, ModelError

ENCODING_SIZE = 9


def cameras_of_encoding(encoding: Tensor, width: int, height: int) -> Cameras:
    """Cameras in the world of the first view, whose unit of length is the network's.

    Args:
        encoding: [V, 9] float32.
        width, height: Size of the images that the encoding speaks of, pixels.

    Raises:
        ModelError: CAMERA_ESTIMATION_FAILED: a number is not finite, a quaternion is zero, or a field of view
            is not between 0 and 180 degrees.
    """
    _check(encoding)
    translation, quaternion, fov = encoding.float().split([3, 4, 2], -1)
    to_world = rotation_of_quaternion(quaternion).transpose(1, 2)  # [V, 3, 3]
    centre = -(to_world @ translation[..., None])  # [V, 3, 1]
    to_opengl = torch.tensor([1.0, -1.0, -1.0], device=encoding.device)
    pose = torch.eye(4, device=encoding.device).repeat(len(encoding), 1, 1)
    pose[:, :3] = torch.cat([to_world * to_opengl, centre], -1)
    half = torch.tensor([height / 2, width / 2], device=encoding.device)
    focal = half / torch.tan(fov / 2)  # [V, 2]: y, x
    intrinsics = torch.eye(3, device=encoding.device).repeat(len(encoding), 1, 1)
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = focal[:, 1], focal[:, 0]
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = width / 2, height / 2
    return Cameras(pose, intrinsics, width, height)


def rotation_of_quaternion(quaternion: Tensor) -> Tensor:
    """Rotations [..., 3, 3] of quaternions [..., 4], scalar last, of any length but zero."""
    x, y, z, w = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _check(encoding: Tensor) -> None:
    quaternion, fov = encoding[:, 3:7], encoding[:, 7:]
    usable = encoding.isfinite().all(-1) & (quaternion.norm(dim=-1) > 0)
    usable &= ((fov > 0) & (fov < torch.pi)).all(-1)
    if not usable.all():
        view = int((~usable).nonzero()[0])
        raise ModelError(
            ErrorCode.CAMERA_ESTIMATION_FAILED,
            f"The camera of view {view + 1} could not be estimated: what the network says is no camera.",
            rule="pose and field of view must be finite, and the view between 0 and 180 degrees wide",
            view=view,
            field_of_view=[round(float(angle), 4) for angle in fov[view].nan_to_num()],
        )
