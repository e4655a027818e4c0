"""Lens distortion in OpenCV's two models.

Points are given on the plane z = 1 before the camera, x right and y down: `(u - cx) / fl_x, (v - cy) / fl_y`.
*Ideal* points are where a pinhole would see them, *distorted* ones where the lens puts them.

The perspective model is Brown's (radial k1 k2 k3, tangential p1 p2), the fisheye model is Kannala and
Brandt's (k1 k2 k3 k4, by the angle from the optical axis), both as OpenCV writes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TABLE_DEGREES = 80.0
_TABLE_STEPS = 4096
_TANGENTIAL_STEPS = 20

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Distortion:
    """Coefficients of a lens.

    Attributes:
        fisheye: Which of the two models they belong to.
        radial: k1 k2 k3 k4; k4 belongs to the fisheye model only.
        tangential: p1 p2; they belong to the perspective model only.
    """

    fisheye: bool = False
    radial: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    tangential: tuple[float, float] = (0.0, 0.0)

    @property
    def is_pinhole(self) -> bool:
        """Whether the lens distorts nothing."""
        return not self.fisheye and not any(self.radial) and not any(self.tangential)

    def distort(self, points: Points) -> Points:
        """Distorted places of ideal points [..., 2]."""
        square = (points**2).sum(-1)
        radius = np.sqrt(square)
        angle = np.arctan(radius) if self.fisheye else radius
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = np.where(radius > 1e-12, self._moved(angle) / radius, 1.0)
        p1, p2 = self.tangential
        x, y = points[..., 0], points[..., 1]
        shift = np.stack(
            [2 * p1 * x * y + p2 * (square + 2 * x**2), p1 * (square + 2 * y**2) + 2 * p2 * x * y], -1
        )
        return np.asarray(points * factor[..., None] + shift)

    def undistort(self, points: Points) -> Points:
        """Ideal places of distorted points [..., 2]; those beyond the model's range move to its end."""
        ideal, moved = self._growing()
        found = points
        # The tangential part is small: subtract what it is at the last guess (the usual fixed point).
        for _ in range(_TANGENTIAL_STEPS if any(self.tangential) else 1):
            central = points - self._tangential_at(found)
            radius = np.linalg.norm(central, axis=-1, keepdims=True)
            found = central / np.maximum(radius, 1e-12) * np.interp(radius, moved, ideal)
        return np.asarray(found)

    def reach(self) -> float:
        """Largest distorted radius up to which radii grow with the ideal one; infinite if they always do."""
        ideal, moved = self._growing()
        return float(moved[-1]) if len(ideal) < _TABLE_STEPS else math.inf

    def stretch_range(self, radius: float) -> tuple[float, float]:
        """Smallest and largest factor by which points up to a distorted `radius` are moved from the axis."""
        ideal, moved = self._growing()
        source = np.arctan(ideal) if self.fisheye else ideal
        used = slice(1, max(2, int(np.searchsorted(moved, radius)) + 1))
        factors = moved[used] / source[used]
        return (float(factors.min()), float(factors.max())) if factors.size else (0.0, 0.0)

    def _moved(self, angle: Points) -> Points:
        square = angle**2
        k1, k2, k3, k4 = self.radial
        series: Points = angle * (1 + square * (k1 + square * (k2 + square * (k3 + square * k4))))
        return series

    def _tangential_at(self, points: Points) -> Points:
        return self.distort(points) - Distortion(self.fisheye, self.radial).distort(points)

    def _growing(self) -> tuple[Points, Points]:
        """Ideal radii and the distorted radii that belong to them, as far as both grow."""
        limit = math.radians(_TABLE_DEGREES)
        if self.fisheye:
            angle = np.linspace(0, limit, _TABLE_STEPS)
            ideal, moved = np.tan(angle), self._moved(angle)
        else:
            ideal = np.linspace(0, math.tan(limit), _TABLE_STEPS)
            moved = self._moved(ideal)
        count = int(np.argmax(np.diff(moved, append=-np.inf) <= 0)) + 1
        return ideal[:count], moved[:count]
