"""Phase 1: the isosurface of a signed-distance grid, rendered and held against the views, coarse to fine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Callback, PosedViews
from models.geometry.camera import Cameras
from models.geometry.camera_corrections import CameraCorrections
from models.geometry.flexicubes import FlexiCubes, Isosurface
from models.geometry.mesh import Mesh, face_edges, face_normals, vertex_normals
from models.nvdiffrec.color_field import ShadedField
from models.nvdiffrec.config import GeometryConfig, GridLevel
from models.nvdiffrec.descent import SHOW_EVERY, Descent
from models.nvdiffrec.journal import Journal
from models.nvdiffrec.losses import compare
from models.nvdiffrec.regularizers import crease_loss, laplacian_loss
from models.nvdiffrec.sdf_grid import SdfGrid, resampled
from models.nvdiffrec.targets import Frame, Targets, batch_of, clip_matrices, make_targets, resized
from models.progress import part
from models.raster import RasterBackend
from models.render import SAMPLES, Rendering, clip_positions, developed
from schemas.errors import ErrorCode, ModelError

PHASE = 0
"""Number of this phase in checkpoints."""

_PIXELS_PER_CELL = 8  # of views at a level of the grid; more would show what the grid cannot

Show = Callable[[str, Callable[[], Mesh], ShadedField], None]
"""Called with the name of a step, a function that extracts the surface as it then is, and its look."""


@dataclass(frozen=True)
class Scene:
    """What phase 1 works on; everything on the rasterizer's device.

    Attributes:
        views: The views at the size at which they are compared.
        frame: The normalised frame.
        use_depth: Whether depth maps count.
        refine_cameras: Whether poses and focal length are corrected along with the shape.
    """

    views: PosedViews
    frame: Frame
    use_depth: bool
    refine_cameras: bool = False

    @property
    def cameras(self) -> Cameras:
        """The cameras in the normalised frame."""
        return self.views.cameras.normalized(self.frame.center, self.frame.scale)


@dataclass(frozen=True)
class Samples:
    """What the rays of a batch of views hit, in the renderer's row order.

    Attributes:
        position: [B, N, 4] clip-space vertices.
        rast: [B, h, w, 4] see `RasterBackend.rasterize`.
        hit: [K] flat indices of the samples that hit the surface.
        points, normals: [K, 3] there.
        depth: [B, h, w, 1] z-depth.
        covered: [B, h, w, 1] whether a sample hit the surface.
    """

    position: Tensor
    rast: Tensor
    hit: Tensor
    points: Tensor
    normals: Tensor
    depth: Tensor
    covered: Tensor


def cast(
    raster: RasterBackend, mesh: Mesh, normals: Tensor, matrices: Tensor, size: tuple[int, int]
) -> Samples:
    """Find what the samples of some views hit. Differentiable.

    Args:
        raster: The rasterizer.
        mesh: The surface.
        normals: [N, 3] of its vertices.
        matrices: [B, 4, 4] to clip space.
        size: Height and width, samples.
    """
    position = clip_positions(mesh.vertices, matrices).contiguous()  # [B, N, 4]
    rast, _ = raster.rasterize(position, mesh.faces, size)
    shape = torch.cat([mesh.vertices, normals], -1)
    attributes = torch.cat([shape.expand(position.shape[0], -1, -1), position[..., 3:]], -1)
    found, _ = raster.interpolate(attributes.contiguous(), rast, mesh.faces)
    covered = rast[..., 3:] > 0
    hit = torch.nonzero(covered.reshape(-1))[:, 0]  # once: each look waits for the device
    sample = found.reshape(-1, 7)[hit]
    normal = F.normalize(sample[:, 3:6], dim=-1)
    return Samples(position, rast, hit, sample[:, :3], normal, found[..., 6:], covered)


def composed(raster: RasterBackend, mesh: Mesh, samples: Samples, color: Tensor) -> Tensor:
    """The image [B, h, w, 4], premultiplied colour and coverage, antialiased; `color` [K, 3] of the hits."""
    image = color.new_zeros(samples.covered.numel(), 4)
    image = image.index_copy(0, samples.hit, torch.cat([color, torch.ones_like(color[:, :1])], -1))
    image = image.reshape(*samples.rast.shape[:3], 4)
    return raster.antialias(image, samples.rast, samples.position, mesh.faces)


@dataclass(frozen=True)
class Shape:
    """What phase 1 found, in the normalised frame.

    Attributes:
        mesh: The extracted surface.
        field: The look of every point.
        corrections: Of the cameras; None where they were taken as given.
        curve: The training PSNR, dB.
    """

    mesh: Mesh
    field: ShadedField
    corrections: CameraCorrections | None
    curve: list[float]


def optimize_geometry(
    raster: RasterBackend,
    scene: Scene,
    carve: Callable[[Tensor], Tensor] | None,
    config: GeometryConfig,
    seed: int,
    callback: Callback,
    journal: Journal,
    show: Show | None = None,
) -> Shape:
    """Fit a surface and a colour field to the views.

    Args:
        raster: The rasterizer.
        scene: What to fit.
        carve: First signed distance [N] of points [N, 3], world units; not needed where the journal goes on.
        config: Hyper-parameters.
        seed: Of every random number.
        callback: Told the fraction of this phase; may raise `JobCancelled`.
        journal: Keeps checkpoints and knows where to go on.
        show: Shown the surface every few steps.

    Raises:
        ModelError: MODEL_DIVERGED, where the surface vanishes or the loss is not finite.
    """
    field = ShadedField(torch.Generator().manual_seed(seed)).to(raster.device)
    corrections = CameraCorrections(scene.cameras) if scene.refine_cameras else None
    work = [level.iterations * level.resolution for level in config.levels]  # what a step takes, roughly
    total, done = sum(level.iterations for level in config.levels), 0
    sdf: Tensor | None = None
    curve: list[float] = []
    for number, level in enumerate(config.levels):
        share = (done / total, (done + level.iterations) / total)
        progress = part(callback, sum(work[:number]) / sum(work), sum(work[: number + 1]) / sum(work))
        done += level.iterations
        if journal.passed(PHASE, number):
            continue
        state = journal.resumed(PHASE, number)
        extractor = FlexiCubes(level.resolution, raster.device)
        if state is not None:
            sdf, curve = torch.zeros(extractor.vertex_count, device=raster.device), state["before"].tolist()
        else:
            sdf = _carved(scene, carve, extractor) if sdf is None else resampled(sdf, level.resolution)
        grid = SdfGrid(extractor, sdf)
        descent = _descent(grid, field, corrections, level, config, share, len(scene.views))
        if state is not None:
            descent.restore(state)
        name = f"shape on a grid of {level.resolution}"
        before = {"before": torch.tensor(curve, dtype=torch.float64)}
        curve = curve + descent.run(
            _Step(raster, grid, field, corrections, _level_targets(scene, level), config, seed),
            name=name,
            callback=progress,
            after=_after(journal.writer(descent, PHASE, number, before), name, grid, field, show),
        )
        sdf = grid.distance.detach()
    with torch.no_grad():
        surface = _nonempty(grid.surface(training=False))
    return Shape(Mesh(surface.vertices, surface.faces), field, corrections, curve)


def _after(
    write: Callable[[int], None] | None, name: str, grid: SdfGrid, field: ShadedField, show: Show | None
) -> Callable[[int], None]:
    @torch.no_grad()
    def extract() -> Mesh:
        surface = grid.surface(training=False)
        return Mesh(surface.vertices, surface.faces)

    def after(done: int) -> None:
        if write is not None:
            write(done)
        if show is not None and done % SHOW_EVERY == 0:
            show(f"{name}: step {done}", extract, field)

    return after


@torch.no_grad()
def render_field(
    raster: RasterBackend, mesh: Mesh, field: ShadedField, cameras: Cameras, samples: int = SAMPLES
) -> Rendering:
    """Render a surface in the colours of a field, as `models.render.render_textured` does with textures.

    Args:
        raster: The rasterizer.
        mesh, field: What phase 1 has made of the object.
        cameras: In the normalised frame.
        samples: Samples along each side of a pixel.
    """
    size = (cameras.height * samples, cameras.width * samples)
    normals = vertex_normals(mesh.vertices, mesh.faces)
    found = cast(raster, mesh, normals, clip_matrices(cameras), size)
    image = composed(raster, mesh, found, field(found.points, found.normals).clamp(0, 1))
    return developed(image, found.depth, found.covered.float(), samples)


def _carved(scene: Scene, carve: Callable[[Tensor], Tensor] | None, extractor: FlexiCubes) -> Tensor:
    assert carve is not None
    return carve(scene.frame.to_world(extractor.grid_positions())) / scene.frame.scale


def _level_targets(scene: Scene, level: GridLevel) -> Targets:
    views = resized(scene.views, _PIXELS_PER_CELL * level.resolution)
    return make_targets(views, scene.frame, cell=2 / level.resolution, use_depth=scene.use_depth)


def _descent(
    grid: SdfGrid,
    field: ShadedField,
    corrections: CameraCorrections | None,
    level: GridLevel,
    config: GeometryConfig,
    share: tuple[float, float],
    views: int,
) -> Descent:
    groups = [*grid.parameters(config), {"params": list(field.parameters()), "lr": config.color_rate}]
    if corrections is not None:
        groups += corrections.parameter_groups(config.camera_rate)
    optimizer = torch.optim.Adam(groups, fused=True)
    first, last = share
    rates = (config.final_rate**first, config.final_rate**last)
    return Descent(optimizer, level.iterations, rates, -(-views // config.batch_size))


class _Step:
    """Loss of one step, as `Descent.run` wants it."""

    def __init__(
        self,
        raster: RasterBackend,
        grid: SdfGrid,
        field: ShadedField,
        corrections: CameraCorrections | None,
        targets: Targets,
        config: GeometryConfig,
        seed: int,
    ) -> None:
        self._raster, self._grid, self._field, self._corrections = raster, grid, field, corrections
        self._targets, self._config, self._seed = targets, config, seed

    def __call__(self, done: int) -> tuple[Tensor, Tensor]:
        config = self._config
        targets = batch_of(self._corrected(), config.batch_size, done, self._seed)
        surface = _nonempty(self._grid.surface(training=True))
        mesh = Mesh(surface.vertices, surface.faces)
        normals = vertex_normals(mesh.vertices, mesh.faces)
        samples = cast(self._raster, mesh, normals, targets.clip_from_world, targets.sample_size)
        albedo, unevenness = self._albedo(mesh, samples.points, done)
        color = albedo * self._field.brightness(samples.normals)
        image = composed(self._raster, mesh, samples, color)
        loss, error = compare(image, samples.depth, samples.covered, targets, config.images)
        loss = loss + config.deviation_weight * surface.deviation
        loss = loss + config.sign_weight * self._grid.sign_loss()
        if self._corrections is not None:
            loss = loss + config.camera_weight * self._corrections.prior()
        return loss + _shape_loss(mesh, normals, config) + unevenness, error

    def _corrected(self) -> Targets:
        if self._corrections is None:
            return self._targets
        matrices = self._corrections.matrices(self._targets.clip_from_world)
        return replace(self._targets, clip_from_world=matrices)

    def _albedo(self, mesh: Mesh, points: Tensor, done: int) -> tuple[Tensor, Tensor]:
        """Albedo [K, 3] of `points` [K, 3], and how much it changes over a short random way.

        Paint is even where nothing denies it, also where no view sees it.
        """
        config = self._config
        seen, anywhere = points.detach()[::4], mesh.vertices.detach()
        places = torch.cat([seen, anywhere])
        chance = torch.Generator(points.device).manual_seed(self._seed * 1_000_003 + done)
        way = torch.empty_like(places).normal_(0, config.albedo_distance, generator=chance)
        # One look into the field for all: on a GPU this loop waits for launches, not for their work.
        found = self._field.albedo(torch.cat([points, places, places + way]))
        albedo, here, there = found.split([len(points), len(places), len(places)])
        change = (here - there).abs().sum(-1)
        loss = config.albedo_weight * change[: len(seen)].mean()
        return albedo, loss + config.unseen_albedo_weight * change[len(seen) :].mean()


def _shape_loss(mesh: Mesh, normals: Tensor, config: GeometryConfig) -> Tensor:
    edges = face_edges(mesh.faces)
    loss = config.smooth_weight * laplacian_loss(mesh.vertices, edges)
    if config.crease_weight > 0:
        loss = loss + config.crease_weight * crease_loss(normals, edges)
    if config.area_weight > 0:
        area = torch.linalg.vector_norm(face_normals(mesh.vertices, mesh.faces), dim=-1).sum() / 2
        loss = loss + config.area_weight * area
    return loss


def _nonempty(surface: Isosurface) -> Isosurface:
    if surface.faces.shape[0] == 0:
        raise ModelError(ErrorCode.MODEL_DIVERGED, "The surface vanished during the optimisation.")
    return surface
