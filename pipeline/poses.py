"""Check that poses are those of real, different cameras, and turn lenses into intrinsics of the images."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.resample import same_aspect
from pipeline.transforms import Frame, Lens, invalid_cameras
from schemas.errors import ErrorCode, InvalidJob

ROTATION_TOLERANCE = 1e-2
"""Largest deviation of R^T R from the identity: files written with three digits pass, scaled axes do not."""

SAME_CAMERA = 1e-6
"""Cameras closer than this share of the rig's size, with the same rotation, are one camera."""

MAX_COORDINATE = 1e6
"""World units; float32 keeps no useful digits beyond."""

MAX_OFFSET = 1e5
"""Largest distance of a camera from the origin, as a multiple of the spread of the cameras: float32
leaves two digits for the scene there."""

ONE_PLACE = 1e-12
"""Cameras that are spread by this share of their distance from the origin differ by rounding only."""

FOCAL_RANGE = (0.1, 1000.0)
"""Focal length in image widths: 157 degrees of view down to a twentieth of a degree."""

Matrices = NDArray[np.float64]


def check_poses(frames: tuple[Frame, ...]) -> Matrices:
    """Camera-to-world matrices [V, 4, 4] of the frames, their rotations exact.

    Raises:
        InvalidJob: INVALID_CAMERAS: not finite, not a rigid motion, two frames are one camera, or the scene
            is too far from the origin for its size.
    """
    poses = np.stack([_rigid(frame) for frame in frames])
    _refuse_twins(poses, [frame.image for frame in frames])
    _refuse_remote(poses[:, :3, 3])
    return poses


def _rigid(frame: Frame) -> Matrices:
    matrix, name = frame.camera_to_world, frame.image
    rotation, position = matrix[:3, :3], matrix[:3, 3]
    if not np.isfinite(matrix).all() or np.abs(matrix).max() > MAX_COORDINATE:
        raise invalid_cameras(f"the matrix of {name!r} is out of range", "cameras lie within 1e6 world units")
    if np.abs(matrix[3] - (0.0, 0.0, 0.0, 1.0)).max() > 1e-6:
        raise invalid_cameras(f"the last row of {name!r} is not 0 0 0 1", "matrices are camera to world, 4x4")
    deviation = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if deviation > ROTATION_TOLERANCE:
        raise invalid_cameras(
            f"the matrix of {name!r} is not rigid (its axes miss orthonormality by {deviation:.2g})",
            "the upper left 3x3 is a rotation, without scale or shear",
        )
    if np.linalg.det(rotation) < 0:
        raise invalid_cameras(
            f"the matrix of {name!r} is a mirror (determinant -1)",
            "the upper left 3x3 is a rotation; check which axes were flipped",
        )
    left, _, right = np.linalg.svd(rotation)
    exact = np.eye(4)
    exact[:3, :3], exact[:3, 3] = left @ right, position
    return exact


def _refuse_twins(poses: Matrices, names: list[str]) -> None:
    positions = poses[:, :3, 3]
    size = float(np.ptp(positions, axis=0).max())
    for i in range(len(names) - 1):
        near = np.abs(positions[i + 1 :] - positions[i]).max(axis=1) <= SAME_CAMERA * size
        turned = np.abs(poses[i + 1 :, :3, :3] - poses[i, :3, :3]).max(axis=(1, 2)) > 1e-5
        same = np.flatnonzero(near & ~turned)
        if same.size:
            other = names[i + 1 + int(same[0])]
            raise invalid_cameras(
                f"{names[i]!r} and {other!r} have the same camera", "every view has a camera of its own"
            )


def _refuse_remote(positions: Matrices) -> None:
    shifts = positions - positions[0]
    spread = float(np.linalg.norm(shifts - shifts.mean(axis=0), axis=1).max())
    farthest = float(np.linalg.norm(positions, axis=1).max())
    if spread <= ONE_PLACE * farthest:
        return  # cameras that only turn; this is also how a ring looks when matrices are world to camera
    if farthest > MAX_OFFSET * spread:
        raise invalid_cameras(
            f"the cameras lie within {spread:.3g} of their centre but up to {farthest:.3g} from the origin",
            f"cameras lie within {MAX_OFFSET:g} times their spread of the origin; "
            "subtract their centre from all positions, which moves the scene to the origin",
        )


def intrinsics_of(frame: Frame, width: int, height: int) -> Matrices:
    """Intrinsic matrix [3, 3] of a frame, in pixels of its image of `width` x `height`.

    Raises:
        InvalidJob: INVALID_CAMERAS (no focal length, or none that a lens has), VIEW_MISMATCH (`w` and `h`
            have another aspect ratio than the image).
    """
    lens, name = frame.lens, frame.image
    stated_width, stated_height = lens.width or width, lens.height or height
    _check_aspect(name, stated_width, stated_height, width, height)
    focal_x, focal_y = _focal(lens, name, stated_width, stated_height)
    centre_x = stated_width / 2 if lens.cx is None else lens.cx
    centre_y = stated_height / 2 if lens.cy is None else lens.cy
    if not (0 <= centre_x <= stated_width and 0 <= centre_y <= stated_height):
        raise invalid_cameras(
            f"cx, cy of {name!r} lie outside the image", "the principal point is given in pixels, inside it"
        )
    sx, sy = width / stated_width, height / stated_height
    return np.array([[focal_x * sx, 0, centre_x * sx], [0, focal_y * sy, centre_y * sy], [0, 0, 1.0]])


def _check_aspect(name: str, stated_width: float, stated_height: float, width: int, height: int) -> None:
    if not same_aspect((stated_width, stated_height), (width, height)):
        rule = "w and h must have the image's aspect ratio"
        raise InvalidJob(
            ErrorCode.VIEW_MISMATCH,
            f"{name!r} is {width}x{height}, transforms.json says {stated_width:g}x{stated_height:g}: {rule}.",
            file=name,
            rule=rule,
        )


def _focal(lens: Lens, name: str, width: float, height: float) -> tuple[float, float]:
    focal_x = lens.fl_x
    if focal_x is None and lens.angle_x is not None:
        focal_x = width / (2 * math.tan(lens.angle_x / 2))
    if focal_x is None:
        raise invalid_cameras(f"{name!r} has no focal length", "give fl_x and fl_y, or camera_angle_x")
    focal_y = lens.fl_y
    if focal_y is None and lens.fl_x is None and lens.angle_y is not None:
        focal_y = height / (2 * math.tan(lens.angle_y / 2))
    focal_y = focal_x if focal_y is None else focal_y
    low, high = FOCAL_RANGE
    if not (low * width <= focal_x <= high * width and low * width <= focal_y <= high * width):
        raise invalid_cameras(
            f"the focal length of {name!r} is {focal_x:.4g} x {focal_y:.4g} pixels",
            f"it lies between {low:g} and {high:g} image widths; is it given in pixels?",
        )
    return focal_x, focal_y
