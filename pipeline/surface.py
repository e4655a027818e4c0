"""The surface of a textured mesh as arrays: cleaned, split at the seams of its atlas, coloured, measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from models.geometry.adjacency import components
from models.geometry.mesh import TexturedMesh, vertex_normals
from models.geometry.tangents import vertex_tangents
from models.geometry.topology import describe
from schemas.quality import MeshStatistics


@dataclass(frozen=True)
class Surface:
    """A mesh on the CPU, without degenerate faces and unused vertices, and with normals.

    Attributes:
        vertices: [N, 3] float32, world units.
        normals: [N, 3] float32, unit length, smooth across the seams of the atlas.
        faces: [F, 3] int64.
        uvs: [M, 2] float32; v = 0 is the texture's top row.
        uv_faces: [F, 3] int64, indices into `uvs`.
    """

    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    faces: NDArray[np.int64]
    uvs: NDArray[np.float32]
    uv_faces: NDArray[np.int64]


@dataclass(frozen=True)
class SplitSurface:
    """A surface with one index per corner, as graphics hardware and glTF want it.

    Attributes:
        vertices: [K, 3] float32, world units; K >= N, for a vertex on a seam appears once per chart.
        normals: [K, 3] float32, unit length.
        uvs: [K, 2] float32; v = 0 is the texture's top row.
        faces: [F, 3] int64.
    """

    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    uvs: NDArray[np.float32]
    faces: NDArray[np.int64]


def clean_surface(mesh: TexturedMesh) -> Surface:
    """Drop faces that use a vertex twice and vertices that no face uses; add smooth normals.

    Raises:
        ValueError: No face is left, or a coordinate is not finite.
    """
    faces = mesh.faces.detach().cpu().long()
    a, b, c = faces.unbind(1)
    proper = (a != b) & (b != c) & (c != a)
    if not proper.any():
        raise ValueError(f"a mesh without faces cannot be exported; got faces {tuple(mesh.faces.shape)}")
    used, faces = torch.unique(faces[proper], return_inverse=True)
    used_uvs, uv_faces = torch.unique(mesh.uv_faces.detach().cpu().long()[proper], return_inverse=True)
    vertices, uvs = mesh.vertices.detach().cpu()[used], mesh.uvs.detach().cpu()[used_uvs]
    if not (vertices.isfinite().all() and uvs.isfinite().all()):
        raise ValueError("a mesh with NaN or infinite coordinates cannot be exported")
    return Surface(
        vertices.float().numpy(),
        _smooth_normals(vertices, faces),
        faces.numpy(),
        uvs.float().numpy(),
        uv_faces.numpy(),
    )


def split_at_seams(surface: Surface) -> SplitSurface:
    """Give each pair of vertex and UV that occurs in a face its own index, ordered by vertex, then by UV."""
    pairs = surface.faces * len(surface.uvs) + surface.uv_faces
    unique, inverse = np.unique(pairs, return_inverse=True)
    vertex, uv = np.divmod(unique, len(surface.uvs))
    return SplitSurface(
        surface.vertices[vertex], surface.normals[vertex], surface.uvs[uv], inverse.reshape(-1, 3)
    )


def split_tangents(split: SplitSurface) -> NDArray[np.float32]:
    """Tangents [K, 4] of a split surface, for its normal map: `models.geometry.tangents`."""
    faces = torch.from_numpy(split.faces)
    tangents = vertex_tangents(
        torch.from_numpy(split.vertices),
        faces,
        torch.from_numpy(split.uvs),
        faces,
        torch.from_numpy(split.normals),
    )
    result: NDArray[np.float32] = tangents.numpy()
    return result


def vertex_colors(surface: Surface, base_color: torch.Tensor) -> NDArray[np.uint8]:
    """Colours of the vertices, [N, 3]: the mean over a vertex's corners of the texture, sampled bilinearly.

    Args:
        surface: The surface.
        base_color: [Ht, Wt, 3], sRGB in [0, 1].
    """
    texture = base_color.detach().cpu().float().clamp(0, 1).permute(2, 0, 1)[None]  # [1, 3, Ht, Wt]
    grid = torch.from_numpy(surface.uvs)[None, None] * 2 - 1  # [1, 1, M, 2]
    samples = F.grid_sample(texture, grid, mode="bilinear", padding_mode="border", align_corners=False)
    corners = samples[0, :, 0].numpy()[:, surface.uv_faces.ravel()]  # [3, 3 F]
    vertex, count = surface.faces.ravel(), len(surface.vertices)
    sums = np.stack([np.bincount(vertex, channel, count) for channel in corners], 1)  # [N, 3]
    mean = sums / np.bincount(vertex, minlength=count)[:, None]
    return np.rint(mean * 255).astype(np.uint8)


def bounding_sphere(vertices: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Centre [3] of the bounding box of `vertices` [N, 3], and the distance of its farthest vertex."""
    center = (vertices.amin(0) + vertices.amax(0)) / 2
    return center, float((vertices - center).norm(dim=1).max())


def mesh_statistics(mesh: TexturedMesh) -> MeshStatistics:
    """Facts about the surface as it is exported.

    Raises:
        ValueError: As `clean_surface`.
    """
    surface = clean_surface(mesh)
    topology = describe(surface.faces)
    low, high = surface.vertices.min(0).tolist(), surface.vertices.max(0).tolist()
    return MeshStatistics(
        vertices=len(surface.vertices),
        faces=len(surface.faces),
        watertight=topology.closed,
        manifold=topology.manifold,
        genus=topology.genus,
        components=_count_components(surface.faces, len(surface.vertices)),
        bounds=(tuple(low), tuple(high)),
    )


def _count_components(faces: NDArray[np.int64], vertices: int) -> int:
    """Number of sets of faces that hang together by vertices."""
    start, end = faces[:, :2].ravel(), faces[:, 1:].ravel()
    return int(components(start, end, vertices).max(initial=-1)) + 1


def _smooth_normals(vertices: torch.Tensor, faces: torch.Tensor) -> NDArray[np.float32]:
    """Unit normals [N, 3]; +z where a vertex has only faces without area, for glTF wants unit length."""
    scale = (vertices.amax(0) - vertices.amin(0)).max().double()
    normals = vertex_normals(vertices.double() / scale.clamp(min=1e-30), faces)
    flat = normals.norm(dim=1) < 0.5
    normals[flat] = torch.tensor([0.0, 0.0, 1.0], dtype=normals.dtype)
    return normals.float().numpy()
