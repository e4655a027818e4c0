"""Time of the rasterizer's operations, forward and backward, on the devices present.

Renders a welded sphere from a ring of views: rasterize, interpolate (3 channels), antialias and their common
backward pass; then a trilinear texture lookup and its own. Each of these is waited for by itself. "four" is
what an optimiser's step pays: all four operations, forward and backward, one after the other, waited for
once, on a mesh whose triangles are new in every step; "four, graph" the same captured as a CUDA graph. Prints
a Markdown table of medians and how the backends compare, or JSON.

    python -m benchmarks.raster
    python -m benchmarks.raster --size 512 --triangles 50000 --device cuda
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from models.raster import RasterBackend, make_backend

PARTS = ("rasterize", "interpolate", "antialias", "backward", "total", "texture", "texture_backward")
WHOLE = ("four", "four, graph")
STEPS = 20  # that are waited for together


@dataclass(frozen=True)
class Row:
    """Medians of one case, in milliseconds."""

    backend: str
    device: str
    triangles: int
    size: int
    views: int
    coverage: float
    first_use_s: float
    milliseconds: dict[str, float | None]


def sphere_views(triangles: int, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """A sphere in a ring of views: clip-space positions [B, N, 4], triangles [F, 3], vertices [N, 3]."""
    columns = max(4, round(math.sqrt(triangles)))
    rows = columns // 2
    polar = torch.linspace(0, math.pi, rows + 1)[:, None]
    azimuth = torch.arange(columns)[None] * (2 * math.pi / columns)
    vertices = torch.stack(
        torch.broadcast_tensors(polar.sin() * azimuth.cos(), polar.cos(), polar.sin() * azimuth.sin()), dim=-1
    ).reshape(-1, 3)
    i, j = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    a, b = i * columns + j, i * columns + (j + 1) % columns
    tri = torch.cat(
        [
            torch.stack([a, b, a + columns], dim=-1).reshape(-1, 3),
            torch.stack([b, b + columns, a + columns], dim=-1).reshape(-1, 3),
        ]
    ).int()
    near, far, focal, distance = 0.1, 10.0, 2.1, 3.3
    pos = []
    for view in range(views):
        c, s = math.cos(2 * math.pi * view / views), math.sin(2 * math.pi * view / views)
        x, y, z = (vertices @ torch.tensor([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]]).T).unbind(-1)
        depth = distance - z
        clip_z = ((far + near) * depth - 2 * far * near) / (far - near)
        pos.append(torch.stack([focal * x, focal * y, clip_z, depth], dim=-1))
    return torch.stack(pos), tri, vertices


def wait(device: torch.device) -> None:
    """Waits for everything that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Scene:
    """What one case renders, on a backend's device."""

    def __init__(self, backend: RasterBackend, triangles: int, size: int, views: int) -> None:
        self.backend = backend
        self.size = size
        self.pos, self.tri, vertices = (t.to(backend.device) for t in sphere_views(triangles, views))
        self.pos.requires_grad_()
        self.attr = vertices[None].clone().requires_grad_()
        self.uv = vertices[None, :, :2].clone().requires_grad_()
        generator = torch.Generator().manual_seed(0)
        self.tex = torch.rand(1, 512, 512, 3, generator=generator).to(backend.device).requires_grad_()

    def four_operations(self) -> tuple[Tensor, ...]:
        """Renders with a texture and returns the gradients of positions, coordinates and texture."""
        tri = self.tri.clone()  # so that nothing known of an earlier step's mesh can be used
        rast, rast_db = self.backend.rasterize(self.pos, tri, (self.size, self.size))
        uv, slopes = self.backend.interpolate(self.uv, rast, tri, rast_db)
        color = self.backend.texture(self.tex, uv, slopes, "linear-mipmap-linear")
        image = self.backend.antialias(color, rast, self.pos, tri)
        return torch.autograd.grad(image.square().mean(), (self.pos, self.uv, self.tex))


def measure_parts(scene: Scene, repeats: int) -> tuple[dict[str, list[float]], float]:
    """Times every operation by itself, the first round included, in milliseconds; and the coverage."""
    backend, device, pos, tri = scene.backend, scene.backend.device, scene.pos, scene.tri
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    coverage = 0.0

    def timed(name: str, work: Callable[[], Tensor]) -> Tensor:
        wait(device)
        begin = time.perf_counter()
        result = work()
        wait(device)
        times[name].append(1000 * (time.perf_counter() - begin))
        return result

    for _ in range(repeats + 1):
        kept: dict[str, Tensor] = {}

        def rasterize(kept: dict[str, Tensor] = kept) -> Tensor:
            kept["rast"], kept["db"] = backend.rasterize(pos, tri, (scene.size, scene.size))
            return kept["rast"]

        rast = timed("rasterize", rasterize)
        color = timed("interpolate", lambda rast=rast: backend.interpolate(scene.attr, rast, tri)[0])
        image = timed("antialias", lambda c=color, rast=rast: backend.antialias(c, rast, pos, tri))
        loss = image.square().mean()
        timed("backward", lambda loss=loss: torch.autograd.grad(loss, (pos, scene.attr))[0])
        times["total"].append(sum(times[name][-1] for name in PARTS[:4]))
        coverage = (rast[..., 3] > 0).float().mean().item()

        uv, slopes = backend.interpolate(scene.uv.detach(), rast.detach(), tri, kept["db"])
        uv.requires_grad_()
        sampled = timed(
            "texture", lambda uv=uv, da=slopes: backend.texture(scene.tex, uv, da, "linear-mipmap-linear")
        )
        loss = sampled.square().mean()
        timed("texture_backward", lambda loss=loss, uv=uv: torch.autograd.grad(loss, (scene.tex, uv))[0])
    return times, coverage


def measure_whole(scene: Scene, repeats: int) -> dict[str, float | None]:
    """Milliseconds of a step of all four operations, as it is and as a CUDA graph where that is possible."""
    device = scene.backend.device
    steps = STEPS if device.type == "cuda" else 1

    def median(work: Callable[[], object]) -> float:
        taken = []
        for _ in range(repeats):
            wait(device)
            begin = time.perf_counter()
            for _ in range(steps):
                work()
            wait(device)
            taken.append(1000 * (time.perf_counter() - begin) / steps)
        return round(statistics.median(taken), 3)

    scene.four_operations()
    result: dict[str, float | None] = {"four": median(scene.four_operations), "four, graph": None}
    if device.type == "cuda" and scene.backend.name == "warp":  # nvdiffrast waits for the device itself
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            scene.four_operations()
        result["four, graph"] = median(graph.replay)
    return result


def measure(backend: RasterBackend, triangles: int, size: int, views: int, repeats: int) -> Row:
    """Times one case; the first round, with compilation or loading, counts separately."""
    scene = Scene(backend, triangles, size, views)
    times, coverage = measure_parts(scene, repeats)
    device = backend.device
    medians: dict[str, float | None] = {
        name: round(statistics.median(taken[1:]), 3) for name, taken in times.items()
    }
    return Row(
        backend=backend.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        triangles=len(scene.tri),
        size=size,
        views=views,
        coverage=round(coverage, 3),
        first_use_s=round((times["total"][0] + times["texture"][0] + times["texture_backward"][0]) / 1000, 2),
        milliseconds=medians | measure_whole(scene, repeats),
    )


def backends(wanted: str) -> list[RasterBackend]:
    """All that work here: Warp on the CPU, and Warp and nvdiffrast on CUDA."""
    found = [make_backend("warp", "cpu")] if wanted != "cuda" else []
    if torch.cuda.is_available() and wanted != "cpu":
        found.append(make_backend("warp", "cuda"))
        fastest = make_backend("auto", "cuda")
        if fastest.name != "warp":
            found.append(fastest)
    return found


def markdown(rows: list[Row]) -> str:
    """A table with one line per case."""
    columns = (*PARTS, *WHOLE)
    names = ["backend", "device", "triangles", "size", "views", "coverage", *columns, "first use (s)"]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = [row.backend, row.device, row.triangles, row.size, row.views, f"{row.coverage:.0%}"]
        cells += ["" if (t := row.milliseconds[name]) is None else f"{t:.2f}" for name in columns]
        lines.append("| " + " | ".join(str(cell) for cell in [*cells, row.first_use_s]) + " |")
    return "\n".join(lines)


def verdicts(rows: list[Row]) -> str:
    """For every case that both backends ran on CUDA: how long Warp takes for the four operations."""
    lines = []
    cases = {(r.backend, r.triangles, r.size): r.milliseconds for r in rows if r.device != "cpu"}
    for (backend, triangles, size), ours in cases.items():
        theirs = cases.get(("nvdiffrast", triangles, size))
        if backend == "warp" and theirs is not None and ours["four"] and theirs["four"]:
            lines.append(
                f"- {triangles} triangles, {size} x {size}: the four operations forward and backward take "
                f"Warp {ours['four']:.2f} ms (as a CUDA graph {ours['four, graph']:.2f} ms) and nvdiffrast "
                f"{theirs['four']:.2f} ms, {ours['four'] / theirs['four']:.2f} times as long."
            )
    return "\n".join(lines)


def main() -> None:
    """Runs the cases asked for and prints their table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--triangles", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--size", type=int, nargs="+", default=[128, 512], help="pixels per side")
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", choices=["cpu", "cuda", "all"], default="all")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; its own choice by default")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = [
        measure(backend, triangles, size, options.views, options.repeats)
        for backend in backends(options.device)
        for triangles in options.triangles
        for size in options.size
    ]
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=2)
        print()
        return
    print(f"Milliseconds, median of {options.repeats}; torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} CPU threads.\n")
    print(markdown(rows))
    if told := verdicts(rows):
        print(f"\n{told}")


if __name__ == "__main__":
    main()
