"""DINOv2's vision transformer with registers: the image encoder, and the patch embedding of VGGT.

References: Oquab et al., DINOv2, TMLR 2024; Darcet et al., Vision Transformers Need Registers, ICLR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers.precision import MixedPrecision
from models.reconviagen.vit_block import Block, matrix_products

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""Of ImageNet, sRGB in [0, 1]: what the network's input is normalised with."""

IGNORED_PREFIXES = ("mask_token", "embeddings.mask_token")
"""Beginnings of names in the published files that inference has no use for."""

HUGGING_FACE_NAMES: tuple[tuple[str, str], ...] = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "register_tokens"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.", r"blocks.\1.\2."),
    (r"layernorm\.", "norm."),
)
"""Names in `facebook/dinov2-with-registers-large` as expressions that match from a name's start, and ours.

Queries, keys and values are missing here: they are joined (`HUGGING_FACE_JOINED`)."""

HUGGING_FACE_JOINED: tuple[tuple[tuple[str, str, str], str], ...] = (
    (
        (
            r"encoder\.layer\.(\d+)\.attention\.attention\.query\.",
            r"encoder\.layer\.(\d+)\.attention\.attention\.key\.",
            r"encoder\.layer\.(\d+)\.attention\.attention\.value\.",
        ),
        r"blocks.\1.attn.qkv.",
    ),
)
"""Published parameters that are one of ours, in this order along their first dimension."""


@dataclass(frozen=True)
class VitConfig:
    """Shape of a vision transformer; the defaults are ViT-L/14 with four registers."""

    img_size: int = 518  # pixels a side that the position embedding was made for
    patch_size: int = 14  # pixels a side
    embed_dim: int = 1024
    depth: int = 24  # blocks
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_register_tokens: int = 4

    @property
    def special_tokens(self) -> int:
        """Number of tokens before those of the patches: the class token and the registers."""
        return 1 + self.num_register_tokens


class VisionTransformer(MixedPrecision):
    """Images to tokens.

    Only matrix products and convolutions may be in half precision; tokens are float32.
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        channels, grid = config.embed_dim, config.img_size // config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, channels))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, channels))
        self.patch_embed = PatchEmbedding(config.patch_size, channels)
        self.blocks = nn.ModuleList(
            Block(channels, config.num_heads, config.mlp_ratio, eps=1e-6) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def torso(self) -> list[nn.Module]:
        """What may be in half precision."""
        return matrix_products(self)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens before the last norm.

        Args:
            images: [V, 3, H, W], sRGB in [0, 1]; sides are multiples of the patch size.

        Returns:
            [V, 1 + R + P, C] float32: class token, R registers, P patches row by row.

        Raises:
            ValueError: the sides are not multiples of the patch size.
        """
        tokens = self._embedded(images)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def encode(self, images: Tensor) -> Tensor:
        """Tokens as the flows' conditions take them: normalised, but not by the network's own last norm.

        Args and Raises: as `forward`.

        Returns:
            [V, 1 + R + P, C] float32, each token with mean 0 and variance 1.
        """
        tokens = self(images)
        return functional.layer_norm(tokens, tokens.shape[-1:])

    def patch_tokens(self, images: Tensor) -> Tensor:
        """The patches' tokens behind the last norm, [V, P, C] float32. Args and Raises: as `forward`."""
        patches: Tensor = self.norm(self(images)[:, self.config.special_tokens :])
        return patches

    def _embedded(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [V, 3, H, W], not {tuple(images.shape)}")
        views, _, height, width = images.shape
        size = self.config.patch_size
        if height % size or width % size:
            raise ValueError(f"images of {width} x {height} pixels are not whole patches of {size} pixels")
        position = self._positions(height // size, width // size)  # [1, 1 + P, C]
        patches = self.patch_embed(normalized(images)).float() + position[:, 1:]
        first = (self.cls_token + position[:, :1]).expand(views, -1, -1)
        return torch.cat([first, self.register_tokens.expand(views, -1, -1), patches], 1)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position embedding [1, 1 + rows columns, C] of another grid than the trained one: interpolated."""
        trained = self.config.img_size // self.config.patch_size
        if (rows, columns) == (trained, trained):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (trained, trained)).permute(0, 3, 1, 2)
        grid = functional.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)


class PatchEmbedding(nn.Module):
    """A linear map of each patch's pixels."""

    def __init__(self, patch_size: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[V, 3, H, W] to [V, P, C], patches row by row, in the dtype of the weights."""
        patches: Tensor = self.proj(images.to(self.proj.weight.dtype))
        return patches.flatten(2).transpose(1, 2)


def normalized(images: Tensor) -> Tensor:
    """Images [V, 3, H, W] in [0, 1] with ImageNet's mean and deviation taken out."""
    # Made here, not kept as buffers: a network built on the meta device has no values for what no file holds.
    mean = torch.tensor(IMAGE_MEAN, device=images.device)[:, None, None]
    std = torch.tensor(IMAGE_STD, device=images.device)[:, None, None]
    return (images - mean) / std
