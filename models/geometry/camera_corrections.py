"""Small corrections of poses and focal length, optimised together with the shape by its rendering loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.geometry.camera import Cameras
from models.geometry.rotation import rigid_about

_ROTATION = 0.01  # expected size of a correction, radians,
_TRANSLATION = 0.02  # half sides of the object's cube,
_FOCAL = 0.01  # and of the logarithm of the focal length


class CameraCorrections(nn.Module):
    """A rigid motion for each view and one factor on all focal lengths; none at first.

    A motion turns about the middle of the surface that its camera sees, and not about the camera: a turn of
    the camera and a shift of the object are nearly the same to see, and a descent would have to tell them
    apart. Where the shape is still being found, the views' mean motion is left out: the shape could make it
    as well.

    All lengths are in the normalised frame. Nothing waits for the device. In a loop: render with
    `matrices(clip_from_world)[index]`, add `prior` with a small weight beside the images' losses
    and give Adam `parameter_groups`.

    Attributes:
        motion: [V, 6] rotation vectors, radians, about `pivot`, and translations.
        log_focal: [] logarithm of the factor on all focal lengths.
        pivot: [V, 3] where each camera sees the surface, roughly.

    Args:
        cameras: The V cameras in the normalised frame; the object is at the origin, of size one.
        front: How far before the origin a camera sees the surface.
        whole: Whether the views may also move together, before an object that stays where it is.
    """

    def __init__(self, cameras: Cameras, *, front: float = 0.5, whole: bool = False) -> None:
        super().__init__()
        self._whole = whole
        k = cameras.intrinsics
        self.motion = nn.Parameter(torch.zeros(len(cameras), 6, device=k.device))
        self.log_focal = nn.Parameter(torch.zeros((), device=k.device))
        self.register_buffer("pivot", front * F.normalize(cameras.positions, dim=1))  # [V, 3]
        self.pivot: Tensor
        # Clip coordinates of the principal point: what zooms is the image about it.
        centre = torch.stack([2 * k[:, 0, 2] / cameras.width - 1, 1 - 2 * k[:, 1, 2] / cameras.height], 1)
        self.register_buffer("_centre", centre)  # [V, 2]
        self._centre: Tensor

    def motions(self) -> Tensor:
        """Motions of the world before each camera, [V, 4, 4]."""
        turn, shift = self.motion.split(3, 1)
        shift = shift + torch.linalg.cross(self.pivot, turn)  # about the origin, to first order
        if not self._whole:
            turn, shift = turn - turn.mean(0), shift - shift.mean(0)
        return rigid_about(turn, shift, torch.zeros_like(shift[0]))

    def matrices(self, clip_from_world: Tensor) -> Tensor:
        """Corrected matrices [V, 4, 4] from those of all V given cameras, differentiable.

        Args:
            clip_from_world: [V, 4, 4] from the normalised frame (`Cameras.clip_from_world`).
        """
        moved = clip_from_world @ self.motions()
        focal = self.log_focal.exp()
        image = focal * moved[:, :2] + (1 - focal) * self._centre[:, :, None] * moved[:, 3:]
        return torch.cat([image, moved[:, 2:]], 1)

    def prior(self) -> Tensor:
        """Mean square of the corrections in units of their expected size, a scalar."""
        size = self.motion.new_tensor(3 * [_ROTATION] + 3 * [_TRANSLATION])
        return (self.motion / size).square().mean() + (self.log_focal / _FOCAL).square()

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """For Adam: a step at `rate` moves the object's image by about that share of its size."""
        return [{"params": [self.motion], "lr": rate}, {"params": [self.log_focal], "lr": 0.3 * rate}]

    @torch.no_grad()
    def corrected(self, cameras: Cameras, center: Tensor, scale: float) -> Cameras:
        """The given cameras with the corrections, in the world's frame.

        Args:
            cameras: The V given cameras, world frame.
            center, scale: The normalised frame, `x' = (x - center) / scale`.
        """
        motion = self.motions().double()
        motion[:, :3, 3] = motion[:, :3, 3] * scale + center - motion[:, :3, :3] @ center.double()
        pose = (torch.linalg.inv(motion) @ cameras.camera_to_world.double()).float()
        intrinsics = cameras.intrinsics.clone()
        intrinsics[:, [0, 1], [0, 1]] *= self.log_focal.exp()
        return Cameras(pose, intrinsics, cameras.width, cameras.height)
