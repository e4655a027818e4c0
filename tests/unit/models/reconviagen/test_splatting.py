"""Splatting in plain torch against loops over pixels and Gaussians, and gsplat against it on a GPU."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.geometry.camera import Cameras, intrinsics_from_fov, look_at
from models.reconviagen import splatting
from models.reconviagen.gaussians import Gaussians
from models.reconviagen.splatting import draw_in_torch, gsplat_installed, render_gaussians

BLACK = torch.zeros(3)


def cameras_around(views: int, width: int, height: int) -> Cameras:
    turns = np.linspace(0, 2 * np.pi, views, endpoint=False) + 0.3
    eyes = [2 * np.array([math.cos(turn), math.sin(turn), 0.3]) for turn in turns]
    poses = np.stack([look_at(eye, np.zeros(3), np.array([0, 0, 1.0])) for eye in eyes])
    intrinsics = intrinsics_from_fov(math.radians(40), width, height)
    intrinsics[0, 2] += 1.3  # off the middle, so that mixing up axes shows
    intrinsics[1, 1] *= 1.1
    return Cameras(
        torch.tensor(poses, dtype=torch.float32),
        torch.tensor(intrinsics, dtype=torch.float32).expand(views, 3, 3).contiguous(),
        width,
        height,
    )


def random_gaussians(count: int, size: float, dtype: torch.dtype = torch.float32) -> Gaussians:
    return Gaussians(
        (torch.rand(count, 3, dtype=dtype) - 0.5) * 0.9,
        size * (0.3 + torch.rand(count, 3, dtype=dtype)),
        torch.nn.functional.normalize(torch.randn(count, 4, dtype=dtype), dim=-1),
        0.05 + 0.9 * torch.rand(count, dtype=dtype),
        torch.rand(count, 3, dtype=dtype),
    )


def parts(gaussians: Gaussians) -> tuple[Tensor, ...]:
    g = gaussians
    return g.means, g.scales, g.rotations, g.opacities, g.colors


def matrix(quaternion: np.ndarray) -> np.ndarray:
    """Hamilton's product q v q*, column by column."""
    w, v = quaternion[0], quaternion[1:]
    return np.stack([e + 2 * np.cross(v, np.cross(v, e) + w * e) for e in np.eye(3)], 1)


def drawn_by_loops(gaussians: Gaussians, cameras: Cameras, background: np.ndarray) -> tuple[np.ndarray, ...]:
    """The definition, Gaussian by Gaussian and pixel by pixel."""
    means, scales, rotations, opacities, colors = (part.double().numpy() for part in parts(gaussians))
    color = np.zeros((len(cameras), cameras.height, cameras.width, 3))
    alpha, depth = np.zeros(color.shape[:3]), np.zeros(color.shape[:3])
    for view in range(len(cameras)):
        pose = cameras.world_to_camera_opencv[view].double().numpy()
        k = cameras.intrinsics[view].double().numpy()
        splats = []
        for g in range(len(means)):
            x, y, z = pose[:3, :3] @ means[g] + pose[:3, 3]
            jacobian = np.array(
                [[k[0, 0] / z, 0, -k[0, 0] * x / z**2], [0, k[1, 1] / z, -k[1, 1] * y / z**2]]
            )
            turn = pose[:3, :3] @ matrix(rotations[g])
            covariance = jacobian @ turn @ np.diag(scales[g] ** 2) @ turn.T @ jacobian.T
            wide = covariance + 0.1 * np.eye(2)
            dimmed = opacities[g] * math.sqrt(np.linalg.det(covariance) / np.linalg.det(wide))
            center = np.array([k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]])
            splats.append((z, center, np.linalg.inv(wide), dimmed, colors[g]))
        splats.sort(key=lambda splat: splat[0])
        for row in range(cameras.height):
            for column in range(cameras.width):
                through, seen, far = 1.0, np.zeros(3), 0.0
                for z, center, inverse, opacity, own in splats:
                    offset = np.array([column + 0.5, row + 0.5]) - center
                    a = min(0.999, opacity * math.exp(-offset @ inverse @ offset / 2))
                    if a < 1 / 255:
                        continue
                    if through * (1 - a) <= 1e-4:
                        break
                    seen, far = seen + through * a * own, far + through * a * z
                    through *= 1 - a
                pixel = view, row, column
                color[pixel] = seen + through * background
                alpha[pixel] = 1 - through
                depth[pixel] = far / (1 - through) if through < 1 else 0
    return color, alpha, depth


@pytest.mark.parametrize("size", [0.01, 0.1, 0.3])
def test_images_are_those_of_the_definition(size: float) -> None:
    cameras, background = cameras_around(2, 19, 14), torch.tensor([0.2, 0.5, 0.9])
    gaussians = random_gaussians(30, size, torch.float64)
    found = draw_in_torch(gaussians, cameras, background)
    expected = drawn_by_loops(gaussians, cameras, background.double().numpy())
    assert expected[1].max() > 0.03
    for image, truth in zip(found, expected, strict=True):
        np.testing.assert_allclose(image.numpy(), truth, atol=2e-6)


def test_one_gaussian_has_the_alpha_and_depth_of_its_formula() -> None:
    cameras = cameras_around(1, 33, 33)
    sigma, opacity = 0.05, 0.7
    gaussians = Gaussians(
        torch.zeros(1, 3),
        torch.full((1, 3), sigma),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.tensor([opacity]),
        torch.tensor([[1.0, 0.5, 0.0]]),
    )
    color, alpha, depth = render_gaussians(gaussians, cameras, BLACK)
    pixel, distance = cameras.project(torch.zeros(1, 3))
    column, row = (int(x) for x in pixel[0, 0].floor())
    fx, fy = float(cameras.intrinsics[0, 0, 0]), float(cameras.intrinsics[0, 1, 1])
    vx, vy = (sigma * fx / float(distance[0, 0])) ** 2, (sigma * fy / float(distance[0, 0])) ** 2
    dx, dy = (float(x) - 0.5 for x in pixel[0, 0] - pixel[0, 0].floor())
    peak = opacity * math.sqrt(vx * vy / ((vx + 0.1) * (vy + 0.1)))
    expected = peak * math.exp(-(dx**2 / (vx + 0.1) + dy**2 / (vy + 0.1)) / 2)
    assert float(alpha[0, row, column]) == pytest.approx(expected, rel=1e-4)
    assert alpha[0].argmax() == row * cameras.width + column
    torch.testing.assert_close(color[0], alpha[0, ..., None] * torch.tensor([1.0, 0.5, 0.0]))
    covered = alpha[0] > 0
    torch.testing.assert_close(depth[0][covered], distance[0, 0].expand(int(covered.sum())))
    assert not depth[0][~covered].any()
    assert (~covered).any()


def test_the_nearer_of_two_hides_the_other_from_every_side() -> None:
    cameras = cameras_around(2, 24, 24)  # the second looks from the other side
    toward = torch.nn.functional.normalize(cameras.positions[:1], dim=-1)
    gaussians = Gaussians(
        torch.cat([0.3 * toward, -0.3 * toward]),
        torch.full((2, 3), 0.1),
        torch.tensor([[1.0, 0, 0, 0]] * 2),
        torch.full((2,), 0.999),
        torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]),
    )
    color, alpha, _ = render_gaussians(gaussians, cameras, BLACK)
    peak = alpha.flatten(1).argmax(1)
    seen = color.flatten(1, 2)[torch.arange(2), peak]
    assert seen[0, 0] > 0.9 > 0.1 > seen[0, 2]
    assert seen[1, 2] > 0.9 > 0.1 > seen[1, 0]


def test_nothing_in_view_leaves_the_background() -> None:
    cameras, background = cameras_around(1, 8, 6), torch.tensor([0.1, 0.2, 0.3])
    behind = Gaussians(*(part[:4] for part in parts(random_gaussians(4, 0.01))))
    behind = Gaussians(behind.means + 3 * cameras.positions, *parts(behind)[1:])
    for gaussians in (behind, Gaussians(*(part[:0] for part in parts(behind)))):
        color, alpha, depth = render_gaussians(gaussians, cameras, background)
        torch.testing.assert_close(color, background.expand(1, 6, 8, 3))
        assert not alpha.any()
        assert not depth.any()


def test_gradients_are_those_of_finite_differences() -> None:
    cameras = cameras_around(2, 9, 7)
    gaussians = random_gaussians(6, 0.1, torch.float64)

    def images(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(draw_in_torch(Gaussians(*given), cameras, BLACK))

    given = [part.requires_grad_() for part in parts(gaussians)]
    assert torch.autograd.gradcheck(images, given, eps=1e-7, atol=1e-5, fast_mode=True)


def test_bands_change_neither_images_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras, cotangent = cameras_around(1, 16, 16), torch.randn(1, 16, 16, 3)
    gaussians = random_gaussians(40, 0.05)
    results = []
    for limit in (1 << 20, 100):
        monkeypatch.setattr(splatting, "_PAIRS", limit)
        given = [part.clone().requires_grad_() for part in parts(gaussians)]
        color, _, _ = draw_in_torch(Gaussians(*given), cameras, BLACK)
        results.append((color, *torch.autograd.grad(color, given, cotangent)))
    assert len(splatting._bands(splatting._project(gaussians, cameras, 0).boxes, 16)) > 3
    for whole, banded in zip(*results, strict=True):
        torch.testing.assert_close(whole, banded, atol=1e-5, rtol=1e-4)


def test_a_displaced_gaussian_finds_its_image() -> None:
    cameras = cameras_around(3, 24, 24)
    truth = random_gaussians(1, 0.1)
    truth = Gaussians(torch.tensor([[0.1, -0.1, 0.05]]), *parts(truth)[1:])
    target = render_gaussians(truth, cameras, BLACK).color
    means = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.Adam([means], lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        image = render_gaussians(Gaussians(means, *parts(truth)[1:]), cameras, BLACK).color
        (image - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(means.detach(), truth.means, atol=0.01, rtol=0)


@pytest.mark.parametrize("error", ["ImportError", "OSError", "RuntimeError"])
def test_a_gsplat_built_for_another_torch_is_not_used(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gsplat").mkdir()
    (tmp_path / "gsplat" / "__init__.py").write_text(f"raise {error}('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "gsplat"]:
        monkeypatch.delitem(sys.modules, name)
    gsplat_installed.cache_clear()
    try:
        assert not gsplat_installed()
    finally:
        gsplat_installed.cache_clear()
    assert "undefined symbol" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or not gsplat_installed(), reason="needs CUDA and gsplat")
@pytest.mark.parametrize("size", [0.004, 0.05])
def test_gsplat_draws_and_differentiates_as_plain_torch_does(size: float) -> None:
    cameras = cameras_around(2, 70, 50).to("cuda")
    gaussians = random_gaussians(500, size).to("cuda")
    background = torch.tensor([0.2, 0.5, 0.9], device="cuda")
    results = []
    for draw in (draw_in_torch, render_gaussians):
        given = [part.clone().requires_grad_() for part in parts(gaussians)]
        rendering = draw(Gaussians(*given), cameras, background)
        torch.manual_seed(1)
        loss = sum((image * torch.randn_like(image)).sum() for image in rendering[:2])
        results.append((rendering, torch.autograd.grad(loss, given)))
    (ours, our_gradients), (theirs, their_gradients) = results
    for image, other in zip(ours, theirs, strict=True):
        wrong = (image - other).abs() > 1e-3  # a Gaussian may be drawn by one and just not by the other
        assert wrong.float().mean() < 2e-3
        assert (image - other).abs().mean() < 1e-4
    for gradient, other in zip(our_gradients, their_gradients, strict=True):
        assert (gradient - other).norm() < 1e-2 * gradient.norm()
