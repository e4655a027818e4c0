"""Upstream's published configurations, and small ones of the same shape for a CPU."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

Size = Literal["mini", "published"]
Configuration = dict[str, Any]

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Scene:
    """How much there is to compute.

    Attributes:
        views: Number of images.
        resolution: Voxels along each side of the occupancy grid.
    """

    views: int
    resolution: int


SCENES: dict[Size, Scene] = {"mini": Scene(2, 16), "published": Scene(6, 64)}


def load_configurations(size: Size) -> dict[str, Configuration]:
    """Configuration of every network by its name here: `name` of upstream's class, `args`, and parts.

    The published ones are those of TRELLIS' `configs/` and of ReconViaGen's training scripts, DINOv2's
    `dinov2_vitl14_reg` and VGGT's defaults.
    """
    files = [FOLDER / "published.json"] + ([FOLDER / "mini.json"] if size == "mini" else [])
    return reduce(_merged, (json.loads(file.read_text()) for file in files))


def _merged(base: Configuration, changes: Configuration) -> Configuration:
    changed = {
        key: _merged(base[key], value) if isinstance(value, dict) else value for key, value in changes.items()
    }
    return base | changed
