"""What the image networks see of an object's surface, brought into model space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from models.geometry.camera import Cameras
from models.reconviagen.camera_transfer import fit_cameras, uncropped
from models.reconviagen.crops import Crops

PredictPoints = Callable[[Tensor], tuple[Cameras, Tensor, Tensor]]
"""From crops [V, 3, S, S] to their cameras in any one world, the points [V, S, S, 3] that their pixels show
there, and the points' confidence [V, S, S]: VGGT."""

_SURE = 0.5  # share of the object's pixels that are trusted


@dataclass(frozen=True)
class PointMaps:
    """The trusted points of V crops.

    Attributes:
        points: [N, 3], model space.
        depths: [V, S, S] their z-depths, model units; 0 where a pixel is not trusted.
    """

    points: Tensor
    depths: Tensor


def predict_point_maps(predict: PredictPoints, crops: Crops, cameras: Cameras) -> PointMaps:
    """What a network sees of the surface.

    Args:
        predict: The network.
        crops: Of V views.
        cameras: Of the full images, model space: they tell where the network's world lies.

    Raises:
        ModelError: CAMERA_ESTIMATION_FAILED: `predict` raises it, or puts all views into one place.
    """
    told, points, confidence = predict(crops.images)
    # The network believes that every crop's camera looks at the crop's middle.
    points = fit_cameras(uncropped(told, crops), cameras).similarity.points(points)
    trusted = _surer(confidence, crops.masks > 0.8)
    away = points - cameras.positions[:, None, None]
    depths = -(away * cameras.camera_to_world[:, None, None, :3, 2]).sum(-1)
    return PointMaps(points[trusted], depths * trusted)


def _surer(confidence: Tensor, inside: Tensor) -> Tensor:
    """Those of the pixels `inside` [V, S, S] that have the larger confidences among them."""
    values = confidence[inside]
    if not len(values):
        return inside
    rank = max(1, math.ceil((1 - _SURE) * len(values)))
    return inside & (confidence >= values.kthvalue(rank).values)
