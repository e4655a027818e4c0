"""The decoders: occupancy from the structure's latent, a mesh and Gaussians from the structured latent."""
# ruff: noqa: D102 (what overrides a method of `Pair` is documented there)

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.parity.cubes import forced_output, shell_cubes
from benchmarks.parity.pair import Outputs, Pair
from benchmarks.voxels import bumpy_shell
from models.reconviagen.gaussian_decoder import GaussianDecoder, GaussianDecoderConfig
from models.reconviagen.mesh_decoder import MeshDecoder, MeshDecoderConfig
from models.reconviagen.structure_decoder import StructureDecoder, StructureDecoderConfig
from models.sparse.grid import SparseGrid

DEGREE_0 = 0.28209479177387814  # the spherical harmonic of degree 0


class StructureDecoderPair(Pair):
    """`SparseStructureDecoder`: logits of occupancy."""

    name = "structure_decoder"

    def theirs(self, *, half: bool) -> nn.Module:
        return self.published("trellis.models.sparse_structure_vae", half=half)

    def ours(self) -> nn.Module:
        return StructureDecoder(StructureDecoderConfig(**self.args))

    def inputs(self) -> dict[str, Tensor]:
        side = self.configurations["structure_flow"]["args"]["resolution"]
        return {"latent": self.random(self.args["latent_channels"], *[side] * 3, seed=8)}

    def run_theirs(self, module: nn.Module, inputs: dict[str, Tensor], *, half: bool) -> Outputs:
        return {"logits": module(inputs["latent"][None])[0, 0]}

    def run_ours(self, module: nn.Module, inputs: dict[str, Tensor]) -> Outputs:
        return {"logits": module(inputs["latent"])}


class _LatentDecoderPair(Pair):
    """Decoders of the structured latent."""

    def theirs(self, *, half: bool) -> nn.Module:
        return self.published("trellis.models.structured_latent_vae", half=half)

    def inputs(self) -> dict[str, Tensor]:
        coords = bumpy_shell(self.args["resolution"], self.upstream.device)
        latent = self.random(len(coords), self.args["latent_channels"], seed=11)
        return {"latent": latent, "coords": coords}

    def grid(self, inputs: dict[str, Tensor]) -> SparseGrid:
        """The voxels of the inputs as ours takes them."""
        return SparseGrid(inputs["coords"], self.args["resolution"])


class MeshDecoderPair(_LatentDecoderPair):
    """`SLatMeshDecoder`: what its last layer says of every cube; `surfaces` compares what comes of it."""

    name = "mesh_decoder"

    def ours(self) -> nn.Module:
        return MeshDecoder(MeshDecoderConfig(**self.args))

    def run_theirs(self, module: nn.Module, inputs: dict[str, Tensor], *, half: bool) -> Outputs:
        with forced_output(module.get_submodule("out_layer"), self.cubes(inputs)) as own:
            module(self.upstream.sparse_tensor(inputs["latent"], inputs["coords"]))
        return {"cubes": own[0].feats}

    def run_ours(self, module: nn.Module, inputs: dict[str, Tensor]) -> Outputs:
        with forced_output(module.get_submodule("out_layer"), self.cubes(inputs)) as own:
            module(inputs["latent"], self.grid(inputs))
        return {"cubes": own[0][0]}

    def cubes(self, inputs: dict[str, Tensor]) -> Tensor:
        """What both extract a surface from instead, [64 N, 101]: random weights say nothing of a surface."""
        fine = self.grid(inputs).subdivided().subdivided()
        return shell_cubes(fine.coords, fine.resolution)


class GaussianDecoderPair(_LatentDecoderPair):
    """`SLatGaussianDecoder`: Gaussians after their activations."""

    name = "gaussian_decoder"

    def ours(self) -> nn.Module:
        return GaussianDecoder(GaussianDecoderConfig(**self.args))

    def run_theirs(self, module: nn.Module, inputs: dict[str, Tensor], *, half: bool) -> Outputs:
        (found,) = module(self.upstream.sparse_tensor(inputs["latent"], inputs["coords"]))
        return {
            "offsets": self.offsets(found.get_xyz, inputs),
            "scales": found.get_scaling,
            "rotations": nn.functional.normalize(found.get_rotation, dim=-1),
            "opacities": found.get_opacity[:, 0],
            "colors": 0.5 + DEGREE_0 * found.get_features[:, 0],
        }

    def run_ours(self, module: nn.Module, inputs: dict[str, Tensor]) -> Outputs:
        found = module(inputs["latent"], self.grid(inputs))
        parts = dict(vars(found))
        return {"offsets": self.offsets(parts.pop("means"), inputs)} | parts

    def offsets(self, means: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Centres [G, 3] from those of their voxels, in voxels: places themselves would hide errors."""
        per_voxel = self.args["representation_config"]["num_gaussians"]
        place = (means + 0.5) * self.args["resolution"]
        return place - inputs["coords"].repeat_interleave(per_voxel, 0) - 0.5
