"""Arguments of every command that runs upstream beside ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.parity.upstream import check_checkouts


def add_shared(parser: argparse.ArgumentParser, *, size: str) -> None:
    """Add the checkouts, the device, the networks' size (`size` unless told) and the file for the figures."""
    parser.add_argument("--upstream", type=Path, required=True, help="checkout of ReconViaGen (v0.2)")
    parser.add_argument("--dinov2", type=Path, required=True, help="checkout of facebookresearch/dinov2")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=["mini", "published"], default=size, help="of the networks")
    parser.add_argument("--json", type=Path, help="write everything to this file as well")


def parse(parser: argparse.ArgumentParser) -> Any:
    """The arguments, once it is sure that the checkouts can be read and the figures be written."""
    options = parser.parse_args()
    try:
        check_checkouts(options.upstream, options.dinov2)
        if options.json:
            options.json.open("a").close()  # now, and not after an hour of work
    except OSError as error:
        parser.error(str(error))
    return options


def positive(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        ValueError: It is none; argparse tells the user.
    """
    number = int(text)
    if number < 1:
        raise ValueError
    return number
