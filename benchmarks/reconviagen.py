"""Time and memory of ReconViaGen's stages, ours next to upstream's code, on random weights.

Every network has its published size. Upstream runs as its own pipeline does (VGGT under bfloat16 autocast,
DINOv2 and the conditions in float32, the rest in float16), from checkouts given by argument; packages that it
needs and that are missing have stand-ins, and the report says which. Of the sampled structure only the time
counts: both go on with the voxels of a bumpy sphere, and its distances take the place of the decoded ones, so
that both have the work of a real object. Prints each stage's median time and the memory's peak.

    python -m benchmarks.reconviagen --upstream ReconViaGen --dinov2 dinov2
    python -m benchmarks.reconviagen --upstream ReconViaGen --dinov2 dinov2 --views 6 16 --profile profile.txt
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.parity.arguments import add_shared, parse, positive
from benchmarks.parity.configurations import Size, load_configurations
from benchmarks.parity.cubes import shell_distances
from benchmarks.parity.pipelines import PARTS, Conditions, UpstreamPipeline
from benchmarks.parity.samplers import sampler_config
from benchmarks.parity.standins import NOT_CALLED
from benchmarks.parity.upstream import Upstream, load_upstream
from benchmarks.parity.weights import randomize
from benchmarks.voxels import bumpy_shell
from models.reconviagen.checkpoint import Part
from models.reconviagen.conditioning import LatentCondition, StructureCondition
from models.reconviagen.latent_flow import LatentFlow
from models.reconviagen.sampler import draw_noise, sample, seeded
from models.reconviagen.structure_flow import StructureFlow
from models.reconviagen.vggt import Vggt
from models.reconviagen.vit import VisionTransformer
from models.sparse.grid import SparseGrid

GIB = 2**30
SEED = 0
STAGES = (
    "VGGT",
    "DINOv2",
    "conditions",
    "structure sampling",
    "structure decoder",
    "latent sampling",
    "Gaussian decoder",
    "mesh decoder",
)


@dataclass(frozen=True)
class Row:
    """One side's run on one number of views.

    Attributes:
        side: "upstream" or "ours".
        views: Images.
        milliseconds: Median of each stage, and of their sum as "total".
        peak_gib: Largest memory in use, weights included; 0 on the CPU.
        weights_gib: What the weights alone take.
        triangles: Of the mesh.
    """

    side: str
    views: int
    milliseconds: dict[str, float]
    peak_gib: float
    weights_gib: float
    triangles: int


class Side(ABC):
    """One implementation, whose stages are called in order; each finds what the ones before it left.

    Args:
        size: Of the networks.
        device: Where they run.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        self.device = device
        self.configurations = load_configurations(size)
        resolution = self.configurations["latent_flow"]["args"]["resolution"]
        self.resolution: int = resolution
        self.coords = bumpy_shell(resolution, device)
        fine = SparseGrid(self.coords, resolution).subdivided().subdivided()
        self.distances = shell_distances(fine.coords, fine.resolution)
        self.images = torch.empty(0)
        self.triangles = 0

    def show(self, views: int) -> None:
        """Makes the images of a run."""
        side = self.configurations["dinov2"]["args"]["img_size"]
        self.images = torch.rand(views, 3, side, side, generator=seeded(SEED)).to(self.device)

    @abstractmethod
    def stages(self) -> tuple[Callable[[], None], ...]:
        """What `STAGES` names."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it the stages may be called."""
        with torch.no_grad():
            yield

    def force_distances(self, decoder: nn.Module) -> None:
        """Writes the object's distances over those that the mesh decoder's last layer gives."""

        def overwrite(module: nn.Module, inputs: Any, output: Any) -> None:
            features = output if isinstance(output, Tensor) else output.feats
            features[..., :8] = self.distances

        decoder.get_submodule("out_layer").register_forward_hook(overwrite)


class Ours(Side):
    """Our networks, in the precision that they run in."""

    def __init__(self, upstream: Upstream, size: Size) -> None:
        super().__init__(size, upstream.device)
        self.networks: dict[Part, Any] = {}
        for part, kind in PARTS.items():
            pair = kind(upstream, size)
            with upstream.device:
                network: Any = pair.ours().eval().requires_grad_(False)
            randomize(network)
            if upstream.device.type == "cuda":
                network.to_precision(pair.half)
            self.networks[part] = network
        self.force_distances(self.networks[Part.MESH_DECODER])

    def stages(self) -> tuple[Callable[[], None], ...]:
        """The networks in their order, as `models.reconviagen.generation` calls them."""
        return (
            self._see_geometry,
            self._see_appearance,
            self._condition,
            self._sample_structure,
            self._decode_structure,
            self._sample_latent,
            self._decode_gaussians,
            self._decode_mesh,
        )

    def _see_geometry(self) -> None:
        self.geometry = cast(Vggt, self.networks[Part.VGGT]).features(self.images).layers

    def _see_appearance(self) -> None:
        self.appearance = cast(VisionTransformer, self.networks[Part.DINOV2]).encode(self.images)

    def _condition(self) -> None:
        structure = cast(StructureCondition, self.networks[Part.STRUCTURE_CONDITION])
        latent = cast(LatentCondition, self.networks[Part.LATENT_CONDITION])
        self.structure_tokens = structure(self.geometry, self.appearance)
        self.latent_tokens = latent(self.geometry, self.appearance)

    def _sample_structure(self) -> None:
        flow = cast(StructureFlow, self.networks[Part.STRUCTURE_FLOW])
        shape = (flow.config.in_channels, *[flow.config.resolution] * 3)
        noise = draw_noise(shape, seeded(SEED), self.device)
        config = sampler_config(self.configurations["structure_sampler"])
        self.structure = sample(flow.bind(self.structure_tokens), noise, config, _quiet, name="structure")

    def _decode_structure(self) -> None:
        (self.networks[Part.STRUCTURE_DECODER](self.structure) > 0).nonzero()

    def _sample_latent(self) -> None:
        flow = cast(LatentFlow, self.networks[Part.LATENT_FLOW])
        self.grid = SparseGrid(self.coords, self.resolution)
        noise = draw_noise((len(self.grid), flow.config.in_channels), seeded(SEED), self.device)
        config = sampler_config(self.configurations["latent_sampler"])
        latent = sample(flow.bind(self.latent_tokens, self.grid), noise, config, _quiet, name="latent")
        statistics = self.configurations["latent_normalization"]
        self.latent = latent * latent.new_tensor(statistics["std"]) + latent.new_tensor(statistics["mean"])

    def _decode_gaussians(self) -> None:
        self.networks[Part.GAUSSIAN_DECODER](self.latent, self.grid)

    def _decode_mesh(self) -> None:
        self.triangles = len(self.networks[Part.MESH_DECODER](self.latent, self.grid).faces)


class Theirs(Side):
    """Upstream's pipeline class, with its own networks."""

    def __init__(self, upstream: Upstream, size: Size) -> None:
        super().__init__(size, upstream.device)
        self.upstream = upstream
        self.half = upstream.device.type == "cuda"
        self.networks: dict[Part, nn.Module] = {}
        with upstream.running():
            for part, kind in PARTS.items():
                with upstream.device:
                    network = kind(upstream, size).theirs(half=self.half).eval().requires_grad_(False)
                randomize(network.to(upstream.device))
                self.networks[part] = network
            self.pipeline = UpstreamPipeline(upstream, self.networks, self.configurations, half=self.half)
        self.force_distances(self.networks[Part.MESH_DECODER])

    def stages(self) -> tuple[Callable[[], None], ...]:
        """The steps of upstream's `TrellisVGGTTo3DPipeline.run`."""
        return (
            self._see_geometry,
            self._see_appearance,
            self._condition,
            self._sample_structure,
            self._decode_structure,
            self._sample_latent,
            lambda: self._decode("gaussian"),
            lambda: self._decode("mesh"),
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it upstream finds its packages."""
        with super().running(), self.upstream.running():
            yield

    def _see_geometry(self) -> None:
        self.geometry = self.pipeline.geometry(self.images)

    def _see_appearance(self) -> None:
        self.appearance = self.pipeline.appearance(self.images)

    def _condition(self) -> None:
        self.conditions: Conditions = self.pipeline.conditions(self.geometry, self.appearance)

    def _sample_structure(self) -> None:
        flow = self.networks[Part.STRUCTURE_FLOW]
        noise = torch.randn(1, flow.in_channels, *[flow.resolution] * 3).to(self.device)
        self.structure = self.pipeline.structure_latent(self.conditions, noise)

    def _decode_structure(self) -> None:
        torch.argwhere(self.networks[Part.STRUCTURE_DECODER](self.structure) > 0)

    def _sample_latent(self) -> None:
        self.latent = self.pipeline.latent(self.conditions, self.coords)

    def _decode(self, form: str) -> None:
        decoded = self.pipeline.pipeline.decode_slat(self.latent, [form])
        if form == "mesh":
            self.triangles = len(decoded["mesh"][0].faces)


def measure(side: Side, name: str, views: int, repeats: int) -> Row:
    """Times all stages; the first round, which loads and compiles, does not count."""
    side.show(views)
    gc.collect()
    weights = _memory(side.device)
    rounds: list[list[float]] = []
    with side.running():
        for number in range(repeats + 1):
            if number == 1 and side.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(side.device)
            rounds.append([_timed(stage, side.device) for stage in side.stages()])
            _say(f"{name}, {views} views, round {number}: {sum(rounds[-1]) / 1000:.2f} s")
    counted = rounds[1:]
    times = {
        stage: statistics.median(column)
        for stage, column in zip(STAGES, zip(*counted, strict=True), strict=True)
    }
    times["total"] = statistics.median(sum(taken) for taken in counted)
    peak = torch.cuda.max_memory_allocated(side.device) / GIB if side.device.type == "cuda" else 0.0
    return Row(
        name,
        views,
        {k: round(t, 1) for k, t in times.items()},
        round(peak, 2),
        round(weights, 2),
        side.triangles,
    )


def profile(side: Side, views: int, file: Path, rows: int = 14) -> None:
    """Appends each stage's longest kernels to a text file."""
    side.show(views)
    with side.running(), file.open("a") as out:
        for name, stage in zip(STAGES, side.stages(), strict=True):
            with torch.profiler.profile() as recorded:
                stage()
                _wait(side.device)
            table = recorded.key_averages().table(
                sort_by="self_cuda_time_total" if side.device.type == "cuda" else "self_cpu_time_total",
                row_limit=rows,
                max_name_column_width=90,
            )
            out.write(f"=== {type(side).__name__}, {name}, {views} views\n{table}\n")
            out.flush()


def markdown(rows: list[Row]) -> str:
    """For each number of views a table of the stages, and what the memory's peak was."""
    parts = []
    for views in dict.fromkeys(row.views for row in rows):
        sides = {row.side: row for row in rows if row.views == views}
        ours, theirs = sides["ours"], sides["upstream"]
        lines = [f"{views} views [ms]", ""]
        lines += ["| stage | upstream | ours | ours / upstream |", "| --- | --- | --- | --- |"]
        for stage, taken in ours.milliseconds.items():
            other = theirs.milliseconds[stage]
            lines.append(f"| {stage} | {other:.0f} | {taken:.0f} | {taken / other:.2f} |")
        for name, row in sides.items():
            lines += [
                "",
                f"Memory of {name}: peak {row.peak_gib:.2f} GiB, of which weights {row.weights_gib:.2f} GiB; "
                f"{row.triangles:,} triangles.",
            ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    """Runs what is asked for and prints the tables."""
    options = _arguments()
    device = torch.device(options.device)
    upstream = load_upstream(options.upstream, options.dinov2, device)
    rows = []
    for name, kind in (("upstream", Theirs), ("ours", Ours)):
        side = kind(upstream, options.size)
        for views in options.views:
            rows.append(measure(side, name, views, options.repeats))
            if options.json:
                options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
        if options.profile:
            profile(side, options.views[0], options.profile)
        del side
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    used = {name: state for name, state in upstream.standins.packages.items() if state != NOT_CALLED}
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, size {options.size}; median of {options.repeats}. ", end="")
    print("Upstream's packages: " + "; ".join(f"{name}: {state}" for name, state in used.items()) + ".\n")
    print(markdown(rows))


def _arguments() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shared(parser, size="published")
    parser.add_argument("--views", type=positive, nargs="+", default=[6])
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--profile", type=Path, help="append the longest kernels of each stage to this file")
    return parse(parser)


def _timed(stage: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    begin = time.perf_counter()
    stage()
    _wait(device)
    return 1000 * (time.perf_counter() - begin)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / GIB if device.type == "cuda" else 0.0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _quiet(*_: object) -> None:
    pass


if __name__ == "__main__":
    main()
