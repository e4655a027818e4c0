"""From the structured latent to 3D Gaussians (TRELLIS, Xiang et al., 2024, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.reconviagen.gaussians import Gaussians
from models.reconviagen.sparse_transformer import LatentDecoderConfig, SparseTransformer
from models.sparse.grid import SparseGrid

_DEGREE_0 = 0.5 / math.sqrt(math.pi)  # the spherical harmonic of degree 0
_PARTS = {"_xyz": 3, "_features_dc": 3, "_scaling": 3, "_rotation": 4, "_opacity": 1}
"""Numbers of one Gaussian, in the order of the output channels; a part holds a voxel's Gaussians in a row."""

_ENTRIES = (
    *("lr", "perturb_offset", "voxel_size", "num_gaussians", "3d_filter_kernel_size"),
    *("scaling_bias", "opacity_bias", "scaling_activation"),
)


@dataclass(frozen=True)
class GaussianRepresentation:
    """What the decoder's output means.

    Attributes:
        lr: Factor on each part of the output.
        voxel_size: How far a Gaussian's centre may lie from its voxel's: half of this many voxels.
        num_gaussians: Gaussians of each voxel.
        smallest_scale: Standard deviations are no smaller, model units.
        scaling_bias: Standard deviation where the output is 0, before that bound.
        opacity_bias: Opacity where the output is 0.
    """

    lr: Mapping[str, float]
    voxel_size: float
    num_gaussians: int
    smallest_scale: float
    scaling_bias: float
    opacity_bias: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> GaussianRepresentation:
        """From the published `representation_config`.

        Raises:
            ValueError: an entry is missing, or the variant was never published.
        """
        missing = [name for name in _ENTRIES if name not in config] or [
            part for part in _PARTS if part not in config["lr"]
        ]
        if missing:
            raise ValueError(f"representation_config lacks {', '.join(missing)}")
        for name, value in (("perturb_offset", True), ("scaling_activation", "softplus")):
            if config[name] != value:
                raise ValueError(f"representation_config: {name} must be {value!r}, got {config[name]!r}")
        return cls(
            lr={part: config["lr"][part] for part in _PARTS},
            voxel_size=config["voxel_size"],
            num_gaussians=config["num_gaussians"],
            smallest_scale=config["3d_filter_kernel_size"],
            scaling_bias=config["scaling_bias"],
            opacity_bias=config["opacity_bias"],
        )


@dataclass(frozen=True)
class GaussianDecoderConfig(LatentDecoderConfig):
    """Arguments of the published `SLatGaussianDecoder`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        GaussianRepresentation.of(self.representation_config)

    @property
    def representation(self) -> GaussianRepresentation:
        """What the decoder's output means."""
        return GaussianRepresentation.of(self.representation_config)


class GaussianDecoder(SparseTransformer):
    """Some Gaussians for every voxel of the latent."""

    def __init__(self, config: GaussianDecoderConfig) -> None:
        super().__init__(config)
        self.representation = config.representation
        number = self.representation.num_gaussians
        self.out_layer = nn.Linear(config.model_channels, number * sum(_PARTS.values()))
        # In the published checkpoint, hence a buffer that is saved.
        self.register_buffer("offset_perturbation", _perturbation(number, self.representation.voxel_size))

    def forward(self, latent: Tensor, grid: SparseGrid) -> Gaussians:
        """Decode; differentiable with respect to the latent.

        Args:
            latent: [N, latent_channels], float32, over `grid`, not normalised.
            grid: N voxels of a grid of `resolution`, which spans [-0.5, 0.5]^3.

        Returns:
            N times `num_gaussians` Gaussians in float32, those of a voxel in a row.
        """
        h = self.features(latent, grid).float()
        return self._activate(self.out_layer(F.layer_norm(h, h.shape[-1:]))[0], grid)

    def _activate(self, output: Tensor, grid: SparseGrid) -> Gaussians:
        """Parameters of the Gaussians from output channels [N, 14 num_gaussians]."""
        rep = self.representation
        ends = accumulate(rep.num_gaussians * width for width in _PARTS.values())
        parts = {
            name: channels.unflatten(1, (rep.num_gaussians, _PARTS[name])) * rep.lr[name]
            for name, channels in zip(_PARTS, output.tensor_split(list(ends)[:-1], 1), strict=True)
        }
        centres = (grid.coords + 0.5) / grid.resolution - 0.5  # [N, 3]
        reach = 0.5 * rep.voxel_size / grid.resolution
        means = centres[:, None] + torch.tanh(parts["_xyz"] + self.offset_perturbation) * reach
        scales = F.softplus(parts["_scaling"] + math.log(math.expm1(rep.scaling_bias)))
        identity = output.new_tensor([1.0, 0.0, 0.0, 0.0])
        return Gaussians(
            means=means.flatten(0, 1),
            scales=torch.sqrt(scales**2 + rep.smallest_scale**2).flatten(0, 1),
            rotations=F.normalize(parts["_rotation"] + identity, dim=-1).flatten(0, 1),
            opacities=torch.sigmoid(parts["_opacity"] + _logit(rep.opacity_bias)).flatten(),
            colors=(0.5 + _DEGREE_0 * parts["_features_dc"]).flatten(0, 1),
        )


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _perturbation(number: int, voxel_size: float) -> Tensor:
    """Offsets [number, 3] before `tanh` that spread a voxel's Gaussians evenly: a Hammersley sequence."""
    points = [[i / number, _radical_inverse(2, i), _radical_inverse(3, i)] for i in range(number)]
    return torch.atanh((torch.tensor(points) * 2 - 1) / voxel_size)


def _radical_inverse(base: int, number: int) -> float:
    """The digits of `number` mirrored about the point."""
    value, digit = 0.0, 1.0
    while number:
        digit /= base
        value += number % base * digit
        number //= base
    return value
