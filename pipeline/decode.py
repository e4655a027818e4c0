"""Decode the files of a plan to arrays of one size, as a pinhole would have seen them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.geometry import Geometry
from pipeline.images import Floats, Header, read_color, read_depth, read_header, read_mask
from pipeline.ingest import InputPlan
from pipeline.masks import choose_masks
from pipeline.matching import ViewFiles
from pipeline.resample import Size, common_size, filtered_color, resized, resized_nearest, same_aspect
from pipeline.settings import Limits
from pipeline.undistort import Maps, Undistortion, remapped
from schemas.errors import ErrorCode, InvalidJob

Tick = Callable[[float, str], None]
"""Called after every step with the share that is done and a message; it may raise, for a cancel."""


@dataclass(frozen=True)
class Decoded:
    """V decoded views of one size.

    Attributes:
        images: [V, H, W, 3] in [0, 1], not premultiplied.
        masks: [V, H, W] in [0, 1].
        depths: [V, H, W] world units, 0 where nothing was measured; None without depth.
        mask_source: `mask_path`, `alpha` or `depth`.
        depth_views: How many views have a depth map.
    """

    images: Floats
    masks: Floats
    depths: Floats | None
    mask_source: str
    depth_views: int


def read_headers(folder: Path, plan: InputPlan, limits: Limits) -> list[Header]:
    """Look at every file of a plan without decoding it; returns the headers of the images.

    Images, depth maps and masks all count against `limits.max_decoded_pixels`.

    Raises:
        InvalidJob: UNSUPPORTED_IMAGE_FORMAT, INVALID_IMAGE, IMAGE_TOO_LARGE or INPUT_TOO_LARGE.
    """
    headers, total = [], 0
    for view in plan.views:
        found = []
        for key in (view.image, view.depth, view.mask):
            if key is not None:
                header = read_header(folder / key, key, limits)
                total += header.width * header.height
                _check_total(key, total, limits)
                found.append(header)
        headers.append(found[0])
    return headers


def _check_total(key: str, total: int, limits: Limits) -> None:
    if total > limits.max_decoded_pixels:
        rule = (
            "the images, depth maps and masks of an input may have at most "
            f"{limits.max_decoded_pixels} pixels together"
        )
        raise InvalidJob(
            ErrorCode.INPUT_TOO_LARGE,
            f"{key!r} is one file too many: {rule}.",
            file=key,
            rule=rule,
            limit=limits.max_decoded_pixels,
        )


def decode_views(
    folder: Path,
    plan: InputPlan,
    headers: Sequence[Header],
    geometry: Sequence[Geometry],
    limits: Limits,
    tick: Tick,
) -> Decoded:
    """Decode every file of a plan.

    Images are undistorted, then brought to one size that loses nothing of any of them unless all together
    would be too large. Colours of the object are not mixed with its background's; depths are never mixed.

    Args:
        folder: Holds the files under their keys.
        plan: What to read.
        headers: Of the plan's images.
        geometry: Of the plan's views.
        limits: Bounds on pixels.
        tick: Progress.

    Raises:
        InvalidJob: INVALID_IMAGE, INVALID_DEPTH, MASK_MISSING or VIEW_MISMATCH.
    """
    check_side_files(folder, plan, headers, limits)
    size = common_size([(view.width, view.height) for view in geometry], limits.max_total_pixels)
    arrays = _Arrays(folder, plan, headers, size, limits)
    for index, view in enumerate(plan.views):
        arrays.read(index, view, geometry[index])
        tick((index + 1) / len(plan.views), view.image)
    return arrays.finish()


def check_side_files(folder: Path, plan: InputPlan, headers: Sequence[Header], limits: Limits) -> None:
    """Refuse masks and depth maps that show something else than their images.

    Args:
        folder: Holds the files under their keys.
        plan: What will be read.
        headers: Of the plan's images.
        limits: Bounds on pixels.

    Raises:
        InvalidJob: VIEW_MISMATCH: another aspect ratio than the image's.
    """
    for view, header in zip(plan.views, headers, strict=True):
        for key in (view.depth, view.mask):
            if key is not None:
                _check_aspect(key, read_header(folder / key, key, limits), view.image, header)


def _check_aspect(key: str, header: Header, image: str, other: Header) -> None:
    if not same_aspect((header.width, header.height), (other.width, other.height)):
        rule = "a mask or depth map has its image's aspect ratio"
        raise InvalidJob(
            ErrorCode.VIEW_MISMATCH,
            f"{key!r} is {header.width}x{header.height}, {image!r} is {other.width}x{other.height}: {rule}.",
            file=key,
            rule=rule,
        )


class _Arrays:
    """The views decoded so far. Arrays are made once: 200 views leave no room for copies."""

    def __init__(
        self, folder: Path, plan: InputPlan, headers: Sequence[Header], size: Size, limits: Limits
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._limits = limits
        self._size = size
        views, shape = len(plan.views), (len(plan.views), size[1], size[0])
        self._images: Floats = np.zeros((*shape, 3), np.float32)
        self._masks: Floats | None = None
        self._alphas: Floats | None = None
        self._depths: Floats | None = None
        if all(view.mask is not None for view in plan.views):
            self._masks = np.zeros(shape, np.float32)
        elif all(header.has_alpha for header in headers):
            self._alphas = np.zeros(shape, np.float32)
        if any(view.depth is not None for view in plan.views):
            self._depths = np.zeros(shape, np.float32)
        self._transparent = [False] * views
        self._maps: tuple[Undistortion, Maps] | None = None

    def read(self, index: int, view: ViewFiles, geometry: Geometry) -> None:
        stored, alpha = read_color(self._folder / view.image, view.image, self._limits)
        size = (stored.shape[1], stored.shape[0])
        turned = partial(_turned, quarter_turns=geometry.quarter_turns)
        color = turned(stored)
        maps = None if geometry.undistortion is None else self._maps_of(geometry.undistortion)
        smooth = partial(self._smoothed, maps=maps)
        coverage = alpha if view.mask is None else self._mask(view.mask, size)
        coverage = None if coverage is None else turned(coverage)
        target = self._alphas if view.mask is None else self._masks
        unchanged = maps is None and color.shape[1::-1] == self._size
        self._images[index] = color if unchanged else filtered_color(color, coverage, smooth)
        if target is not None:
            assert coverage is not None, f"{view.image}: the header promised an alpha channel"
            np.clip(smooth(coverage), 0, 1, out=target[index])
        if alpha is not None:
            self._transparent[index] = bool((alpha < 1).any())
        if view.depth is not None and self._depths is not None:
            depth = read_depth(self._folder / view.depth, view.depth, self._limits, self._plan.depth_scale)
            self._depths[index] = self._depth(turned(resized_nearest(depth, size)), maps)

    def finish(self) -> Decoded:
        views = self._plan.views
        measured = [view.depth is not None for view in views]
        masks, source = choose_masks(
            [view.image for view in views],
            self._masks,
            self._alphas,
            self._depths,
            transparent=self._transparent,
            measured=measured,
        )
        return Decoded(self._images, masks, self._depths, source, sum(measured))

    def _maps_of(self, undistortion: Undistortion) -> Maps:
        if self._maps is None or self._maps[0] != undistortion:
            self._maps = (undistortion, undistortion.maps())
        return self._maps[1]

    def _smoothed(self, array: Floats, maps: Maps | None) -> Floats:
        return resized(array if maps is None else remapped(array, maps), self._size)

    def _mask(self, key: str, size: Size) -> Floats:
        mask = resized(read_mask(self._folder / key, key, self._limits), size)
        return np.clip(mask, 0, 1, out=mask)

    def _depth(self, depth: Floats, maps: Maps | None) -> Floats:
        if maps is not None:
            depth = remapped(depth, maps, nearest=True)
        return resized_nearest(depth, self._size)


def _turned(array: Floats, quarter_turns: int) -> Floats:
    """An array [H, W] or [H, W, C], turned clockwise."""
    return np.ascontiguousarray(np.rot90(array, -quarter_turns)) if quarter_turns else array
