"""Render textured meshes from pinhole cameras: for the optimisation, the quality check and the previews."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry.camera import Cameras
from models.geometry.mesh import TexturedMesh
from models.geometry.rigs import bounding_sphere
from models.raster import RasterBackend
from models.raster.checks import MAX_SIDE
from models.shading.deferred import ROW, shade_samples
from models.shading.light import FilteredLight, filter_light, studio_light

SAMPLES = 2
"""Samples along each side of a pixel. Antialiasing finds silhouettes through the triangles that pixels see;
where triangles are smaller than pixels it misses most of them, so we look at finer pixels and average."""


class Rendering(NamedTuple):
    """Images of V views, row 0 at the top.

    Attributes:
        color: [V, H, W, 3], sRGB; premultiplied by coverage along the silhouette (that is, over black) unless
            another background was asked for.
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


def clip_matrices(cameras: Cameras, points: Tensor) -> Tensor:
    """Matrices [V, 4, 4] to clip space that hold `points` [N, 3], with room for them to move."""
    center, radius = bounding_sphere(points.detach())
    distance = torch.linalg.vector_norm(cameras.positions - center, dim=1).tolist()
    parts = []
    for view, away in enumerate(distance):  # planes of its own for each: one may stand far off by mistake
        far = max(away + 2 * radius, 1e-29)
        parts.append(cameras[[view]].clip_from_world(max(away - 2 * radius, 0.01 * far), far))
    return torch.cat(parts)


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


def developed(image: Tensor, depth: Tensor, covered: Tensor, samples: int) -> Rendering:
    """Images from samples in the renderer's row order.

    Args:
        image: [V, h, w, 4] premultiplied colour and coverage, antialiased.
        depth: [V, h, w, 1] z-depth.
        covered: [V, h, w, 1] 1 where a sample hit the surface, else 0.
        samples: Samples along each side of a pixel.
    """
    pixels = resolve(image, samples)
    return Rendering(
        color=to_image(pixels[..., :3]),
        alpha=to_image(pixels[..., 3]),
        depth=to_image(resolve_depth(depth, covered, samples)[0]),
    )


def affordable_samples(cameras: Cameras) -> int:
    """`SAMPLES`, or one a pixel where the rasterizer does not reach that far in one piece."""
    return SAMPLES if SAMPLES * max(cameras.width, cameras.height) <= MAX_SIDE else 1


def eye_positions(matrices: Tensor) -> Tensor:
    """Camera centres [V, 3] of world-to-clip matrices [V, 4, 4]: where clip x, y and w vanish."""
    x, y, w = matrices[:, 0], matrices[:, 1], matrices[:, 3]
    yw = torch.cross(y[:, :3], w[:, :3], dim=-1)
    wx = torch.cross(w[:, :3], x[:, :3], dim=-1)
    xy = torch.cross(x[:, :3], y[:, :3], dim=-1)
    centre = x[:, 3:] * yw + y[:, 3:] * wx + w[:, 3:] * xy  # Cramer's rule: it never waits for the device
    return -centre / (x[:, :3] * yw).sum(-1, keepdim=True)


def filtered_environment(mesh: TexturedMesh) -> FilteredLight | None:
    """The light of a mesh, ready for `draw`: its own, a studio's where it has none, None where it is
    unlit."""
    if mesh.unlit:
        return None
    if mesh.environment is None:
        return filter_light(studio_light().to(mesh.vertices.device))
    return filter_light(mesh.environment)


def draw(
    raster: RasterBackend,
    mesh: TexturedMesh,
    matrices: Tensor,
    size: tuple[int, int],
    light: FilteredLight | None,
    tangents: Tensor | None = None,
    limit: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render samples of a mesh in the renderer's row order. Differentiable.

    Args:
        raster: The rasterizer; everything is on its device.
        mesh: The mesh.
        matrices: [V, 4, 4] world to clip space.
        size: Height and width, samples.
        light: What lights it; None draws `base_color` as it is.
        tangents, limit: See `shade_samples`.

    Returns:
        image: [V, h, w, 4] sRGB premultiplied by coverage, and coverage; antialiased.
        depth: [V, h, w, 1] z-depth.
        covered: [V, h, w, 1] 1 where a sample hit the surface, else 0.
    """
    position = clip_positions(mesh.vertices, matrices).contiguous()  # [V, N, 4]
    rast, rast_db = raster.rasterize(position, mesh.faces, size)
    if light is None:
        color = _plain_color(raster, mesh, rast, rast_db)
    else:
        color = shade_samples(raster, mesh, rast, rast_db, eye_positions(matrices), light, tangents, limit)
    depth, _ = raster.interpolate(position[..., 3:].contiguous(), rast, mesh.faces)
    covered = (rast[..., 3:] > 0).to(color.dtype)
    image = raster.antialias(torch.cat([color * covered, covered], -1), rast, position, mesh.faces)
    return image, depth, covered


@torch.no_grad()
def shading_limit(
    raster: RasterBackend, mesh: TexturedMesh, matrices: Tensor, size: tuple[int, int], batch: int
) -> int:
    """A `limit` for `draw` with any `batch` of some views, of a mesh that moves a little: five per cent of
    room."""
    position = clip_positions(mesh.vertices, matrices).contiguous()
    counts = [
        (raster.rasterize(part, mesh.faces, size)[0][..., 3] > 0).flatten(1).sum(1)
        for part in position.split(batch)
    ]
    covered = torch.cat(counts).sort(descending=True).values[:batch].sum()
    return math.ceil(1.05 * int(covered) / ROW + 1) * ROW


def _plain_color(raster: RasterBackend, mesh: TexturedMesh, rast: Tensor, rast_db: Tensor) -> Tensor:
    uv, uv_da = raster.interpolate(mesh.uvs[None], rast, mesh.uv_faces, rast_db)
    texture = mesh.base_color[None].contiguous()
    return raster.texture(texture, uv, uv_da, filter_mode="linear-mipmap-linear", boundary_mode="clamp")


def render_textured(
    raster: RasterBackend, mesh: TexturedMesh, cameras: Cameras, *, samples: int = SAMPLES
) -> Rendering:
    """Render a textured mesh: an unlit one in the colours of its texture, a lit one under its environment.

    A lit mesh without an environment is shown under `models.shading.light.studio_light`. Differentiable with
    respect to `vertices` (silhouettes, texture lookup, normals) and every texture.

    Args:
        raster: The rasterizer; mesh and cameras are on its device.
        mesh: The mesh, in the world of the cameras.
        cameras: V cameras.
        samples: Samples along each side of a pixel.
    """
    matrices = clip_matrices(cameras, mesh.vertices)
    size = (cameras.height * samples, cameras.width * samples)
    image, depth, covered = draw(raster, mesh, matrices, size, filtered_environment(mesh))
    return developed(image, depth, covered, samples)
