"""`reconviagen` behind the common interface: generate, find the cameras, correct, clean, texture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from models.base import Callback, Checkpoints, Reconstruction, Snapshot, Views
from models.geometry.atlas import texture_side
from models.geometry.camera import Cameras
from models.geometry.mesh import TexturedMesh
from models.geometry.rotation import rotation_between
from models.out_of_memory import is_gpu_out_of_memory
from models.painted import render_painted
from models.progress import part
from models.raster import RasterBackend
from models.raster.choice import chosen_backend
from models.reconviagen.alignment import Alignment, align_to_cameras, estimate_cameras
from models.reconviagen.checkpoint import Checkpoint, Part
from models.reconviagen.crops import Crops, crop_views, evenly_spaced
from models.reconviagen.generation import Generated, Generator
from models.reconviagen.memory import Networks, Plan
from models.reconviagen.refined import Refinement
from models.reconviagen.refinement_targets import Targets, make_targets
from models.reconviagen.sampler import SamplerConfig, seeded
from models.reconviagen.splatting import gsplat_installed, render_gaussians
from models.reconviagen.tidying import tidied
from models.reconviagen.weights_folder import DINOV2, TRELLIS, VGGT
from models.render import Rendering, affordable_samples
from models.texturing.baking import textured
from schemas.errors import ModelError
from schemas.options import Options, ReconviagenOptions

LOGGER = logging.getLogger(__name__)

_SEEN = 0.08  # fractions of the whole at which the steps end
_STRUCTURED = 0.35
_SAMPLED = 0.6
_DECODED = 0.65
_ALIGNED = 0.85
_CLEANED = 0.9
_GENERATION = 0.4  # of the whole, where it is followed by a second one that is corrected

_MOST_SHOWN = 24  # views; the conditions of each take 130 MiB, and VGGT's work grows with their square
_MODEL_UP = (0.0, 0.0, 1.0)
_SCALED_SIZE = 256  # pixels at which depth maps are compared

_FEW_GAUSSIANS = 2_000
"""So many are drawn in plain torch within a second a view; more want gsplat on a GPU."""


class Reconviagen:
    """Multi-view conditioned generation, in the frame of the views.

    Args:
        device: Where to compute.
        weights: Folder of the published weights.
        revisions: Of the repositories that the weights came from, by name.
    """

    name = "reconviagen"

    def __init__(
        self, device: torch.device | str, weights: Path, revisions: Mapping[str, str] | None = None
    ) -> None:
        self._device = torch.empty(0, device=device).device  # `cuda` is `cuda:0` from here on
        self._weights = weights
        self._revisions = dict(revisions or {})
        self._loaded: _Loaded | None = None

    def load(self) -> None:
        """Read all networks; they move to the device with the first job.

        Raises:
            ModelError: MODEL_WEIGHTS_MISSING, MODEL_WEIGHTS_INVALID.
        """
        checkpoint = Checkpoint.read(self._weights)
        modules = {}
        for each in Part:
            LOGGER.info("reconviagen: reading %s", each)
            modules[each.value] = checkpoint.load(each, _precision(each, self._device))
        networks = Networks(modules, self._device)
        generator = Generator(networks, checkpoint.normalization, self._device)
        self._loaded = _Loaded(networks, generator, checkpoint)

    def reconstruct(
        self,
        views: Views,
        options: Options,
        callback: Callback,
        *,
        snapshot: Snapshot | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> Reconstruction:
        """See `models.base.Reconstructor.reconstruct`. A run is short: `checkpoints` are not used.

        Where memory runs out, the job is tried once more with one network on the device at a time.

        Raises:
            TypeError: options of another model.
            RuntimeError: `load` has not been called.
            InvalidJob: INVALID_OPTIONS: this worker does not have the rasterizer; MASK_MISSING: a view shows
                nothing.
            ModelError: MODEL_DIVERGED, CAMERA_ESTIMATION_FAILED.
        """
        if not isinstance(options, ReconviagenOptions):
            raise TypeError(f"reconviagen needs ReconviagenOptions, got {type(options).__name__}")
        loaded = self._ready()
        raster = chosen_backend(options.raster, self._device)
        # Cut on the CPU, whose rounding the networks were trained with.
        callback(0.0, "cutting the object out", {})
        crops = crop_views(views.to("cpu"), size=loaded.generator.image_size).to(self._device)
        run = _Run(loaded.generator, raster, crops, views, options)
        try:
            made = self._with_memory(lambda: run(loaded.samplers(options), callback, snapshot))
        finally:
            loaded.networks.rest()
        return replace(made, parts=self._parts())

    def _with_memory(self, run: Callable[[], Reconstruction]) -> Reconstruction:
        """Run, and once more with the plan that needs least memory where there was too little."""
        networks = self._ready().networks
        try:
            return run()
        except RuntimeError as error:
            if networks.plan is Plan.SEQUENTIAL or not is_gpu_out_of_memory(error):
                raise
        # Behind the handler: the failed run's tensors live as long as its error.
        LOGGER.warning("The GPU is out of memory; once more with one network there at a time.")
        networks.economize()
        return run()

    def _ready(self) -> _Loaded:
        if self._loaded is None:
            raise RuntimeError("load() comes before reconstruct()")
        return self._loaded

    def _parts(self) -> dict[str, str]:
        """The networks, each with the repository and, if known, the revision of its weights."""
        repositories = {Part.VGGT: VGGT, Part.DINOV2: DINOV2}
        named = {each.value: repositories.get(each, TRELLIS) for each in Part}
        return {name: f"{each}@{self._revisions.get(each, 'unknown')}" for name, each in named.items()}


@dataclass(frozen=True)
class _Loaded:
    """What `load` makes."""

    networks: Networks
    generator: Generator
    checkpoint: Checkpoint

    def samplers(self, options: ReconviagenOptions) -> tuple[SamplerConfig, SamplerConfig]:
        """How to sample structure and latent: as published, but for what the job says."""
        structure = replace(
            self.checkpoint.structure_sampler,
            steps=options.structure_steps,
            guidance=options.structure_guidance,
        )
        latent = replace(
            self.checkpoint.latent_sampler, steps=options.latent_steps, guidance=options.latent_guidance
        )
        return structure, latent


@dataclass(frozen=True)
class _Run:
    """One reconstruction.

    Attributes:
        generator: The networks.
        raster: The rasterizer.
        crops: What the views show of the object, on the device.
        views: The input.
        options: The job's.
    """

    generator: Generator
    raster: RasterBackend
    crops: Crops
    views: Views
    options: ReconviagenOptions

    def __call__(
        self,
        samplers: tuple[SamplerConfig, SamplerConfig],
        callback: Callback,
        snapshot: Snapshot | None,
    ) -> Reconstruction:
        curves: dict[str, list[float]] = {}
        refine = self.options.refine
        first = part(callback, 0.0, _GENERATION if refine else 1.0)
        made = self._generated(samplers, first)
        alignment = self._aligned(made, part(first, _DECODED, _ALIGNED))
        last = first
        if refine:
            last = part(callback, _GENERATION, 1.0)
            made = self._refined(alignment, samplers, part(last, 0.0, _DECODED), curves)
            alignment = self._aligned(made, part(last, _DECODED, _ALIGNED))
        self._show(made, alignment, snapshot)
        mesh = self._textured(made, alignment, part(last, _ALIGNED, 1.0))
        return self._in_world(mesh, made, alignment, curves)

    @property
    def _shown(self) -> list[int]:
        """Views that the networks are shown: all, or so many evenly spaced ones as they have room for."""
        return evenly_spaced(len(self.crops), _MOST_SHOWN)

    def _generated(self, samplers: tuple[SamplerConfig, SamplerConfig], callback: Callback) -> Generated:
        callback(0.0, "features of the views", {})
        seen = self.generator.see(self.crops[self._shown].images)
        noise = seeded(self.options.seed)
        callback(_SEEN, "structure", {})
        within = part(callback, _SEEN, _STRUCTURED)
        grid = self.generator.structure(seen, samplers[0], noise, within)
        within = part(callback, _STRUCTURED, _SAMPLED)
        latent = self.generator.latent(seen, grid, samplers[1], noise, within)
        del seen  # half a gibibyte that the decoders can use
        callback(_SAMPLED, "decoding", {})
        return self.generator.decode(latent, grid)

    def _refined(
        self,
        alignment: Alignment,
        samplers: tuple[SamplerConfig, SamplerConfig],
        callback: Callback,
        curves: dict[str, list[float]],
    ) -> Generated:
        """The object once more, corrected by the views that the networks are shown."""
        shown, depths = self._shown, self._depths()
        callback(0.0, "features of the views", {})
        refinement = Refinement(
            self.generator,
            self.generator.see(self.crops[shown].images),
            self.crops[shown],
            replace(alignment, cameras=alignment.cameras[shown]),
            None if depths is None else depths[shown] / alignment.similarity.scale,
            samplers,
            self.options.seed,
        )
        return refinement(callback, curves)

    def _aligned(self, made: Generated, callback: Callback) -> Alignment:
        """The object where the given cameras saw it, or the cameras that saw it."""
        if self.views.cameras is None:
            return self._upright(made, self._estimated(made, callback))
        guess = None
        try:
            guess = self._estimated(made, part(callback, 0.0, 0.5))
        except ModelError as error:
            LOGGER.info("no cameras from the networks: %s", error.message)
        return align_to_cameras(
            self.raster,
            made.mesh,
            self.crops,
            self.views.cameras.to(self.raster.device),
            depths=self._depths(),
            up=self._up(),
            guess=guess,
            callback=part(callback, 0.5, 1.0),
        )

    def _estimated(self, made: Generated, callback: Callback) -> Alignment:
        callback(0.0, "cameras", {})
        predict = self.generator.predict_cameras
        return estimate_cameras(self.raster, made.mesh, self.crops, predict, callback=callback)

    def _upright(self, made: Generated, alignment: Alignment) -> Alignment:
        """The same with the way to the world: upright, and in the depth maps' unit if there are any."""
        depths, scale = self._depths(), alignment.similarity.scale
        if depths is not None:
            cameras = self.crops.to_crops(alignment.cameras)
            targets = make_targets(self.crops, cameras, depths, min(_SCALED_SIZE, self.crops.size))
            scale = _metric_scale(self.raster, made, targets)
        rotation = rotation_between(self._up().new_tensor(_MODEL_UP), self._up())
        return replace(alignment, similarity=replace(alignment.similarity, scale=scale, rotation=rotation))

    def _up(self) -> Tensor:
        """The world's up [3]."""
        up = (0.0, 1.0, 0.0) if self.options.outputs.up_axis == "y" else _MODEL_UP
        return torch.tensor(up, device=self.raster.device)

    def _depths(self) -> Tensor | None:
        """Depth maps [V, H, W] on the device, where there are any that count."""
        if self.views.depths is None or not self.options.use_depth:
            return None
        return self.views.depths.to(self.raster.device)

    def _show(self, made: Generated, alignment: Alignment, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        mesh = replace(made.mesh, vertices=alignment.similarity.points(made.mesh.vertices))
        snapshot(
            "object",
            lambda cameras: render_painted(self.raster, mesh, cameras, samples=affordable_samples(cameras)),
        )

    def _textured(self, made: Generated, alignment: Alignment, callback: Callback) -> TexturedMesh:
        """The textured mesh in model space."""
        tidy = (_CLEANED - _ALIGNED) / (1 - _ALIGNED)
        mesh = tidied(
            self.raster,
            made.mesh.surface,
            alignment.cameras,
            self.options.target_triangles,
            part(callback, 0.0, tidy),
        )
        return textured(
            self.raster,
            mesh,
            self.views.with_cameras(alignment.cameras),
            _shown_by(self.raster, made),
            resolution=texture_side(self.options.texture_resolution),
            callback=part(callback, tidy, 1.0),
        )

    def _in_world(
        self, mesh: TexturedMesh, made: Generated, alignment: Alignment, curves: dict[str, list[float]]
    ) -> Reconstruction:
        similarity = alignment.similarity
        found = None if self.views.cameras is not None else similarity.cameras(alignment.cameras)
        return Reconstruction(
            mesh=replace(mesh, vertices=similarity.points(mesh.vertices)),
            raster=self.raster.name,
            curves=curves,
            extra={
                "gaussians": float(len(made.gaussians)),
                "generated_triangles": float(len(made.mesh.faces)),
                "model_unit": float(similarity.scale),
                **alignment.figures(),
            },
            cameras=found,
        )


def _precision(each: Part, device: torch.device) -> torch.dtype:
    """As published: TRELLIS in float16, the image networks in bfloat16 on devices that have it."""
    if device.type == "cpu":
        return torch.float32
    if each in (Part.VGGT, Part.DINOV2) and torch.cuda.get_device_capability(device)[0] >= 8:
        return torch.bfloat16
    return torch.float16


def _shown_by(raster: RasterBackend, made: Generated) -> Callable[[Cameras], Rendering]:
    """What draws the object where no view saw it: the Gaussians, which are finer than the mesh's paint."""
    fast = made.gaussians.means.is_cuda and gsplat_installed()
    if not fast and len(made.gaussians) > _FEW_GAUSSIANS:
        LOGGER.info("Without gsplat, parts that no view sees get the mesh decoder's colours.")
        return lambda cameras: render_painted(raster, made.mesh, cameras)
    black = made.gaussians.colors.new_zeros(3)
    return lambda cameras: render_gaussians(made.gaussians, cameras, black)


def _metric_scale(raster: RasterBackend, made: Generated, targets: Targets) -> Tensor:
    """World units per model unit: how much farther the depth maps are than the object as drawn."""
    assert targets.depths is not None
    drawn = render_painted(raster, made.mesh, targets.cameras).depth
    both = (drawn > 0) & (targets.depths > 0)
    if not bool(both.any()):
        return drawn.new_ones(())
    return (targets.depths[both] / drawn[both]).median()
