"""A mesh's texture from its views, and from another source of colours where they see nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
from models.render import Rendering, clip_matrices, clip_positions, to_image
from models.texturing.blending import blend
from models.texturing.exposure import exposure_gains
from models.texturing.sight import Sight
from models.texturing.unseen import continued
from models.texturing.window import object_window

_DIRECTIONS = 48  # from which the fallback is looked at
_FALLBACK_SIZE = 512  # pixels
_SMOOTH = 0.008  # what counts as detail is smaller than about this share of the object's diameter
_SURE = 0.35  # trust from which on a point's colour comes from one source alone,
_KNOWN = 0.5  # and from which on it tells how far the other source is off
_PROBES = 4096  # points at which the views' exposures are compared
_PIXELS_PER_TEXEL = 2  # a side: of an image that shows the object, more are of no use, however long it is
_DRAWN_AT_ONCE = 8  # views of the fallback: it may need fifty bytes for each of a million Gaussians and view
_UNWRAPPED = 0.2  # fractions of the whole at which the steps end
_SEEN = 0.35
_MIXED = 0.6

Fallback = Callable[[Cameras], Rendering]
"""Shows the whole object, also where no view saw it, from any cameras in the mesh's frame."""


@torch.no_grad()
def textured(
    raster: RasterBackend,
    mesh: Mesh,
    views: PosedViews,
    fallback: Fallback,
    *,
    resolution: int,
    callback: Callback | None = None,
) -> TexturedMesh:
    """Unwrap a mesh and bake its base colour, with the photographs' light in it.

    What the views see is taken from them (`models.texturing.blending`). The rest comes from `fallback`, whose
    colours are corrected by what they are off at the border of what was seen, continued smoothly over the
    surface (the membrane of Pérez et al., "Poisson Image Editing", 2003); what neither shows continues the
    paint around it.

    Args:
        raster: The rasterizer.
        mesh: The surface, on its device, cleaned and of as few triangles as wanted.
        views: The views, with cameras in the mesh's frame; on any device, and taken from there one by one.
        fallback: The other source; asked for some views at a time.
        resolution: Side of the texture, texels.
        callback: Called as the work goes on; what it raises is let through.

    Returns:
        The unlit mesh in the same frame, with the vertices and faces of `mesh`.
    """

    report = _Report(callback)
    report(0.0)
    uvs, uv_faces = unwrap(mesh, resolution)
    report(_UNWRAPPED)
    paint = _Paint.mixed(raster, mesh, views, fallback, _PIXELS_PER_TEXEL * resolution, report)
    corners = torch.cat([mesh.vertices, paint.normals, paint.unseen, paint.correction], 1)
    report(_MIXED)
    done = 0

    def color(texels: Tensor) -> Tensor:
        nonlocal done
        found = paint(texels, report.again)
        done += len(texels)
        report(_MIXED + (1 - _MIXED) * done / resolution**2)
        return found

    base_color = bake(raster, corners, mesh.faces, uvs, uv_faces, resolution, color)
    report(1.0)
    return TexturedMesh(mesh.vertices, mesh.faces, uvs, uv_faces, base_color)


class _Report:
    """Tells a callback how much is done, if there is one."""

    def __init__(self, callback: Callback | None) -> None:
        self._callback = callback
        self._share = 0.0

    def __call__(self, share: float) -> None:
        self._share = share
        self.again()

    def again(self) -> None:
        """Say the same once more, so that the callback can raise."""
        if self._callback:
            self._callback(self._share, "texture", {})


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
        most: int,
        report: _Report,
    ) -> _Paint:
        """Ask views and fallback about the vertices of `mesh`, and bring their colours together.

        The views are looked at with `most` pixels a side at most.
        """
        center, radius = bounding_sphere(mesh.vertices)
        eyes = _Eyes(raster, mesh, 2 * radius * _SMOOTH, min(most, MAX_SIDE))
        normals = vertex_normals(mesh.vertices, mesh.faces)
        seen = []
        for view, (image, mask) in enumerate(zip(views.images, views.masks, strict=True)):
            seen += eyes.sight(image, mask, views.cameras[[view]])
            report(_UNWRAPPED + (_SEEN - _UNWRAPPED) * (view + 1) / len(views))
        every = -(-len(normals) // _PROBES)
        gains = exposure_gains(seen, mesh.vertices[::every], normals[::every], report.again)
        rig = cameras_around(spread_directions(_DIRECTIONS), center, radius, size=_FALLBACK_SIZE)
        other = []
        for first in range(0, _DIRECTIONS, _DRAWN_AT_ONCE):
            cameras = rig[first : first + _DRAWN_AT_ONCE]
            shown = fallback(cameras)
            color = shown.color / shown.alpha.clamp(min=1e-3)[..., None]
            for view in range(len(cameras)):
                other += eyes.sight(color[view], shown.alpha[view], cameras[[view]])
            report(_SEEN + (_MIXED - _SEEN) * (first + len(cameras)) / _DIRECTIONS)
        from_views = blend(seen, mesh.vertices, normals, gains, report.again)
        from_fallback = blend(other, mesh.vertices, normals, tick=report.again)
        unseen = continued(mesh, from_fallback.smooth, from_fallback.trust > _KNOWN)
        report.again()
        # Also where the fallback shows nothing: its continuation has to meet the views' paint all the same.
        known = from_views.trust > _KNOWN
        off = torch.where(known[:, None], from_views.smooth - unseen, 0.0)
        return cls(seen, other, gains, normals, unseen, continued(mesh, off, known))

    def __call__(self, texels: Tensor, tick: Callable[[], None]) -> Tensor:
        """Colours [K, 3] of texels [K, 12]: place, normal, unseen colour and correction there."""
        point, normal, unseen, correction = texels.split(3, 1)
        normal = F.normalize(normal, dim=1)
        own = blend(self.views, point, normal, self.gains, tick)
        share = (own.trust / _SURE).clamp(max=1)[:, None]
        color = own.colors
        rest = torch.nonzero(share[:, 0] < 1)[:, 0]
        other = blend(self.fallback, point[rest], normal[rest], tick=tick)
        shown = (other.trust / _SURE).clamp(max=1)[:, None]
        ground = torch.lerp(unseen[rest], other.colors, shown) + correction[rest]
        color[rest] = torch.lerp(ground.clamp(0, 1), color[rest], share[rest])
        return color


@dataclass(frozen=True)
class _Eyes:
    """Makes images of a surface ready to be asked.

    Attributes:
        raster: The rasterizer.
        mesh: The surface, on its device.
        blur: Standard deviation of what counts as smooth, world units.
        most: Pixels of an image's longer side that are of use.
    """

    raster: RasterBackend
    mesh: Mesh
    blur: float
    most: int

    def sight(self, image: Tensor, mask: Tensor, camera: Cameras) -> list[Sight]:
        """An image [H, W, 3] with its mask [H, W], on any device; nothing where the mask is empty."""
        device = self.mesh.vertices.device
        window = object_window(image, mask, camera.to(device), self.most, device)
        if window is None:
            return []
        return [Sight(window.image, window.mask, self._depth(window.camera), window.camera, self.blur)]

    def _depth(self, camera: Cameras) -> Tensor:
        """What a camera sees of the mesh: z-depth [H, W], 0 where empty."""
        position = clip_positions(self.mesh.vertices, clip_matrices(camera, self.mesh.vertices)).contiguous()
        rast, _ = self.raster.rasterize(position, self.mesh.faces, (camera.height, camera.width))
        depth, _ = self.raster.interpolate(position[..., 3:].contiguous(), rast, self.mesh.faces)
        return to_image(depth)[0, ..., 0]
