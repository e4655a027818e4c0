"""Published checkpoints of ReconViaGen: what `pipeline.json` says, and the networks, one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import nn

from models.reconviagen import renaming
from models.reconviagen.conditioning import (
    LatentCondition,
    LatentConditionConfig,
    StructureCondition,
    StructureConditionConfig,
)
from models.reconviagen.gaussian_decoder import GaussianDecoder, GaussianDecoderConfig
from models.reconviagen.latent_flow import LatentFlow, LatentFlowConfig
from models.reconviagen.mesh_decoder import MeshDecoder, MeshDecoderConfig
from models.reconviagen.renaming import Renaming
from models.reconviagen.sampler import SamplerConfig
from models.reconviagen.strict_loading import build, fill
from models.reconviagen.structure_decoder import StructureDecoder, StructureDecoderConfig
from models.reconviagen.structure_flow import StructureFlow, StructureFlowConfig
from models.reconviagen.tensor_files import open_tensors
from models.reconviagen.vggt import Vggt, VggtConfig
from models.reconviagen.vit import VisionTransformer, VitConfig
from models.reconviagen.weights_folder import DINOV2, TRELLIS, VGGT, inside, invalid_weights, read_json
from schemas.base import Finite


class Part(StrEnum):
    """The networks, by their names in `pipeline.json`, and the two that it presupposes."""

    VGGT = "vggt"
    DINOV2 = "dinov2"
    STRUCTURE_CONDITION = "sparse_structure_vggt_cond"
    STRUCTURE_FLOW = "sparse_structure_flow_model"
    STRUCTURE_DECODER = "sparse_structure_decoder"
    LATENT_CONDITION = "slat_vggt_cond"
    LATENT_FLOW = "slat_flow_model"
    MESH_DECODER = "slat_decoder_mesh"
    GAUSSIAN_DECODER = "slat_decoder_gs"


class Kind(NamedTuple):
    """A class of networks, and of what its arguments are."""

    network: Callable[[Any], nn.Module]
    config: type[Any]


KINDS: Mapping[Part, tuple[str, Kind]] = {
    Part.STRUCTURE_CONDITION: (
        "ModulatedMultiViewCond",
        Kind(StructureCondition, StructureConditionConfig),
    ),
    Part.STRUCTURE_FLOW: ("SparseStructureFlowModel", Kind(StructureFlow, StructureFlowConfig)),
    Part.STRUCTURE_DECODER: ("SparseStructureDecoder", Kind(StructureDecoder, StructureDecoderConfig)),
    Part.LATENT_CONDITION: ("ModulatedSLATMultiViewCond", Kind(LatentCondition, LatentConditionConfig)),
    Part.LATENT_FLOW: ("SLatFlowModel", Kind(LatentFlow, LatentFlowConfig)),
    Part.MESH_DECODER: ("SLatMeshDecoder", Kind(MeshDecoder, MeshDecoderConfig)),
    Part.GAUSSIAN_DECODER: ("SLatGaussianDecoder", Kind(GaussianDecoder, GaussianDecoderConfig)),
}
"""For each network of `pipeline.json` its published class, the only one that may stand there, and ours."""

DINOV2_ARGUMENTS: Mapping[str, str] = {
    "image_size": "img_size",
    "patch_size": "patch_size",
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "num_register_tokens": "num_register_tokens",
}
"""Hugging Face's names of a vision transformer's arguments, and ours."""

DINOV2_FIXED: Mapping[str, object] = {
    "model_type": "dinov2_with_registers",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
"""Arguments that only one value is built for, where the file has them; the rest of it is about training."""

IMAGE_ENCODER = "dinov2_vitl14_reg"
"""The image encoder that the networks were trained with: `facebook/dinov2-with-registers-large`."""


# --- pipeline.json. Keys beside these are for other ways to use the networks.


class _Known(BaseModel):
    """Keys that decide what is computed: unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _SamplerArguments(_Known):
    sigma_min: Finite = Field(gt=0, lt=1)


class _SamplerParameters(_Known):
    steps: int = Field(50, ge=1, le=1000)
    cfg_strength: Finite = 3.0
    cfg_interval: tuple[Finite, Finite] = (0.0, 1.0)
    rescale_t: Finite = Field(1.0, gt=0)
    guidance_rescale: Finite = Field(0.0, ge=0, le=1)


class _Sampler(_Known):
    name: str = Field(pattern="^FlowEulerGuidanceIntervalSampler$")
    args: _SamplerArguments
    params: _SamplerParameters

    def config(self) -> SamplerConfig:
        return SamplerConfig(
            steps=self.params.steps,
            guidance=self.params.cfg_strength,
            interval=self.params.cfg_interval,
            rescale_t=self.params.rescale_t,
            rescale=self.params.guidance_rescale,
            sigma_min=self.args.sigma_min,
        )


class _Statistics(_Known):
    mean: list[Finite] = Field(min_length=1)
    std: list[Finite] = Field(min_length=1)


class _Arguments(BaseModel):
    models: dict[str, str]
    sparse_structure_sampler: _Sampler
    slat_sampler: _Sampler
    slat_normalization: _Statistics
    image_cond_model: str = Field(pattern=f"^{IMAGE_ENCODER}$")


class _Pipeline(BaseModel):
    args: _Arguments


# --- What others use


@dataclass(frozen=True)
class Normalization:
    """Statistics of the structured latent: flows work on `(latent - mean) / std`.

    Attributes:
        mean, std: One number a channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The published networks and how they are meant to be sampled. Made by `Checkpoint.read`.

    Attributes:
        root: The folder of weights.
        structure_sampler: Of the sparse structure.
        latent_sampler: Of the structured latent.
        normalization: Of the structured latent.
        stems: Paths of the networks' files below the folder of weights, without suffix.
    """

    root: Path
    structure_sampler: SamplerConfig
    latent_sampler: SamplerConfig
    normalization: Normalization
    stems: Mapping[Part, str]

    @classmethod
    def read(cls, root: Path) -> Checkpoint:
        """Read what `pipeline.json` says; the networks' own files are not touched.

        Args:
            root: The folder of weights, laid out as `models/reconviagen/weights_folder.py` says.

        Raises:
            ModelError: MODEL_WEIGHTS_MISSING, MODEL_WEIGHTS_INVALID.
        """
        file = f"{TRELLIS}/pipeline.json"
        arguments = _validated(TypeAdapter(_Pipeline), read_json(root, file), file).args
        statistics = arguments.slat_normalization
        if len(statistics.mean) != len(statistics.std) or min(statistics.std) <= 0:
            raise invalid_weights(file, "has no usable slat_normalization", "each channel's std is positive")
        return cls(
            root,
            arguments.sparse_structure_sampler.config(),
            arguments.slat_sampler.config(),
            Normalization(tuple(statistics.mean), tuple(statistics.std)),
            _stems(file, arguments.models),
        )

    def load(self, part: Part, precision: torch.dtype = torch.float32) -> nn.Module:
        """Build one network and fill it with its weights, on the CPU.

        Args:
            part: Which.
            precision: Of what multiplies matrices: float32, float16, bfloat16. The rest is float32.

        Returns:
            The network, in evaluation mode, without gradients.

        Raises:
            ModelError: MODEL_WEIGHTS_MISSING; MODEL_WEIGHTS_INVALID, naming what is missing, unexpected,
                misshapen or unknown.
        """
        kind, config, names = self._described(part)
        try:
            network = build(lambda: kind.network(config), precision)
        except (KeyError, TypeError, ValueError) as error:
            problem = f"describes a network that cannot be built: {error!r}"
            raise invalid_weights(self._description(part), problem, "published variants are built") from error
        with open_tensors(self.root, self.stems[part]) as tensors:
            fill(network, tensors, names)
        return network

    def _described(self, part: Part) -> tuple[Kind, Any, Renaming]:
        if part is Part.VGGT:
            config = _vggt_config(self.root)
            return Kind(Vggt, VggtConfig), config, renaming.of_vggt(config)
        if part is Part.DINOV2:
            return Kind(VisionTransformer, VitConfig), _dinov2_config(self.root), renaming.DINOV2
        name, kind = KINDS[part]
        file = self._description(part)
        described = read_json(self.root, file)
        if described.get("name") != name:
            raise invalid_weights(
                file, f"names the class {described.get('name')!r}", f"{part} is a published {name}"
            )
        return kind, _configured(kind.config, described.get("args"), file), renaming.SAME

    def _description(self, part: Part) -> str:
        """The JSON file that says what a network's arguments are."""
        if part in KINDS:
            return f"{self.stems[part]}.json"
        return str(PurePosixPath(self.stems[part]).with_name("config.json"))


def _stems(file: str, models: Mapping[str, str]) -> dict[Part, str]:
    stems = {Part.VGGT: f"{VGGT}/model", Part.DINOV2: f"{DINOV2}/model"}
    for part in KINDS:
        if part not in models:
            raise invalid_weights(file, f"names no {part}", "a checkpoint has all networks")
        stems[part] = str(PurePosixPath(TRELLIS) / inside(file, models[part]))
    return stems


def _vggt_config(root: Path) -> VggtConfig:
    """Of VGGT: published are image size, patch size and width; other shapes name what differs besides."""
    file = f"{VGGT}/config.json"
    arguments = read_json(root, file)
    embedding = arguments.pop("patch_embed", {})
    for name in ("img_size", "patch_size", "embed_dim"):
        if name in arguments and isinstance(embedding, dict):
            embedding[name] = arguments.pop(name)
    patch_embed = _configured(VitConfig, embedding, file)
    return _configured(VggtConfig, {**arguments, "patch_embed": vars(patch_embed)}, file)


def _dinov2_config(root: Path) -> VitConfig:
    file = f"{DINOV2}/config.json"
    arguments = read_json(root, file)
    for name, value in DINOV2_FIXED.items():
        if arguments.get(name, value) != value:
            raise invalid_weights(file, f"has {name} {arguments[name]!r}", f"only {value!r} is built")
    ours = {ours: arguments[name] for name, ours in DINOV2_ARGUMENTS.items() if name in arguments}
    return _configured(VitConfig, ours, file)


def _configured(config: type[Any], arguments: object, file: str) -> Any:
    """A network's configuration from JSON: every argument is known, of its type, and one that is built."""
    if not isinstance(arguments, dict):
        raise invalid_weights(file, "has no args", "a network's arguments are a JSON object")
    unknown = sorted(arguments.keys() - {field.name for field in fields(config)})
    if unknown:
        raise invalid_weights(
            file, f"has unknown arguments: {', '.join(unknown)}", "every argument of a network is known"
        )
    return _validated(TypeAdapter(config), arguments, file)


def _validated(adapter: TypeAdapter[Any], value: object, file: str) -> Any:
    try:
        return adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "a value"
        raise invalid_weights(file, f"cannot be used: {place}: {first['msg']}", "published values") from error
