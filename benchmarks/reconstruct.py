"""Reconstruct a data set with known truth and measure what comes out.

    python benchmarks/reconstruct.py examples/spot-small --views views

The folder holds `<views>/` and, for the held-out figures, `test/` (inputs in nerfstudio's layout), and
`mesh.ply`, the true surface in the same world frame. Figures are those of `quality.json` (inside the mask,
over white), the symmetric chamfer distance (mean of accuracy and completeness, world units) and wall-clock
times.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from scipy.spatial import cKDTree

from models.base import Reconstruction, Views
from models.nvdiffrec.model import Nvdiffrec
from models.raster import RasterBackend, make_backend
from pipeline.ingest import plan_input
from pipeline.quality import measure_quality
from pipeline.settings import Limits, S3Settings
from pipeline.storage import open_store
from pipeline.validate import load_checked
from schemas.options import NvdiffrecOptions

SURFACE_SAMPLES = 100_000


def read_views(folder: Path, options: NvdiffrecOptions) -> Views:
    """The views of a folder, checked as a worker checks them."""
    plan = plan_input(open_store(folder.resolve().as_uri(), S3Settings()), options, Limits())
    return load_checked(folder, plan, options, Limits(), lambda fraction, message: None).views


class Stopwatch:
    """Callback of a model: prints progress and keeps the time at which each message first appeared."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.phases: dict[str, float] = {}

    def __call__(self, fraction: float, message: str, metrics: dict[str, float]) -> None:
        """One step of the model."""
        if not message:
            return
        self.phases[message.split(":")[0]] = time.perf_counter() - self.start
        if sys.stderr.isatty():
            figures = " ".join(f"{name} {value:.2f}" for name, value in metrics.items())
            print(f"\r{fraction:5.0%} {message} {figures}".ljust(90), end="", file=sys.stderr)


def chamfer(made: Reconstruction, truth: Path) -> dict[str, float]:
    """Distances between samples of the two surfaces, world units."""
    mesh = trimesh.Trimesh(made.mesh.vertices.cpu().numpy(), made.mesh.faces.cpu().numpy(), process=False)
    one, two = (
        np.asarray(trimesh.sample.sample_surface(surface, SURFACE_SAMPLES, seed=0)[0])
        for surface in (mesh, trimesh.load(truth, force="mesh"))
    )
    accuracy, completeness = cKDTree(two).query(one)[0].mean(), cKDTree(one).query(two)[0].mean()
    return {
        "accuracy": float(accuracy),
        "completeness": float(completeness),
        "chamfer": float(accuracy + completeness) / 2,
    }


def quality(
    raster: RasterBackend, made: Reconstruction, views: Views, options: NvdiffrecOptions
) -> dict[str, Any]:
    """Mean metrics over some views."""
    measured = measure_quality(
        raster, made.mesh, views, None, options.quality, callback=lambda fraction, message, metrics: None
    )
    return measured.input_views.model_dump()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """One reconstruction and its figures."""
    options = NvdiffrecOptions.model_validate(json.loads(arguments.options))
    device = torch.device(arguments.device)
    model = Nvdiffrec(device)
    model.load()
    views = read_views(arguments.folder / arguments.views, options)
    times = []
    for _ in range(arguments.repeat):  # the first run compiles kernels
        watch = Stopwatch()
        made = model.reconstruct(views, options, watch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - watch.start)
    raster = make_backend(made.raster, device)  # type: ignore[arg-type]
    result: dict[str, Any] = {
        "data": f"{arguments.folder.name}/{arguments.views}",
        "resolution": f"{views.cameras.width}x{views.cameras.height}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "raster": made.raster,
        "torch": torch.__version__,
        "seconds": times,
        "phases_end_at_s": watch.phases,
        "faces": int(made.mesh.faces.shape[0]),
        "input_views": quality(raster, made, views, options),
    }
    if device.type == "cuda":
        result["peak_gpu_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    result["peak_host_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if (arguments.folder / "test").is_dir():
        result["test_views"] = quality(raster, made, read_views(arguments.folder / "test", options), options)
    if (arguments.folder / "mesh.ply").is_file():
        result["surface"] = chamfer(made, arguments.folder / "mesh.ply")
    return result


def table(result: dict[str, Any]) -> str:
    """The figures as a Markdown table of one row."""
    cells = {
        "data": result["data"],
        "size": result["resolution"],
        "device": result["device"],
        "raster": result["raster"],
        "time [s]": f"{min(result['seconds']):.1f}",
        "triangles": f"{result['faces']:,}",
    }
    for name, key in (("input", "input_views"), ("test", "test_views")):
        if key in result:
            cells[f"{name} PSNR"] = f"{result[key]['psnr_db']:.2f}"
            cells[f"{name} SSIM"] = f"{result[key]['ssim']:.3f}"
    if "surface" in result:
        cells["chamfer"] = f"{result['surface']['chamfer']:.4f}"
    rows = [list(cells), ["---"] * len(cells), list(cells.values())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="data set: <views>/, test/, mesh.ply")
    parser.add_argument("--views", default="views", help="sub-folder of the input views (default: views)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--options", default="{}", help="the job's options, JSON")
    parser.add_argument("--repeat", type=int, default=1, help="runs; the fastest is reported (default: 1)")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    arguments = parser.parse_args()
    result = run(arguments)
    print(file=sys.stderr)
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
