"""Render textured meshes from pinhole cameras: shared by the texture phase, the quality check and previews."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.geometry.camera import Cameras
from models.geometry.mesh import TexturedMesh
from models.raster import RasterBackend


@dataclass(frozen=True)
class Rendering:
    """Images of V views, row 0 at the top.

    Attributes:
        color: [V, H, W, 3], sRGB; premultiplied by coverage along the silhouette (that is, over black).
        alpha: [V, H, W] coverage in [0, 1], antialiased.
        depth: [V, H, W] z-depth, world units, 0 where empty; not antialiased.
    """

    color: Tensor
    alpha: Tensor
    depth: Tensor

    def over(self, background: float) -> Tensor:
        """The colour over a plain grey background, [V, H, W, 3]."""
        return self.color + (1 - self.alpha[..., None]) * background


def clip_planes(vertices: Tensor, cameras: Cameras) -> tuple[float, float]:
    """Near and far planes that hold all `vertices` [N, 3] that lie before any of the cameras."""
    _, depth = cameras.project(vertices.detach())
    far = float(depth.max())
    near = float(depth.min())
    return max(near * 0.9, far * 1e-3, 1e-6), max(far * 1.1, 1e-5)


def clip_positions(vertices: Tensor, matrices: Tensor) -> Tensor:
    """Clip-space positions [V, N, 4] of `vertices` [N, 3] under `matrices` [V, 4, 4]."""
    return vertices @ matrices[:, :, :3].transpose(1, 2) + matrices[:, None, :, 3]


def to_image(rows_up: Tensor) -> Tensor:
    """From the renderer's row order (row 0 at the bottom) to an image's (row 0 at the top), or back."""
    return rows_up.flip(1)


def render_textured(
    raster: RasterBackend, mesh: TexturedMesh, cameras: Cameras, *, mipmap: bool = True
) -> Rendering:
    """Render a textured mesh without light: colour is the texture's.

    Differentiable with respect to `vertices` (silhouettes, texture lookup) and `base_color`.

    Args:
        raster: The rasterizer; mesh and cameras are on its device.
        mesh: The mesh, in the world of the cameras.
        cameras: V cameras.
        mipmap: Filter the texture trilinearly; without it bilinearly.
    """
    matrices = cameras.clip_from_world(*clip_planes(mesh.vertices, cameras))
    position = clip_positions(mesh.vertices, matrices).contiguous()  # [V, N, 4]
    rast, rast_db = raster.rasterize(position, mesh.faces, (cameras.height, cameras.width))
    uv, uv_da = raster.interpolate(mesh.uvs[None], rast, mesh.uv_faces, rast_db if mipmap else None)
    texture = mesh.base_color[None].contiguous()
    if mipmap:
        color = raster.texture(texture, uv, uv_da, filter_mode="linear-mipmap-linear", boundary_mode="clamp")
    else:
        color = raster.texture(texture, uv, filter_mode="linear", boundary_mode="clamp")
    covered = (rast[..., 3:] > 0).to(color.dtype)
    buffer = raster.antialias(torch.cat([color * covered, covered], -1), rast, position, mesh.faces)
    with torch.no_grad():
        depth, _ = raster.interpolate(position[..., 3:].contiguous(), rast, mesh.faces)
    return Rendering(
        color=to_image(buffer[..., :3]),
        alpha=to_image(buffer[..., 3]),
        depth=to_image(depth[..., 0] * covered[..., 0]),
    )
