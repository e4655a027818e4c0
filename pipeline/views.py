"""Decode the files of a plan to posed views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.base import Views
from models.geometry.camera import Cameras
from pipeline.images import Floats, read_color, read_depth, read_header, read_mask
from pipeline.ingest import InputPlan
from pipeline.masks import choose_masks
from pipeline.matching import ViewFiles
from pipeline.poses import check_poses, intrinsics_of
from pipeline.rig import rig_cameras
from pipeline.settings import Limits
from pipeline.transforms import TRANSFORMS_NAME
from schemas.errors import ErrorCode, InvalidJob
from schemas.options import Options

Tick = Callable[[float, str], None]
"""Called after every view with the share that is done and a message; it may raise, for a cancel."""


@dataclass(frozen=True)
class LoadedInput:
    """A decoded input.

    Attributes:
        views: On the CPU.
        mask_source: `mask_path`, `alpha` or `depth`.
        camera_source: `transforms.json` or `rig:<name>`.
        depth_views: How many views have a depth map.
    """

    views: Views
    mask_source: str
    camera_source: str
    depth_views: int


def load_views(folder: Path, plan: InputPlan, options: Options, limits: Limits, tick: Tick) -> LoadedInput:
    """Decode every file of a plan.

    Poses and headers of all files are checked before the first one is decoded.

    Args:
        folder: Holds the files under their keys.
        plan: What to read.
        options: The job's.
        limits: Bounds on pixels.
        tick: Progress.

    Raises:
        InvalidJob: UNSUPPORTED_IMAGE_FORMAT, INVALID_IMAGE, IMAGE_TOO_LARGE, INPUT_TOO_LARGE, VIEW_MISMATCH,
            INVALID_CAMERAS, INVALID_DEPTH or MASK_MISSING.
    """
    poses = _framed_poses(plan)
    _check_headers(folder, plan, limits)
    decoded = _Decoded(folder, plan, limits)
    for index, view in enumerate(plan.views):
        decoded.read(index, view)
        tick((index + 1) / len(plan.views), view.image)
    names = tuple(view.image for view in plan.views)
    height, width = decoded.images.shape[1:3]
    masks, mask_source = choose_masks(names, decoded.masks, decoded.alphas, decoded.depths)
    cameras, camera_source = _cameras(plan, poses, options, width, height)
    depth_views = sum(depth is not None for depth in decoded.depths)
    empty = np.zeros((height, width), np.float32)
    depths = (
        np.stack([empty if depth is None else depth for depth in decoded.depths]) if depth_views else None
    )
    views = Views(
        names,
        torch.from_numpy(decoded.images),
        torch.from_numpy(masks),
        None if depths is None else torch.from_numpy(depths),
        cameras,
    )
    return LoadedInput(views, mask_source, camera_source, depth_views)


class _Decoded:
    """Arrays of the views decoded so far; all of one size."""

    def __init__(self, folder: Path, plan: InputPlan, limits: Limits) -> None:
        self._folder = folder
        self._scale = plan.depth_scale
        self._limits = limits
        self._views = len(plan.views)
        self.images: Floats = np.empty((0, 0, 0, 3), np.float32)  # [V, H, W, 3] once the size is known
        self.alphas: list[Floats | None] = []
        self.masks: list[Floats | None] = []
        self.depths: list[Floats | None] = []

    def read(self, index: int, view: ViewFiles) -> None:
        color, alpha = read_color(self._folder / view.image, view.image, self._limits)
        if index == 0:
            self.images = np.empty((self._views, *color.shape), np.float32)
        self.images[index] = self._fitting(color, view.image)
        self.alphas.append(alpha)
        self.masks.append(None if view.mask is None else self._mask(view.mask))
        self.depths.append(None if view.depth is None else self._depth(view.depth))

    def _mask(self, key: str) -> Floats:
        return self._fitting(read_mask(self._folder / key, key, self._limits), key)

    def _depth(self, key: str) -> Floats:
        return self._fitting(read_depth(self._folder / key, key, self._limits, self._scale), key)

    def _fitting(self, array: Floats, key: str) -> Floats:
        height, width = self.images.shape[1:3]
        if array.shape[:2] != (height, width):
            rule = "all images, masks and depth maps have one size"
            raise InvalidJob(
                ErrorCode.VIEW_MISMATCH,
                f"{key!r} is {array.shape[1]}x{array.shape[0]}, the first image is {width}x{height}: {rule}.",
                file=key,
                rule=rule,
            )
        return array


def _check_headers(folder: Path, plan: InputPlan, limits: Limits) -> None:
    total = 0
    for view in plan.views:
        for key in (view.image, view.depth, view.mask):
            if key is not None:
                header = read_header(folder / key, key, limits)
                total += header.width * header.height if key == view.image else 0
        if total > limits.max_total_pixels:
            rule = f"the views of an input may have at most {limits.max_total_pixels} pixels together"
            raise InvalidJob(
                ErrorCode.INPUT_TOO_LARGE,
                f"{view.image!r} is one image too many: {rule}.",
                file=view.image,
                rule=rule,
                limit=limits.max_total_pixels,
            )


def _framed_poses(plan: InputPlan) -> NDArray[np.float64] | None:
    frames = tuple(view.frame for view in plan.views if view.frame is not None)
    return check_poses(frames) if frames else None


def _cameras(
    plan: InputPlan, poses: NDArray[np.float64] | None, options: Options, width: int, height: int
) -> tuple[Cameras, str]:
    if poses is None:
        poses, intrinsics = rig_cameras(options.cameras, width, height)
        source = f"rig:{options.cameras.rig}"
    else:
        frames = [view.frame for view in plan.views if view.frame is not None]
        intrinsics = np.stack([intrinsics_of(frame, width, height) for frame in frames])
        source = TRANSFORMS_NAME
    tensors = [torch.from_numpy(array.astype(np.float32)) for array in (poses, intrinsics)]
    return Cameras(tensors[0], tensors[1], width, height), source
