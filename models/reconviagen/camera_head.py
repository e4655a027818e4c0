"""VGGT's camera head: pose encodings from the views' camera tokens, refined in a few rounds.

Reference: Wang et al., VGGT: Visual Geometry Grounded Transformer, CVPR 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.reconviagen.pose_encoding import ENCODING_SIZE
from models.reconviagen.vit_block import Block, Mlp


@dataclass(frozen=True)
class CameraHeadConfig:
    """Shape of the camera head; the defaults are the published ones."""

    trunk_depth: int = 4  # blocks, run once a round
    num_heads: int = 16
    mlp_ratio: float = 4.0
    rounds: int = 4  # each corrects the encoding of the round before


class CameraHead(nn.Module):
    """Transformer over the views' camera tokens.

    Args:
        config: Shape.
        channels: C of the tokens.
    """

    def __init__(self, config: CameraHeadConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        # Names and order of the parts are the checkpoint's.
        self.trunk = nn.Sequential(
            *(
                Block(channels, config.num_heads, config.mlp_ratio, eps=1e-5)
                for _ in range(config.trunk_depth)
            )
        )
        self.token_norm = nn.LayerNorm(channels)
        self.trunk_norm = nn.LayerNorm(channels)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, ENCODING_SIZE))
        self.embed_pose = nn.Linear(ENCODING_SIZE, channels)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 3 * channels))
        self.pose_branch = Mlp(channels, channels // 2, ENCODING_SIZE)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pose encodings of the last round.

        Args:
            tokens: Camera tokens of the aggregator's last layer [V, C].

        Returns:
            [V, 9]; see `pose_encoding`. Fields of view are not negative.
        """
        tokens = self.token_norm(tokens)[None]  # [1, V, C]
        plain = functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        encoding = tokens.new_zeros(*tokens.shape[:2], ENCODING_SIZE)
        known = self.empty_pose_tokens
        for _ in range(self.config.rounds):
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(known)).chunk(3, -1)
            x = self.trunk(tokens + gate * (plain * (1 + scale) + shift))
            encoding = encoding + self.pose_branch(self.trunk_norm(x))
            known = encoding
        return torch.cat([encoding[..., :7], encoding[..., 7:].relu()], -1)[0]
