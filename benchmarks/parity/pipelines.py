"""The whole of upstream's pipeline and the whole of ours, on the same networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.parity.conditions import LatentConditionPair, StructureConditionPair
from benchmarks.parity.configurations import Configuration
from benchmarks.parity.decoders import GaussianDecoderPair, MeshDecoderPair, StructureDecoderPair
from benchmarks.parity.encoders import IMAGE_MEAN, IMAGE_STD, Dinov2, VggtPair
from benchmarks.parity.flows import LatentFlowPair, StructureFlowPair
from benchmarks.parity.pair import Pair
from benchmarks.parity.samplers import upstream_sampler
from benchmarks.parity.upstream import Upstream
from models.reconviagen.checkpoint import Normalization, Part
from models.reconviagen.generation import Generator
from models.reconviagen.memory import Networks

PARTS: dict[Part, type[Pair]] = {
    Part.VGGT: VggtPair,
    Part.DINOV2: Dinov2,
    Part.STRUCTURE_CONDITION: StructureConditionPair,
    Part.STRUCTURE_FLOW: StructureFlowPair,
    Part.STRUCTURE_DECODER: StructureDecoderPair,
    Part.LATENT_CONDITION: LatentConditionPair,
    Part.LATENT_FLOW: LatentFlowPair,
    Part.MESH_DECODER: MeshDecoderPair,
    Part.GAUSSIAN_DECODER: GaussianDecoderPair,
}


@dataclass(frozen=True)
class Conditions:
    """What upstream makes of views.

    Attributes:
        structure, latent: Conditions of the two flows, as its samplers take them.
    """

    structure: dict[str, Any]
    latent: dict[str, Any]


class UpstreamPipeline:
    """Upstream's pipeline class with networks that were not read from files.

    Args:
        upstream: Its modules.
        networks: Its networks by part, on the device.
        configurations: Of everything, by name.
        half: Whether VGGT runs under bfloat16 autocast, as upstream has it on CUDA.
    """

    def __init__(
        self,
        upstream: Upstream,
        networks: dict[Part, nn.Module],
        configurations: dict[str, Configuration],
        *,
        half: bool,
    ) -> None:
        self.upstream = upstream
        self.networks = networks
        pipeline = upstream.module("trellis.pipelines").TrellisVGGTTo3DPipeline()
        pipeline.models = {
            str(part): networks[part] for part in PARTS if part not in (Part.VGGT, Part.DINOV2)
        }
        pipeline.models["image_cond_model"] = networks[Part.DINOV2]
        pipeline.VGGT_model = networks[Part.VGGT]
        pipeline.VGGT_dtype = torch.bfloat16 if half else torch.float32
        pipeline.sparse_structure_vggt_cond = networks[Part.STRUCTURE_CONDITION]
        pipeline.slat_vggt_cond = networks[Part.LATENT_CONDITION]
        for part in (Part.STRUCTURE_CONDITION, Part.LATENT_CONDITION):
            networks[part].intermediate_layer_idx = configurations["vggt"]["args"]["layers"]  # type: ignore[assignment]
        pipeline.default_image_resolution = configurations["dinov2"]["args"]["img_size"]
        pipeline.image_cond_model_transform = _normalized
        pipeline.low_vram, pipeline._device = False, upstream.device
        for stage, name in (("sparse_structure", "structure_sampler"), ("slat", "latent_sampler")):
            setattr(pipeline, f"{stage}_sampler", upstream_sampler(upstream, configurations[name]))
            setattr(pipeline, f"{stage}_sampler_params", configurations[name]["params"])
        pipeline.slat_normalization = configurations["latent_normalization"]
        self.pipeline = pipeline

    def geometry(self, images: Tensor) -> list[Tensor]:
        """VGGT's tokens of every layer, [1, V, T, C] each, of images [V, 3, S, S]."""
        tokens: list[Tensor] = self.pipeline.vggt_feat(images)[0]
        return tokens

    def appearance(self, images: Tensor) -> Tensor:
        """DINOv2's tokens, [1, V, T, C], of images [V, 3, S, S]."""
        tokens: Tensor = self.pipeline.encode_image(images)
        return tokens[None]

    def conditions(self, geometry: list[Tensor], appearance: Tensor) -> Conditions:
        """The conditions of both flows."""
        return Conditions(
            self.pipeline.get_ss_cond(appearance[:, :, 5:], geometry, 1),
            self.pipeline.get_slat_cond(appearance, geometry, 1),
        )

    def structure_latent(self, conditions: Conditions, noise: Tensor) -> Tensor:
        """Samples the structure's latent [1, C, R, R, R] from noise of the same shape."""
        pipeline = self.pipeline
        latent: Tensor = pipeline.sparse_structure_sampler.sample(
            self.networks[Part.STRUCTURE_FLOW],
            noise,
            **conditions.structure,
            **pipeline.sparse_structure_sampler_params,
            verbose=False,
        ).samples
        return latent

    def latent(self, conditions: Conditions, coords: Tensor) -> Any:
        """Samples the structured latent of voxels [N, 3], in upstream's sparse tensor."""
        return self.pipeline.sample_slat(conditions.latent, nn.functional.pad(coords, (1, 0)))

    def run(self, images: Tensor, seed: int) -> tuple[dict[str, Any], Tensor]:
        """Upstream's own `run`: what was decoded, and the voxels [N, 3]."""
        decoded, coords, _ = self.pipeline.run(images, seed=seed, formats=["mesh", "gaussian"])
        return decoded, coords[:, 1:]


def build_generator(
    upstream: Upstream, networks: dict[Part, nn.Module], configurations: dict[str, Configuration]
) -> Generator:
    """Our pipeline on networks of ours."""
    statistics = configurations["latent_normalization"]
    normalization = Normalization(tuple(statistics["mean"]), tuple(statistics["std"]))
    named = {str(part): network for part, network in networks.items()}
    return Generator(Networks(named, upstream.device), normalization, upstream.device)


def _normalized(images: Tensor) -> Tensor:
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    return (images - mean) / std
