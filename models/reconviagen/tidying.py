"""From the decoded surface, half a million triangles with whatever is left inside, to a usable one."""

from __future__ import annotations

import logging
import math

import torch

from models.base import Callback
from models.geometry.camera import Cameras
from models.geometry.cleaning import clean
from models.geometry.clustering import clustered
from models.geometry.decimation import decimate
from models.geometry.mesh import Mesh, face_normals
from models.geometry.visibility import without_hidden
from models.raster import RasterBackend

LOGGER = logging.getLogger(__name__)

_LARGEST_HOLE = 250  # edges; the surface is made up, so a lid over a hole is no more so
_NEAR_TARGET = 1.5
_FEWEST = 8  # cells along an axis
_COARSER = 0.8  # cells along an axis of each try after the one before


def tidied(
    raster: RasterBackend, mesh: Mesh, cameras: Cameras, target_triangles: int, callback: Callback
) -> Mesh:
    """Clean a decoded surface and simplify it.

    A surface so tangled that decimation would break it is merged in the cells of a grid instead: it loses
    its finest handles and gaps, and gets about as few triangles as asked for all the same.

    Args:
        raster: The rasterizer; everything is on its device.
        mesh: The surface.
        cameras: Of the views, in its frame.
        target_triangles: About so many at most.
        callback: Told between the steps.
    """
    callback(0.0, "dropping hidden parts", {})
    whole = without_hidden(raster, mesh)
    callback(0.2, "cleaning the mesh", {})
    whole = clean(whole, cameras.positions, largest_hole=_LARGEST_HOLE)
    callback(0.6, "simplifying the mesh", {})
    found = decimate(whole, target_triangles)
    if len(found.faces) > _NEAR_TARGET * target_triangles:
        found = _merged(whole, target_triangles)
    LOGGER.info("surface: %d triangles of %d", len(found.faces), len(mesh.faces))
    return found


def _merged(mesh: Mesh, target_triangles: int) -> Mesh:
    """A copy whose details are as coarse as so few triangles can be; its sheets may touch."""
    side = (mesh.vertices.amax(0) - mesh.vertices.amin(0)).amax()
    area = torch.linalg.vector_norm(face_normals(mesh.vertices, mesh.faces), dim=1).sum() / 2
    cells = math.sqrt(target_triangles / 2 / max(float(area / side**2), 1e-6))  # two triangles in each
    while True:
        vertices, faces = clustered(mesh.vertices, mesh.faces, max(_FEWEST, round(cells)))
        if len(faces) <= target_triangles or cells <= _FEWEST:
            LOGGER.info("decimation would have broken the surface: it was merged in %.0f cells", cells)
            return Mesh(vertices, faces)
        cells *= _COARSER
