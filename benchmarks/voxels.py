"""An object that is always the same: a sphere with bumps, as a distance and as the voxels of its surface."""

from __future__ import annotations

import torch
from torch import Tensor

RADIUS = 0.42  # of the grid's side, without the bumps
BUMPS = 0.12  # of the radius
THICKNESS = 2.2  # voxels


def bumpy_distance(points: Tensor) -> Tensor:
    """About the distance [...] of points [..., 3] in [-0.5, 0.5]^3 from the surface, negative inside."""
    x, y, z = points.unbind(-1)
    length = points.norm(dim=-1).clamp_min(1e-9)
    bump = torch.sin(5 * torch.atan2(y, x)) * torch.cos(3 * torch.pi * z / length)
    return length - RADIUS * (1 + BUMPS * bump)


def bumpy_shell(resolution: int, device: torch.device | str = "cpu") -> Tensor:
    """Voxels [N, 3] int32 at the surface, in lexicographic order; 20 136 at resolution 64."""
    axis = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution - 0.5
    centres = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    shell = bumpy_distance(centres).abs() < THICKNESS / 2 / resolution
    return shell.nonzero().int().to(device)
