"""Time of the rasterizer's operations, forward and backward, on the devices present.

Renders a welded sphere from a ring of views: rasterize, interpolate (3 channels), antialias and their common
backward pass; then a trilinear texture lookup and its own. Prints a Markdown table of medians, or JSON.

    python -m benchmarks.raster
    python -m benchmarks.raster --size 512 --triangles 50000 --json
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

COLUMNS = ("rasterize", "interpolate", "antialias", "backward", "total", "texture", "texture_backward")


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
    milliseconds: dict[str, float]


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


def measure(backend: RasterBackend, triangles: int, size: int, views: int, repeats: int) -> Row:
    """Times every operation of one case; the first round, with compilation or loading, counts separately."""
    device = backend.device
    pos, tri, vertices = (t.to(device) for t in sphere_views(triangles, views))
    pos.requires_grad_()
    attr = vertices[None].clone().requires_grad_()
    tex = torch.rand(1, 512, 512, 3, device=device, requires_grad=True)
    times: dict[str, list[float]] = {name: [] for name in COLUMNS}
    coverage = 0.0

    def timed(name: str, work: Callable[[], Tensor]) -> Tensor:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times[name].append(1000 * (time.perf_counter() - begin))
        return result

    for _ in range(repeats + 1):
        kept: dict[str, Tensor] = {}

        def rasterize(kept: dict[str, Tensor] = kept) -> Tensor:
            kept["rast"], kept["db"] = backend.rasterize(pos, tri, (size, size))
            return kept["rast"]

        rast = timed("rasterize", rasterize)
        color = timed("interpolate", lambda rast=rast: backend.interpolate(attr, rast, tri)[0])
        image = timed("antialias", lambda c=color, rast=rast: backend.antialias(c, rast, pos, tri))
        loss = image.square().mean()
        timed("backward", lambda loss=loss: torch.autograd.grad(loss, (pos, attr))[0])
        times["total"].append(sum(times[name][-1] for name in COLUMNS[:4]))
        coverage = (rast[..., 3] > 0).float().mean().item()

        uv, slopes = backend.interpolate(attr[..., :2].detach(), rast.detach(), tri, kept["db"])
        uv.requires_grad_()
        sampled = timed(
            "texture", lambda uv=uv, da=slopes: backend.texture(tex, uv, da, "linear-mipmap-linear")
        )
        loss = sampled.square().mean()
        timed("texture_backward", lambda loss=loss, uv=uv: torch.autograd.grad(loss, (tex, uv))[0])

    return Row(
        backend=backend.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        triangles=len(tri),
        size=size,
        views=views,
        coverage=round(coverage, 3),
        first_use_s=round((times["total"][0] + times["texture"][0] + times["texture_backward"][0]) / 1000, 2),
        milliseconds={name: round(statistics.median(taken[1:]), 2) for name, taken in times.items()},
    )


def backends() -> list[RasterBackend]:
    """All that work here: Warp on the CPU, and Warp and nvdiffrast on CUDA."""
    found = [make_backend("warp", "cpu")]
    if torch.cuda.is_available():
        found.append(make_backend("warp", "cuda"))
        fastest = make_backend("auto", "cuda")
        if fastest.name != "warp":
            found.append(fastest)
    return found


def markdown(rows: list[Row]) -> str:
    """A table with one line per case."""
    names = ["backend", "device", "triangles", "size", "views", "coverage", *COLUMNS, "first use (s)"]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = [row.backend, row.device, row.triangles, row.size, row.views, f"{row.coverage:.0%}"]
        cells += [f"{row.milliseconds[name]:.2f}" for name in COLUMNS] + [row.first_use_s]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
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
    parser.add_argument("--threads", type=int, help="of torch on the CPU; its own choice by default")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = [
        measure(backend, triangles, size, options.views, options.repeats)
        for backend in backends()
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


if __name__ == "__main__":
    main()
