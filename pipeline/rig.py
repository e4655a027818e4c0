"""Named camera rigs: poses for an input of images only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.geometry.camera import intrinsics_from_fov, look_at
from schemas.options import CameraOptions

AXIS6 = ("front", "right", "back", "left", "top", "bottom")

POLE_DEGREES = 89.9
"""Elevation of the top and bottom cameras: a hair off the pole, where `up` still has a meaning."""

_DIRECTIONS = ((0.0, 0.0), (90.0, 0.0), (180.0, 0.0), (270.0, 0.0), (0.0, POLE_DEGREES), (0.0, -POLE_DEGREES))
"""Azimuth from -y towards +x, and elevation; degrees."""


def axis6_poses(distance: float) -> NDArray[np.float64]:
    """Camera-to-world matrices [6, 4, 4], OpenGL axes: front, right, back, left, top, bottom.

    All look at the origin; z is up, the front camera stands on -y and the right one on +x.

    Args:
        distance: Of the cameras from the origin, world units.
    """
    poses = []
    for azimuth, elevation in np.radians(_DIRECTIONS):
        around = np.array([math.sin(azimuth), -math.cos(azimuth), 0.0]) * math.cos(elevation)
        position = distance * (around + np.array([0.0, 0.0, math.sin(elevation)]))
        poses.append(look_at(position, np.zeros(3), np.array([0.0, 0.0, 1.0])))
    return np.stack(poses)


def rig_intrinsics(options: CameraOptions, width: int, height: int) -> NDArray[np.float64]:
    """Intrinsic matrix [3, 3] of the rig's cameras for an image of `width` x `height` pixels."""
    return intrinsics_from_fov(math.radians(options.rig_fov_degrees), width, height)
