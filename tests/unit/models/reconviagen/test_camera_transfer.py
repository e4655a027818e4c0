import math
import time
from dataclasses import replace

import pytest
import torch

from models.geometry.camera import Cameras
from models.geometry.rigs import cameras_around, spread_directions
from models.geometry.rotation import rotation_between, rotation_matrix
from models.geometry.similarity import Similarity
from models.reconviagen.camera_transfer import fit_cameras, uncropped
from models.reconviagen.crops import Crops, Window
from schemas.errors import ModelError

RIG = cameras_around(spread_directions(15), torch.zeros(3), 0.8, size=100)
TRUE = Similarity(torch.tensor(0.4), rotation_matrix(torch.tensor([1.0, 0.3, -2.0])), torch.randn(3))


def off(found, true):
    """Angle between rotations, degrees, and distance of the images of points near the origin."""
    angle = 2 * math.degrees(math.asin(min(1.0, float((found.rotation - true.rotation).norm()) / 8**0.5)))
    points = torch.randn(100, 3)
    return angle, float((found.points(points) - true.points(points)).norm(dim=1).max())


def test_an_exact_fit_is_exact():
    fit = fit_cameras(RIG, TRUE.cameras(RIG))
    angle, distance = off(fit.similarity, TRUE)
    assert angle < 0.01
    assert distance < 1e-4
    assert fit.agreeing.all()


def test_mistakes_do_not_count():
    target = TRUE.cameras(RIG)
    wrong = target.camera_to_world.clone()
    wrong[:6, :3, :3] = rotation_matrix(torch.randn(6, 3) * 2)
    wrong[:6, :3, 3] += torch.randn(6, 3) * 2
    fit = fit_cameras(RIG, replace(target, camera_to_world=wrong))
    angle, distance = off(fit.similarity, TRUE)
    assert angle < 0.1
    assert distance < 1e-3
    assert fit.agreeing.tolist() == [False] * 6 + [True] * 9


def test_noise_averages_out():
    target = TRUE.cameras(RIG)
    noisy = target.camera_to_world.clone()
    noisy[:, :3, :3] = rotation_matrix(torch.randn(15, 3) * 0.05) @ noisy[:, :3, :3]
    noisy[:, :3, 3] += torch.randn(15, 3) * 0.03
    angle, distance = off(fit_cameras(RIG, replace(target, camera_to_world=noisy)).similarity, TRUE)
    assert angle < 2.0
    assert distance < 0.08


def test_two_cameras_suffice_and_one_place_does_not():
    two = RIG[[3, 9]]
    angle, _ = off(fit_cameras(two, TRUE.cameras(two)).similarity, TRUE)
    assert angle < 0.01
    with pytest.raises(ModelError, match="one place"):
        fit_cameras(RIG[[3, 3]], TRUE.cameras(two))


def test_hundreds_of_cameras_are_fitted_at_once():
    many = cameras_around(spread_directions(300), torch.zeros(3), 0.8, size=100)
    target = TRUE.cameras(many)
    wrong = target.camera_to_world.clone()
    wrong[::2, :3, :3] = rotation_matrix(torch.randn(150, 3) * 2)
    wrong[::2, :3, 3] += torch.randn(150, 3) * 2
    start = time.process_time()
    fit = fit_cameras(many, replace(target, camera_to_world=wrong))
    assert time.process_time() - start < 2.0  # all pairs, one by one, took half a minute
    angle, distance = off(fit.similarity, TRUE)
    assert angle < 0.1
    assert distance < 1e-3
    assert not fit.agreeing[::2].any()
    assert fit.agreeing[1::2].all()


def test_one_camera_or_one_that_is_nowhere_is_no_fit():
    with pytest.raises(ModelError, match="one place"):
        fit_cameras(RIG[[3]], RIG[[3]])
    nowhere = replace(RIG, camera_to_world=torch.full_like(RIG.camera_to_world, torch.nan))
    with pytest.raises(ModelError, match="one place"):
        fit_cameras(nowhere, RIG)


def test_a_crop_beside_the_middle_is_turned_back():
    """A network sees the crop as the image of a camera that looks at it."""
    focal = torch.tensor([[300.0, 0, 160], [0, 300.0, 120], [0, 0, 1]])
    pose = torch.eye(4)
    pose[:3, :3] = rotation_matrix(torch.tensor([0.2, 1.0, -0.4]))
    true = Cameras(pose[None], focal[None], 320, 240)
    window = Window(left=180, top=20, side=100)
    crops = Crops(torch.zeros(1, 3, 50, 50), torch.zeros(1, 50, 50), (window,), 320, 240)
    middle = torch.tensor([230.0, 70.0])
    aside = (middle - focal[:2, 2]) / 300 * torch.tensor([1.0, -1.0])
    towards = torch.nn.functional.normalize(torch.tensor([*aside.tolist(), -1.0]), dim=0)
    seen = pose.clone()
    seen[:3, :3] = pose[:3, :3] @ rotation_between(torch.tensor([0.0, 0, -1]), towards)
    middle_focal = 150 / float(-towards[2])  # half of the pixels, and farther from the image plane
    shown = torch.tensor([[middle_focal, 0, 25], [0, middle_focal, 25], [0, 0, 1]])
    found = uncropped(Cameras(seen[None], shown[None], 50, 50), crops)
    torch.testing.assert_close(found.camera_to_world, true.camera_to_world, atol=0.01, rtol=0)
    assert float(found.intrinsics[0, 0, 0]) == pytest.approx(300, rel=0.03)
    torch.testing.assert_close(found.intrinsics[:, :2, 2], true.intrinsics[:, :2, 2])
