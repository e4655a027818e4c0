"""Cameras that stand around an object."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.geometry.camera import Cameras, intrinsics_from_fov, look_at

_POLAR = 0.999  # of cameras that look more steeply than this (sine) the image's up is +y, not +z


def spread_directions(count: int) -> NDArray[np.float64]:
    """Unit vectors [count, 3] spread evenly over the sphere, from top to bottom: the golden spiral."""
    number = np.arange(count) + 0.5
    height = 1 - 2 * number / count
    angle = number * math.pi * (3 - math.sqrt(5))
    ring = np.sqrt(1 - height**2)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), height], 1)


def cameras_around(
    directions: NDArray[np.float64],
    center: Tensor,
    radius: float,
    *,
    size: int,
    fov_degrees: float = 40.0,
    margin: float = 1.1,
) -> Cameras:
    """Cameras that look at `center` from all `directions`, z up in their images.

    Args:
        directions: [V, 3] unit vectors from the centre to the cameras.
        center: [3]; its device is the cameras'.
        radius: Of a sphere about the centre that every image shows whole.
        size: Side of the images, pixels.
        fov_degrees: Field of view.
        margin: Ratio between the sphere's and the image's size.
    """
    middle = center.detach().cpu().double().numpy()
    distance = margin * radius / math.sin(math.radians(fov_degrees) / 2)
    poses = [
        look_at(
            middle + distance * direction,
            middle,
            np.array([0.0, 1.0, 0.0] if abs(direction[2]) > _POLAR else [0.0, 0.0, 1.0]),
        )
        for direction in directions
    ]
    intrinsics = intrinsics_from_fov(math.radians(fov_degrees), size, size)
    return Cameras(
        torch.tensor(np.stack(poses), dtype=torch.float32, device=center.device),
        torch.tensor(intrinsics, dtype=torch.float32, device=center.device).repeat(len(poses), 1, 1),
        size,
        size,
    )


def bounding_sphere(vertices: Tensor) -> tuple[Tensor, float]:
    """Centre [3] of the bounding box of `vertices` [N, 3], and the distance of the farthest from there."""
    center = (vertices.amin(0) + vertices.amax(0)) / 2
    return center, float(torch.linalg.vector_norm(vertices - center, dim=1).max())
