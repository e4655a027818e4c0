"""The flow transformer of the first stage: velocities of a dense latent that says where the object is.

Method: TRELLIS (Xiang et al., 2024, sections 3.3 and 4.1), conditioned as ReconViaGen (2025) does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.embedding import TimestepEmbedder, absolute_position_embedding
from models.layers.precision import MixedPrecision
from models.layers.transformer import Context, ModulatedCrossBlock
from models.reconviagen.flow_config import FlowConfig
from models.reconviagen.published import require


@dataclass(frozen=True, kw_only=True)
class StructureFlowConfig(FlowConfig):
    """Arguments of the published `SparseStructureFlowModel`.

    Attributes:
        patch_size: Voxels of a token along each axis: 1.
    """

    patch_size: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, patch_size=1)


class StructureFlow(MixedPrecision):
    """A transformer whose tokens are the voxels of the latent, in float32 outside of its blocks."""

    def __init__(self, config: StructureFlowConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.model_channels
        self.t_embedder = TimestepEmbedder(channels)
        axis = torch.arange(config.resolution)
        places = torch.cartesian_prod(axis, axis, axis)
        # In the published checkpoint, hence a buffer that is saved.
        self.register_buffer("pos_emb", absolute_position_embedding(places, channels))
        self.input_layer = nn.Linear(config.in_channels, channels)
        self.blocks = nn.ModuleList(ModulatedCrossBlock(config.block) for _ in range(config.num_blocks))
        self.out_layer = nn.Linear(channels, config.out_channels)

    def torso(self) -> Iterable[nn.Module]:
        """The blocks."""
        return self.blocks

    def bind(self, tokens: Tensor) -> BoundStructureFlow:
        """The velocity under one condition, whose keys and values are computed here, once.

        Args:
            tokens: The condition, [S, cond_channels].
        """
        tokens = tokens.to(self.dtype)[None]
        blocks = cast("Iterable[ModulatedCrossBlock]", self.blocks)
        return BoundStructureFlow(self, [block.cross_attn.bind(tokens) for block in blocks])

    def forward(self, x: Tensor, t: float, contexts: list[Context], rows: int) -> Tensor:
        """Velocities [rows, C, R, R, R] of a latent: with the condition, and then without it.

        Args:
            x: The noisy latent, [C, R, R, R].
            t: Time, from 1 (noise) to 0.
            contexts: The condition of each block.
            rows: 1 or 2.
        """
        tokens = self.input_layer(x.flatten(1).T) + self.pos_emb  # [R^3, model_channels]
        embedding = self.t_embedder(1000 * t).to(self.dtype)
        tokens = tokens.to(self.dtype).expand(rows, -1, -1)
        for block, context in zip(self.blocks, contexts, strict=True):
            tokens = block(tokens, embedding, context)
        tokens = F.layer_norm(tokens.float(), tokens.shape[-1:])
        velocities: Tensor = self.out_layer(tokens).mT.reshape(rows, *x.shape)
        return velocities


class BoundStructureFlow:
    """The velocity of the structure's latent under one condition.

    Args:
        flow: The network.
        contexts: Its condition, for each block.
    """

    def __init__(self, flow: StructureFlow, contexts: list[Context]) -> None:
        self._flow = flow
        self._contexts = contexts

    def __call__(self, x: Tensor, t: float, *, unconditional: bool) -> tuple[Tensor, Tensor | None]:
        """Velocity of `x` [C, R, R, R] at time `t` in [0, 1]; if asked for, also without the condition."""
        rows = self._flow(x, t, self._contexts, 2 if unconditional else 1)
        return rows[0], rows[1] if unconditional else None
