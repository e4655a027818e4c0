"""Small scenes for the tests of the rasterizer."""

import math

import torch
from torch import Tensor


def sphere(columns: int = 16) -> tuple[Tensor, Tensor]:
    """Welded unit sphere: vertices [N, 3] and triangles [F, 3], int32, counter-clockwise from outside."""
    rows = columns // 2
    vertices = [(0.0, 1.0, 0.0)]
    for i in range(1, rows):
        for j in range(columns):
            polar, azimuth = math.pi * i / rows, 2 * math.pi * j / columns
            vertices.append(
                (math.sin(polar) * math.cos(azimuth), math.cos(polar), math.sin(polar) * math.sin(azimuth))
            )
    vertices.append((0.0, -1.0, 0.0))
    last = len(vertices) - 1
    faces = []
    for j in range(columns):
        k = (j + 1) % columns
        faces.append((0, 1 + k, 1 + j))
        faces.append((last, last - columns + j, last - columns + k))
        for i in range(rows - 2):
            a, b = 1 + i * columns, 1 + (i + 1) * columns
            faces += [(a + j, a + k, b + j), (a + k, b + k, b + j)]
    return torch.tensor(vertices), torch.tensor(faces, dtype=torch.int32)


def project(vertices: Tensor, angle: float = 0.0, distance: float = 3.0, near: float = 0.1) -> Tensor:
    """Clip-space positions [N, 4] from a camera that looks at the origin, turned about the y axis."""
    far, focal = 10.0, 2.0
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]], dtype=vertices.dtype)
    x, y, z = (vertices @ turn.T).unbind(-1)
    z = z - distance
    return torch.stack(
        [focal * x, focal * y, (far + near) / (near - far) * z + 2 * far * near / (near - far), -z], dim=-1
    )


def flat(points: list[tuple[float, float]], z: float = 0.0) -> Tensor:
    """Clip-space positions [1, N, 4] of points given in [-1, 1], with w = 1."""
    return torch.tensor([[[x, y, z, 1.0] for x, y in points]])
