"""`nvdiffrec` behind the common interface: carve, optimise, unwrap, texture."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from models.base import Callback, Reconstruction, Views
from models.geometry.atlas import bake, unwrap
from models.geometry.carving import Carver, object_bounds
from models.geometry.cleaning import remove_floaters
from models.geometry.flexicubes import FlexiCubes
from models.geometry.mesh import TexturedMesh
from models.nvdiffrec.config import NvdiffrecConfig, make_config
from models.nvdiffrec.geometry_phase import optimize_geometry
from models.nvdiffrec.targets import make_targets
from models.nvdiffrec.texture_phase import optimize_texture
from models.raster import RasterBackend, make_backend
from schemas.errors import ErrorCode, InvalidJob
from schemas.options import NvdiffrecOptions, Options

LOGGER = logging.getLogger(__name__)

_LONGEST_SIDE = 1024  # pixels at which views are compared unless the job asks for more
_CARVED = 0.03  # fractions of the whole at which the steps end
_SHAPED = 0.65
_UNWRAPPED = 0.72


class Nvdiffrec:
    """Reconstruction by differentiable rendering.

    Args:
        device: Where to compute.
    """

    name = "nvdiffrec"

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)

    def load(self) -> None:
        """Nothing to load: kernels compile at their first use and stay cached."""

    def reconstruct(self, views: Views, options: Options, callback: Callback) -> Reconstruction:
        """See `models.base.Reconstructor.reconstruct`.

        Raises:
            TypeError: options of another model.
            InvalidJob: INVALID_OPTIONS: this worker does not have the rasterizer.
        """
        if not isinstance(options, NvdiffrecOptions):
            raise TypeError(f"nvdiffrec needs NvdiffrecOptions, got {type(options).__name__}")
        raster = _rasterizer(options, self._device)
        views = resized(views, options.train_resolution).to(self._device)
        config = make_config(options, views.cameras.width, views.cameras.height)
        with _deterministic(self._device):
            return _reconstruct(raster, views, config, callback)


def _rasterizer(options: NvdiffrecOptions, device: torch.device) -> RasterBackend:
    try:
        return make_backend(options.raster, device)
    except (ValueError, RuntimeError) as error:
        raise InvalidJob(
            ErrorCode.INVALID_OPTIONS,
            f"options.raster {options.raster!r} cannot be used on this worker: {error}",
            fields=["options.raster"],
        ) from error


def _reconstruct(
    raster: RasterBackend, views: Views, config: NvdiffrecConfig, callback: Callback
) -> Reconstruction:
    generator = torch.Generator().manual_seed(config.seed)
    carver = Carver(views, use_depth=config.use_depth)
    center, scale = object_bounds(views, carver)
    grid = FlexiCubes(config.geometry.resolution, raster.device).grid_positions()
    sdf = carver(grid * scale + center) / scale
    cell = 2 / config.geometry.resolution
    targets = make_targets(views, center, scale, cell=cell, use_depth=config.use_depth)
    callback(_CARVED, "first shape carved from masks and depth", {})

    mesh, field, shape_curve = optimize_geometry(
        raster, targets, sdf, config.geometry, generator, _part(callback, _CARVED, _SHAPED)
    )
    mesh = remove_floaters(mesh)
    LOGGER.info("shape: %d vertices, %d triangles", mesh.vertices.shape[0], mesh.faces.shape[0])
    callback(_SHAPED, f"cutting {mesh.faces.shape[0]} triangles into a texture atlas", {})
    uvs, uv_faces = unwrap(mesh, config.texture.resolution)
    with torch.no_grad():
        texture = bake(raster, mesh, uvs, uv_faces, config.texture.resolution, field)
    callback(_UNWRAPPED, "texture initialised from the colour field", {})

    vertices, texture, texture_curve = optimize_texture(
        raster,
        targets,
        mesh,
        uvs,
        uv_faces,
        texture,
        config.texture,
        generator,
        _part(callback, _UNWRAPPED, 1.0),
    )
    return Reconstruction(
        mesh=TexturedMesh(vertices * scale + center, mesh.faces, uvs, uv_faces, texture),
        raster=raster.name,
        curves={"geometry/psnr_db": shape_curve, "texture/psnr_db": texture_curve},
        extra={"grid_cell": cell * scale, "samples_per_pixel": targets.samples**2},
    )


def _part(callback: Callback, start: float, end: float) -> Callback:
    """A callback for a part of the whole, which runs from `start` to `end`."""

    def report(fraction: float, message: str, metrics: dict[str, float]) -> None:
        callback(start + (end - start) * fraction, message, metrics)

    return report


def resized(views: Views, longer_side: int | None) -> Views:
    """The views at another size; never enlarged."""
    cameras = views.cameras
    longer_side = longer_side or _LONGEST_SIDE
    if longer_side >= max(cameras.width, cameras.height):
        return views
    factor = longer_side / max(cameras.width, cameras.height)
    size = (max(1, round(cameras.height * factor)), max(1, round(cameras.width * factor)))

    def area(image: torch.Tensor) -> torch.Tensor:  # [V, H, W, C]
        return F.interpolate(image.permute(0, 3, 1, 2), size, mode="area").permute(0, 2, 3, 1)

    masks = area(views.masks[..., None])[..., 0]
    # Colours are averaged premultiplied, or the background would bleed over the silhouette.
    images = area(views.images * views.masks[..., None]) / masks[..., None].clamp(min=1e-6)
    depths = None
    if views.depths is not None:
        depths = F.interpolate(views.depths[:, None], size, mode="nearest-exact")[:, 0]
    return Views(views.names, images, masks, depths, cameras.resized(size[1], size[0]))


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, make torch add in a fixed order; the same seed then gives the same bits."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
