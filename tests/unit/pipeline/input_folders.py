"""Inputs on disk for the tests of ingest and validation."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPOT = Path(__file__).resolve().parents[3] / "examples" / "spot-small" / "views"


def copy_spot(folder: Path) -> Path:
    """A writable copy of the sample input."""
    return Path(shutil.copytree(SPOT, folder / "input"))


def edit_transforms(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change transforms.json in place; NaN and infinity are written as Python does."""
    path = folder / "transforms.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def edit_frame(folder: Path, index: int, **values: Any) -> None:
    """Set keys of one frame of transforms.json."""
    edit_transforms(folder, lambda data: data["frames"][index].update(values))


def edit_matrices(folder: Path, edit: Callable[[np.ndarray], np.ndarray], *indices: int) -> None:
    """Change the matrices of some frames, of all if none is named."""

    def apply(data: dict[str, Any]) -> None:
        for index, frame in enumerate(data["frames"]):
            if not indices or index in indices:
                frame["transform_matrix"] = edit(np.array(frame["transform_matrix"])).tolist()

    edit_transforms(folder, apply)


def rewrite_depth(path: Path, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the counts of a 16-bit depth map."""
    counts = edit(np.asarray(Image.open(path)).astype(np.float64))
    Image.fromarray(counts.clip(0, 65535).round().astype(np.uint16)).save(path)


def make_opaque(folder: Path) -> None:
    """Take the alpha channel from every image."""
    for path in (folder / "images").iterdir():
        Image.open(path).convert("RGB").save(path)


def remove_depth(folder: Path) -> None:
    """Leave an input without depth."""
    shutil.rmtree(folder / "depth")
    if (folder / "transforms.json").exists():
        edit_transforms(folder, lambda data: [f.pop("depth_file_path") for f in data["frames"]])


def png_bytes(
    width: int, height: int, *, bits: int, color_type: int, rows: bytes, transparent: bytes | None = None
) -> bytes:
    """A PNG built by hand, for formats that Pillow does not write, and for lying headers.

    `transparent` is the colour that stands for transparent, as the tRNS chunk holds it.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    marked = b"" if transparent is None else chunk(b"tRNS", transparent)
    body = chunk(b"IHDR", header) + marked + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
