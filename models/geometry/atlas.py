"""UV atlases, and filling a texture from a function of position."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xatlas
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from models.geometry.mesh import Mesh
from models.raster import RasterBackend

# Texels between charts, so that bilinear lookups and the first mip level stay inside their chart. xatlas
# takes the resolution for a wish and packs up to half as large again, which shrinks the gaps accordingly.
_PADDING = 3


def unwrap(mesh: Mesh, resolution: int) -> tuple[Tensor, Tensor]:
    """Cut a mesh into charts and pack them.

    Args:
        mesh: The mesh.
        resolution: Side of the texture the atlas is for, texels; sets the padding.

    Returns:
        uvs [M, 2] float32 in [0, 1] and uv_faces [F, 3] int32, in the order of `mesh.faces`.
    """
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.detach().cpu().numpy(), mesh.faces.cpu().numpy().astype(np.uint32))
    charts = xatlas.ChartOptions()
    charts.max_iterations = 1
    pack = xatlas.PackOptions()
    pack.resolution = resolution
    pack.padding = _PADDING
    pack.create_image = False
    atlas.generate(chart_options=charts, pack_options=pack)
    _, indices, uvs = atlas[0]
    device = mesh.vertices.device
    return (
        torch.tensor(np.ascontiguousarray(uvs, np.float32), device=device),
        torch.tensor(indices.astype(np.int32), device=device),
    )


def bake(
    raster: RasterBackend,
    mesh: Mesh,
    uvs: Tensor,
    uv_faces: Tensor,
    resolution: int,
    color: Callable[[Tensor], Tensor],
) -> Tensor:
    """Fill a texture with `color` of the surface's positions; gaps take the nearest texel's colour.

    Args:
        raster: Draws the charts.
        mesh: The surface.
        uvs, uv_faces: Its atlas.
        resolution: Side of the texture, texels.
        color: From points [N, 3] to colours [N, 3].

    Returns:
        [resolution, resolution, 3]; row 0 belongs to v = 0.
    """
    plane = torch.cat([uvs * 2 - 1, torch.zeros_like(uvs[:, :1]), torch.ones_like(uvs[:, :1])], -1)
    rast, _ = raster.rasterize(plane[None].contiguous(), uv_faces, (resolution, resolution))
    triangle = rast[0, ..., 3].long() - 1  # [H, W], -1 where no chart is
    rows, columns = torch.nonzero(triangle >= 0, as_tuple=True)
    u, v = rast[0, rows, columns, 0:1], rast[0, rows, columns, 1:2]
    corner = mesh.vertices[mesh.faces[triangle[rows, columns]].long()]  # [K, 3, 3]
    points = u * corner[:, 0] + v * corner[:, 1] + (1 - u - v) * corner[:, 2]
    texture = mesh.vertices.new_zeros(resolution, resolution, 3)
    texture[rows, columns] = color(points)
    return _fill_gaps(texture, triangle >= 0)


def _fill_gaps(texture: Tensor, filled: Tensor) -> Tensor:
    """Copy the nearest filled texel into every gap, so that filtering never mixes in a foreign colour."""
    empty = ~filled.cpu().numpy()
    if empty.all():
        return texture
    index = distance_transform_edt(empty, return_distances=False, return_indices=True)
    row, column = torch.tensor(index, device=texture.device).long()
    return texture[row, column]
