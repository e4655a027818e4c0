"""Meshes with one colour a vertex, and their images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.geometry.camera import Cameras
from models.geometry.mesh import Mesh
from models.raster import RasterBackend, Topology
from models.render import Rendering, clip_matrices, clip_positions, developed


@dataclass(frozen=True)
class PaintedMesh:
    """A triangle mesh with the light baked into the colours of its vertices.

    Attributes:
        vertices: [N, 3] float32.
        faces: [F, 3] int32, counter-clockwise seen from outside.
        colors: [N, 3] float32, sRGB in [0, 1].
    """

    vertices: Tensor
    faces: Tensor
    colors: Tensor

    @property
    def surface(self) -> Mesh:
        """The mesh without its paint."""
        return Mesh(self.vertices, self.faces)

    def to(self, device: torch.device | str) -> PaintedMesh:
        """The same mesh on another device."""
        return PaintedMesh(self.vertices.to(device), self.faces.to(device), self.colors.to(device))


def draw_painted(
    raster: RasterBackend,
    mesh: PaintedMesh,
    matrices: Tensor,
    size: tuple[int, int],
    topology: Topology | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render samples of a painted mesh in the renderer's row order (row 0 at the bottom).

    Differentiable with respect to `matrices` (silhouettes, paint, depth) and the mesh.

    Args:
        raster: The rasterizer; everything is on its device.
        mesh: The mesh.
        matrices: [V, 4, 4] from the mesh's space to clip space.
        size: Height and width, samples.
        topology: What the rasterizer's `make_topology` made of the faces; found here by default.

    Returns:
        image: [V, h, w, 4] sRGB premultiplied by coverage, and coverage; antialiased.
        depth: [V, h, w, 1] clip w, the z-depth; 0 where empty.
        covered: [V, h, w, 1] 1 where a sample hit the surface, else 0.
    """
    position = clip_positions(mesh.vertices, matrices).contiguous()  # [V, N, 4]
    rast, _ = raster.rasterize(position, mesh.faces, size)
    color, _ = raster.interpolate(mesh.colors[None].contiguous(), rast, mesh.faces)
    depth, _ = raster.interpolate(position[..., 3:].contiguous(), rast, mesh.faces)
    covered = (rast[..., 3:] > 0).to(color.dtype)
    image = raster.antialias(torch.cat([color, covered], -1), rast, position, mesh.faces, topology)
    return image, depth, covered


@torch.no_grad()
def render_painted(
    raster: RasterBackend, mesh: PaintedMesh, cameras: Cameras, *, samples: int = 1
) -> Rendering:
    """Render a painted mesh.

    Args:
        raster: The rasterizer; mesh and cameras are on its device.
        mesh: The mesh, in the world of the cameras.
        cameras: V cameras.
        samples: Samples along each side of a pixel.
    """
    topology = raster.make_topology(mesh.faces, mesh.vertices.shape[0])
    size = (cameras.height * samples, cameras.width * samples)
    matrices = clip_matrices(cameras, mesh.vertices)
    parts = [
        developed(*draw_painted(raster, mesh, matrix[None], size, topology), samples) for matrix in matrices
    ]  # one at a time: there may be dozens, of a fine mesh
    return Rendering(
        torch.cat([part.color for part in parts]),
        torch.cat([part.alpha for part in parts]),
        torch.cat([part.depth for part in parts]),
    )
