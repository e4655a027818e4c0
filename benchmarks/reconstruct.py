"""Reconstruct data sets with known truth and measure what comes out.

    python benchmarks/reconstruct.py examples/spot-small
    python benchmarks/reconstruct.py bench/spot bench/duck --rigs orbit6 axis6 --presets preview standard \\
        --repeat 2 --json results.jsonl

A data set is a folder that holds `<rig>/transforms.json` with the input views (nerfstudio's layout, one or
several rigs), `test/transforms.json` with held-out views, and `mesh.ply`, the true surface in the same world.
Without `test/` or `mesh.ply` their figures are left out.

Every rig of every folder runs with every set of options and every rasterizer. Markdown tables go to standard
output at the end, progress to standard error, and every run, as soon as it is scored, to the file of
`--json`, one JSON object a line; `--table` prints the tables of such files again.

What is measured: PSNR and SSIM over white, of whole images and inside the mask; LPIPS where its package and
weights are installed; mask IoU; depth error; chamfer distance, F-score and normal consistency against the
true surface; time, by stage and until given held-out PSNRs; memory. If the cameras are made noisy, the result
is aligned with the true world first, by the similarity between its own cameras and the true ones. Definitions
are in `benchmarks/reconstruction/`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the packages lie beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.reconstruction.datasets import DataSet
from benchmarks.reconstruction.degrade import Degradation
from benchmarks.reconstruction.matrix import Bench, Plan, Record
from benchmarks.reconstruction.report import label, report
from models.nvdiffrec.model import Nvdiffrec
from schemas.options import NvdiffrecOptions


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="*", type=Path, help="data sets")
    parser.add_argument("--rigs", nargs="+", default=[], help="input views (default: every rig of a folder)")
    jobs = parser.add_argument_group("options of the jobs; all combinations run")
    jobs.add_argument("--options", nargs="+", default=["{}"], metavar="JSON", help="a job's options")
    jobs.add_argument(
        "--presets", nargs="+", default=[], metavar="NAME", help="short for the option `preset`"
    )
    jobs.add_argument(
        "--rasters", nargs="+", default=[], metavar="NAME", help="short for the option `raster`"
    )
    run = parser.add_argument_group("runs")
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    run.add_argument(
        "--repeat",
        type=_count,
        default=1,
        metavar="N",
        help="runs of each combination; the first compiles and is left out of the median (default: 1)",
    )
    run.add_argument(
        "--time-to-psnr",
        type=float,
        nargs="*",
        metavar="DB",
        help="take snapshots in the last reconstruction and tell when its held-out PSNR first reached these, "
        "and the baseline's; looking is not counted in the time",
    )
    _add_degradations(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", type=Path, metavar="FILE", help="append every run to this file (JSON lines)"
    )
    output.add_argument(
        "--table", nargs="+", type=Path, default=[], metavar="FILE", help="run nothing; print earlier results"
    )
    return parser


def _add_degradations(parser: argparse.ArgumentParser) -> None:
    worse = parser.add_argument_group("inputs made worse, the same way at every run")
    for name, text in (
        ("camera-noise-degrees", "standard deviation of the angle by which cameras are turned"),
        (
            "camera-noise-distance",
            "how far cameras are moved (root mean square), share of their distance to the object's centre",
        ),
        ("depth-scale", "standard deviation of the logarithm of each view's wrong depth factor"),
        ("depth-noise", "standard deviation of depth, share of the object's bounding diameter"),
        (
            "depth-holes",
            "share of the object's pixels without depth: two thirds in patches, one third scattered",
        ),
    ):
        worse.add_argument(f"--{name}", type=_share, default=0.0, metavar="X", help=text)
    worse.add_argument("--no-depth", action="store_true", help="leave the depth maps out")
    worse.add_argument("--seed", type=int, default=0, help="of these random numbers (default: 0)")


def main() -> int:
    """Run the command; 1 if any run was refused or failed."""
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.table:
        records = [json.loads(line) for path in arguments.table for line in path.read_text().splitlines()]
        print(report(records))
        return 0
    try:
        data_sets = [DataSet(folder, arguments.rigs) for folder in arguments.folders]
        options = combine(arguments.options, arguments.presets, arguments.rasters)
    except ValueError as error:
        parser.error(str(error))
    degradation = _degradation(arguments)
    _check(parser, arguments, data_sets, degradation)
    device = torch.device(arguments.device)
    model = Nvdiffrec(device)
    model.load()
    targets = None if arguments.time_to_psnr is None else tuple(arguments.time_to_psnr)
    bench = Bench(model, device, Plan(degradation, arguments.repeat, targets))
    records = _collect(bench, data_sets, options, arguments.json)
    return int(any("error" in record for record in records))


def combine(jobs: list[str], presets: list[str], rasters: list[str]) -> list[dict[str, Any]]:
    """Every set of options with every preset and every rasterizer.

    Raises:
        ValidationError: A set is not valid for `nvdiffrec`.
        ValueError: It is no JSON object.
    """
    named = [
        {**preset, **raster}
        for preset in ([{"preset": name} for name in presets] or [{}])
        for raster in ([{"raster": name} for name in rasters] or [{}])
    ]
    combined = [{**names, **_object(job), **names} for job in jobs for names in named]
    for options in combined:
        NvdiffrecOptions.model_validate(options)
    return combined


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"options are a JSON object, got {text}")
    return value


def _degradation(arguments: argparse.Namespace) -> Degradation:
    return Degradation(
        camera_noise_degrees=arguments.camera_noise_degrees,
        camera_noise_distance=arguments.camera_noise_distance,
        depth_scale=arguments.depth_scale,
        depth_noise=arguments.depth_noise,
        depth_holes=arguments.depth_holes,
        no_depth=arguments.no_depth,
        seed=arguments.seed,
    )


def _check(
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    data_sets: list[DataSet],
    degradation: Degradation,
) -> None:
    """Refuse what can be known not to work, before anything runs."""
    if not data_sets:
        parser.error("name at least one data set")
    if degradation.no_depth and degradation.changes_depth:
        parser.error("depth cannot be both degraded and left out")
    if arguments.time_to_psnr is not None and degradation.moves_cameras:
        parser.error("snapshots are not aligned: --time-to-psnr needs exact cameras")
    for data in data_sets:
        if degradation.needs_truth and data.truth is None:
            parser.error(
                f"noise in cameras or depth is measured against the object: {data.folder} has no mesh.ply"
            )
        if arguments.time_to_psnr is not None and data.test is None:
            parser.error(f"--time-to-psnr needs held-out views: {data.folder} has no test/transforms.json")


def _collect(
    bench: Bench, data_sets: list[DataSet], options: list[dict[str, Any]], path: Path | None
) -> list[Record]:
    """Run everything; what is there is written and printed even if the rest is interrupted."""
    records: list[Record] = []
    total = sum(len(data.rigs) for data in data_sets) * len(options)
    try:
        for record in bench.records(data_sets, options):
            records.append(record)
            if path is not None:
                with path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            print(f"[{len(records)}/{total}] {_headline(record)}", file=sys.stderr)
    finally:
        if records:
            print(report(records))
    return records


def _headline(record: Record) -> str:
    name = f"{record['data']} {label(record['options'])}".strip()
    if "error" in record:
        return f"{name}: {record['error']['code']}: {record['error']['message']}"
    views, title = ("test", "held-out") if "test" in record else ("input", "input")
    return f"{name}: {record['seconds']:.2f} s, {title} PSNR {record[views]['psnr_db']:.2f} dB"


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("a number that is not negative")
    return value


if __name__ == "__main__":
    sys.exit(main())
