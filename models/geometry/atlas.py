"""UV atlases, and filling a texture from a function of position."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
import xatlas
from numpy.typing import NDArray
from torch import Tensor

from models.geometry.charts import Charts, cut_charts
from models.geometry.mesh import Mesh
from models.raster import RasterBackend

# Texels between charts, so that bilinear lookups and the first mip level stay inside their chart. The packed
# atlas comes out somewhat larger than asked for, which shrinks the gaps by up to a fifth.
_PADDING = 3
_FINEST_PACKING = 1024  # cells a side; packing takes time by their number, and finer cells gain nothing
_EXPECTED_FILL = 0.62
_TEXELS_AT_ONCE = 1 << 20


def texture_side(texels: int) -> int:
    """Side of a texture of at least so many texels: a power of two, so that mip levels halve evenly."""
    return 1 << (texels - 1).bit_length()


def unwrap(mesh: Mesh, resolution: int) -> tuple[Tensor, Tensor]:
    """Cut a mesh into charts (`models.geometry.charts`) and pack them (xatlas).

    The same mesh gives the same atlas, to the bit. Charts are at one scale; some are mirrored.

    Args:
        mesh: The mesh.
        resolution: Side of the texture the atlas is for, texels; sets the padding.

    Returns:
        uvs [M, 2] float32 in [0, 1] and uv_faces [F, 3] int32, in the order of `mesh.faces`.
    """
    vertices = mesh.vertices.detach().cpu().double().numpy()
    uvs, uv_faces = _pack(cut_charts(vertices, mesh.faces.cpu().long().numpy()), resolution)
    device = mesh.vertices.device
    return torch.tensor(uvs, device=device), torch.tensor(uv_faces, device=device)


def _pack(charts: Charts, resolution: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Place the charts in the unit square."""
    side = min(resolution, _FINEST_PACKING)
    a, b, c = charts.points[charts.corners].transpose(1, 2, 0)  # each [2, F]
    area = float(np.abs((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])).sum()) / 2
    cells = charts.points * (math.sqrt(_EXPECTED_FILL / max(area, 1e-300)) * side)
    atlas = xatlas.Atlas()
    atlas.add_uv_mesh(
        cells.astype(np.float32), charts.corners.astype(np.uint32), charts.chart.astype(np.uint32)[:, None]
    )
    options = xatlas.PackOptions()
    options.texels_per_unit = 1.0
    options.padding = math.ceil(_PADDING * side / resolution)
    options.create_image = False
    atlas.generate(pack_options=options)
    _, indices, uvs = atlas[0]
    # xatlas measures each axis by its own side; squares stay squares by the longer one.
    square = np.array([atlas.width, atlas.height]) / max(atlas.width, atlas.height)
    return (uvs * square).astype(np.float32), indices.astype(np.int32)


def bake(
    raster: RasterBackend,
    values: Tensor,
    faces: Tensor,
    uvs: Tensor,
    uv_faces: Tensor,
    resolution: int,
    color: Callable[[Tensor], Tensor],
) -> Tensor:
    """Fill a texture with `color` of what the vertices hold; gaps take the nearest texel's colour.

    Args:
        raster: Draws the charts.
        values: [N, C] at the surface's vertices, such as their positions; interpolated over its faces.
        faces: [F, 3] int32.
        uvs, uv_faces: The surface's atlas.
        resolution: Side of the texture, texels.
        color: From values [K, C] at texels to colours [K, 3]; called for at most a million at a time.

    Returns:
        [resolution, resolution, 3]; row 0 belongs to v = 0.
    """
    plane = torch.cat([uvs * 2 - 1, torch.zeros_like(uvs[:, :1]), torch.ones_like(uvs[:, :1])], -1)
    rast, _ = raster.rasterize(plane[None].contiguous(), uv_faces, (resolution, resolution))
    triangle = rast[0, ..., 3].long() - 1  # [H, W], -1 where no chart is
    rows, columns = torch.nonzero(triangle >= 0, as_tuple=True)
    texture = values.new_zeros(resolution, resolution, 3)
    for row, column in zip(rows.split(_TEXELS_AT_ONCE), columns.split(_TEXELS_AT_ONCE), strict=True):
        corner = values[faces[triangle[row, column]].long()]  # [K, 3, C]
        u, v = rast[0, row, column, 0:1], rast[0, row, column, 1:2]
        texture[row, column] = color(u * corner[:, 0] + v * corner[:, 1] + (1 - u - v) * corner[:, 2])
    return _fill_gaps(texture, triangle >= 0)


def _fill_gaps(texture: Tensor, filled: Tensor) -> Tensor:
    """Copy the nearest filled texel into every gap, so that filtering never mixes in a foreign colour.

    Nearest by a chamfer metric: exact where it matters, close to the charts, and faster than an exact one.
    """
    empty = ~filled.cpu().numpy()
    if empty.all():
        return texture
    _, label = cv2.distanceTransformWithLabels(
        empty.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    source = np.zeros(label.max() + 1, np.int64)
    source[label[~empty]] = np.flatnonzero(~empty)
    nearest = torch.tensor(source[label.ravel()], device=texture.device)
    return texture.flatten(0, 1)[nearest].reshape(texture.shape)
