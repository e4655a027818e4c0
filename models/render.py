"""Render textured meshes from pinhole cameras, for the quality check and the previews."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry.camera import Cameras
from models.geometry.mesh import TexturedMesh
from models.raster import RasterBackend

SAMPLES = 2
"""Samples along each side of a pixel. Antialiasing finds silhouettes through the triangles that pixels see;
where triangles are smaller than pixels it misses most of them, so we look at finer pixels and average."""


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
    return max(near * 0.9, far * 1e-3, 1e-30), max(far * 1.1, 1e-29)


def clip_positions(vertices: Tensor, matrices: Tensor) -> Tensor:
    """Clip-space positions [V, N, 4] of `vertices` [N, 3] under `matrices` [V, 4, 4]."""
    return vertices @ matrices[:, :, :3].transpose(1, 2) + matrices[:, None, :, 3]


def to_image(rows_up: Tensor) -> Tensor:
    """From the renderer's row order (row 0 at the bottom) to an image's (row 0 at the top), or back."""
    return rows_up.flip(1)


def resolve(image: Tensor, samples: int) -> Tensor:
    """Average `samples` x `samples` blocks of an image [V, H, W, C] into pixels."""
    if samples == 1:
        return image
    return F.avg_pool2d(image.permute(0, 3, 1, 2), samples).permute(0, 2, 3, 1)


def resolve_depth(depth: Tensor, covered: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Depth of pixels from their samples.

    Args:
        depth, covered: [V, H, W, 1]; `covered` is 1 where a sample hit the surface, else 0.
        samples: Samples along each side of a pixel.

    Returns:
        Depth and coverage [V, H / samples, W / samples]: the mean depth of the samples, 0 unless all hit.
    """
    whole = (resolve(covered, samples) > 1 - 1e-4).to(depth.dtype)[..., 0]
    return resolve(depth, samples)[..., 0] * whole, whole


def render_textured(
    raster: RasterBackend, mesh: TexturedMesh, cameras: Cameras, *, samples: int = SAMPLES
) -> Rendering:
    """Render a textured mesh without light: colour is the texture's.

    Differentiable with respect to `vertices` (silhouettes, texture lookup) and `base_color`.

    Args:
        raster: The rasterizer; mesh and cameras are on its device.
        mesh: The mesh, in the world of the cameras.
        cameras: V cameras.
        samples: Samples along each side of a pixel.
    """
    matrices = cameras.clip_from_world(*clip_planes(mesh.vertices, cameras))
    position = clip_positions(mesh.vertices, matrices).contiguous()  # [V, N, 4]
    size = (cameras.height * samples, cameras.width * samples)
    rast, rast_db = raster.rasterize(position, mesh.faces, size)
    uv, uv_da = raster.interpolate(mesh.uvs[None], rast, mesh.uv_faces, rast_db)
    texture = mesh.base_color[None].contiguous()
    color = raster.texture(texture, uv, uv_da, filter_mode="linear-mipmap-linear", boundary_mode="clamp")
    depth, _ = raster.interpolate(position[..., 3:].contiguous(), rast, mesh.faces)
    covered = (rast[..., 3:] > 0).to(color.dtype)
    image = raster.antialias(torch.cat([color * covered, covered], -1), rast, position, mesh.faces)
    pixels = resolve(image, samples)
    return Rendering(
        color=to_image(pixels[..., :3]),
        alpha=to_image(pixels[..., 3]),
        depth=to_image(resolve_depth(depth, covered, samples)[0]),
    )
