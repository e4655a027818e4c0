"""From views to an object in model space: features, conditions, two flows, two decoders.

Method: ReconViaGen (arXiv 2510.23306) on TRELLIS (arXiv 2412.01506) and VGGT (arXiv 2503.11651). Model space
is TRELLIS's: the object within [-0.5, 0.5]^3, z up.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from models.base import Callback
from models.geometry.camera import Cameras
from models.painted import PaintedMesh
from models.reconviagen.checkpoint import Normalization, Part
from models.reconviagen.conditioning import LatentCondition, StructureCondition
from models.reconviagen.gaussian_decoder import GaussianDecoder
from models.reconviagen.gaussians import Gaussians
from models.reconviagen.latent_flow import LatentFlow
from models.reconviagen.memory import Networks
from models.reconviagen.mesh_decoder import MeshDecoder
from models.reconviagen.sampler import Correction, SamplerConfig, draw_noise, sample
from models.reconviagen.structure_decoder import StructureDecoder
from models.reconviagen.structure_flow import StructureFlow
from models.reconviagen.vggt import Vggt
from models.reconviagen.vit import VisionTransformer
from models.sparse.grid import SparseGrid
from schemas.errors import ErrorCode, ModelError

LOGGER = logging.getLogger(__name__)

MAX_VOXELS = 100_000
"""An object's surface has 15 to 40 thousand; far more is a sampling that has gone astray."""


@dataclass(frozen=True)
class Seen:
    """What the image networks make of V crops.

    Attributes:
        geometry: VGGT's tokens of four layers, [V, T, G] each.
        appearance: DINOv2's tokens, normalised, [V, T, A].
    """

    geometry: tuple[Tensor, ...]
    appearance: Tensor


@dataclass(frozen=True)
class Generated:
    """An object in model space, twice.

    Attributes:
        mesh: Its surface, painted.
        gaussians: Its appearance.
    """

    mesh: PaintedMesh
    gaussians: Gaussians


class Generator:
    """The networks in their order. Every method leaves the device with its result alone.

    Args:
        networks: All parts of a checkpoint, by their names.
        normalization: Statistics of the structured latent.
        device: Where they compute.
    """

    def __init__(self, networks: Networks, normalization: Normalization, device: torch.device) -> None:
        self.networks = networks
        self._mean = torch.tensor(normalization.mean, device=device)
        self._std = torch.tensor(normalization.std, device=device)
        self._device = device

    @property
    def image_size(self) -> int:
        """Side of the crops that the image networks were trained with, pixels."""
        return cast(VisionTransformer, self.networks.described(Part.DINOV2)).config.img_size

    @property
    def resolution(self) -> int:
        """Voxels of the structure along each axis."""
        return cast(LatentFlow, self.networks.described(Part.LATENT_FLOW)).config.resolution

    @torch.no_grad()
    def see(self, images: Tensor) -> Seen:
        """Features of V crops [V, 3, S, S], sRGB in [0, 1], black around the object."""
        with self.networks.use(Part.VGGT) as network:
            features = cast(Vggt, network).features(images)
        with self.networks.use(Part.DINOV2) as network:
            appearance = cast(VisionTransformer, network).encode(images)
        return Seen(features.layers, appearance)

    @torch.no_grad()
    def predict_cameras(self, images: Tensor) -> Cameras:
        """Cameras of V crops [V, 3, S, S], in the first one's frame and VGGT's unit of length.

        Raises:
            ModelError: CAMERA_ESTIMATION_FAILED.
        """
        with self.networks.use(Part.VGGT) as network:
            vggt = cast(Vggt, network)
            return vggt.cameras(vggt.features(images))

    @torch.no_grad()
    def predict_points(self, images: Tensor) -> tuple[Cameras, Tensor, Tensor]:
        """Cameras of V crops [V, 3, S, S], the points [V, S, S, 3] that their pixels show, in the same frame,
        and the points' confidence [V, S, S].

        Raises:
            ModelError: CAMERA_ESTIMATION_FAILED.
        """
        with self.networks.use(Part.VGGT) as network:
            vggt = cast(Vggt, network)
            features = vggt.features(images)
            return vggt.cameras(features), *vggt.points(features)

    @torch.no_grad()
    def structure(
        self,
        seen: Seen,
        sampler: SamplerConfig,
        generator: torch.Generator,
        callback: Callback,
        correction: Correction | None = None,
    ) -> SparseGrid:
        """Sample which voxels hold the surface.

        Args:
            seen: Features of the views.
            sampler: How to sample.
            generator: Of the noise, on the CPU.
            callback: Told every step.
            correction: Of every step's velocity.

        Raises:
            ModelError: MODEL_DIVERGED: no voxel, or far too many.
        """
        with self.networks.use(Part.STRUCTURE_CONDITION) as network:
            tokens = cast(StructureCondition, network)(seen.geometry, seen.appearance)
        with self.networks.use(Part.STRUCTURE_FLOW) as network:
            flow = cast(StructureFlow, network)
            config = flow.config
            shape = (config.in_channels, config.resolution, config.resolution, config.resolution)
            noise = draw_noise(shape, generator, self._device)
            latent = sample(
                flow.bind(tokens), noise, sampler, callback, name="structure", correction=correction
            )
        with self.networks.use(Part.STRUCTURE_DECODER) as network:
            occupied = cast(StructureDecoder, network)(latent) > 0
        voxels = occupied.nonzero()
        LOGGER.info("structure: %d voxels", len(voxels))
        if not 0 < len(voxels) <= MAX_VOXELS:
            raise ModelError(
                ErrorCode.MODEL_DIVERGED,
                f"The generated structure has {len(voxels)} voxels; an object has 1 to {MAX_VOXELS}.",
                voxels=len(voxels),
            )
        return SparseGrid(voxels, occupied.shape[0])

    @torch.no_grad()
    def latent(
        self,
        seen: Seen,
        grid: SparseGrid,
        sampler: SamplerConfig,
        generator: torch.Generator,
        callback: Callback,
        correction: Correction | None = None,
    ) -> Tensor:
        """Sample the structured latent [N, C] of the voxels; arguments as for `structure`."""
        with self.networks.use(Part.LATENT_CONDITION) as network:
            tokens = cast(LatentCondition, network)(seen.geometry, seen.appearance)
        with self.networks.use(Part.LATENT_FLOW) as network:
            flow = cast(LatentFlow, network)
            noise = draw_noise((len(grid), flow.config.in_channels), generator, self._device)
            velocity = flow.bind(tokens, grid)
            del tokens
            latent = sample(velocity, noise, sampler, callback, name="latent", correction=correction)
        return self.denormalized(latent)

    def denormalized(self, latent: Tensor) -> Tensor:
        """The latent that decoders take, from that of the flow, [N, C]."""
        return latent * self._std + self._mean

    @torch.no_grad()
    def decode(self, latent: Tensor, grid: SparseGrid) -> Generated:
        """Surface and appearance of a structured latent [N, C].

        Raises:
            ModelError: MODEL_DIVERGED: the latent has no surface.
        """
        with self.networks.use(Part.GAUSSIAN_DECODER) as network:
            gaussians = cast(GaussianDecoder, network)(latent, grid)
        with self.networks.use(Part.MESH_DECODER) as network:
            mesh = cast(MeshDecoder, network)(latent, grid)
        if len(mesh.faces) == 0:
            raise ModelError(ErrorCode.MODEL_DIVERGED, "The generated object has no surface.")
        LOGGER.info("object: %d triangles, %d Gaussians", len(mesh.faces), len(gaussians))
        return Generated(mesh, gaussians)
