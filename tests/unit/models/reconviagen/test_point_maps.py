"""Points that a network sees, in model space: on a sphere that stands off the middle of its images."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from models.base import Views
from models.geometry.camera import Cameras, intrinsics_from_fov, look_at
from models.geometry.rotation import rotation_between, rotation_matrix
from models.geometry.similarity import Similarity
from models.reconviagen.crops import crop_views
from models.reconviagen.point_maps import predict_point_maps

RADIUS, SIDE, CROP = 0.3, 120, 56
OWN = Similarity(
    torch.tensor(0.6), rotation_matrix(torch.tensor([1.0, -0.5, 2.0])), torch.tensor([1.0, 2, 3])
)
"""From model space to the network's own world."""


def scene():
    """Cameras that look past the sphere, by a fifth of the image, and what they see of it."""
    directions = F.normalize(torch.tensor([[1.0, 0, 0.2], [0, 1, 0.5], [-1, 0.3, 0], [0.2, -1, -0.3]]), dim=1)
    poses = []
    for number, direction in enumerate(directions):
        past = (
            0.6
            * rotation_matrix(torch.tensor(float(number)) * direction)
            @ torch.linalg.cross(direction, F.normalize(torch.tensor([0.1, 0.3, 1.0]), dim=0))
        )
        up = torch.tensor([0, 0, 1.0])
        poses.append(look_at((2 * direction + past).numpy(), past.numpy(), up.numpy()))
    intrinsics = torch.tensor(intrinsics_from_fov(math.radians(65), SIDE, SIDE), dtype=torch.float32)
    pose = torch.stack([torch.tensor(each, dtype=torch.float32) for each in poses])
    cameras = Cameras(pose, intrinsics.repeat(4, 1, 1), SIDE, SIDE)
    masks = seen(cameras)[1].float()
    names = tuple(f"{number}.png" for number in range(4))
    return cameras, Views(names, masks[..., None].expand(-1, -1, -1, 3), masks, None, None)


def seen(cameras):
    """Points [V, H, W, 3] of the sphere, beside it those nearest to it, and whether a pixel shows it."""
    position = cameras.positions[:, None, None]
    ray = cameras.unproject(torch.ones(len(cameras), cameras.height, cameras.width)) - position
    a, b = ray.square().sum(-1), (ray * position).sum(-1)
    root = b * b - a * (position.square().sum(-1) - RADIUS**2)
    return cameras.unproject((-b - root.clamp(min=0).sqrt()) / a), root > 0


def centred(crops, cameras):
    """The cameras of the crops as a network gives them: each looks at the middle of its crop."""
    cropped = crops.to_crops(cameras)
    aside = (CROP / 2 - cropped.intrinsics[:, :2, 2]) / cropped.intrinsics[:, :1, 0]
    towards = F.normalize(F.pad(aside * torch.tensor([1.0, -1.0]), (0, 1), value=-1.0), dim=1)
    pose, intrinsics = cropped.camera_to_world.clone(), cropped.intrinsics.clone()
    ahead = torch.tensor([[0.0, 0, -1]]).expand(len(pose), 3)
    pose[:, :3, :3] = pose[:, :3, :3] @ rotation_between(ahead, towards)
    intrinsics[:, :2, 2] = CROP / 2
    return Cameras(pose, intrinsics, CROP, CROP)


def network(crops, cameras, confidence):
    points = OWN.points(seen(crops.to_crops(cameras))[0])
    told = OWN.cameras(centred(crops, cameras))
    return lambda images: (told, points, confidence)


def test_points_of_an_object_beside_the_middle_lie_on_it():
    cameras, views = scene()
    crops = crop_views(views, size=CROP)
    middle = torch.tensor([[each.left + each.side / 2, each.top + each.side / 2] for each in crops.windows])
    assert ((middle - SIDE / 2).norm(dim=1) > 0.15 * SIDE).all()
    maps = predict_point_maps(network(crops, cameras, torch.ones(4, CROP, CROP)), crops, cameras)
    assert len(maps.points) > 1000
    assert (maps.points.norm(dim=1) - RADIUS).abs().max() < 0.02
    inside = maps.depths > 0
    back = crops.to_crops(cameras).unproject(maps.depths)[inside]
    assert (back - maps.points).norm(dim=1).max() < 0.02


def test_the_surer_half_of_the_object_counts_whatever_the_background_is():
    cameras, views = scene()
    crops = crop_views(views, size=CROP)
    inside = crops.masks > 0.8
    confidence = torch.where(inside, torch.rand(inside.shape, generator=torch.Generator().manual_seed(0)), 9)
    maps = predict_point_maps(network(crops, cameras, confidence), crops, cameras)
    assert abs(len(maps.points) / int(inside.sum()) - 0.5) < 0.01
    assert confidence[maps.depths > 0].min() > 0.45


def test_many_large_views_are_ranked():
    """More pixels than `Tensor.quantile` takes."""
    cameras, views = scene()
    side = 2100
    crops = crop_views(views, size=CROP)
    large = replace(
        crops,
        images=torch.zeros(4, 3, 1, 1).expand(4, 3, side, side),
        masks=torch.ones(4, 1, 1).expand(4, side, side),
    )
    told = OWN.cameras(centred(crops, cameras).resized(side, side))
    points = OWN.points(torch.zeros(3)).expand(4, side, side, 3)
    confidence = torch.arange(4 * side * side, dtype=torch.float32).reshape(4, side, side)
    maps = predict_point_maps(lambda images: (told, points, confidence), large, cameras)
    assert abs(int((maps.depths > 0).sum()) / confidence.numel() - 0.5) < 1e-3
