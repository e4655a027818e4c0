"""A mesh's texture from its views, and from another source of colours where they see nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Callback, PosedViews
from models.geometry.atlas import bake, unwrap
from models.geometry.camera import Cameras
from models.geometry.mesh import Mesh, TexturedMesh, vertex_normals
from models.geometry.rigs import bounding_sphere, cameras_around, spread_directions
from models.raster import RasterBackend
from models.raster.checks import MAX_SIDE
from models.render import clip_planes, clip_positions, to_image
from models.texturing.blending import blend
from models.texturing.exposure import exposure_gains
from models.texturing.sight import Sight
from models.texturing.unseen import continued

_DIRECTIONS = 48  # from which the fallback is looked at
_FALLBACK_SIZE = 512  # pixels
_SMOOTH = 0.008  # what counts as detail is smaller than about this share of the object's diameter
_SURE = 0.35  # trust from which on a point's colour comes from one source alone,
_KNOWN = 0.5  # and from which on it tells how far the other source is off
_PROBES = 4096  # points at which the views' exposures are compared


class Picture(Protocol):
    """Images of V views, row 0 at the top."""

    @property
    def color(self) -> Tensor:
        """[V, H, W, 3] sRGB over black."""

    @property
    def alpha(self) -> Tensor:
        """[V, H, W] coverage."""


Fallback = Callable[[Cameras], Picture]
"""Shows the whole object, also where no view saw it, from any cameras in the mesh's frame."""


@torch.no_grad()
def textured(
    raster: RasterBackend,
    mesh: Mesh,
    views: PosedViews,
    fallback: Fallback,
    *,
    resolution: int,
    match_exposure: bool = True,
    callback: Callback | None = None,
) -> TexturedMesh:
    """Unwrap a mesh and bake its base colour, with the photographs' light in it.

    What the views see is taken from them (`models.texturing.blending`). The rest comes from `fallback`, whose
    colours are corrected by what they are off at the border of what was seen, continued smoothly over the
    surface (the membrane of Pérez et al., "Poisson Image Editing", 2003); what neither shows continues the
    paint around it.

    Args:
        raster: The rasterizer; everything is on its device.
        mesh: The surface, cleaned and of as few triangles as wanted.
        views: The views, with cameras in the mesh's frame.
        fallback: The other source.
        resolution: Side of the texture, texels.
        match_exposure: Whether the views are brought to one exposure first.
        callback: Called as the work goes on; what it raises is let through.

    Returns:
        The unlit mesh in the same frame, with the vertices and faces of `mesh`.
    """

    def report(share: float) -> None:
        if callback:
            callback(share, "texture", {})

    report(0.0)
    uvs, uv_faces = unwrap(mesh, resolution)
    report(0.2)
    paint = _Paint.mixed(raster, mesh, views, fallback, match_exposure)
    report(0.6)
    corners = torch.cat([mesh.vertices, paint.normals, paint.unseen, paint.correction], 1)
    base_color = bake(raster, corners, mesh.faces, uvs, uv_faces, resolution, paint)
    report(1.0)
    return TexturedMesh(mesh.vertices, mesh.faces, uvs, uv_faces, base_color)


@dataclass(frozen=True)
class _Paint:
    """The colour of any point of the surface.

    Attributes:
        views, fallback: Who looks at the surface.
        gains: [V, 3] factors on the views' colours.
        normals: [N, 3] unit normals at the vertices.
        unseen: [N, 3] the fallback's colours at the vertices, continued to where it shows nothing.
        correction: [N, 3] what brings the fallback's colours to the views'.
    """

    views: list[Sight]
    fallback: list[Sight]
    gains: Tensor
    normals: Tensor
    unseen: Tensor
    correction: Tensor

    @classmethod
    def mixed(
        cls,
        raster: RasterBackend,
        mesh: Mesh,
        views: PosedViews,
        fallback: Fallback,
        match_exposure: bool,
    ) -> _Paint:
        """Ask views and fallback about the vertices of `mesh`, and bring their colours together."""
        center, radius = bounding_sphere(mesh.vertices)
        blur = 2 * radius * _SMOOTH
        normals = vertex_normals(mesh.vertices, mesh.faces)
        seen = _sights(raster, mesh, views.images, views.masks, views.cameras, blur)
        gains = mesh.vertices.new_ones(len(seen), 3)
        if match_exposure:
            every = max(1, len(normals) // _PROBES)
            gains = exposure_gains(seen, mesh.vertices[::every], normals[::every])
        rig = cameras_around(spread_directions(_DIRECTIONS), center, radius, size=_FALLBACK_SIZE)
        shown = fallback(rig)
        color = shown.color / shown.alpha.clamp(min=1e-3)[..., None]
        other = _sights(raster, mesh, color, shown.alpha, rig, blur)
        from_views = blend(seen, mesh.vertices, normals, gains)
        from_fallback = blend(other, mesh.vertices, normals)
        unseen = continued(mesh, from_fallback.smooth, from_fallback.trust > _KNOWN)
        # Also where the fallback shows nothing: its continuation has to meet the views' paint all the same.
        known = from_views.trust > _KNOWN
        off = torch.where(known[:, None], from_views.smooth - unseen, 0.0)
        return cls(seen, other, gains, normals, unseen, continued(mesh, off, known))

    def __call__(self, texels: Tensor) -> Tensor:
        """Colours [K, 3] of texels [K, 12]: place, normal, unseen colour and correction there."""
        point, normal, unseen, correction = texels.split(3, 1)
        normal = F.normalize(normal, dim=1)
        own = blend(self.views, point, normal, self.gains)
        share = (own.trust / _SURE).clamp(max=1)[:, None]
        color = own.colors
        rest = torch.nonzero(share[:, 0] < 1)[:, 0]
        other = blend(self.fallback, point[rest], normal[rest])
        shown = (other.trust / _SURE).clamp(max=1)[:, None]
        ground = torch.lerp(unseen[rest], other.colors, shown) + correction[rest]
        color[rest] = torch.lerp(ground.clamp(0, 1), color[rest], share[rest])
        return color


def _sights(
    raster: RasterBackend, mesh: Mesh, images: Tensor, masks: Tensor, cameras: Cameras, blur: float
) -> list[Sight]:
    """The V images [V, H, W, 3] with their masks [V, H, W], ready to be asked."""
    matrices = cameras.clip_from_world(*clip_planes(mesh.vertices, cameras))
    return [
        Sight(
            images[view], masks[view], _depth(raster, mesh, matrices[[view]], cameras), cameras[[view]], blur
        )
        for view in range(len(cameras))
    ]


def _depth(raster: RasterBackend, mesh: Mesh, matrix: Tensor, cameras: Cameras) -> Tensor:
    """What a camera of `matrix` [1, 4, 4] sees of the mesh: z-depth [H, W], 0 where empty."""
    height, width = cameras.height, cameras.width
    factor = min(1.0, MAX_SIDE / max(height, width))
    position = clip_positions(mesh.vertices, matrix).contiguous()
    rast, _ = raster.rasterize(position, mesh.faces, (round(height * factor), round(width * factor)))
    depth, _ = raster.interpolate(position[..., 3:].contiguous(), rast, mesh.faces)
    image = to_image(depth)[0, ..., 0]
    if factor == 1:
        return image
    return F.interpolate(image[None, None], (height, width), mode="nearest-exact")[0, 0]
