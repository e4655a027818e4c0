"""Shade what a rasterizer has found: attributes and textures are looked up per sample, then lit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry.mesh import TexturedMesh, vertex_normals
from models.geometry.tangents import vertex_tangents
from models.raster import RasterBackend
from models.shading.color import exposed, linear_to_srgb, srgb_to_linear
from models.shading.light import FilteredLight
from models.shading.shade import shade

ROW = 1024
"""Covered samples are laid out in rows of so many where their number is fixed beforehand: kernels over images
work in small squares."""


def shade_samples(
    raster: RasterBackend,
    mesh: TexturedMesh,
    rast: Tensor,
    rast_db: Tensor,
    eyes: Tensor,
    light: FilteredLight,
    tangents: Tensor | None = None,
    limit: int | None = None,
) -> Tensor:
    """Colours of rasterized samples of a lit mesh.

    Only covered samples are looked up and shaded. To find out how many there are waits for a CUDA device;
    with a `limit` nothing waits, and as many samples are shaded as it says.

    Args:
        raster: The rasterizer.
        mesh: A lit mesh; gradients reach its vertices (through the normals too) and its textures.
        rast, rast_db: Its samples, from `raster.rasterize`, [B, H, W, 4].
        eyes: [B, 3] camera centres, in the frame of the vertices.
        light: The filtered environment.
        tangents: [M, 4] as of `vertex_tangents`, if the mesh has a normal map and they are at hand.
        limit: At least the number of covered samples, a multiple of `ROW`: what is beyond it stays black.

    Returns:
        [B, H, W, 3] sRGB in [0, 1], 0 where there is no surface; above 1 is cut off by `exposed`.
    """
    normals = vertex_normals(mesh.vertices, mesh.faces)
    attributes = torch.cat([mesh.vertices, normals], -1)[None]
    points, _ = raster.interpolate(attributes, rast, mesh.faces)  # [B, H, W, 6]
    uv, uv_da = raster.interpolate(mesh.uvs[None], rast, mesh.uv_faces, rast_db)
    assert uv_da is not None
    frames = None
    if mesh.normal_map is not None:
        if tangents is None:
            tangents = vertex_tangents(mesh.vertices, mesh.faces, mesh.uvs, mesh.uv_faces, normals)
        frames, _ = raster.interpolate(tangents[None], rast, mesh.uv_faces)
    covered = rast[..., 3:] > 0
    to_eye = (eyes[:, None, None] - points[..., :3]) * covered
    picked = _Picked(covered, limit)
    material = raster.texture(
        _stacked(mesh), picked(uv), picked(uv_da), filter_mode="linear-mipmap-linear", boundary_mode="clamp"
    )
    normal = F.normalize(picked(points[..., 3:]), dim=-1)
    if frames is not None:
        normal = _mapped(normal, picked(frames), material[..., 5:])
    radiance = shade(
        normal,
        F.normalize(picked(to_eye), dim=-1),
        material[..., :3],
        material[..., 3:4],
        material[..., 4:5],
        light,
    )
    return picked.back(exposed(linear_to_srgb(radiance)))


def _stacked(mesh: TexturedMesh) -> Tensor:
    """All textures in one, [1, Ht, Wt, 5 or 8], linear: filtering mixes light, not its encoding."""
    assert mesh.roughness_metallic is not None
    layers = [srgb_to_linear(mesh.base_color), mesh.roughness_metallic]
    if mesh.normal_map is not None:
        layers.append(mesh.normal_map)
    return torch.cat(layers, -1)[None]


def _mapped(normal: Tensor, frame: Tensor, texel: Tensor) -> Tensor:
    """Unit normals [..., 3] of a normal map's texels in the frames [..., 4] along unit surface normals."""
    across = frame[..., :3] - (frame[..., :3] * normal).sum(-1, keepdim=True) * normal
    tangent = F.normalize(across, dim=-1)
    bitangent = torch.cross(normal, tangent, dim=-1) * frame[..., 3:].sign()
    x, y, z = texel.split(1, -1)
    return F.normalize(x * tangent + y * bitangent + z * normal, dim=-1)


class _Picked:
    """The covered samples of an image, close together.

    Args:
        covered: [B, H, W, 1] bool.
        limit: See `shade_samples`. What is left of it is filled up with zeros: no surface.
    """

    def __init__(self, covered: Tensor, limit: int | None) -> None:
        flat = covered.flatten()
        self._shape = covered.shape[:3]
        self._row = 1 if limit is None else ROW
        self._index = flat.nonzero()[:, 0] if limit is None else _first(flat, limit)
        self._inside: Tensor | None = None
        if limit is not None:
            self._inside = (self._index < len(flat))[:, None]

    def __call__(self, image: Tensor) -> Tensor:
        """From [B, H, W, C] to [1, K / ROW, ROW, C], or to [1, K, 1, C] without a limit."""
        rows = image.reshape(-1, image.shape[-1])
        if self._inside is None:
            found = rows.index_select(0, self._index)
        else:
            found = rows.index_select(0, self._index.clamp(max=len(rows) - 1)) * self._inside
        return found.reshape(1, -1, self._row, image.shape[-1])

    def back(self, samples: Tensor) -> Tensor:
        """From what calling gave to [B, H, W, C], zeros elsewhere."""
        count, channels = self._shape.numel(), samples.shape[-1]
        empty = samples.new_zeros(count + 1, channels)  # the last row takes what fills up
        filled = empty.index_copy(0, self._index, samples.reshape(-1, channels))
        return filled[:count].reshape(*self._shape, channels)


def _first(flags: Tensor, limit: int) -> Tensor:
    """Indices [limit] of the first flags [N] that are set, filled up with N. Does not wait for the device."""
    count = len(flags)
    rank = flags.cumsum(0)
    slot = torch.where(flags & (rank <= limit), rank - 1, limit)
    index = torch.full((limit + 1,), count, device=flags.device)
    return index.scatter_(0, slot, torch.arange(count, device=flags.device))[:limit]
