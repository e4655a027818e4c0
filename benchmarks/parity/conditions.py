"""The networks that fuse what all views show into the flows' conditions."""
# ruff: noqa: D102 (what overrides a method of `Pair` is documented there)

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from benchmarks.parity.pair import SPECIAL, Outputs, Pair
from models.reconviagen.conditioning import (
    LatentCondition,
    LatentConditionConfig,
    StructureCondition,
    StructureConditionConfig,
)

GEOMETRY, APPEARANCE = 2048, 1024  # channels, written out in upstream's code


class _Condition(Pair):
    """Upstream runs both in float32; ours is compared with that in half precision too."""

    def inputs(self) -> dict[str, Tensor]:
        shape = (self.scene.views, self.tokens)
        return {
            "geometry": self.random(4, *shape, GEOMETRY, seed=4),
            "appearance": self.random(*shape, APPEARANCE, seed=5),
        }

    def run_ours(self, module: nn.Module, inputs: dict[str, Tensor]) -> Outputs:
        return {"condition": module(tuple(inputs["geometry"]), inputs["appearance"])}

    @staticmethod
    def every_layer(module: Any, geometry: Tensor) -> list[Tensor]:
        """The four layers [V, T, C] at their places in the list of all of the aggregator's, [1, V, T, C]."""
        layers = dict(zip(module.intermediate_layer_idx, geometry[:, None], strict=True))
        return [layers.get(index, geometry[:1]) for index in range(max(layers) + 1)]


class StructureConditionPair(_Condition):
    """`ModulatedMultiViewCond`: learned tokens that attend to all views' patches."""

    name = "structure_condition"

    def theirs(self, *, half: bool) -> nn.Module:
        return self.published("trellis.models.sparse_structure_flow", half=half)

    def ours(self) -> nn.Module:
        return StructureCondition(StructureConditionConfig(**self.args))

    def run_theirs(self, module: nn.Module, inputs: dict[str, Tensor], *, half: bool) -> Outputs:
        appearance = inputs["appearance"][None, :, SPECIAL:]
        return {"condition": module(self.every_layer(module, inputs["geometry"]), appearance)[0]}


class LatentConditionPair(_Condition):
    """`ModulatedSLATMultiViewCond`: a correction of each view's tokens."""

    name = "latent_condition"

    def theirs(self, *, half: bool) -> nn.Module:
        return self.published("trellis.models.structured_latent_flow", half=half)

    def ours(self) -> nn.Module:
        return LatentCondition(LatentConditionConfig(**self.args))

    def run_theirs(self, module: nn.Module, inputs: dict[str, Tensor], *, half: bool) -> Outputs:
        appearance = inputs["appearance"][None]
        return {"condition": module(self.every_layer(module, inputs["geometry"]), appearance)}
