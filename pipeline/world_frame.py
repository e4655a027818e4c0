"""Choose the world of estimated cameras: photographs tell it up to a similarity only.

- The origin is the middle of the object, by the points that were found on it.
- Up (`options.outputs.up_axis`) is the direction that the cameras' horizontal axes avoid: people hold cameras
  level. EXIF's orientation is minded.
- The first photograph's camera stands in front, as in the rig `axis6`: on -y where z is up, on +z where y is.
- The unit of length is the depth maps', where there are any; else the cameras are at a median distance of 1
  from the origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.structure_from_motion import Model

LEVEL = 0.35
"""Cameras are taken for level where their horizontal axes leave one direction out: the axes' mean square
along it is below this share of that along the next direction."""

CORE = (5.0, 95.0)
"""Percentiles of the points that the middle of the object is taken from."""

MIN_DEPTHS = 20
"""Points whose depth must have been measured for depth maps to tell the unit of length."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """`x' = scale * rotation @ x + shift`."""

    scale: float
    rotation: Array
    shift: Array

    def poses(self, camera_to_world: Array) -> Array:
        """Camera-to-world matrices [V, 4, 4] of the new world; rotations stay rotations."""
        moved = camera_to_world.copy()
        moved[:, :3, :3] = self.rotation @ camera_to_world[:, :3, :3]
        moved[:, :3, 3] = self.scale * camera_to_world[:, :3, 3] @ self.rotation.T + self.shift
        return moved


def camera_to_world(model: Model) -> Array:
    """The model's poses as camera-to-world matrices [R, 4, 4], OpenGL axes."""
    rotation = model.camera_from_world[:, :, :3].transpose(0, 2, 1)
    poses = np.tile(np.eye(4), (len(rotation), 1, 1))
    poses[:, :3, :3] = rotation * np.array([1.0, -1.0, -1.0])
    poses[:, :3, 3] = -np.einsum("vij,vj->vi", rotation, model.camera_from_world[:, :, 3])
    return poses


def choose_world(
    model: Model,
    quarter_turns: Sequence[int],
    on_object: NDArray[np.bool_],
    depths: Array | None,
    up_axis: Literal["y", "z"],
) -> Similarity:
    """From the model's world to the one described above.

    Args:
        model: At least three views.
        quarter_turns: Of each view, how often it must be turned clockwise to be upright.
        on_object: [O] which observations fall on the object.
        depths: [O] what the depth maps say of each observation, world units, 0 where nothing; None without.
        up_axis: Of the new world.

    Raises:
        ValueError: Depth maps measure fewer than `MIN_DEPTHS` of the points.
    """
    poses = camera_to_world(model)
    rotation = _upright(poses, quarter_turns)
    seen = np.unique(model.seen_point[on_object])
    points = (model.points[seen] if len(seen) else model.points) @ rotation.T
    centre = np.percentile(points, CORE, axis=0).mean(0)
    positions = poses[:, :3, 3] @ rotation.T - centre
    if depths is None:
        scale = 1 / float(np.median(np.linalg.norm(positions, axis=1)))
    else:
        scale = _unit_of_length(model, depths)
    turn = _facing(positions[0])
    if up_axis == "y":
        turn = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]) @ turn
    return Similarity(scale, turn @ rotation, -scale * turn @ centre)


def _upright(poses: Array, quarter_turns: Sequence[int]) -> Array:
    """The rotation that turns the cameras' common up to +z."""
    right, up = poses[:, :3, 0].copy(), poses[:, :3, 1].copy()
    for index, turns in enumerate(quarter_turns):
        for _ in range(turns):  # of a picture to be turned clockwise, the left side comes to be the top
            right[index], up[index] = up[index], -right[index]
    mean = up.mean(0)
    spread, axes = np.linalg.eigh(right.T @ right / len(right))
    direction = axes[:, 0] if spread[0] < LEVEL * spread[1] else mean
    if direction @ mean < 0:
        direction = -direction
    direction = direction / max(float(np.linalg.norm(direction)), 1e-12)
    side = np.cross(direction, np.eye(3)[np.argmin(np.abs(direction))])
    side /= np.linalg.norm(side)
    return np.stack([side, np.cross(direction, side), direction])


def _facing(position: Array) -> Array:
    """The turn about z that brings a position onto the half plane of -y."""
    length = float(np.hypot(position[0], position[1]))
    if length < 1e-9 * max(abs(float(position[2])), 1e-12):
        return np.eye(3)
    x, y = position[:2] / length
    return np.array([[-y, x, 0.0], [-x, -y, 0.0], [0.0, 0.0, 1.0]])


def _unit_of_length(model: Model, depths: Array) -> float:
    """World units per unit of the model: the median of the views' median ratios."""
    pose = model.camera_from_world[model.seen_view, 2]
    modelled = (pose[:, :3] * model.points[model.seen_point]).sum(1) + pose[:, 3]
    usable = (depths > 0) & (modelled > 0)
    if usable.sum() < MIN_DEPTHS:
        raise ValueError("the depth maps measure too few of the points that were found")
    ratios, views = depths[usable] / modelled[usable], model.seen_view[usable]
    return float(np.median([np.median(ratios[views == view]) for view in np.unique(views)]))
