"""`transforms.json`, as nerfstudio and Blender/NeRF write it, read strictly where it matters.

Unknown keys are ignored here, unlike everywhere else, because the ecosystem's tools add many of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.distortion import Distortion
from pipeline.objects import check_key
from pipeline.settings import Limits
from schemas.errors import ErrorCode, InvalidJob
from schemas.jobs import describe, load_json

TRANSFORMS_NAME = "transforms.json"

DEPTH_SCALE_RANGE = (1e-12, 1e6)
"""World units per count of a depth map; beyond, float32 depths could become 0 or lose the scene."""

_OWN_INTRINSICS = ("fl_x", "fl_y", "cx", "cy")
_COEFFICIENTS = ("k1", "k2", "k3", "k4", "p1", "p2")
MAX_COEFFICIENT = 100.0
"""Of a lens's distortion, as an absolute value; real ones hardly pass 1."""

_PERSPECTIVE = frozenset({"OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE"})
_FISHEYE = frozenset({"OPENCV_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_RADIAL_FISHEYE"})

Number = Annotated[float, Field(allow_inf_nan=False)]
Row = Annotated[list[Number], Field(min_length=4, max_length=4)]
PathText = Annotated[str, Field(min_length=1, max_length=1024)]


class _Lens(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    camera_model: str | None = None
    is_fisheye: bool = False
    w: Number | None = Field(None, ge=1)
    h: Number | None = Field(None, ge=1)
    fl_x: Number | None = Field(None, gt=0)
    fl_y: Number | None = Field(None, gt=0)
    cx: Number | None = None
    cy: Number | None = None
    camera_angle_x: Number | None = Field(None, gt=0, lt=math.pi)
    camera_angle_y: Number | None = Field(None, gt=0, lt=math.pi)
    k1: Number = 0.0
    k2: Number = 0.0
    k3: Number = 0.0
    k4: Number = 0.0
    p1: Number = 0.0
    p2: Number = 0.0


class _Frame(_Lens):
    file_path: PathText
    depth_file_path: PathText | None = None
    mask_path: PathText | None = None
    transform_matrix: Annotated[list[Row], Field(min_length=4, max_length=4)]


class _File(_Lens):
    depth_unit_scale_factor: Number = Field(0.001, gt=0)
    frames: Annotated[list[_Frame], Field(min_length=1)]


@dataclass(frozen=True)
class Lens:
    """Intrinsics as the file states them; None where it leaves them to be derived.

    Attributes:
        width, height: Of the image the numbers refer to, pixels.
        fl_x, fl_y, cx, cy: Pixels, first pixel's centre at 0.5.
        angle_x, angle_y: Fields of view, radians.
        distortion: What the lens does to a pinhole's image.
    """

    width: float | None
    height: float | None
    fl_x: float | None
    fl_y: float | None
    cx: float | None
    cy: float | None
    angle_x: float | None
    angle_y: float | None
    distortion: Distortion


@dataclass(frozen=True)
class Frame:
    """One frame: its files, as paths below the prefix, its pose (camera to world, OpenGL axes) and lens."""

    image: str
    depth: str | None
    mask: str | None
    camera_to_world: NDArray[np.float64]
    lens: Lens


@dataclass(frozen=True)
class Transforms:
    """The whole file. `depth_scale`: world units per count of a depth map."""

    frames: tuple[Frame, ...]
    depth_scale: float


def invalid_cameras(found: str, rule: str, *, file: str = TRANSFORMS_NAME) -> InvalidJob:
    """The refusal of cameras: what was found, and the rule that it breaks."""
    return InvalidJob(ErrorCode.INVALID_CAMERAS, f"{file}: {found}; {rule}.", file=file, rule=rule)


def parse_transforms(data: bytes, limits: Limits) -> Transforms:
    """Read `transforms.json`; poses are checked by `pipeline.poses`.

    Raises:
        InvalidJob: INVALID_CAMERAS, INPUT_TOO_LARGE (more frames than views are accepted).
        AccessError: PATH_NOT_ALLOWED.
    """
    try:
        raw = load_json(data, max_bytes=limits.max_json_bytes, max_depth=limits.max_json_depth)
    except (ValueError, RecursionError) as error:
        raise invalid_cameras(f"not readable ({error})", "cameras are given as plain JSON") from error
    try:
        file = _File.model_validate(raw)
    except ValidationError as error:
        raise invalid_cameras(
            describe(error), "every frame has a file_path and a finite 4x4 transform_matrix"
        ) from error
    if len(file.frames) > limits.max_views:
        raise too_many_views(len(file.frames), limits)
    _check_depth_scale(file.depth_unit_scale_factor)
    return Transforms(
        tuple(_frame(file, frame, index) for index, frame in enumerate(file.frames)),
        file.depth_unit_scale_factor,
    )


def _check_depth_scale(scale: float) -> None:
    low, high = DEPTH_SCALE_RANGE
    if not low <= scale <= high:
        raise invalid_cameras(
            f"depth_unit_scale_factor is {scale:.4g}",
            f"one count of a depth map is between {low:g} and {high:g} world units",
        )


def too_many_views(views: int, limits: Limits) -> InvalidJob:
    """The refusal of an input with more views than the worker accepts."""
    rule = f"an input may have at most {limits.max_views} views"
    return InvalidJob(
        ErrorCode.INPUT_TOO_LARGE,
        f"The input has {views} views: {rule}.",
        file="images/",
        rule=rule,
        limit=limits.max_views,
        actual=views,
    )


def _frame(file: _File, frame: _Frame, index: int) -> Frame:
    return Frame(
        image=_path(frame.file_path),
        depth=None if frame.depth_file_path is None else _path(frame.depth_file_path),
        mask=None if frame.mask_path is None else _path(frame.mask_path),
        camera_to_world=np.asarray(frame.transform_matrix, np.float64),
        lens=_lens(file, frame, index),
    )


def _path(text: str) -> str:
    return check_key(text.removeprefix("./"))


def _distortion(file: _File, frame: _Frame, index: int) -> Distortion:
    """Coefficients of a frame: its own where it has them, else the file's, key by key."""
    k1, k2, k3, k4, p1, p2 = (
        getattr(frame if name in frame.model_fields_set else file, name) for name in _COEFFICIENTS
    )
    largest = max(map(abs, (k1, k2, k3, k4, p1, p2)))
    if largest > MAX_COEFFICIENT:
        raise invalid_cameras(
            f"frame {index} has a distortion coefficient of {largest:.3g}",
            f"coefficients of lens distortion lie between -{MAX_COEFFICIENT:g} and {MAX_COEFFICIENT:g}",
        )
    fisheye = _is_fisheye(file, frame)
    if k4 and not fisheye:
        raise invalid_cameras(
            f"frame {index} has k4 = {k4:.4g} but camera_model is not OPENCV_FISHEYE",
            "a perspective lens has k1, k2, k3, p1 and p2; k4 belongs to the fisheye model",
        )
    if (p1 or p2) and fisheye:
        raise invalid_cameras(
            f"frame {index} has p1 or p2 and a fisheye camera_model", "a fisheye lens has k1, k2, k3 and k4"
        )
    return Distortion(fisheye, (k1, k2, k3, k4), (p1, p2))


def _is_fisheye(file: _File, frame: _Frame) -> bool:
    model = frame.camera_model if frame.camera_model is not None else file.camera_model
    if model is None:
        return frame.is_fisheye if "is_fisheye" in frame.model_fields_set else file.is_fisheye
    if model.upper() not in _PERSPECTIVE | _FISHEYE:
        raise invalid_cameras(
            f"camera_model is {model[:40]!r}",
            "cameras are perspective or OPENCV_FISHEYE; undistort images of others first",
        )
    return model.upper() in _FISHEYE


def _lens(file: _File, frame: _Frame, index: int) -> Lens:
    own = [name for name in _OWN_INTRINSICS if getattr(frame, name) is not None]
    if own and len(own) < len(_OWN_INTRINSICS):
        raise invalid_cameras(
            f"frame {index} has its own {', '.join(own)} only",
            "a frame with intrinsics of its own gives all of fl_x, fl_y, cx and cy",
        )
    source: _Lens = frame if own or frame.camera_angle_x is not None else file
    return Lens(
        width=frame.w if frame.w is not None else file.w,
        height=frame.h if frame.h is not None else file.h,
        fl_x=source.fl_x,
        fl_y=source.fl_y,
        cx=source.cx,
        cy=source.cy,
        angle_x=source.camera_angle_x,
        angle_y=source.camera_angle_y,
        distortion=_distortion(file, frame, index),
    )
