"""Views of the files of a plan, with their cameras unless the model is to find them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.base import PosedViews, Views
from models.geometry.camera import Cameras
from pipeline.camera_estimation import estimate_cameras
from pipeline.camera_source import MODEL, STRUCTURE_FROM_MOTION, source_of_cameras
from pipeline.decode import Decoded, Tick, decode_views, read_headers
from pipeline.geometry import Geometry, framed_geometry, uncalibrated
from pipeline.images import Header, read_exif
from pipeline.ingest import InputPlan
from pipeline.poses import check_poses
from pipeline.rig import axis6_poses, rig_intrinsics
from pipeline.settings import Limits
from schemas.options import CameraOptions, Options

ESTIMATION_SHARE = 0.8
"""Share of the work that estimating cameras is, where it has to be done."""


@dataclass(frozen=True)
class LoadedInput:
    """A decoded input.

    Attributes:
        views: On the CPU.
        mask_source: `mask_path`, `alpha` or `depth`.
        camera_source: See `pipeline.camera_source`.
        depth_views: How many views have a depth map.
        dropped: Images whose cameras could not be estimated; they are not among the views.
    """

    views: Views
    mask_source: str
    camera_source: str
    depth_views: int
    dropped: tuple[str, ...] = ()


def load_views(
    folder: Path, plan: InputPlan, options: Options, limits: Limits, tick: Tick, scratch: Path
) -> LoadedInput:
    """Decode every file of a plan, and estimate the cameras if neither input nor model has them.

    Poses, lenses and headers of all files are checked before the first one is decoded.

    Args:
        folder: Holds the files under their keys.
        plan: What to read.
        options: The job's.
        limits: Bounds on pixels.
        tick: Progress.
        scratch: Where cameras are estimated; need not exist.

    Raises:
        InvalidJob: UNSUPPORTED_IMAGE_FORMAT, INVALID_IMAGE, IMAGE_TOO_LARGE, INPUT_TOO_LARGE, VIEW_MISMATCH,
            INVALID_CAMERAS, INVALID_DEPTH, MASK_MISSING or CAMERA_ESTIMATION_FAILED.
    """
    headers = read_headers(folder, plan, limits)
    source = source_of_cameras(plan, options)
    dropped: tuple[str, ...] = ()
    begun = 0.0
    if source == STRUCTURE_FROM_MOTION:

        def estimating(fraction: float, message: str) -> None:
            tick(ESTIMATION_SHARE * fraction, message)

        estimated = estimate_cameras(folder, plan, headers, options, limits, estimating, scratch)
        plan, dropped = estimated.plan, estimated.dropped
        headers = [headers[index] for index in estimated.kept]
        begun = ESTIMATION_SHARE

    def decoding(fraction: float, message: str) -> None:
        tick(begun + (1 - begun) * fraction, message)

    views, decoded = decoded_views(folder, plan, headers, options, limits, decoding)
    return LoadedInput(views, decoded.mask_source, source, decoded.depth_views, dropped)


def decoded_views(
    folder: Path,
    plan: InputPlan,
    headers: Sequence[Header],
    options: Options,
    limits: Limits,
    tick: Tick,
) -> tuple[Views, Decoded]:
    """Decode the files of a plan: to `PosedViews` if the plan or the job's rig has cameras.

    Images whose cameras the model is to find are turned upright as EXIF says, with their masks and depth
    maps: networks have learnt from pictures that stand upright.

    Args:
        folder: Holds the files under their keys.
        plan: What to read.
        headers: Of the plan's images.
        options: The job's.
        limits: Bounds on pixels.
        tick: Progress.

    Raises:
        InvalidJob: INVALID_IMAGE, INVALID_DEPTH, MASK_MISSING, VIEW_MISMATCH or INVALID_CAMERAS.
    """
    source = source_of_cameras(plan, options)
    if source not in (MODEL, STRUCTURE_FROM_MOTION):
        poses, geometry = known_cameras(plan, headers, options.cameras, limits)
        decoded = decode_views(folder, plan, headers, geometry, limits, tick)
        return posed_views(plan, decoded, poses, geometry), decoded
    turns = [0] * len(headers)
    if source == MODEL:
        turns = [read_exif(folder / v.image, v.image, limits).quarter_turns for v in plan.views]
    geometry = [uncalibrated(*pair) for pair in zip(headers, turns, strict=True)]
    decoded = decode_views(folder, plan, headers, geometry, limits, tick)
    return unposed_views(plan, decoded), decoded


def known_cameras(
    plan: InputPlan, headers: Sequence[Header], options: CameraOptions, limits: Limits
) -> tuple[NDArray[np.float64], list[Geometry]]:
    """Poses [V, 4, 4] (camera to world, OpenGL axes) and pixels of views with frames, or else of the rig.

    No view has more pixels, undistorted, than `limits` allows an image.

    Raises:
        InvalidJob: INVALID_CAMERAS, VIEW_MISMATCH.
    """
    frames = tuple(view.frame for view in plan.views if view.frame is not None)
    if frames:
        poses = check_poses(frames)
        return poses, [framed_geometry(*pair).within(limits) for pair in zip(frames, headers, strict=True)]
    sizes = [(header.width, header.height) for header in headers]
    return axis6_poses(options.rig_distance), [
        Geometry(rig_intrinsics(options, *size), *size) for size in sizes
    ]


def unposed_views(plan: InputPlan, decoded: Decoded) -> Views:
    """Decoded views without cameras."""
    return Views(
        tuple(view.image for view in plan.views),
        torch.from_numpy(decoded.images),
        torch.from_numpy(decoded.masks),
        None if decoded.depths is None else torch.from_numpy(decoded.depths),
        None,
    )


def posed_views(
    plan: InputPlan, decoded: Decoded, poses: NDArray[np.float64], geometry: Sequence[Geometry]
) -> PosedViews:
    """Decoded views with their cameras; intrinsics follow the images to their common size."""
    height, width = decoded.masks.shape[1:]
    scales = [np.array([[width / view.width], [height / view.height], [1.0]]) for view in geometry]
    intrinsics = np.stack([view.intrinsics * scale for view, scale in zip(geometry, scales, strict=True)])
    tensors = [torch.from_numpy(array.astype(np.float32)) for array in (poses, intrinsics)]
    return unposed_views(plan, decoded).with_cameras(Cameras(tensors[0], tensors[1], width, height))
