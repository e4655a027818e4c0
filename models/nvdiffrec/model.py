"""`nvdiffrec` behind the common interface: carve, optimise, unwrap, texture."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Callback, Checkpoints, Reconstruction, Snapshot, Views
from models.geometry.atlas import bake, unwrap
from models.geometry.camera import Cameras
from models.geometry.carving import Carver, object_bounds
from models.geometry.cleaning import clean
from models.geometry.decimation import decimate
from models.geometry.depth_maps import clean_depths
from models.geometry.mesh import Mesh, TexturedMesh, face_edges, vertex_normals
from models.nvdiffrec import texture_phase
from models.nvdiffrec.color_field import ShadedField
from models.nvdiffrec.config import NvdiffrecConfig, make_config
from models.nvdiffrec.geometry_phase import Scene, Shape, optimize_geometry, render_field
from models.nvdiffrec.geometry_phase import Show as ShowShape
from models.nvdiffrec.journal import Journal, fingerprint
from models.nvdiffrec.registration import Registered, register
from models.nvdiffrec.targets import Frame, Targets, make_targets, resized
from models.nvdiffrec.unseen import continued, seen_vertices
from models.raster import RasterBackend, make_backend
from models.render import Rendering, render_textured
from schemas.errors import ErrorCode, InvalidJob
from schemas.options import NvdiffrecOptions, Options

LOGGER = logging.getLogger(__name__)

_REGISTERED = 0.02
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

    def reconstruct(
        self,
        views: Views,
        options: Options,
        callback: Callback,
        *,
        snapshot: Snapshot | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> Reconstruction:
        """See `models.base.Reconstructor.reconstruct`.

        Raises:
            TypeError: options of another model.
            InvalidJob: INVALID_OPTIONS: this worker does not have the rasterizer.
        """
        if not isinstance(options, NvdiffrecOptions):
            raise TypeError(f"nvdiffrec needs NvdiffrecOptions, got {type(options).__name__}")
        raster = _rasterizer(options, self._device)
        longer_side = max(views.cameras.width, views.cameras.height)
        config = make_config(options, longer_side, has_depth=views.depths is not None)
        journal = Journal(checkpoints, fingerprint(views, config) if checkpoints else None)
        views = resized(views, config.train_resolution).to(self._device)
        with _deterministic(self._device):
            return _reconstruct(raster, views, config, callback, journal, snapshot)


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
    raster: RasterBackend,
    views: Views,
    config: NvdiffrecConfig,
    callback: Callback,
    journal: Journal,
    snapshot: Snapshot | None = None,
) -> Reconstruction:
    callback(0.0, "registration", {})
    registered = _registered(views, config)
    callback(_REGISTERED, "first shape", {})
    scene = _scene(registered, config)
    curves: dict[str, list[float]] = {}
    state = journal.resumed(texture_phase.PHASE)
    if state is not None:
        start = texture_phase.unpack(state, raster.device)
        scene = _with_cameras(scene, state["camera_to_world"], state["intrinsics"])
    else:
        shape = optimize_geometry(
            raster,
            scene,
            config.geometry,
            config.seed,
            _part(callback, _CARVED, _SHAPED),
            journal,
            _shape_shown(raster, scene.frame, snapshot),
        )
        curves["geometry/psnr_db"] = shape.curve
        scene = _corrected(scene, shape)
        callback(_SHAPED, "atlas", {})
        start = _unwrapped(raster, scene, shape, config)
    targets = _final_targets(scene, start)
    callback(_UNWRAPPED, "texture", {})
    textured, curves["texture/psnr_db"] = texture_phase.optimize_appearance(
        raster,
        targets,
        start,
        config.texture,
        config.seed,
        _part(callback, _UNWRAPPED, 1.0),
        journal,
        _texture_shown(raster, scene.frame, snapshot),
        kept={
            "camera_to_world": scene.views.cameras.camera_to_world,
            "intrinsics": scene.views.cameras.intrinsics,
        },
        materials=config.materials,
        normal_map=config.normal_map,
    )
    return Reconstruction(
        mesh=_in_world(textured, scene.frame),
        raster=raster.name,
        curves=curves,
        extra={
            "grid_cell": 2 / config.geometry.levels[-1].resolution * scene.frame.scale,
            "samples_per_pixel": targets.samples**2,
            **registered.figures(),
        },
        cameras=scene.views.cameras if registered.corrected or scene.refine_cameras else None,
    )


def _unwrapped(raster: RasterBackend, scene: Scene, shape: Shape, config: NvdiffrecConfig) -> TexturedMesh:
    """The finished topology with an atlas and its first colours."""
    mesh = decimate(clean(shape.mesh, scene.cameras.positions), config.target_triangles)
    LOGGER.info("shape: %d vertices, %d triangles", mesh.vertices.shape[0], mesh.faces.shape[0])
    resolution = config.texture.resolution
    uvs, uv_faces = unwrap(mesh, resolution)
    blank = mesh.vertices.new_zeros(resolution, resolution, 3)
    start = TexturedMesh(mesh.vertices, mesh.faces, uvs, uv_faces, blank)
    return replace(start, base_color=_first_texture(raster, start, shape.field, _final_targets(scene, start)))


def _final_targets(scene: Scene, mesh: TexturedMesh) -> Targets:
    first, second = mesh.vertices[face_edges(mesh.faces)].unbind(1)
    edge = float(torch.linalg.vector_norm(first - second, dim=-1).mean())
    return make_targets(scene.views, scene.frame, cell=edge, use_depth=scene.use_depth)


def _in_world(mesh: TexturedMesh, frame: Frame) -> TexturedMesh:
    return replace(mesh, vertices=frame.to_world(mesh.vertices))


def _shape_shown(raster: RasterBackend, frame: Frame, snapshot: Snapshot | None) -> ShowShape | None:
    if snapshot is None:
        return None

    def show(step: str, mesh: Mesh, field: ShadedField) -> None:
        def render(cameras: Cameras) -> Rendering:
            shown = render_field(raster, mesh, field, cameras.normalized(frame.center, frame.scale))
            return replace(shown, depth=shown.depth * frame.scale)

        snapshot(step, render)

    return show


def _texture_shown(
    raster: RasterBackend, frame: Frame, snapshot: Snapshot | None
) -> texture_phase.Show | None:
    if snapshot is None:
        return None

    def show(step: str, mesh: TexturedMesh) -> None:
        snapshot(step, lambda cameras: render_textured(raster, _in_world(mesh, frame), cameras))

    return show


def _registered(views: Views, config: NvdiffrecConfig) -> Registered:
    """The views with depth maps cleaned, and with cameras and depth that agree."""
    if not config.use_depth or views.depths is None:
        return register(replace(views, depths=None), refine=config.refine_cameras, seed=config.seed)
    depths = clean_depths(views.depths, views.masks, views.cameras)
    return register(replace(views, depths=depths), refine=config.refine_cameras, seed=config.seed)


def _scene(registered: Registered, config: NvdiffrecConfig) -> Scene:
    views = registered.views
    carver = Carver(views, use_depth=config.use_depth)
    center, scale = object_bounds(views, carver)
    wanted = config.refine_cameras == "on" or (config.refine_cameras == "auto" and registered.inconsistent)
    # Depth has registered the cameras better than the images can: their shading depends on the view.
    refine = wanted and not config.use_depth
    return Scene(views, carver, Frame(center, scale), config.use_depth, refine)


def _corrected(scene: Scene, shape: Shape) -> Scene:
    if shape.corrections is None:
        return scene
    frame = scene.frame
    cameras = shape.corrections.corrected(scene.views.cameras, frame.center, frame.scale)
    return _with_cameras(scene, cameras.camera_to_world, cameras.intrinsics)


def _with_cameras(scene: Scene, camera_to_world: Tensor, intrinsics: Tensor) -> Scene:
    device = scene.views.masks.device
    cameras = replace(
        scene.views.cameras,
        camera_to_world=camera_to_world.to(device),
        intrinsics=intrinsics.to(device),
    )
    return replace(scene, views=replace(scene.views, cameras=cameras))


@torch.no_grad()
def _first_texture(
    raster: RasterBackend, start: TexturedMesh, field: ShadedField, targets: Targets
) -> Tensor:
    """The field's colours as a texture [S, S, 3]; what no view sees continues the paint around it."""
    mesh = Mesh(start.vertices, start.faces)
    seen = seen_vertices(raster, mesh, targets.clip_from_world, targets.sample_size)
    albedo = continued(mesh, field.albedo(mesh.vertices), seen)
    normals = vertex_normals(mesh.vertices, mesh.faces)
    corners = torch.cat([mesh.vertices, normals, albedo, seen[:, None].to(albedo.dtype)], -1)

    def color(texel: Tensor) -> Tensor:
        point, normal, painted, share = texel.split([3, 3, 3, 1], -1)
        own = torch.lerp(painted, field.albedo(point), share)
        return (own * field.brightness(F.normalize(normal, dim=-1))).clamp(0, 1)

    resolution = start.base_color.shape[0]
    return bake(raster, corners, mesh.faces, start.uvs, start.uv_faces, resolution, color)


def _part(callback: Callback, start: float, end: float) -> Callback:
    """A callback for a part of the whole, which runs from `start` to `end`."""

    def report(fraction: float, message: str, metrics: dict[str, float]) -> None:
        callback(start + (end - start) * fraction, message, metrics)

    return report


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, make torch add in a fixed order; the same seed then gives the same bits."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
