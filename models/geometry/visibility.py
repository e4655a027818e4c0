"""Which faces of a mesh are seen, and what cannot be seen from anywhere outside."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from models.geometry.adjacency import components
from models.geometry.mesh import Mesh, face_normals
from models.geometry.rigs import bounding_sphere, cameras_around, spread_directions
from models.raster import RasterBackend
from models.render import clip_planes, clip_positions

LOGGER = logging.getLogger(__name__)

_DIRECTIONS = 48
_SIZE = 512  # pixels
_SEEN = 0.05  # of the directions from which the best seen component is seen: fewer is hidden


@torch.no_grad()
def seen_faces(raster: RasterBackend, mesh: Mesh, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """Which faces some pixel of some view shows, [F] bool.

    Args:
        raster: The rasterizer.
        mesh: The surface.
        matrices: [V, 4, 4] of the views, to clip space.
        size: Height and width, samples.
    """
    seen = torch.zeros(mesh.faces.shape[0] + 1, dtype=torch.bool, device=mesh.faces.device)
    for matrix in matrices:  # one at a time: there may be hundreds
        position = clip_positions(mesh.vertices, matrix[None]).contiguous()
        rast, _ = raster.rasterize(position, mesh.faces, size)
        seen[rast[..., 3].long().reshape(-1)] = True
    return seen[1:]


@torch.no_grad()
def without_hidden(raster: RasterBackend, mesh: Mesh) -> Mesh:
    """Drop the components that hardly any view from outside sees, such as an inner shell.

    Unlike `models.geometry.cleaning.clean` it does not ask whether the surface around them is closed: views
    from all round vote, and what few of them see, through a small hole, is hidden.

    Args:
        raster: The rasterizer; the mesh is on its device.
        mesh: A mesh whose faces hang together by vertices where they are of one component.

    Returns:
        The mesh with the faces that are left, and the vertices these use.
    """
    faces = mesh.faces.cpu().long().numpy()
    label = components(faces[:, :2].ravel(), faces[:, 1:].ravel(), len(mesh.vertices))[faces[:, 0]]
    component = torch.as_tensor(label, device=mesh.faces.device)
    if int(component.max()) == int(component.min()):
        return mesh
    area = torch.linalg.vector_norm(face_normals(mesh.vertices, mesh.faces), dim=1)
    votes = sum(
        seen_faces(raster, mesh, matrix[None], (_SIZE, _SIZE)).to(area.dtype) for matrix in _outside(mesh)
    )
    total, seen = (
        area.new_zeros(int(component.max()) + 1).index_add_(0, component, part)
        for part in (area, area * votes)
    )
    share = seen / total.clamp(min=1e-30)
    visible = (share > _SEEN * share.max())[component]
    LOGGER.info("%d of %d faces cannot be seen from outside", int((~visible).sum()), len(faces))
    used, compact = torch.unique(mesh.faces[visible].long(), return_inverse=True)
    return Mesh(mesh.vertices[used], compact.to(torch.int32))


def _outside(mesh: Mesh) -> Tensor:
    """Matrices [48, 4, 4] to clip space, of cameras all round."""
    cameras = cameras_around(spread_directions(_DIRECTIONS), *bounding_sphere(mesh.vertices), size=_SIZE)
    return cameras.clip_from_world(*clip_planes(mesh.vertices, cameras))
