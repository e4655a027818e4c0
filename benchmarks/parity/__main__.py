"""Compares every network of ours with upstream's, on the same random weights and inputs.

Upstream is imported from checkouts given by argument. Packages that it needs and that are missing have
stand-ins, and the report says which. Prints tables: names and shapes of the parameters at full size; the
largest relative error of every output, in float32 (at most 1e-4) and in half precision (at most 2e-2); the
samplers; the extraction of a mesh; the whole chain from images to a mesh. Exit code 1 if any differs by more.

    python -m benchmarks.parity --upstream ReconViaGen --dinov2 dinov2
    python -m benchmarks.parity --upstream ReconViaGen --dinov2 dinov2 --size published --device cuda
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.parity.arguments import add_shared, parse
from benchmarks.parity.chain import compare_chain
from benchmarks.parity.compare import Names, Row, compare_names, compare_values
from benchmarks.parity.conditions import LatentConditionPair, StructureConditionPair
from benchmarks.parity.configurations import Size
from benchmarks.parity.decoders import (
    GaussianDecoderPair,
    MeshDecoderPair,
    StructureDecoderPair,
)
from benchmarks.parity.encoders import Dinov2, VggtPair
from benchmarks.parity.flows import LatentFlowPair, StructureFlowPair
from benchmarks.parity.pair import Pair
from benchmarks.parity.samplers import compare_samplers
from benchmarks.parity.standins import NOT_CALLED
from benchmarks.parity.surfaces import compare_extraction
from benchmarks.parity.upstream import Upstream, load_upstream

PAIRS: tuple[type[Pair], ...] = (
    Dinov2,
    VggtPair,
    StructureConditionPair,
    LatentConditionPair,
    StructureFlowPair,
    StructureDecoderPair,
    LatentFlowPair,
    MeshDecoderPair,
    GaussianDecoderPair,
)

WHOLE: dict[str, Callable[[Upstream, Size], list[Row]]] = {
    "samplers": compare_samplers,
    "extraction": compare_extraction,
    "chain": compare_chain,
}
"""What is compared beside the networks."""


def main() -> None:
    """Compares what is asked for, prints the tables, and says by the exit code whether all agree."""
    options = _arguments()
    device = torch.device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # float32 is to mean it
    upstream = load_upstream(options.upstream, options.dinov2, device)
    chosen = [pair for pair in PAIRS if pair.name in options.only]
    names = [compare_names(pair(upstream, "published")) for pair in chosen]
    rows = []
    for pair in chosen:
        rows += compare_values(pair(upstream, options.size), half=not options.no_half)
        _say(f"{pair.name}: compared")
    for name, compare in WHOLE.items():
        if name in options.only:
            rows += compare(upstream, options.size)
            _say(f"{name}: compared")
    _print(upstream, options, names, rows)
    sys.exit(0 if all(part.passed for part in (*names, *rows)) else 1)


def _arguments() -> Any:
    parser = argparse.ArgumentParser(
        prog="benchmarks.parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shared(parser, size="mini")
    parts = [*(pair.name for pair in PAIRS), *WHOLE]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="these parts alone")
    parser.add_argument("--no-half", action="store_true", help="float32 alone")
    return parse(parser)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(upstream: Upstream, options: Any, names: list[Names], rows: list[Row]) -> None:
    real = {name: state for name, state in upstream.standins.packages.items() if state != NOT_CALLED}
    where = torch.cuda.get_device_name() if upstream.device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, size {options.size}. ", end="")
    print("; ".join(f"{name}: {state}" for name, state in real.items()) + ".\n")
    print(names_table(names))
    print()
    print(errors_table(rows))
    if options.json:
        report = {
            "device": where,
            "torch": torch.__version__,
            "size": options.size,
            "packages": upstream.standins.packages,
            "names": [asdict(part) for part in names],
            "errors": [asdict(row) | {"passed": row.passed} for row in rows],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def names_table(names: list[Names]) -> str:
    """How the state dicts compare, one line per network."""
    lines = ["| network | tensors | parameters | names and shapes |", "| --- | --- | --- | --- |"]
    for part in names:
        verdict = "identical" if part.passed else "; ".join(part.differences[:5])
        lines.append(f"| {part.network} | {part.tensors} | {part.parameters:,} | {verdict} |")
    return "\n".join(lines)


def errors_table(rows: list[Row]) -> str:
    """The errors, one line per output, float32 beside half precision."""
    head = ["network", "output", "float32", "half", "upstream's half against its float32", "verdict"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for network, output in dict.fromkeys((row.network, row.output) for row in rows):
        found = {row.precision: row for row in rows if (row.network, row.output) == (network, output)}
        half = found.get("half")
        rounding = half.rounding if half and half.rounding else None
        cells = [_number(row.error if row else None) for row in (found.get("float32"), half)]
        verdict = "ok" if all(row.passed for row in found.values()) else "**too far**"
        lines.append("| " + " | ".join([network, output, *cells, _number(rounding), verdict]) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    main()
