"""Analytic views of a sphere, the smallest object that a model can reconstruct."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from models.base import Views
from models.geometry.camera import Cameras, intrinsics_from_fov, look_at

SIZE = 64
RADIUS = 0.6
CENTER = torch.tensor([0.2, -0.1, 0.3])
DIRECTIONS = ([0, -1, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1])


def sphere_views(scale: float = 1.0, directions: Sequence[Sequence[float]] = DIRECTIONS) -> Views:
    """Analytic views of a sphere, with exact z-depth; six unless told."""
    poses = []
    for direction in directions:
        d = np.array(direction) / np.linalg.norm(direction)
        up = np.array([0, 1.0, 0]) if abs(d[2]) > 0.9 else np.array([0, 0, 1.0])
        poses.append(look_at(CENTER.numpy() * scale + 3.0 * scale * np.array(d), CENTER.numpy() * scale, up))
    k = torch.tensor(intrinsics_from_fov(math.radians(35), SIZE, SIZE), dtype=torch.float32)
    count = len(poses)
    k = k.repeat(count, 1, 1)
    cameras = Cameras(torch.tensor(np.stack(poses), dtype=torch.float32), k, SIZE, SIZE)
    far = cameras.unproject(torch.ones(count, SIZE, SIZE))  # one point on each ray, at z-depth 1
    origin = cameras.positions[:, None, None]
    ray = far - origin
    offset = origin - CENTER * scale
    a, b = (ray * ray).sum(-1), (ray * offset).sum(-1)
    c = (offset * offset).sum(-1) - (RADIUS * scale) ** 2
    root = b * b - a * c
    depth = torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / a, 0.0)
    return Views(
        tuple(f"images/{i}.png" for i in range(count)),
        torch.full((count, SIZE, SIZE, 3), 0.5),
        (root > 0).float(),
        depth,
        cameras,
    )
