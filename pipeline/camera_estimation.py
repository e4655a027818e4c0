"""Cameras of ordinary photographs, by structure from motion.

COLMAP (`pipeline.structure_from_motion`) runs in a process of its own. What it finds is accepted only if it
holds enough of the views; the world of the cameras is then chosen by `pipeline.world_frame`, and each view
gets a frame as if transforms.json had held it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from pipeline.colmap_process import OutOfTime, solve
from pipeline.decode import Tick, check_side_files
from pipeline.distortion import Distortion
from pipeline.geometry import framed_geometry
from pipeline.images import Header, read_depth
from pipeline.ingest import InputPlan
from pipeline.matching import IMAGES
from pipeline.photographs import Prepared, prepare_photographs
from pipeline.poses import check_poses
from pipeline.settings import Limits
from pipeline.structure_from_motion import Model, Task
from pipeline.transforms import TRANSFORMS_NAME, Frame, Lens
from pipeline.world_frame import camera_to_world, choose_world
from schemas.errors import ErrorCode, InvalidJob
from schemas.options import Options

LOGGER = logging.getLogger(__name__)

TIME_LIMIT_S = 1800
"""Of structure from motion, from the start of its process to its end."""

_MARGIN_S = 60
"""So much earlier mapping is asked to end with what it has: it does so between two steps only."""

MIN_SHARE = 0.5
"""More than this share of the cameras must be found; where it is less, none that was found is trusted."""

MIN_POINTS = 50
"""Points of the scene that must have been found."""

MIN_SEEN = 12
"""Points that a view must see for its camera to be trusted."""

MAX_ERROR = 2.0
"""Largest mean reprojection error, pixels of the images that were matched."""

RULE = (
    "cameras can be estimated from sharp, uncropped photographs of a textured surface whose neighbours are "
    "15 to 30 degrees apart, all around the object; else give transforms.json, or options.cameras.rig; of a "
    "plain object in surroundings that stood still, try options.cameras.features = 'all'"
)

_PREPARING = 0.15
_SHOWN = 8


@dataclass(frozen=True)
class Estimated:
    """An input whose cameras have been estimated.

    Attributes:
        plan: The views whose cameras were found, each with a frame as if of transforms.json.
        kept: Their indices in the plan as it was.
        dropped: Names of the other images.
    """

    plan: InputPlan
    kept: tuple[int, ...]
    dropped: tuple[str, ...]


def estimate_cameras(
    folder: Path,
    plan: InputPlan,
    headers: Sequence[Header],
    options: Options,
    limits: Limits,
    tick: Tick,
    scratch: Path,
) -> Estimated:
    """Find the cameras of an input of images only.

    Args:
        folder: Holds the files under their keys.
        plan: What to read.
        headers: Of the plan's images.
        options: The job's.
        limits: Bounds on pixels.
        tick: Progress; called at least every quarter of a second while COLMAP works.
        scratch: Where to work; made if need be.

    Raises:
        InvalidJob: CAMERA_ESTIMATION_FAILED; VIEW_MISMATCH, MASK_MISSING, INVALID_IMAGE, INVALID_DEPTH.
        ResourceError, ModelError: as `solve`.
    """
    check_side_files(folder, plan, headers, limits)
    object_only = options.cameras.features == "object"

    def preparing(fraction: float, message: str) -> None:
        tick(_PREPARING * fraction, message)

    def solving(fraction: float, message: str) -> None:
        tick(_PREPARING + (1 - _PREPARING) * fraction, message)

    prepared = prepare_photographs(
        folder, plan, headers, limits, scratch, object_only=object_only, tick=preparing
    )
    Task(prepared.photographs, object_only, options.seed, TIME_LIMIT_S - _MARGIN_S).write(scratch)
    try:
        model = trusted_views(solve(scratch, TIME_LIMIT_S, solving))
    except OutOfTime as error:
        raise _failure(str(error)) from error
    names = [view.image for view in plan.views]
    kept = tuple(model.views.tolist())
    dropped = tuple(name for index, name in enumerate(names) if index not in set(kept))
    check_model(model, dropped, len(names), options)
    if dropped:
        LOGGER.warning("no cameras were found for these images, they are left out: %s", ", ".join(dropped))
    frames = _frames(folder, plan, prepared, model, options, limits)
    check_frames(frames, [headers[index] for index in kept])
    tick(1.0, f"cameras found for {len(kept)} of {len(names)} images")
    views = tuple(replace(plan.views[index], frame=frame) for index, frame in zip(kept, frames, strict=True))
    return Estimated(replace(plan, views=views), kept, dropped)


def trusted_views(model: Model) -> Model:
    """The model without views that see fewer than `MIN_SEEN` of its points."""
    counts = np.bincount(model.seen_view, minlength=len(model.views))
    good = counts >= MIN_SEEN
    rows = np.cumsum(good) - 1
    of_good = good[model.seen_view]
    return replace(
        model,
        views=model.views[good],
        camera_from_world=model.camera_from_world[good],
        lenses=model.lenses[good],
        seen_view=rows[model.seen_view[of_good]],
        seen_point=model.seen_point[of_good],
        seen_pixel=model.seen_pixel[of_good],
    )


def check_model(model: Model, dropped: Sequence[str], total: int, options: Options) -> None:
    """Refuse a model of too few of the views, or of points that are too few or miss the images.

    Args:
        model: Of trusted views.
        dropped: Names of the images that it lacks.
        total: How many images there are.
        options: The job's, for how many views it needs.

    Raises:
        InvalidJob: CAMERA_ESTIMATION_FAILED.
    """
    found = total - len(dropped)
    required = max(options.input.min_views + options.quality.holdout, math.floor(MIN_SHARE * total) + 1)
    if found < required:
        more = f" and {len(dropped) - _SHOWN} more" if len(dropped) > _SHOWN else ""
        apart = (
            f"; {model.other_models} others belong together but not with these" if model.other_models else ""
        )
        raise _failure(
            f"cameras were found for {found} of {total} images, {required} are needed; not for "
            f"{', '.join(dropped[:_SHOWN])}{more}{apart}",
            file=dropped[0],
            missing=list(dropped),
            limit=required,
            actual=found,
        )
    if len(model.points) < MIN_POINTS:
        raise _failure(f"the images have only {len(model.points)} points in common")
    if model.error > MAX_ERROR:
        raise _failure(f"the cameras that were found miss the images by {model.error:.1f} pixels")


def check_frames(frames: Sequence[Frame], headers: Sequence[Header]) -> None:
    """Refuse estimates that could not stand in transforms.json.

    Args:
        frames: As they would stand there.
        headers: Of their images.

    Raises:
        InvalidJob: CAMERA_ESTIMATION_FAILED, with the rule that was broken and the file that broke it.
    """
    file = f"{IMAGES}/"
    try:
        check_poses(tuple(frames))
        for frame, header in zip(frames, headers, strict=True):
            file = frame.image
            framed_geometry(frame, header)
    except InvalidJob as error:
        broken = error.message.removeprefix(f"{TRANSFORMS_NAME}: ").rstrip(".")  # there is no such file
        raise _failure(f"those that were found cannot be real ones: {broken}", file=file) from error


def _frames(
    folder: Path, plan: InputPlan, prepared: Prepared, model: Model, options: Options, limits: Limits
) -> list[Frame]:
    """A frame for each view of the model, in the chosen world."""
    turns = [prepared.exif[index].quarter_turns for index in model.views]
    depths = None
    if any(plan.views[index].depth is not None for index in model.views):
        depths = _measured_depths(folder, plan, prepared, model, limits)
    try:
        world = choose_world(model, turns, _on_object(prepared, model), depths, options.outputs.up_axis)
    except ValueError as error:
        raise _failure(str(error)) from error
    poses = world.poses(camera_to_world(model))
    frames = []
    for row, index in enumerate(model.views):
        view, photograph = plan.views[index], prepared.photographs[index]
        focal, centre_x, centre_y, k1 = (float(value) for value in model.lenses[row])
        lens = Lens(
            width=photograph.width,
            height=photograph.height,
            fl_x=focal,
            fl_y=focal,
            cx=centre_x,
            cy=centre_y,
            angle_x=None,
            angle_y=None,
            distortion=Distortion(radial=(k1, 0.0, 0.0, 0.0)),
        )
        frames.append(Frame(view.image, view.depth, view.mask, poses[row], lens))
    return frames


def _on_object(prepared: Prepared, model: Model) -> NDArray[np.bool_]:
    """Which observations [O] fall on the object."""
    found = np.zeros(len(model.seen_view), bool)
    for row, index in enumerate(model.views):
        of_view = model.seen_view == row
        found[of_view] = _sampled(prepared.inside[index].array(), model.seen_pixel[of_view], prepared, index)
    return found


def _measured_depths(
    folder: Path, plan: InputPlan, prepared: Prepared, model: Model, limits: Limits
) -> NDArray[np.float64]:
    """What the depth maps say of each observation [O], world units; 0 where they say nothing."""
    found = np.zeros(len(model.seen_view))
    for row, index in enumerate(model.views):
        key = plan.views[index].depth
        if key is not None:
            depth = read_depth(folder / key, key, limits, plan.depth_scale)
            of_view = model.seen_view == row
            found[of_view] = _sampled(depth, model.seen_pixel[of_view], prepared, index)
    return found


def _sampled(
    array: NDArray[Any], pixels: NDArray[np.float64], prepared: Prepared, index: int
) -> NDArray[Any]:
    """Values of a view's array [H, W], of whatever size, at pixels [N, 2] of its photograph."""
    height, width = array.shape
    photograph = prepared.photographs[index]
    x = (pixels[:, 0] * width / photograph.width).astype(int).clip(0, width - 1)
    y = (pixels[:, 1] * height / photograph.height).astype(int).clip(0, height - 1)
    values: NDArray[Any] = array[y, x]
    return values


def _failure(found: str, *, file: str = f"{IMAGES}/", **details: JsonValue) -> InvalidJob:
    return InvalidJob(
        ErrorCode.CAMERA_ESTIMATION_FAILED,
        f"The cameras could not be estimated: {found}. {RULE[0].upper()}{RULE[1:]}.",
        file=file,
        rule=RULE,
        **details,
    )
