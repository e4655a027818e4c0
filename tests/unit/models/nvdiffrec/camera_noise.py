"""Wrong cameras and wrong depth for tests, and how wrong they are."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from models.base import Views
from models.geometry.camera import Cameras
from models.geometry.rotation import rotation_matrix
from models.geometry.similarity import fit_similarity


def with_noisy_cameras(
    views: Views, *, degrees: float = 0.5, share: float = 0.01, focal: float = 1.0
) -> Views:
    """Turn every camera about a random axis and move it by a share of its distance from the origin."""
    generator = torch.Generator().manual_seed(3)
    axis, move = F.normalize(torch.randn(2, len(views), 3, generator=generator), dim=-1)
    pose = views.cameras.camera_to_world.clone()
    distance = pose[:, :3, 3].norm(dim=1, keepdim=True)
    pose[:, :3, :3] = rotation_matrix(axis * math.radians(degrees)) @ pose[:, :3, :3]
    pose[:, :3, 3] += share * distance * move
    intrinsics = views.cameras.intrinsics.clone()
    intrinsics[:, [0, 1], [0, 1]] *= focal
    return replace(views, cameras=replace(views.cameras, camera_to_world=pose, intrinsics=intrinsics))


def with_noisy_depth(views: Views, *, noise: float = 0.01, holes: float = 0.3) -> Views:
    """Multiply depth by white noise and drop a share of the pixels."""
    assert views.depths is not None
    generator = torch.Generator().manual_seed(4)
    depths = views.depths * (1 + noise * torch.randn(views.depths.shape, generator=generator))
    kept = torch.rand(views.depths.shape, generator=generator) >= holes
    return replace(views, depths=depths * kept)


def reprojection_error(true: Cameras, found: Cameras, points: torch.Tensor) -> float:
    """Root mean square error of the images of `points` [N, 3], pixels, a similarity of the world aside."""
    points = points.double()
    moved = found.camera_to_world.double() @ torch.linalg.inv(true.camera_to_world.double())  # [V, 4, 4]
    carried = torch.einsum("vij,nj->vni", moved[:, :3, :3], points) + moved[:, None, :3, 3]
    scale, rotation, shift = fit_similarity(carried.flatten(0, 1), points.repeat(len(true), 1))
    # What `found` sees of a world that the similarity was undone in, it must see as `true` sees the world.
    inverse = ((points - shift) @ rotation / scale).float()
    difference = found.project(inverse)[0] - true.project(points.float())[0]
    return float(difference.square().sum(-1).mean().sqrt())
