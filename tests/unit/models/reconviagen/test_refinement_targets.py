"""Targets of the refinement: crops of the views with their cameras and depth."""

import math

import torch

from models.base import Views
from models.geometry.camera import Cameras, intrinsics_from_fov
from models.reconviagen.crops import crop_views
from models.reconviagen.refinement_targets import make_targets


def scene() -> tuple[Views, Cameras]:
    """Two views of a slanted plane, seen through masks off the middle; the second reaches over the border."""
    width, height = 60, 40
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, 0, 3] = 0.2
    intrinsics = torch.tensor(intrinsics_from_fov(math.radians(50), width, height), dtype=torch.float32)
    cameras = Cameras(poses, intrinsics.expand(2, 3, 3).contiguous(), width, height)
    masks = torch.zeros(2, height, width)
    masks[0, 5:25, 20:44] = 1
    masks[1, 14:40, 0:26] = 1
    x = (torch.arange(width) + 0.5 - width / 2) / intrinsics[0, 0]
    depth = (2 / (1 - 0.5 * x)).expand(2, height, width)  # z = 2 + 0.5 x in camera space
    images = torch.rand(2, height, width, 3)
    return Views(("a.png", "b.png"), images, masks, depth * masks, cameras), cameras


def test_measured_points_lie_where_the_full_views_have_them() -> None:
    views, cameras = scene()
    crops = crop_views(views, size=56)
    targets = make_targets(crops, crops.to_crops(cameras), views.depths, 28)
    points = targets.points()
    assert len(points) > 300
    # Camera space is world space but for the second's shift. A nearest pixel's depth is that of a ray nearby.
    residuals = []
    for view, shift in enumerate((0.0, 0.2)):
        own = targets[view : view + 1].points()
        residuals.append((-own[:, 2] - 2 - 0.5 * (own[:, 0] - shift)).abs())
    assert torch.cat(residuals).max() < 0.05
    pixel, _ = cameras.project(targets[:1].points())
    assert pixel[0, :, 0].min() > 19
    assert pixel[0, :, 0].max() < 45
    assert pixel[0, :, 1].min() > 4
    assert pixel[0, :, 1].max() < 26


def test_images_are_black_around_the_object() -> None:
    views, cameras = scene()
    crops = crop_views(views, size=56)
    targets = make_targets(crops, crops.to_crops(cameras), None, 28)
    assert targets.images.shape == (2, 3, 28, 28)
    assert targets.cameras.width == 28
    assert not targets.images[(targets.masks == 0)[:, None].expand(-1, 3, -1, -1)].any()
    assert targets.images[(targets.masks == 1)[:, None].expand(-1, 3, -1, -1)].mean() > 0.4
    assert len(targets.points()) == 0
