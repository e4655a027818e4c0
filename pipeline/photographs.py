"""Photographs as structure from motion wants them: plain grey images, and masks of what counts in them.

They are decoded by `pipeline.images`, as everything from outside, so that COLMAP reads only files of our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
class Region:
    """Which pixels belong to the object, one bit each: an input may have hundreds of views.

    Attributes:
        bits: Rows of the image, one after another, eight pixels a byte.
        shape: Height and width, pixels.
    """

    bits: NDArray[np.uint8]
    shape: tuple[int, int]

    @classmethod
    def of(cls, inside: NDArray[np.bool_]) -> Region:
        """From [H, W]."""
        height, width = inside.shape
        return cls(np.packbits(inside), (height, width))

    def array(self) -> NDArray[np.bool_]:
        """As [H, W]."""
        height, width = self.shape
        return np.unpackbits(self.bits, count=height * width).reshape(self.shape).astype(bool)


@dataclass(frozen=True)
class Prepared:
    """What was written, in order of the plan's views.

    Attributes:
        photographs: As the process is told of them.
        exif: What the files say.
        inside: Where the object is in each photograph.
    """

    photographs: tuple[Photograph, ...]
    exif: tuple[Exif, ...]
    inside: tuple[Region, ...]


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

    One image at a time is in memory. The object is cut out in a second pass: whether alpha channels are masks
    is known only when all have been read.

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
    for part in (IMAGES, MASKS):
        (scratch / part).mkdir(parents=True, exist_ok=True)
    reader = _Reader(folder, plan, limits, scratch, has_masks=has_masks, all_measured=all(measured))
    shots = []
    for index, (view, header) in enumerate(zip(plan.views, headers, strict=True)):
        shots.append(reader.read(view, _file_name(index), _working_size(header)))
        tick((index + 1) / len(names), f"preparing {view.image}")
    transparent = [with_alpha and shot.transparent for shot in shots]
    source = choose_source(names, has_masks=has_masks, transparent=transparent, measured=measured)
    inside = tuple(shot.inside[source] for shot in shots)
    for name, shot, region in zip(names, shots, inside, strict=True):
        mask = region.array()
        refuse_empty(name, mask.astype(np.float32), source)
        if object_only:
            _cut_out(scratch, shot.photograph.name, mask)
            tick(1.0, f"cutting out {name}")
    return Prepared(_by_camera(shots), tuple(shot.exif for shot in shots), inside)


@dataclass(frozen=True)
class _Shot:
    photograph: Photograph  # its camera is not known yet
    inside: dict[str, Region]  # by source of the mask
    transparent: bool
    exif: Exif


class _Reader:
    def __init__(
        self,
        folder: Path,
        plan: InputPlan,
        limits: Limits,
        scratch: Path,
        *,
        has_masks: bool,
        all_measured: bool,
    ) -> None:
        self._folder = folder
        self._scratch = scratch
        self._depth_scale = plan.depth_scale
        self._limits = limits
        self._has_masks = has_masks
        self._all_measured = all_measured

    def read(self, view: ViewFiles, name: str, size: Size) -> _Shot:
        """Write a view's grey image, and say all else of it."""
        path = self._folder / view.image
        color, alpha = read_color(path, view.image, self._limits)
        grey = np.clip(resized(color @ _LUMA, size) * 255, 0, 255).round().astype(np.uint8)
        _save(grey, self._scratch / IMAGES / name)
        exif = read_exif(path, view.image, self._limits)
        focal = None if exif.focal_share is None else exif.focal_share * float(np.hypot(*size))
        transparent = alpha is not None and bool((alpha < 1).any())
        inside = {source: Region.of(mask) for source, mask in self._masks(view, alpha, size)}
        return _Shot(Photograph(name, 0, focal, *size), inside, transparent, exif)

    def _masks(
        self, view: ViewFiles, alpha: Floats | None, size: Size
    ) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        if self._has_masks and view.mask is not None:
            yield "mask_path", _covered(read_mask(self._folder / view.mask, view.mask, self._limits), size)
            return
        if alpha is not None:
            yield "alpha", _covered(alpha, size)
        if self._all_measured and view.depth is not None:
            depth = read_depth(self._folder / view.depth, view.depth, self._limits, self._depth_scale)
            yield "depth", resized_nearest(depth, size) > 0


def _covered(coverage: Floats, size: Size) -> NDArray[np.bool_]:
    return resized(coverage, size) > FOREGROUND


def _working_size(header: Header) -> Size:
    scale = min(1.0, MAX_SIDE / max(header.width, header.height))
    return max(1, round(header.width * scale)), max(1, round(header.height * scale))


def _file_name(index: int) -> str:
    return f"{index:06}.png"


def _cut_out(scratch: Path, name: str, inside: NDArray[np.bool_]) -> None:
    """Write a photograph's mask, and the photograph anew with its object before the object's mean grey."""
    mask = cv2.erode(inside.astype(np.uint8), _RIM) * 255
    _save(np.asarray(mask, np.uint8), scratch / MASKS / f"{name}.png")
    with Image.open(scratch / IMAGES / name) as image:
        grey = np.asarray(image)
    _save(np.where(inside, grey, np.uint8(grey[inside].mean())), scratch / IMAGES / name)


def _save(grey: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(grey).save(path, compress_level=1)


def _by_camera(shots: Sequence[_Shot]) -> tuple[Photograph, ...]:
    """Photographs of one size and one focal length are taken for one camera's."""
    cameras: dict[tuple[int, int, float | None], int] = {}
    photographs = [shot.photograph for shot in shots]
    numbers = [cameras.setdefault((one.width, one.height, one.focal), len(cameras)) for one in photographs]
    return tuple(replace(one, camera=number) for one, number in zip(photographs, numbers, strict=True))
