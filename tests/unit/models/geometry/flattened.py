"""What tests measure of an atlas, in the plainest way."""

from __future__ import annotations

import numpy as np


def claims(uvs: np.ndarray, uv_faces: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """How many triangles hold each texel's centre [R, R], and one that does (-1 where none)."""
    count = np.zeros((resolution, resolution), int)
    owner = np.full((resolution, resolution), -1)
    for face, corner in enumerate(uvs[uv_faces].astype(np.float64) * resolution):
        low = np.floor(corner.min(0) - 0.5).astype(int).clip(0)
        high = np.ceil(corner.max(0) + 0.5).astype(int).clip(max=resolution)
        x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
        side = [
            (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])
            for a, b in zip(corner, np.roll(corner, -1, 0), strict=True)
        ]
        inside = np.all(np.array(side) > 1e-4, 0) | np.all(np.array(side) < -1e-4, 0)
        count[low[1] : high[1], low[0] : high[0]] += inside
        owner[low[1] : high[1], low[0] : high[0]][inside] = face
    return count, owner


def stretches(vertices: np.ndarray, faces: np.ndarray, uvs: np.ndarray, uv_faces: np.ndarray) -> np.ndarray:
    """Singular values [F, 2] of the map from each face to the texture, the larger first; 1 means to scale."""
    p, t = vertices[faces].astype(np.float64), uvs[uv_faces].astype(np.float64)
    edges = np.stack([p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]], 2)  # [F, 3, 2]
    local = np.linalg.qr(edges)[1]
    image = np.stack([t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]], 2)
    values = np.linalg.svd(image @ np.linalg.inv(local), compute_uv=False)
    in_space, in_plane = np.abs(np.linalg.det(local)).sum(), np.abs(np.linalg.det(image)).sum()
    return values * np.sqrt(in_space / in_plane)
