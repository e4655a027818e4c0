"""Render one view of a finished mesh, however large the image."""

from __future__ import annotations

import torch

from models.geometry.camera import Cameras
from models.geometry.mesh import TexturedMesh
from models.raster import RasterBackend
from models.raster.checks import MAX_SIDE
from models.render import SAMPLES, Rendering, render_textured


@torch.no_grad()
def render_view(
    raster: RasterBackend,
    mesh: TexturedMesh,
    camera: Cameras,
    *,
    samples: int = SAMPLES,
    max_side: int = MAX_SIDE,
) -> Rendering:
    """Render one camera's image; a large one in tiles, side by side.

    Only the antialiasing of silhouettes may differ at the border of two tiles, and by one pixel.

    Args:
        raster: The rasterizer.
        mesh: The mesh, on the rasterizer's device; sides of its texture are powers of two.
        camera: One camera, on the rasterizer's device.
        samples: Samples along each side of a pixel.
        max_side: Longest side that the rasterizer is asked for, samples.
    """
    tile = max_side // samples
    rows = []
    for top in range(0, camera.height, tile):
        parts = [
            render_textured(raster, mesh, _crop(camera, left, top, tile), samples=samples)
            for left in range(0, camera.width, tile)
        ]
        rows.append(_join(parts, dim=2))
    return _join(rows, dim=1)


def _crop(camera: Cameras, left: int, top: int, tile: int) -> Cameras:
    """The camera of a square cut out of the image, or of what of it lies within the image."""
    shift = torch.zeros_like(camera.intrinsics)
    shift[:, 0, 2], shift[:, 1, 2] = left, top
    width, height = min(tile, camera.width - left), min(tile, camera.height - top)
    return Cameras(camera.camera_to_world, camera.intrinsics - shift, width, height)


def _join(parts: list[Rendering], dim: int) -> Rendering:
    if len(parts) == 1:
        return parts[0]
    return Rendering(
        torch.cat([part.color for part in parts], dim),
        torch.cat([part.alpha for part in parts], dim),
        torch.cat([part.depth for part in parts], dim),
    )
