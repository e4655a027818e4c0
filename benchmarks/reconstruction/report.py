"""Records of runs as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any

Record = dict[str, Any]
Row = dict[str, str]

ALIGNED = (
    "The result of noisy cameras is aligned with the true world before it is measured, by the similarity "
    "between its own cameras (refined, or as given) and the true ones, over where each camera sees samples "
    "of the true surface, which is more favourable than BARF's camera centres. Errors of cameras are "
    "root mean squares after alignment, degrees and share of the distance to the object."
)
BASELINE = (
    "Baseline: NVlabs/nvdiffrec on an H200, own measurement, from colour and masks alone. Differences are "
    "ours minus the baseline's."
)
QUALITY = (
    "Held-out views (test) and input views, over white; (mask): inside the object only. Depth error and "
    "chamfer distance in world units; F-score at 0.02."
)


def report(records: Sequence[Record]) -> str:
    """All tables that the records have figures for, each under its caption."""
    done = [record for record in records if "error" not in record]
    tables = [
        (QUALITY, [{**_run(record), **_quality(record)} for record in done]),
        ("Time and memory.", [{**_run(record), **_costs(record)} for record in done]),
        (BASELINE, [{**_run(r), **_beside_baseline(r)} for r in done if r.get("baseline")]),
        (ALIGNED, [{**_run(record), **_cameras(record)} for record in done if "pose_errors" in record]),
        ("Rasterizers beside the first one of the same input and options.", _rasters(done)),
        ("Means over data sets.", _summary(done)),
        ("Refused or failed.", [_error(record) for record in records if "error" in record]),
    ]
    return "\n\n".join(f"{caption}\n\n{markdown(rows)}" for caption, rows in tables if rows)


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a table; a column that is empty in all of them is left out."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if any(row.get(name) for row in rows)]
    lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def label(figures: dict[str, Any]) -> str:
    """Options or a degradation in a few words."""
    return ", ".join(f"{name} {json.dumps(value).strip(chr(34))}" for name, value in figures.items())


def _run(record: Record) -> Row:
    """The columns that say which run it is."""
    options = {name: value for name, value in record["options"].items() if name != "raster"}
    return {
        "data": record["data"],
        "options": label(options),
        "input made worse by": label(record["degradation"]),
        "raster": record.get("raster", ""),
    }


def _quality(record: Record) -> Row:
    row: Row = {}
    for title, views in (("test", record.get("test")), ("input", record["input"])):
        for name, key, digits in (
            ("PSNR", "psnr_db", 2),
            ("SSIM", "ssim", 3),
            ("PSNR (mask)", "psnr_mask_db", 2),
            ("SSIM (mask)", "ssim_mask", 3),
            ("LPIPS", "lpips", 3),
            ("mask IoU", "mask_iou", 3),
            ("depth error", "depth_error", 4),
        ):
            row[f"{title} {name}"] = _number((views or {}).get(key), digits)
    surface = record.get("surface", {})
    row["chamfer"] = _number(surface.get("chamfer"), 4)
    row["F-score"] = _number(surface.get("f_score"), 3)
    row["normal consistency"] = _number(surface.get("normal_consistency"), 3)
    row["triangles"] = f"{record['faces']:,}"
    return row


def _costs(record: Record) -> Row:
    row = {
        "size": record["size"],
        "views": str(record["views"]),
        "device": record["device"],
        "time [s]": _number(record["seconds"], 2),
    }
    for target, seconds in record.get("seconds_to_psnr", {}).items():
        name = "to the baseline's PSNR [s]" if target == "baseline" else f"to {target} dB [s]"
        row[name] = "not reached" if seconds is None else _number(seconds, 2)
    memory = record["memory"]
    row["GPU, torch's peak [MiB]"] = _number(memory.get("gpu_mib"), 0)
    row["host, peak [MiB]"] = _number(memory.get("host_mib"), 0)
    row["stages [s]"] = ", ".join(f"{name} {seconds:.2f}" for name, seconds in record["stages"].items())
    return row


def _beside_baseline(record: Record) -> Row:
    theirs, ours = record["baseline"], record["test"]["psnr_db"]
    row = {
        "test PSNR": _number(ours, 2),
        "baseline's": _number(theirs["psnr_db"], 2),
        "difference [dB]": f"{ours - theirs['psnr_db']:+.2f}",
    }
    if "surface" in record:
        chamfer = record["surface"]["chamfer"]
        row["chamfer"] = _number(chamfer, 4)
        row["baseline's chamfer"] = _number(theirs["chamfer"], 4)
        row["chamfer's difference"] = f"{chamfer - theirs['chamfer']:+.4f}"
    row["time [s]"] = _number(record["seconds"], 2)
    row["baseline's time [s]"] = _number(theirs["seconds"], 0)
    row["times faster"] = _number(theirs["seconds"] / record["seconds"], 1)
    return row


def _cameras(record: Record) -> Row:
    row: Row = {}
    for name, errors in record["pose_errors"].items():
        row[f"{name}: turned by [degrees]"] = _number(errors["degrees"], 3)
        row[f"{name}: off by"] = f"{errors['distance_share']:.3%}"
    row["aligned by: scale"] = _number(record["similarity"]["scale"], 4)
    row["aligned by: turn [degrees]"] = _number(record["similarity"]["degrees"], 3)
    row["test PSNR"] = _number(record.get("test", {}).get("psnr_db"), 2)
    return row


def _rasters(records: Iterable[Record]) -> list[Row]:
    """A row for each run with another rasterizer than the first one of the same input and options."""
    rows: list[Row] = []
    for group in _grouped(records, lambda record: _without_raster(record, "data")).values():
        first = group[0]
        for other in group[1:]:
            if other["raster"] == first["raster"]:
                continue
            row = {**_run(other), "beside": first["raster"]}
            row["time"] = f"{other['seconds'] / first['seconds']:.2f}x"
            for name, views in (("test", "test"), ("input", "input")):
                if views in other:
                    row[f"{name} PSNR [dB]"] = f"{other[views]['psnr_db'] - first[views]['psnr_db']:+.2f}"
            if "surface" in other:
                row["chamfer"] = f"{other['surface']['chamfer'] - first['surface']['chamfer']:+.4f}"
            rows.append(row)
    return rows


def _summary(records: Iterable[Record]) -> list[Row]:
    """A row for each set of options that ran on more than one input."""
    groups = _grouped(records, lambda record: (*_without_raster(record), record["raster"]))
    return [_summarize(group) for group in groups.values() if len({r["data"] for r in group}) > 1]


def _summarize(group: list[Record]) -> Row:
    row = {**_run(group[0]), "data": f"{len({record['data'] for record in group})} inputs"}
    seconds = [record["seconds"] for record in group]
    psnr = [record["test"]["psnr_db"] for record in group if "test" in record]
    chamfer = [record["surface"]["chamfer"] for record in group if "surface" in record]
    better = [r["test"]["psnr_db"] - r["baseline"]["psnr_db"] for r in group if r.get("baseline")]
    if psnr:
        row["test PSNR, mean"], row["lowest"] = _number(mean(psnr), 2), _number(min(psnr), 2)
    if better:
        row["above the baseline [dB], mean"], row["least"] = f"{mean(better):+.2f}", f"{min(better):+.2f}"
    if chamfer:
        row["chamfer, mean"], row["highest"] = _number(mean(chamfer), 4), _number(max(chamfer), 4)
    row["time [s], mean"], row["longest"] = _number(mean(seconds), 2), _number(max(seconds), 2)
    peaks = [record["memory"]["gpu_mib"] for record in group if "gpu_mib" in record["memory"]]
    row["GPU, torch's peak [MiB]"] = _number(max(peaks), 0) if peaks else ""
    return row


def _error(record: Record) -> Row:
    return {**_run(record), "code": record["error"]["code"], "why": record["error"]["message"]}


def _without_raster(record: Record, *more: str) -> tuple[str, ...]:
    options = {name: value for name, value in record["options"].items() if name != "raster"}
    same = (options, record["degradation"], record["device"], *(record[name] for name in more))
    return tuple(json.dumps(part, sort_keys=True) for part in same)


def _grouped(
    records: Iterable[Record], key: Callable[[Record], tuple[str, ...]]
) -> dict[tuple[str, ...], list[Record]]:
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
