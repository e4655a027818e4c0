"""Photographs as structure from motion wants them: plain grey images, and masks of what counts in them.

They are decoded by `pipeline.images`, as everything from outside, so that COLMAP reads only files of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.decode import Tick
from pipeline.images import Exif, Floats, Header, read_color, read_depth, read_exif, read_mask
from pipeline.ingest import InputPlan
from pipeline.masks import FOREGROUND, choose_source, refuse_empty
from pipeline.matching import ViewFiles
from pipeline.resample import Size, resized, resized_nearest
from pipeline.settings import Limits
from pipeline.structure_from_motion import IMAGES, MASKS, Photograph

MAX_SIDE = 1600
"""Longer side of the images that are matched, pixels: features of finer detail are seldom found again."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601
_RIM = np.ones((3, 3), np.uint8)  # the silhouette is another part of the object in every view


@dataclass(frozen=True)
class Prepared:
    """What was written, in order of the plan's views.

    Attributes:
        photographs: As the process is told of them.
        exif: What the files say.
        inside: [H, W] each, where the object is.
    """

    photographs: tuple[Photograph, ...]
    exif: tuple[Exif, ...]
    inside: tuple[NDArray[np.bool_], ...]


def prepare_photographs(
    folder: Path,
    plan: InputPlan,
    headers: Sequence[Header],
    limits: Limits,
    scratch: Path,
    *,
    object_only: bool,
    tick: Tick,
) -> Prepared:
    """Write `images/` and `masks/` to the scratch folder.

    Args:
        folder: Holds the files under their keys.
        plan: What to read.
        headers: Of the plan's images.
        limits: Bounds on pixels.
        scratch: Where to write; made if need be.
        object_only: Whether features outside of the object do not count; it then stands before its own mean
            grey, so that neither a background nor its edge shapes the features.
        tick: Progress.

    Raises:
        InvalidJob: MASK_MISSING, INVALID_IMAGE, INVALID_DEPTH.
    """
    names = [view.image for view in plan.views]
    has_masks = all(view.mask is not None for view in plan.views)
    measured = [view.depth is not None for view in plan.views]
    with_alpha = all(header.has_alpha for header in headers)
    hoped = [with_alpha] * len(names)
    choose_source(
        names, has_masks=has_masks, transparent=hoped, measured=measured
    )  # before anything is decoded
    reader = _Reader(folder, plan, limits, has_masks=has_masks, all_measured=all(measured))
    shots = []
    for index, (view, header) in enumerate(zip(plan.views, headers, strict=True)):
        shots.append(reader.read(view, _working_size(header)))
        tick((index + 1) / len(names), f"preparing {view.image}")
    transparent = [with_alpha and shot.transparent for shot in shots]
    source = choose_source(names, has_masks=has_masks, transparent=transparent, measured=measured)
    for name in (IMAGES, MASKS):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    inside = [shot.inside[source] for shot in shots]
    for index, (name, shot, mask) in enumerate(zip(names, shots, inside, strict=True)):
        refuse_empty(name, mask.astype(np.float32), source)
        _write(scratch, _file_name(index), shot.grey, mask, object_only=object_only)
    exif = [shot.exif for shot in shots]
    return Prepared(tuple(_photographs(shots, exif)), tuple(exif), tuple(inside))


@dataclass(frozen=True)
class _Shot:
    grey: NDArray[np.uint8]  # [H, W]
    inside: dict[str, NDArray[np.bool_]]  # by source of the mask, [H, W]
    transparent: bool
    exif: Exif


class _Reader:
    def __init__(
        self, folder: Path, plan: InputPlan, limits: Limits, *, has_masks: bool, all_measured: bool
    ) -> None:
        self._folder = folder
        self._depth_scale = plan.depth_scale
        self._limits = limits
        self._has_masks = has_masks
        self._all_measured = all_measured

    def read(self, view: ViewFiles, size: Size) -> _Shot:
        path = self._folder / view.image
        color, alpha = read_color(path, view.image, self._limits)
        grey = np.clip(resized(color @ _LUMA, size) * 255, 0, 255).round().astype(np.uint8)
        inside: dict[str, NDArray[np.bool_]] = {}
        if self._has_masks and view.mask is not None:
            mask = read_mask(self._folder / view.mask, view.mask, self._limits)
            inside["mask_path"] = _covered(mask, size)
        elif alpha is not None:
            inside["alpha"] = _covered(alpha, size)
        if not self._has_masks and self._all_measured and view.depth is not None:
            depth = read_depth(self._folder / view.depth, view.depth, self._limits, self._depth_scale)
            inside["depth"] = resized_nearest(depth, size) > 0
        transparent = alpha is not None and bool((alpha < 1).any())
        return _Shot(grey, inside, transparent, read_exif(path, view.image, self._limits))


def _covered(coverage: Floats, size: Size) -> NDArray[np.bool_]:
    return resized(coverage, size) > FOREGROUND


def _working_size(header: Header) -> Size:
    scale = min(1.0, MAX_SIDE / max(header.width, header.height))
    return max(1, round(header.width * scale)), max(1, round(header.height * scale))


def _file_name(index: int) -> str:
    return f"{index:06}.png"


def _write(
    scratch: Path, name: str, grey: NDArray[np.uint8], inside: NDArray[np.bool_], *, object_only: bool
) -> None:
    if object_only:
        mask = cv2.erode(inside.astype(np.uint8), _RIM) * 255
        Image.fromarray(np.asarray(mask, np.uint8)).save(scratch / MASKS / f"{name}.png", compress_level=1)
        grey = np.where(inside, grey, np.uint8(grey[inside].mean()))
    Image.fromarray(grey).save(scratch / IMAGES / name, compress_level=1)


def _photographs(shots: Sequence[_Shot], exif: Sequence[Exif]) -> list[Photograph]:
    """Photographs of one size and one focal length are taken for one camera's."""
    cameras: dict[tuple[int, int, float | None], int] = {}
    found = []
    for index, (shot, tags) in enumerate(zip(shots, exif, strict=True)):
        height, width = shot.grey.shape
        diagonal = float(np.hypot(width, height))
        focal = None if tags.focal_share is None else tags.focal_share * diagonal
        number = cameras.setdefault((width, height, focal), len(cameras))
        found.append(Photograph(_file_name(index), number, focal, width, height))
    return found
