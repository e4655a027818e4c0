"""Make exact input views as bad as measured ones, the same way at every run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from benchmarks.reconstruction.datasets import Truth
from models.base import Views
from models.geometry.camera import Cameras
from pipeline.masks import FOREGROUND

BLOB_SHARE = 2 / 3
"""Share of the missing depth that is missing in connected patches; the rest are single pixels."""

BLOB_SIZE = 1 / 40
"""Standard deviation of the blur that makes the patches, as a share of the image's longer side."""

_CAMERAS, _SCALE, _NOISE, _HOLES = range(
    4
)  # each takes its own random numbers: one does not change another's


class CannotDegrade(ValueError):
    """The input lacks what was to be made worse; the message says what."""


@dataclass(frozen=True)
class Degradation:
    """How much worse the input is made. All zero: not at all.

    Attributes:
        camera_noise_degrees: Every camera is turned in place about an axis of random direction by an angle
            drawn from a normal distribution of this standard deviation, degrees.
        camera_noise_distance: Every camera is moved by a vector drawn from an isotropic normal distribution;
            the root mean square of its length is this share of the camera's distance from the object's
            centre.
        depth_scale: Standard deviation of the logarithm of the factor by which all depths of a view are
            wrong.
        depth_noise: Standard deviation of the normal noise of each depth, as a share of the object's bounding
            diameter.
        depth_holes: Share of the object's measured pixels, the same in every view, whose depth is missing:
            `BLOB_SHARE` of them in patches, the others scattered.
        no_depth: The depth maps are left out.
        seed: Of all random numbers.
    """

    camera_noise_degrees: float = 0.0
    camera_noise_distance: float = 0.0
    depth_scale: float = 0.0
    depth_noise: float = 0.0
    depth_holes: float = 0.0
    no_depth: bool = False
    seed: int = 0

    @property
    def moves_cameras(self) -> bool:
        """Whether the cameras are no longer the true ones."""
        return self.camera_noise_degrees > 0 or self.camera_noise_distance > 0

    @property
    def changes_depth(self) -> bool:
        """Whether depth maps are changed, rather than kept or left out."""
        return self.depth_scale > 0 or self.depth_noise > 0 or self.depth_holes > 0

    @property
    def needs_truth(self) -> bool:
        """Whether the object's true size or place is a unit of it."""
        return self.moves_cameras or self.depth_noise > 0

    def figures(self) -> dict[str, float]:
        """What differs from an exact input; empty for none."""
        changed = {name: value for name, value in asdict(self).items() if value and name != "seed"}
        return {**changed, "seed": self.seed} if changed else {}


def degrade(views: Views, degradation: Degradation, truth: Truth | None) -> Views:
    """The views, made worse.

    Args:
        views: On the CPU.
        degradation: By how much.
        truth: The true surface, for the object's centre and size.

    Raises:
        CannotDegrade: A depth is to be changed and there is none, or the truth is needed and there is none.
    """
    if degradation.needs_truth and truth is None:
        raise CannotDegrade("noise in cameras or depth is measured against the object: mesh.ply is needed")
    if degradation.changes_depth and (views.depths is None or degradation.no_depth):
        raise CannotDegrade("depth cannot be degraded: there is none")
    if degradation.moves_cameras and truth is not None:
        views = replace(views, cameras=noisy_cameras(views.cameras, degradation, truth.center))
    if degradation.no_depth:
        views = replace(views, depths=None)
    elif degradation.changes_depth:
        views = replace(views, depths=_worse_depths(views, degradation, truth))
    return views


def noisy_cameras(cameras: Cameras, degradation: Degradation, center: NDArray[np.float64]) -> Cameras:
    """Cameras turned in place and moved; see `Degradation`.

    Args:
        cameras: The true ones.
        degradation: By how much.
        center: The object's centre [3], world units.
    """
    random = np.random.default_rng([degradation.seed, _CAMERAS])
    pose = cameras.camera_to_world.double().numpy().copy()
    axes = random.normal(size=(len(cameras), 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.radians(degradation.camera_noise_degrees) * random.normal(size=(len(cameras), 1))
    distance = np.linalg.norm(pose[:, :3, 3] - center, axis=1, keepdims=True)
    pose[:, :3, :3] = pose[:, :3, :3] @ Rotation.from_rotvec(axes * angles).as_matrix()
    step = degradation.camera_noise_distance * distance / np.sqrt(3)
    pose[:, :3, 3] += step * random.normal(size=(len(cameras), 3))
    return replace(cameras, camera_to_world=torch.from_numpy(pose).to(cameras.camera_to_world.dtype))


def scaled_depths(depths: NDArray[np.float32], degradation: Degradation) -> NDArray[np.float32]:
    """Depth maps [V, H, W], each times a factor of its own."""
    random = np.random.default_rng([degradation.seed, _SCALE])
    factors = np.exp(degradation.depth_scale * random.normal(size=(len(depths), 1, 1)))
    return (depths * factors).astype(np.float32)


def noisy_depths(depths: NDArray[np.float32], degradation: Degradation, radius: float) -> NDArray[np.float32]:
    """Depth maps [V, H, W] with noise where there is a depth.

    Args:
        depths: World units, 0 where nothing was measured.
        degradation: By how much.
        radius: The object's bounding radius, world units.
    """
    random = np.random.default_rng([degradation.seed, _NOISE])
    noise = degradation.depth_noise * 2 * radius * random.normal(size=depths.shape)
    return np.where(depths > 0, np.maximum(depths + noise, 0), 0).astype(np.float32)


def depth_holes(on_object: NDArray[np.bool_], degradation: Degradation) -> NDArray[np.bool_]:
    """Which pixels lose their depth: in every view the same share of the object's.

    Patches are where smooth noise is highest.

    Args:
        on_object: [V, H, W], the measured pixels of the object.
        degradation: By how much.
    """
    random = np.random.default_rng([degradation.seed, _HOLES])
    holes = np.zeros_like(on_object)
    for view, pixels in enumerate(on_object):
        smooth = gaussian_filter(random.normal(size=pixels.shape), BLOB_SIZE * max(pixels.shape), mode="wrap")
        place = np.flatnonzero(pixels)
        missing = round(degradation.depth_holes * len(place))
        in_patches = round(BLOB_SHARE * missing)
        order = place[np.argsort(-smooth.ravel()[place])]
        scattered = random.permutation(order[in_patches:])[: missing - in_patches]
        holes[view].ravel()[np.concatenate([order[:in_patches], scattered])] = True
    return holes


def _worse_depths(views: Views, degradation: Degradation, truth: Truth | None) -> torch.Tensor:
    assert views.depths is not None
    depths = views.depths.numpy()
    measured = (depths > 0) & (views.masks.numpy() > FOREGROUND)
    if degradation.depth_scale:
        depths = scaled_depths(depths, degradation)
    if degradation.depth_noise and truth is not None:
        depths = noisy_depths(depths, degradation, truth.radius)
    return torch.from_numpy(np.where(depth_holes(measured, degradation), np.float32(0), depths))
