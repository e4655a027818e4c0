"""Memory and time of whole ReconViaGen jobs, from real views to a textured mesh, on random weights.

    python -m benchmarks.memory WEIGHTS                                   # published size, on a GPU
    python -m benchmarks.memory WEIGHTS --size mini --device cpu

WEIGHTS is a folder for a checkpoint in the published layout, about 10 GiB of random values; it is written if
it is not there. It is loaded as a worker does it. Networks with random weights make noise, so the true
surface of the data set takes the place of what they decode (`benchmarks/known_object.py`); everything else of
a job is real. Every part prints its table when it is done:

    load       seconds and host memory of reading all networks
    jobs       peaks of memory, and seconds by stage, of jobs with each plan, with and without refinement
    alternate  nvdiffrec and reconviagen in turns on a card of `--card-gib`: what is left after each job
    shortage   jobs that do not fit: the second try with the frugal plan, and the job after a failed one

"allocated" and "reserved" are torch's; "device" is the most that was in use on the whole card, with CUDA's
own and other libraries' memory and whatever else runs there, read twenty times a second.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import logging
import multiprocessing
import pstats
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from benchmarks.known_object import KnownReconviagen
from benchmarks.parity.configurations import load_configurations
from benchmarks.reconstruction.datasets import MESH, read_views
from benchmarks.reconstruction.measure import Clock, MemoryPeaks, Progress
from models.base import Reconstructor, Views
from models.nvdiffrec.model import Nvdiffrec
from models.reconviagen.checkpoint import Part
from models.reconviagen.memory import GIB, Plan, release_memory
from pipeline.failures import translated_failures
from schemas.errors import ErrorCode, ModelError
from schemas.options import NvdiffrecOptions, Options, ReconviagenOptions
from tests.checkpoints import MINIATURE, PUBLISHED, write_checkpoint

Size = Literal["mini", "published"]

RIG = "views"
PARTS = ("load", "jobs", "alternate", "shortage")
TOO_LITTLE = GIB  # of memory for the largest network alone
_INTERVAL = 0.05  # seconds; to ask takes a millisecond, in which the job waits

OPTIONS: dict[Size, tuple[ReconviagenOptions, NvdiffrecOptions]] = {
    "published": (ReconviagenOptions(), NvdiffrecOptions(preset="preview")),
    "mini": (
        ReconviagenOptions(structure_steps=4, latent_steps=4, texture_resolution=128, target_triangles=2000),
        NvdiffrecOptions(
            grid_resolution=16,
            geometry_iterations=5,
            texture_iterations=5,
            train_resolution=64,
            texture_resolution=128,
            target_triangles=2000,
        ),
    ),
}


@dataclass(frozen=True)
class Job:
    """A way to run.

    Attributes:
        views: Number of images.
        plan: How the networks share the device.
        refine: The option.
        cameras, depth: Whether the input has them.
    """

    views: int
    plan: Plan
    refine: bool
    cameras: bool = True
    depth: bool = True

    @property
    def given(self) -> str:
        """What the input has beside images, for a table."""
        return ", ".join(name for name in ("cameras", "depth") if getattr(self, name)) or "-"


@dataclass(frozen=True)
class Cost:
    """What a job took.

    Attributes:
        seconds: Of the whole.
        stages: Seconds by stage.
        mib: Peaks of memory: allocated, reserved, device (0 without a GPU) and host.
        stages_mib: Peaks of what torch had allocated, by stage; empty without a GPU.
        extra: The result's own figures.
    """

    seconds: float
    stages: dict[str, float]
    mib: dict[str, float]
    stages_mib: dict[str, float]
    extra: dict[str, float]


class Bench:
    """The model, and what jobs are made of.

    Args:
        size: Of the networks.
        device: Where they run.
        weights: The checkpoint.
        data: Folder with views and true surface.
        side: Of the views, pixels.
        json_file: Every figure is appended to it.
    """

    def __init__(
        self, size: Size, device: torch.device, weights: Path, data: Path, side: int, json_file: Path | None
    ) -> None:
        self.size = size
        self.device = device
        self.weights = weights
        self.data = data
        self.json_file = json_file
        self.options, self.other_options = OPTIONS[size]
        self.views = resized(read_views(data / RIG, NvdiffrecOptions()), side)

    def record(self, part: str, figures: dict[str, Any]) -> None:
        """Keep figures at once: a later part may not come to its end."""
        print(part, json.dumps(figures), file=sys.stderr, flush=True)
        if self.json_file:
            with self.json_file.open("a") as file:
                file.write(json.dumps({"part": part, **figures}) + "\n")

    def loaded(self, capacity: int | None = None) -> KnownReconviagen:
        """The model, ready for jobs; plans as on a device of this memory, bytes."""
        model = KnownReconviagen(self.device, self.weights, self.data / MESH)
        model.load()
        model.substitute(capacity)
        return model

    def run(self, model: KnownReconviagen, job: Job) -> Cost:
        """Measure one job of reconviagen."""
        views = several(self.views, job.views)
        model.show(views)
        if not job.depth:
            views = replace(views, depths=None)
        if not job.cameras:
            views = replace(views, cameras=None)
        if job.plan is Plan.SEQUENTIAL:
            model.networks.economize()
        elif model.networks.plan is not job.plan:
            raise ValueError("the device has no room for all networks")
        return self.measured(model, views, self.options.model_copy(update={"refine": job.refine}))

    def measured(self, model: Reconstructor, views: Views, options: Options) -> Cost:
        """Measure one job of any model, failures as the pipeline translates them."""
        gc.collect()
        clock, memory = Clock(self.device), MemoryPeaks(self.device)
        progress = StagePeaks(Progress(clock), memory, self.device)
        with translated_failures(), DevicePeak(self.device) as peak:
            made = model.reconstruct(views, options, progress)
            seconds = clock.seconds()
        progress.finish()
        mib = memory.figures() | {"gpu_device_mib": peak.mib}
        return Cost(seconds, progress.told.stages(seconds), mib, progress.mib, made.extra)

    @contextmanager
    def limited(self, size: float) -> Iterator[None]:
        """Within it torch gets no more than this many bytes of the device."""
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, size / total))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    def left(self) -> dict[str, float]:
        """What this process holds between two jobs, MiB."""
        gc.collect()
        held = {"host": resident_mib()}
        if self.device.type == "cuda":
            held["allocated"] = torch.cuda.memory_allocated(self.device) / 2**20
            held["reserved"] = torch.cuda.memory_reserved(self.device) / 2**20
        return held


class StagePeaks:
    """The callback of a model that tells time and memory by stage.

    Args:
        told: Told everything as well.
        memory: Peaks of the whole.
        device: The model's.
    """

    def __init__(self, told: Progress, memory: MemoryPeaks, device: torch.device) -> None:
        self.told = told
        self.mib: dict[str, float] = {}
        self._memory = memory
        self._device = device
        self._stage = "start"

    def __call__(self, fraction: float, message: str, metrics: dict[str, float]) -> None:
        """One step of the model."""
        self.told(fraction, message, metrics)
        name = message.split(":")[0]
        if name not in ("", self._stage):
            self.finish()
            self._stage = name

    def finish(self) -> None:
        """The stage that was told last is over."""
        if self._device.type != "cuda":
            return
        peak = torch.cuda.max_memory_allocated(self._device) / 2**20
        self.mib[self._stage] = max(peak, self.mib.get(self._stage, 0.0))
        with self._memory.pause():  # keeps the whole's peak, and begins anew
            pass


class DevicePeak:
    """The most that is in use on a GPU while the context lasts, as `mib`; 0 on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.mib = 0.0

    def __enter__(self) -> DevicePeak:
        if self._device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL):
            free, total = torch.cuda.mem_get_info(self._device)
            self.mib = max(self.mib, (total - free) / 2**20)


def resized(views: Views, side: int) -> Views:
    """The views with a longer side of so many pixels."""
    height, width = views.masks.shape[1:]
    factor = side / max(height, width)
    size = (round(height * factor), round(width * factor))
    images = F.interpolate(views.images.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
    masks = F.interpolate(views.masks[:, None], size, mode="bilinear", antialias=True)[:, 0]
    depths = views.depths
    if depths is not None:
        depths = F.interpolate(depths[:, None], size, mode="nearest")[:, 0]
    cameras = None if views.cameras is None else views.cameras.resized(size[1], size[0])
    return Views(views.names, images.permute(0, 2, 3, 1).contiguous(), masks, depths, cameras)


def several(views: Views, count: int) -> Views:
    """So many views: the same again where there are fewer."""
    chosen = views.subset([i % len(views) for i in range(count)])
    return replace(chosen, names=tuple(f"{i:03}.png" for i in range(count)))


def resident_mib(entry: str = "VmRSS") -> float:
    """Memory of this process that the host holds, or another entry of Linux' `/proc/self/status`, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{entry}:"))


def published_arguments() -> dict[Part, dict[str, Any]]:
    """Arguments of all networks as they were published."""
    known = load_configurations("published")
    vit = known["dinov2"]["args"]
    encoder = {
        "image_size": vit["img_size"],
        "hidden_size": vit["embed_dim"],
        "num_hidden_layers": vit["depth"],
        "num_attention_heads": vit["num_heads"],
    }
    vggt = known["vggt"]["args"]
    return {
        **PUBLISHED,
        Part.DINOV2: MINIATURE[Part.DINOV2] | encoder,
        Part.VGGT: {name: vggt[name] for name in ("img_size", "patch_size", "embed_dim")},
        Part.STRUCTURE_CONDITION: known["structure_condition"]["args"],
        Part.LATENT_CONDITION: known["latent_condition"]["args"],
    }


def write(folder: Path, size: Size) -> None:
    """Write a checkpoint."""
    arguments = MINIATURE if size == "mini" else published_arguments()
    write_checkpoint(folder, arguments=arguments, lock=False)


def load(bench: Bench) -> None:
    """Time and host memory of loading."""
    before = resident_mib()
    clock, memory = Clock(bench.device), MemoryPeaks(bench.device)
    model = KnownReconviagen(bench.device, bench.weights, bench.data / MESH)
    model.load()
    figures = {
        "seconds": clock.seconds(),
        "files_gib": sum(file.stat().st_size for file in bench.weights.rglob("*.safetensors")) / GIB,
        "networks_gib": model.networks.bytes / GIB,
        "host_before_mib": before,
        "host_after_mib": resident_mib(),
        "host_after_anonymous_mib": resident_mib("RssAnon"),
        "host_peak_mib": memory.figures()["host_mib"],
    }
    bench.record("load", figures)
    print(
        f"\nLoading: {figures['files_gib']:.2f} GiB of files, {figures['networks_gib']:.2f} GiB of networks, "
        f"{figures['seconds']:.1f} s; host memory {before:.0f} MiB before, {figures['host_after_mib']:.0f} "
        f"after ({figures['host_after_anonymous_mib']:.0f} of it not of mapped files), "
        f"{figures['host_peak_mib']:.0f} at most."
    )


def jobs(bench: Bench, counts: list[int], profile: Path | None) -> None:
    """Peaks of memory and times of jobs."""
    model = bench.loaded()
    bench.run(model, Job(counts[0], Plan.RESIDENT, refine=False))  # compiles
    cases = [Job(count, plan, refine) for refine in (False, True) for count in counts for plan in Plan]
    most = max(counts)
    cases += [Job(most, Plan.RESIDENT, refine, cameras=False, depth=False) for refine in (False, True)]
    rows = []
    for job in cases:
        cost = bench.run(model, job)
        bench.record("job", {**asdict(job), **asdict(cost)})
        rows.append((job, cost))
    _print_jobs(rows)
    if profile:
        views = several(bench.views, counts[0])
        model.show(views)
        with profile.open("w") as out, cProfile.Profile() as calls:  # no other thread beside it
            model.reconstruct(views, bench.options, lambda fraction, message, metrics: None)
            calls.disable()
            pstats.Stats(calls, stream=out).sort_stats("cumulative").print_stats(200)


def _print_jobs(rows: list[tuple[Job, Cost]]) -> None:
    print("\n| views | input | refine | plan | allocated | reserved | device | host | seconds |")
    print("| --- " * 9 + "|")
    for job, cost in rows:
        gpu = [cost.mib.get(f"gpu_{each}", 0.0) / 1024 for each in ("mib", "reserved_mib", "device_mib")]
        cells = [job.views, job.given, "yes" if job.refine else "no", job.plan]
        cells += [f"{value:.2f}" for value in (*gpu, cost.mib["host_mib"] / 1024, cost.seconds)]
        print("| " + " | ".join(map(str, cells)) + " |")
    _print_stages("Seconds", rows, lambda cost: cost.stages)
    _print_stages(
        "GiB allocated at most",
        rows,
        lambda cost: {name: mib / 1024 for name, mib in cost.stages_mib.items()},
    )


def _print_stages(
    title: str, rows: list[tuple[Job, Cost]], figures: Callable[[Cost], dict[str, float]]
) -> None:
    stages = list(dict.fromkeys(stage for _, cost in rows for stage in figures(cost)))
    print(f"\n{title} by stage:\n\n| views | input | refine | plan | " + " | ".join(stages) + " |")
    print("| --- " * (4 + len(stages)) + "|")
    for job, cost in rows:
        cells = [job.views, job.given, "yes" if job.refine else "no", job.plan]
        cells += [f"{figures(cost).get(stage, 0.0):.2f}" for stage in stages]
        print("| " + " | ".join(map(str, cells)) + " |")


def alternate(bench: Bench, rounds: int, card_gib: float) -> None:
    """What two models leave behind that take turns."""
    model, other = bench.loaded(int(card_gib * GIB)), Nvdiffrec(bench.device)
    other.load()
    release_memory(bench.device)  # of the parts before
    first = several(bench.views, len(bench.views))

    def generate(refine: bool) -> Cost:
        model.show(first)
        return bench.measured(model, first, bench.options.model_copy(update={"refine": refine}))

    kinds: dict[str, Callable[[], Cost]] = {
        "nvdiffrec": lambda: bench.measured(other, first, bench.other_options),
        "reconviagen": lambda: generate(refine=False),
        "reconviagen, refined": lambda: generate(refine=True),
    }
    print("\n| round | job | seconds | device at most | allocated after | reserved after | host after |")
    print("| --- " * 7 + "|")
    with bench.limited(card_gib * GIB - _overhead(bench)) if bench.device.type == "cuda" else _anyhow():
        for number in range(1, rounds + 1):
            for name, run in kinds.items():
                cost, held = run(), bench.left()
                bench.record("alternate", {"round": number, "job": name, **asdict(cost), "left_mib": held})
                gpu = [held.get(each, 0.0) for each in ("allocated", "reserved")]
                cells = [cost.mib["gpu_device_mib"], *gpu, held["host"]]
                print(f"| {number} | {name} | {cost.seconds:.2f} | ", end="")
                print(" | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)


@contextmanager
def _anyhow() -> Iterator[None]:
    yield


def _overhead(bench: Bench) -> float:
    """Bytes of the device that are in use and not torch's."""
    free, total = torch.cuda.mem_get_info(bench.device)
    return total - free - torch.cuda.memory_reserved(bench.device)


def shortage(bench: Bench, count: int) -> None:
    """What becomes of jobs that do not fit."""
    if bench.device.type != "cuda":
        print("\nNo GPU, no lack of its memory.")
        return
    model, warnings = bench.loaded(), Warnings()
    frugal = bench.run(model, Job(count, Plan.SEQUENTIAL, refine=False)).mib
    ample = bench.run(model, Job(count, Plan.RESIDENT, refine=False)).mib
    between = (frugal["gpu_mib"] + ample["gpu_mib"]) / 2 * 2**20
    print(
        "\n| memory for torch | job | allocated at most | allocated after | warnings |\n" + "| --- " * 5 + "|"
    )
    for limit in (between, TOO_LITTLE, 2 * ample["gpu_reserved_mib"] * 2**20):
        with bench.limited(limit), warnings.gathered() as told:
            try:
                cost = bench.run(model, Job(count, Plan.RESIDENT, refine=False))
                ended, peak = f"done in {cost.seconds:.1f} s", f"{cost.mib['gpu_mib']:.0f}"
            except ModelError as error:
                if error.code is not ErrorCode.MODEL_VRAM_OOM:
                    raise
                ended, peak = f"{error.code}: {error.message}", "-"
        held = bench.left()
        bench.record("shortage", {"limit_mib": limit / 2**20, "ended": ended, "told": told, "left_mib": held})
        print(f"| {limit / GIB:.2f} GiB | {ended} | {peak} | {held['allocated']:.1f} | {'; '.join(told)} |")


class Warnings(logging.Handler):
    """What the model warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self._told.append(record.getMessage())

    @contextmanager
    def gathered(self) -> Iterator[list[str]]:
        """The warnings while the context lasts."""
        self._told = []
        logger = logging.getLogger("models.reconviagen")
        logger.addHandler(self)
        try:
            yield self._told
        finally:
            logger.removeHandler(self)


def main() -> None:
    """Run what is asked for."""
    options = _arguments()
    if not options.weights.is_dir():
        # In a process of its own, whose memory does not count.
        writer = multiprocessing.get_context("spawn").Process(
            target=write, args=(options.weights, options.size)
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit("the checkpoint could not be written")
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(message)s")
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, size {options.size}, views of {options.side} pixels.")
    bench = Bench(options.size, device, options.weights, options.data, options.side, options.json)
    runs: dict[str, Callable[[], None]] = {
        "load": lambda: load(bench),
        "jobs": lambda: jobs(bench, options.views, options.profile),
        "alternate": lambda: alternate(bench, options.rounds, options.card_gib),
        "shortage": lambda: shortage(bench, options.views[0]),
    }
    for name in options.parts:
        runs[name]()
        gc.collect()
        sys.stdout.flush()


def _arguments() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, metavar="WEIGHTS")
    parser.add_argument("--size", choices=["mini", "published"], default="published", help="of the networks")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", type=Path, default=Path("examples/spot-small"), help="a data set")
    parser.add_argument("--side", type=int, default=1024, help="of the views, pixels; they are resized")
    parser.add_argument("--views", type=int, nargs="+", default=[6, 16])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=4, help="of alternating jobs")
    parser.add_argument("--card-gib", type=float, default=12.0, help="memory for alternating jobs")
    parser.add_argument("--profile", type=Path, help="write the longest calls of a job to this file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append every figure (JSON lines)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
