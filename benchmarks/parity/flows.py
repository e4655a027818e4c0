"""The two flows: velocities of the structure's latent and of the structured latent."""
# ruff: noqa: D102 (what overrides a method of `Pair` is documented there)

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.parity.pair import Outputs, Pair
from benchmarks.voxels import bumpy_shell
from models.reconviagen.latent_flow import LatentFlow, LatentFlowConfig
from models.reconviagen.structure_flow import StructureFlow, StructureFlowConfig
from models.sparse.grid import SparseGrid

TIME = 0.7


class StructureFlowPair(Pair):
    """`SparseStructureFlowModel`, on the latent of a dense grid."""

    name = "structure_flow"

    def theirs(self, *, half: bool) -> nn.Module:
        return self.published("trellis.models.sparse_structure_flow", half=half)

    def ours(self) -> nn.Module:
        return StructureFlow(StructureFlowConfig(**self.args))

    def inputs(self) -> dict[str, Tensor]:
        tokens = self.configurations["structure_condition"]["args"]["num_init_tokens"]
        return {
            "x": self.random(self.args["in_channels"], *[self.args["resolution"]] * 3, seed=6),
            "tokens": self.random(tokens, self.args["cond_channels"], seed=7),
        }

    def run_theirs(self, module: nn.Module, inputs: dict[str, Tensor], *, half: bool) -> Outputs:
        x, tokens = inputs["x"][None], inputs["tokens"][None]
        t = torch.tensor([1000 * TIME], device=x.device)
        return {
            "conditional": module(x, t, tokens)[0],
            "unconditional": module(x, t, torch.zeros_like(tokens))[0],
        }

    def run_ours(self, module: nn.Module, inputs: dict[str, Tensor]) -> Outputs:
        assert isinstance(module, StructureFlow)
        return _both(module.bind(inputs["tokens"])(inputs["x"], TIME, unconditional=True))


class LatentFlowPair(Pair):
    """`SLatFlowModel`, on the voxels of one object."""

    name = "latent_flow"

    def theirs(self, *, half: bool) -> nn.Module:
        return self.published("trellis.models.structured_latent_flow", half=half)

    def ours(self) -> nn.Module:
        return LatentFlow(LatentFlowConfig(**self.args))

    def inputs(self) -> dict[str, Tensor]:
        coords = bumpy_shell(self.args["resolution"], self.upstream.device)
        return {
            "x": self.random(len(coords), self.args["in_channels"], seed=9),
            "tokens": self.random(self.scene.views, self.tokens, self.args["cond_channels"], seed=10),
            "coords": coords,
        }

    def run_theirs(self, module: nn.Module, inputs: dict[str, Tensor], *, half: bool) -> Outputs:
        x = self.upstream.sparse_tensor(inputs["x"], inputs["coords"])
        t = torch.tensor([1000 * TIME], device=inputs["x"].device)
        views = list(inputs["tokens"].split(1))
        return {
            "conditional": module(x, t, views).feats,
            "unconditional": module(x, t, [torch.zeros_like(view) for view in views]).feats,
        }

    def run_ours(self, module: nn.Module, inputs: dict[str, Tensor]) -> Outputs:
        assert isinstance(module, LatentFlow)
        grid = SparseGrid(inputs["coords"], self.args["resolution"])
        return _both(module.bind(inputs["tokens"], grid)(inputs["x"], TIME, unconditional=True))


def _both(velocities: tuple[Tensor, Tensor | None]) -> Outputs:
    conditional, unconditional = velocities
    assert unconditional is not None
    return {"conditional": conditional, "unconditional": unconditional}
