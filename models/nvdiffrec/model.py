"""`nvdiffrec` behind the common interface: carve, optimise, unwrap, texture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Callback, Checkpoints, PosedViews, Reconstruction, Snapshot, Views
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
from models.nvdiffrec.descent import State
from models.nvdiffrec.geometry_phase import Scene, Shape, optimize_geometry, render_field
from models.nvdiffrec.geometry_phase import Show as ShowShape
from models.nvdiffrec.journal import Journal, fingerprint
from models.nvdiffrec.registration import register
from models.nvdiffrec.targets import Frame, Targets, make_targets, resized
from models.progress import part
from models.raster import RasterBackend
from models.raster.choice import chosen_backend
from models.render import Rendering, affordable_samples, render_textured
from models.texturing.unseen import continued, seen_vertices
from schemas.options import NvdiffrecOptions, Options

LOGGER = logging.getLogger(__name__)

_CLEANED = 0.3  # of registration
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
            ModelError: INVALID_CAMERAS: the views have none.
        """
        if not isinstance(options, NvdiffrecOptions):
            raise TypeError(f"nvdiffrec needs NvdiffrecOptions, got {type(options).__name__}")
        raster = chosen_backend(options.raster, self._device)
        posed = views.posed()
        longer_side = max(posed.cameras.width, posed.cameras.height)
        config = make_config(options, longer_side, depth_share=_depth_share(posed))
        journal = Journal(checkpoints, fingerprint(posed, config) if checkpoints else None)
        posed = resized(posed, config.train_resolution).to(self._device)
        with _deterministic(self._device):
            return _reconstruct(raster, posed, config, callback, journal, snapshot)


def _depth_share(views: PosedViews) -> float:
    """Share of the object's pixels that have depth."""
    if views.depths is None:
        return 0.0
    inside = views.masks >= 0.5
    return float(((views.depths > 0) & inside).sum() / inside.sum().clamp(min=1))


def _reconstruct(
    raster: RasterBackend,
    views: PosedViews,
    config: NvdiffrecConfig,
    callback: Callback,
    journal: Journal,
    snapshot: Snapshot | None = None,
) -> Reconstruction:
    callback(0.0, "registration", {})
    kept = journal.state
    found = (
        _found(views, config, part(callback, 0.0, _REGISTERED))
        if kept is None
        else _Found.restored(kept, views, config)
    )
    journal.keep(found.kept())
    callback(_REGISTERED, "first shape", {})
    scene = found.scene
    state = journal.resumed(texture_phase.PHASE)
    if state is not None:
        shape_curve = state["geometry_curve"].tolist()
        start = texture_phase.unpack(state, raster.device)
        scene = _with_cameras(scene, state["camera_to_world"], state["intrinsics"])
        targets = _final_targets(scene, start)
    else:
        shape = optimize_geometry(
            raster,
            scene,
            found.carver,
            config.geometry,
            config.seed,
            part(callback, _CARVED, _SHAPED),
            journal,
            _shape_shown(raster, scene.frame, snapshot),
        )
        shape_curve, scene = shape.curve, _corrected(scene, shape)
        callback(_SHAPED, "atlas", {})
        start = _unwrapped(scene, shape.mesh, config)
        targets = _final_targets(scene, start)
        start = replace(start, base_color=_first_texture(raster, start, shape.field, targets))
    callback(_UNWRAPPED, "texture", {})
    textured, texture_curve = texture_phase.optimize_appearance(
        raster,
        targets,
        start,
        config.texture,
        config.seed,
        part(callback, _UNWRAPPED, 1.0),
        journal,
        _texture_shown(raster, scene.frame, snapshot),
        kept={
            "camera_to_world": scene.views.cameras.camera_to_world,
            "intrinsics": scene.views.cameras.intrinsics,
            "geometry_curve": torch.tensor(shape_curve, dtype=torch.float64),
        },
        materials=config.materials,
        normal_map=config.normal_map,
    )
    return Reconstruction(
        mesh=_in_world(textured, scene.frame),
        raster=raster.name,
        curves={"geometry/psnr_db": shape_curve, "texture/psnr_db": texture_curve},
        extra={
            "grid_cell": 2 / config.geometry.levels[-1].resolution * scene.frame.scale,
            "samples_per_pixel": targets.samples**2,
            **found.figures,
        },
        cameras=scene.views.cameras if found.corrected or scene.refine_cameras else None,
    )


@dataclass(frozen=True)
class _Found:
    """What is known before the first phase.

    Attributes:
        scene: Registered views and their frame.
        depth_scale: [V] factors on the cleaned depth maps.
        corrected: Whether registration changed the cameras.
        figures: For the quality report.
        carver: Of the first shape; None where the run goes on behind it.
    """

    scene: Scene
    depth_scale: Tensor
    corrected: bool
    figures: dict[str, float]
    carver: Carver | None

    def kept(self) -> State:
        """For checkpoints: what another run, perhaps on another device, might find differently."""
        cameras, frame = self.scene.views.cameras, self.scene.frame
        flags = torch.tensor([self.corrected, self.scene.refine_cameras])
        figures = {f"figure/{name}": torch.tensor(value) for name, value in self.figures.items()}
        return figures | {
            "registered/camera_to_world": cameras.camera_to_world,
            "registered/intrinsics": cameras.intrinsics,
            "registered/depth_scale": self.depth_scale,
            "registered/flags": flags,
            "frame/center": frame.center,
            "frame/scale": torch.tensor(frame.scale, dtype=torch.float64),
        }

    @classmethod
    def restored(cls, state: State, views: PosedViews, config: NvdiffrecConfig) -> _Found:
        """What `kept` kept; `views` are those of the input."""
        device = views.masks.device
        corrected, refine = state["registered/flags"].tolist()
        depth_scale = state["registered/depth_scale"].to(device)
        views = _cleaned(views, config)
        if views.depths is not None:
            views = replace(views, depths=views.depths * depth_scale[:, None, None])
        frame = Frame(state["frame/center"].to(device), float(state["frame/scale"]))
        scene = Scene(views, frame, config.use_depth, refine)
        scene = _with_cameras(scene, state["registered/camera_to_world"], state["registered/intrinsics"])
        prefix = "figure/"
        figures = {n.removeprefix(prefix): float(v) for n, v in state.items() if n.startswith(prefix)}
        return cls(scene, depth_scale, corrected, figures, None)


def _cleaned(views: PosedViews, config: NvdiffrecConfig, callback: Callback | None = None) -> PosedViews:
    """The views with depth maps made smooth and whole, without any where they are not to count."""
    if views.depths is None or not config.use_depth:
        return replace(views, depths=None)
    depths = clean_depths(views.depths, views.masks, views.cameras, callback=callback)
    return replace(views, depths=depths)


def _found(views: PosedViews, config: NvdiffrecConfig, callback: Callback) -> _Found:
    """Register the views, and find where the object is."""
    registered = register(
        _cleaned(views, config, part(callback, 0.0, _CLEANED)),
        refine=config.refine_cameras,
        seed=config.seed,
        callback=part(callback, _CLEANED, 1.0),
    )
    views = registered.views
    carver = Carver(views, use_depth=config.use_depth)
    center, scale = object_bounds(views, carver)
    wanted = config.refine_cameras == "on" or (config.refine_cameras == "auto" and registered.inconsistent)
    # Depth has registered the cameras better than the images can: their shading depends on the view.
    refine = wanted and not config.use_depth
    scene = Scene(views, Frame(center, scale), config.use_depth, refine)
    figures = registered.figures()
    return _Found(scene, registered.depth_scale, registered.corrected, figures, carver)


def _unwrapped(scene: Scene, mesh: Mesh, config: NvdiffrecConfig) -> TexturedMesh:
    """The finished topology with an atlas and a black texture."""
    mesh = decimate(clean(mesh, scene.cameras.positions), config.target_triangles)
    LOGGER.info("shape: %d vertices, %d triangles", mesh.vertices.shape[0], mesh.faces.shape[0])
    resolution = config.texture.resolution
    uvs, uv_faces = unwrap(mesh, resolution)
    blank = mesh.vertices.new_zeros(resolution, resolution, 3)
    return TexturedMesh(mesh.vertices, mesh.faces, uvs, uv_faces, blank)


def _final_targets(scene: Scene, mesh: TexturedMesh) -> Targets:
    first, second = mesh.vertices[face_edges(mesh.faces)].unbind(1)
    edge = float(torch.linalg.vector_norm(first - second, dim=-1).mean())
    return make_targets(scene.views, scene.frame, cell=edge, use_depth=scene.use_depth)


def _in_world(mesh: TexturedMesh, frame: Frame) -> TexturedMesh:
    return replace(mesh, vertices=frame.to_world(mesh.vertices))


def _shape_shown(raster: RasterBackend, frame: Frame, snapshot: Snapshot | None) -> ShowShape | None:
    if snapshot is None:
        return None

    def show(step: str, extract: Callable[[], Mesh], field: ShadedField) -> None:
        def render(cameras: Cameras) -> Rendering:
            seen = cameras.normalized(frame.center, frame.scale)
            shown = render_field(raster, extract(), field, seen, affordable_samples(cameras))
            return shown._replace(depth=shown.depth * frame.scale)

        snapshot(step, render)

    return show


def _texture_shown(
    raster: RasterBackend, frame: Frame, snapshot: Snapshot | None
) -> texture_phase.Show | None:
    if snapshot is None:
        return None

    def show(step: str, mesh: TexturedMesh) -> None:
        def render(cameras: Cameras) -> Rendering:
            samples = affordable_samples(cameras)
            return render_textured(raster, _in_world(mesh, frame), cameras, samples=samples)

        snapshot(step, render)

    return show


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


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, make torch add in a fixed order; the same seed then gives the same bits."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
