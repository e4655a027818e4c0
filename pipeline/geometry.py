"""Where the pixels of an input's images lie: from what transforms.json says of a lens to a pinhole image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Header
from pipeline.poses import intrinsics_of
from pipeline.settings import Limits
from pipeline.transforms import Frame
from pipeline.undistort import Undistortion, plan_undistortion


@dataclass(frozen=True)
class Geometry:
    """The pinhole image that is made of one file.

    Attributes:
        intrinsics: [3, 3], pixels.
        width, height: Pixels.
        undistortion: How it is made; None where the file is a pinhole's image already.
        quarter_turns: By how many times 90 degrees the file's pixels are turned clockwise before that.
    """

    intrinsics: NDArray[np.float64]
    width: int
    height: int
    undistortion: Undistortion | None = None
    quarter_turns: int = 0

    def within(self, limits: Limits) -> Geometry:
        """The same image, with fewer pixels where undistorting would make more than an image may have."""
        if self.undistortion is None:
            return self
        plan = self.undistortion.within(limits)
        return Geometry(plan.intrinsics, plan.width, plan.height, plan)


def framed_geometry(frame: Frame, header: Header) -> Geometry:
    """The pinhole image of a frame's file.

    Raises:
        InvalidJob: INVALID_CAMERAS, VIEW_MISMATCH.
    """
    intrinsics = intrinsics_of(frame, header.width, header.height)
    distortion = frame.lens.distortion
    if distortion.is_pinhole:
        return Geometry(intrinsics, header.width, header.height)
    plan = plan_undistortion(frame.image, distortion, intrinsics, header.width, header.height)
    return Geometry(plan.intrinsics, plan.width, plan.height, plan)


def uncalibrated(header: Header, quarter_turns: int = 0) -> Geometry:
    """A stand-in where no camera is known: the file's pixels as they are, or turned clockwise."""
    size = (header.width, header.height) if quarter_turns % 2 == 0 else (header.height, header.width)
    return Geometry(np.eye(3), *size, quarter_turns=quarter_turns)
