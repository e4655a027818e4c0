"""The second generation of an object: like the first, but held against what the views show.

Once the cameras are known in model space, the flows are sampled again from the same noise, and each step is
corrected (ReconViaGen, arXiv 2510.23306, section 3.3: rendering-aware velocity compensation).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from models.base import Callback
from models.progress import part
from models.reconviagen.alignment import Alignment
from models.reconviagen.checkpoint import Part
from models.reconviagen.crops import Crops
from models.reconviagen.gaussian_decoder import GaussianDecoder
from models.reconviagen.generation import Generated, Generator, Seen
from models.reconviagen.point_maps import predict_point_maps
from models.reconviagen.refinement import AppearanceCorrection, RefinementConfig, StructureCorrection
from models.reconviagen.refinement_targets import Targets, make_targets, seen_voxels, surface_voxels
from models.reconviagen.sampler import SamplerConfig, seeded
from models.reconviagen.vit import VisionTransformer
from models.sparse.grid import SparseGrid
from schemas.errors import ModelError

LOGGER = logging.getLogger(__name__)

_STRUCTURED = 0.3  # of the progress


@dataclass(frozen=True)
class Refinement:
    """A generation of one object that its first one helps.

    Attributes:
        generator: The networks.
        seen: Features of the views.
        crops: What the views show, on the device.
        alignment: Where they stand in model space, by the first generation.
        depths: [V, H, W] of the full images, model units, 0 where unknown; None without depth.
        samplers: Of structure and latent, as for the first generation.
        seed: Likewise.
        config: How to correct.
    """

    generator: Generator
    seen: Seen
    crops: Crops
    alignment: Alignment
    depths: Tensor | None
    samplers: tuple[SamplerConfig, SamplerConfig]
    seed: int
    config: RefinementConfig = field(default_factory=RefinementConfig)

    def __call__(self, callback: Callback, curves: dict[str, list[float]]) -> Generated:
        """Generate the object.

        Args:
            callback: Told the progress.
            curves: Gets the losses of structure and latent.

        Raises:
            ModelError: MODEL_DIVERGED.
        """
        cameras = self.crops.to_crops(self.alignment.cameras)
        targets = make_targets(self.crops, cameras, self.depths, min(self.config.size, self.crops.size))
        noise = seeded(self.seed)
        grid = self._structure(targets, noise, part(callback, 0.0, _STRUCTURED), curves)
        latent = self._latent(targets, grid, noise, part(callback, _STRUCTURED, 1.0), curves)
        return self.generator.decode(latent, grid)

    def _structure(
        self, targets: Targets, noise: torch.Generator, callback: Callback, curves: dict[str, list[float]]
    ) -> SparseGrid:
        points, targets = (targets.points(), targets) if self.depths is not None else self._points(targets)
        networks, sampler = self.generator.networks, self.samplers[0]
        surface = surface_voxels(points, self.generator.resolution)
        LOGGER.info("refinement: %d voxels are known to hold the surface", int(surface.sum()))
        if not surface.any():
            return self.generator.structure(self.seen, sampler, noise, callback)
        seen = seen_voxels(targets, self.generator.resolution)
        with networks.use(Part.STRUCTURE_DECODER) as decoder:
            correction = StructureCorrection(decoder, surface, seen, sampler.sigma_min, self.config)
            curves["structure/dice"] = correction.curve
            return self.generator.structure(self.seen, sampler, noise, callback, correction)

    def _points(self, targets: Targets) -> tuple[Tensor, Targets]:
        """Points [N, 3] in model space that the image networks see, perhaps none, and targets with depth."""
        try:
            maps = predict_point_maps(self.generator.predict_points, self.crops, self.alignment.cameras)
        except ModelError as error:
            LOGGER.info("refinement: the networks see no points: %s", error.message)
            return targets.images.new_zeros(0, 3), targets
        size = targets.masks.shape[1:]
        depths = functional.interpolate(maps.depths[:, None], size, mode="nearest-exact")[:, 0]
        return maps.points, replace(targets, depths=depths)

    def _latent(
        self,
        targets: Targets,
        grid: SparseGrid,
        noise: torch.Generator,
        callback: Callback,
        curves: dict[str, list[float]],
    ) -> Tensor:
        networks = self.generator.networks
        with networks.use(Part.GAUSSIAN_DECODER) as decoder, networks.use(Part.DINOV2) as encoder:
            gaussians = cast(GaussianDecoder, decoder)
            correction = AppearanceCorrection(
                lambda latent: gaussians(self.generator.denormalized(latent), grid),
                targets,
                cast(VisionTransformer, encoder).patch_tokens,
                self.samplers[1].sigma_min,
                self.config,
            )
            curves["latent/loss"] = correction.curve
            return self.generator.latent(self.seen, grid, self.samplers[1], noise, callback, correction)
