"""VGGT: from views without cameras to features, cameras, point maps and depth maps, in one pass.

Attention alternates between the tokens of one view and those of all. The first view is the reference: the
world is its camera's frame, and the order of the others does not matter.

Parameters are named as in the published file `Stable-X/vggt-object-v0-1`. Only the layers that conditions and
heads read are kept.

Reference: Wang et al., VGGT: Visual Geometry Grounded Transformer, CVPR 2025.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from models.geometry.camera import Cameras
from models.layers.precision import MixedPrecision
from models.reconviagen.camera_head import CameraHead, CameraHeadConfig
from models.reconviagen.dense_head import DenseHead, DenseHeadConfig
from models.reconviagen.pose_encoding import cameras_of_encoding
from models.reconviagen.rotary import grid_rotation
from models.reconviagen.vit import VisionTransformer, VitConfig
from models.reconviagen.vit_block import Block, matrix_products

IGNORED_PREFIXES = ("track_head.", "aggregator.patch_embed.mask_token")
"""Beginnings of names in the published file that nothing here has a use for; see also `ignored_prefixes`."""


@dataclass(frozen=True)
class VggtConfig:
    """Shape of VGGT; the defaults are the published ones."""

    patch_embed: VitConfig = field(default_factory=VitConfig)  # also gives channels, patches and registers
    depth: int = 24  # pairs of frame and global blocks
    num_heads: int = 16
    mlp_ratio: float = 4.0
    layers: tuple[int, int, int, int] = (
        4,
        11,
        17,
        23,
    )  # the pairs whose output is kept, ending with the last
    camera_head: CameraHeadConfig = field(default_factory=CameraHeadConfig)
    dense_head: DenseHeadConfig = field(default_factory=DenseHeadConfig)
    with_depth: bool = False  # whether there is a head for depth maps beside that for points


def ignored_prefixes(config: VggtConfig) -> tuple[str, ...]:
    """Beginnings of names in the published file that a network of this shape leaves out."""
    return IGNORED_PREFIXES if config.with_depth else (*IGNORED_PREFIXES, "depth_head.")


@dataclass(frozen=True)
class VggtFeatures:
    """What the aggregator says of V images.

    Attributes:
        layers: Four layers [V, T, 2C] float32, T = `patch_start` + P: tokens behind the frame block, then
            behind the global block. Token 0 is the camera's, then registers, then the patches row by row.
        patch_start: Number of tokens before the patches.
        height, width: Size of the images, pixels.
        patch_size: Side of a patch, pixels.
    """

    layers: tuple[Tensor, ...]
    patch_start: int
    height: int
    width: int
    patch_size: int

    def patches(self) -> tuple[Tensor, ...]:
        """The layers without the special tokens, [V, P, 2C] each."""
        return tuple(layer[:, self.patch_start :] for layer in self.layers)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        return self.height // self.patch_size, self.width // self.patch_size


class Vggt(MixedPrecision):
    """Aggregator and heads.

    Only the aggregator's matrix products may be in half precision: the heads, which make up little of the
    work and give lengths and angles, are float32.
    """

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        channels = 2 * config.patch_embed.embed_dim
        self.aggregator = Aggregator(config)
        self.camera_head = CameraHead(config.camera_head, channels)
        self.point_head = DenseHead(config.dense_head, channels, outputs=4)
        if config.with_depth:
            self.depth_head = DenseHead(config.dense_head, channels, outputs=2)

    def torso(self) -> list[nn.Module]:
        """What may be in half precision beside the patch embedding."""
        return matrix_products(self.aggregator.frame_blocks, self.aggregator.global_blocks)

    def to_precision(self, dtype: torch.dtype) -> Self:
        """Hold the aggregator's matrix products in float32, float16 or bfloat16."""
        self.aggregator.patch_embed.to_precision(dtype)
        return super().to_precision(dtype)

    def features(self, images: Tensor) -> VggtFeatures:
        """Features of V images of one object, the first of them the reference.

        Args:
            images: [V, 3, H, W], sRGB in [0, 1]; sides are multiples of the patch size.

        Raises:
            ValueError: the images have another shape.
        """
        features: VggtFeatures = self.aggregator(images)
        return features

    def cameras(self, features: VggtFeatures) -> Cameras:
        """The V images' cameras, in the world of the first and in the network's unit of length.

        Raises:
            ModelError: CAMERA_ESTIMATION_FAILED.
        """
        encoding = self.camera_head(features.layers[-1][:, 0])
        return cameras_of_encoding(encoding, features.width, features.height)

    def points(self, features: VggtFeatures) -> tuple[Tensor, Tensor]:
        """What each pixel shows: points [V, H, W, 3] and confidences [V, H, W], 1 or more.

        Points are in the world of `cameras`: the first camera's frame, axes x right, y down, z forward.
        """
        raw = self._dense(self.point_head, features)
        # Inverse of the logarithm that the network was trained to predict: sign(y) (exp|y| - 1).
        return raw[..., :3].sign() * raw[..., :3].abs().expm1(), 1 + raw[..., 3].exp()

    def depths(self, features: VggtFeatures) -> tuple[Tensor, Tensor]:
        """Depth maps [V, H, W] along the viewing axis and confidences [V, H, W], 1 or more.

        Raises:
            AttributeError: the network was built without that head.
        """
        raw = self._dense(self.depth_head, features)
        return raw[..., 0].exp(), 1 + raw[..., 1].exp()

    @staticmethod
    def _dense(head: DenseHead, features: VggtFeatures) -> Tensor:
        raw: Tensor = head(features.patches(), features.grid, (features.height, features.width))
        return raw


class Aggregator(nn.Module):
    """DINOv2's patch tokens, a camera token and registers, through pairs of frame and global attention."""

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        if config.layers[-1] != config.depth - 1:
            raise ValueError(f"the last of the layers {config.layers} must be the last of {config.depth}")
        vit = config.patch_embed
        self.config = config
        self.patch_embed = VisionTransformer(vit)
        self.frame_blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.global_blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        # Two of each: for the reference view, and for the others.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, vit.embed_dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, vit.num_register_tokens, vit.embed_dim))

    def forward(self, images: Tensor) -> VggtFeatures:
        """See `Vggt.features`."""
        vit = self.config.patch_embed
        patches = self.patch_embed.patch_tokens(images)  # [V, P, C]
        special = torch.cat([self.camera_token, self.register_token], 2)[0]  # [2, 1 + R, C]
        others = special[1:].expand(len(images) - 1, -1, -1)
        tokens = torch.cat([torch.cat([special[:1], others]), patches], 1)  # [V, T, C]
        height, width = images.shape[-2:]
        rotation = grid_rotation(
            height // vit.patch_size,
            width // vit.patch_size,
            special=vit.special_tokens,
            head_dim=vit.embed_dim // self.config.num_heads,
            device=images.device,
        )
        kept = []
        for index, (frame_block, global_block) in enumerate(
            zip(self.frame_blocks, self.global_blocks, strict=True)
        ):
            within = frame_block(tokens, rotation)
            tokens = global_block(within, rotation, joint=True)
            if index in self.config.layers:
                kept.append(torch.cat([within, tokens], -1))
        return VggtFeatures(tuple(kept), vit.special_tokens, height, width, vit.patch_size)


def _block(config: VggtConfig) -> Block:
    return Block(config.patch_embed.embed_dim, config.num_heads, config.mlp_ratio, eps=1e-5, qk_norm=True)
