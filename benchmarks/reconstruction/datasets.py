"""Data sets with a known truth: where their parts lie, and how they are read.

<folder>/<rig>/transforms.json   the input views of a rig: images, cameras, depth maps if there are any
<folder>/test/transforms.json    views that no reconstruction sees, with exact cameras
<folder>/mesh.ply                the true surface, in the world of all cameras
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import trimesh
from numpy.typing import NDArray

from benchmarks.reconstruction.surface_metrics import SurfaceSamples, sample_surface
from models.base import Views
from pipeline.ingest import plan_input
from pipeline.settings import Limits
from pipeline.storage_file import FolderStore
from pipeline.transforms import TRANSFORMS_NAME
from pipeline.validate import load_checked
from schemas.locations import Location
from schemas.options import NvdiffrecOptions

TEST = "test"
MESH = "mesh.ply"
_TRUTH_SEED = 2  # not the seed of the reconstructed surface: equal samples would measure 0


class LayoutError(ValueError):
    """A folder is not a data set of this layout; the message says what is missing."""


@dataclass(frozen=True)
class Truth:
    """The true surface.

    Attributes:
        samples: Points and normals of it.
        center: Centre of its bounding box [3], world units.
        radius: Distance of its farthest vertex from there: the object's bounding radius, world units.
    """

    samples: SurfaceSamples
    center: NDArray[np.float64]
    radius: float


class DataSet:
    """One folder. Held-out views and truth are read once, when they are first asked for.

    Args:
        folder: The folder.
        rigs: Sub-folders of input views; empty for all of them.

    Raises:
        LayoutError: The folder, or one of the rigs, is not there.
    """

    def __init__(self, folder: Path, rigs: Sequence[str] = ()) -> None:
        self.folder = folder.resolve()
        self.name = self.folder.name
        self.rigs = tuple(rigs) or find_rigs(self.folder)
        for rig in self.rigs:
            if not (self.folder / rig / TRANSFORMS_NAME).is_file():
                raise LayoutError(f"{folder} has no {rig}/{TRANSFORMS_NAME}; {_found(self.folder)}")

    def views(self, rig: str, options: NvdiffrecOptions) -> Views:
        """The input views of a rig, read and checked as a worker does it.

        Raises:
            InvalidJob, AccessError: as a job would fail.
        """
        return read_views(self.folder / rig, options)

    @cached_property
    def test(self) -> Views | None:
        """The held-out views."""
        folder = self.folder / TEST
        return read_views(folder, NvdiffrecOptions()) if (folder / TRANSFORMS_NAME).is_file() else None

    @cached_property
    def truth(self) -> Truth | None:
        """The true surface."""
        path = self.folder / MESH
        return read_truth(path) if path.is_file() else None


def find_rigs(folder: Path) -> tuple[str, ...]:
    """Names of the sub-folders that hold input views.

    Raises:
        LayoutError: There are none.
    """
    if not folder.is_dir():
        raise LayoutError(f"{folder} is not a folder")
    found = sorted(path.parent.name for path in folder.glob(f"*/{TRANSFORMS_NAME}"))
    rigs = tuple(name for name in found if name != TEST)
    if not rigs:
        raise LayoutError(
            f"{folder} is not a data set: it has no sub-folder of input views, <rig>/{TRANSFORMS_NAME}"
        )
    return rigs


def read_views(folder: Path, options: NvdiffrecOptions) -> Views:
    """Views of a folder, on the CPU.

    Raises:
        InvalidJob, AccessError: as a job would fail.
    """
    store = FolderStore(Location("file", "", str(folder)))
    plan = plan_input(store, options, Limits())
    with TemporaryDirectory(prefix="benchmark-") as scratch:
        return load_checked(
            folder, plan, options, Limits(), lambda fraction, message: None, scratch=Path(scratch)
        ).views


def read_truth(path: Path) -> Truth:
    """A true surface from a mesh file."""
    mesh = trimesh.load_mesh(path)
    vertices = np.asarray(mesh.vertices, np.float64)
    center = (vertices.min(0) + vertices.max(0)) / 2
    return Truth(
        samples=sample_surface(vertices, np.asarray(mesh.faces), seed=_TRUTH_SEED),
        center=center,
        radius=float(np.linalg.norm(vertices - center, axis=1).max()),
    )


def _found(folder: Path) -> str:
    try:
        return f"its rigs: {', '.join(find_rigs(folder))}"
    except LayoutError as error:
        return str(error)
