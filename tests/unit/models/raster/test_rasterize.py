import math

import numpy as np
import pytest
import torch
from raster_scenes import flat, project, sphere

from models.raster.warp_ops.kernels.coverage import visibility, visibility_of_queued, visibility_of_small
from models.raster.warp_ops.launch import Launcher


def views(columns=16, count=3):
    vertices, tri = sphere(columns)
    return torch.stack([project(vertices, 0.7 * k) for k in range(count)]), tri


def oracle(pos, tri, height, width):
    """One view by brute force in float64: face + 1, (u, v, z/w), pixels to the nearest edge."""
    y, x = np.mgrid[:height, :width] + 0.5
    pixel = np.stack([x, y], -1)
    best = np.full((height, width), np.inf)
    face = np.zeros((height, width), int)
    uvz = np.zeros((height, width, 3))
    margin = np.full((height, width), np.inf)
    for f, corners in enumerate(tri):
        p = pos[corners]
        if (p[:, 3] <= 0).any():
            continue
        screen = (p[:, :2] / p[:, 3:] * 0.5 + 0.5) * (width, height)
        for k in range(3):  # distance to the segment
            a, b = screen[k], screen[(k + 1) % 3]
            t = np.clip(((pixel - a) @ (b - a)) / max((b - a) @ (b - a), 1e-12), 0, 1)
            margin = np.minimum(margin, np.linalg.norm(pixel - a - t[..., None] * (b - a), axis=-1))
        matrix = np.concatenate([screen, np.ones((3, 1))], 1).T
        if abs(np.linalg.det(matrix)) < 1e-9:
            continue
        affine = np.concatenate([pixel, np.ones((height, width, 1))], -1) @ np.linalg.inv(matrix).T
        z = affine @ (p[:, 2] / p[:, 3])
        perspective = affine / p[:, 3]
        perspective /= perspective.sum(-1, keepdims=True)
        wins = (affine >= 0).all(-1) & (z < best) & (np.abs(z) <= 1)
        best[wins], face[wins] = z[wins], f + 1
        uvz[wins] = np.concatenate([perspective[..., :2], z[..., None]], -1)[wins]
    return face, uvz, margin


def dense_uv(pos, tri, rast):
    """(u, v) of the visible faces as a differentiable function of the positions, in float64."""
    b, h, w = rast.shape[:3]
    corners = tri.long()[(rast[..., 3].long() - 1).clamp(min=0)]
    p = pos[torch.arange(b)[:, None, None, None], corners]  # [B, H, W, 3, 4]
    fy = (torch.arange(h, dtype=pos.dtype) + 0.5) * 2 / h - 1
    fx = (torch.arange(w, dtype=pos.dtype) + 0.5) * 2 / w - 1
    grid = torch.stack(torch.meshgrid(fy, fx, indexing="ij")[::-1], -1)
    q = p[..., :2] - grid[None, :, :, None] * p[..., 3:]

    def cross(i, j):
        return q[..., i, 0] * q[..., j, 1] - q[..., i, 1] * q[..., j, 0]

    a = torch.stack([cross(1, 2), cross(2, 0), cross(0, 1)], -1)
    return (a / a.sum(-1, keepdim=True))[..., :2]


def test_every_pixel_away_from_edges_agrees_with_brute_force(backend):
    pos, tri = views()
    rast, _ = backend.rasterize(pos, tri, (40, 56))
    for view in range(len(pos)):
        face, uvz, margin = oracle(pos[view].double().numpy(), tri.long().numpy(), 40, 56)
        clear = margin > 0.1  # coverage is decided to 1/16 pixel
        assert clear.mean() > 0.7
        assert (rast[view, ..., 3].numpy() == face)[clear].all()
        assert np.abs(rast[view, ..., :3].numpy() - uvz)[clear].max() < 1e-4


def test_gradients_agree_with_autograd_of_the_dense_formula(backend):
    pos, tri = views()
    pos.requires_grad_()
    rast, _ = backend.rasterize(pos, tri, (32, 32))
    seen = rast[..., 3:] > 0
    exact = dense_uv(pos.double(), tri, rast)
    inside = seen & ((exact > 0.01) & (exact < 0.99)).all(-1, keepdim=True)
    weight = torch.randn_like(rast[..., :2]) * inside
    (actual,) = torch.autograd.grad((rast[..., :2] * weight).sum(), pos)
    (expected,) = torch.autograd.grad((exact * weight).sum(), pos)
    assert (actual[..., 2] == 0).all()
    assert (actual - expected).abs().max() < 2e-3 * expected.abs().max()


def test_depth_and_number_carry_no_gradient(backend):
    pos, tri = views(count=1)
    pos.requires_grad_()
    rast, rast_db = backend.rasterize(pos, tri, (16, 16))
    (grad,) = torch.autograd.grad(rast[..., 2:].sum(), pos)
    assert (grad == 0).all()
    assert not rast_db.requires_grad


def test_slopes_agree_with_finite_differences_of_the_barycentrics(backend):
    pos = torch.tensor([[[-1.0, -1.2, 0.0, 1.0], [2.5, -2.0, 0.5, 2.0], [-0.5, 4.0, 0.9, 3.0]]])
    tri = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    rast, rast_db = backend.rasterize(pos, tri, (64, 64))
    inside = rast[0, ..., 3] > 0
    centre = inside[1:-1, 1:-1] & inside[1:-1, 2:] & inside[1:-1, :-2] & inside[2:, 1:-1] & inside[:-2, 1:-1]
    dx = (rast[0, 1:-1, 2:, :2] - rast[0, 1:-1, :-2, :2]) / 2
    dy = (rast[0, 2:, 1:-1, :2] - rast[0, :-2, 1:-1, :2]) / 2
    expected = torch.stack([dx[..., 0], dy[..., 0], dx[..., 1], dy[..., 1]], -1)
    assert centre.sum() > 500
    torch.testing.assert_close(rast_db[0, 1:-1, 1:-1][centre], expected[centre], atol=1e-4, rtol=2e-2)


def test_row_zero_is_at_the_bottom_and_empty_pixels_are_zero(backend):
    pos = flat([(-1, -1), (1, -1), (-1, 0), (1, 0)])
    tri = torch.tensor([[0, 1, 2], [1, 3, 2]], dtype=torch.int32)
    rast, rast_db = backend.rasterize(pos, tri, (8, 6))
    assert (rast[0, :4, :, 3] > 0).all()
    assert (rast[0, 4:] == 0).all()
    assert (rast_db[0, 4:] == 0).all()


def test_first_vertex_has_weight_one_and_zero(backend):
    # Vertices a hair outside of three pixel centres of an 8 x 8 image.
    pos = flat([(-0.88, -0.88), (0.88, -0.88), (-0.88, 0.88)])
    rast, _ = backend.rasterize(pos, torch.tensor([[0, 1, 2]], dtype=torch.int32), (8, 8))
    for (row, column), uv in {(0, 0): (1.0, 0.0), (0, 6): (0.08, 0.92), (6, 0): (0.08, 0.0)}.items():
        assert rast[0, row, column, :2].tolist() == pytest.approx(uv, abs=0.08)
        assert rast[0, row, column, 3] == 1


@pytest.mark.parametrize("near_first", [True, False])
def test_nearest_wins_whatever_the_order_and_winding(backend, near_first):
    far, near = flat([(-1, -1), (3, -1), (-1, 3)], 0.5), flat([(-1, -1), (-1, 3), (3, -1)], -0.5)
    pos = torch.cat([near, far] if near_first else [far, near], 1)
    rast, _ = backend.rasterize(pos, torch.arange(6, dtype=torch.int32).reshape(2, 3), (4, 4))
    assert (rast[..., 3] == (1 if near_first else 2)).all()
    torch.testing.assert_close(rast[..., 2], torch.full((1, 4, 4), -0.5))


def test_equal_depth_goes_to_the_lowest_number(backend):
    pos = flat([(-1, -1), (3, -1), (-1, 3)])
    tri = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1]], dtype=torch.int32)
    assert (backend.rasterize(pos, tri, (4, 4))[0][..., 3] == 1).all()


def test_fans_cover_every_pixel_exactly_once(backend):
    # Fans around random inner points fill the view; on a grid of pixel centres ties abound.
    for trial in range(20):
        size = 16
        inner = torch.randint(-size, size, (2,)) / size if trial % 2 else torch.rand(2) * 1.8 - 0.9
        rim = [(-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0)]
        pos = flat([tuple(inner.tolist()), *rim])
        fan = [[0, 1 + k, 1 + (k + 1) % 8] for k in range(8)]
        counts = torch.zeros(size, size)
        for face in fan:
            rast, _ = backend.rasterize(pos, torch.tensor([face], dtype=torch.int32), (size, size))
            counts += rast[0, ..., 3]
        assert (counts == 1).all()


def test_closed_mesh_has_no_cracks(backend):
    pos, tri = views(columns=48, count=3)
    rast, _ = backend.rasterize(pos, tri, (96, 96))
    rim = 2 / math.sqrt(3.0**2 - 1)  # of the sphere in the image, |x| on the screen
    grid = (torch.arange(96) + 0.5) / 48 - 1
    inner = (grid[:, None] ** 2 + grid[None] ** 2) < (0.97 * rim) ** 2
    assert (rast[:, inner][..., 3] > 0).all()


def test_triangles_behind_the_camera_are_ignored(backend):
    vertices, tri = sphere()
    pos = project(vertices, distance=-3.0)[None].requires_grad_()
    rast, _ = backend.rasterize(pos, tri, (16, 16))
    assert (rast == 0).all()
    rast.sum().backward()
    assert (pos.grad == 0).all()


def test_ground_plane_through_the_camera_is_clipped(backend):
    # Two triangles of a plane one unit below the camera, reaching from behind it to before it.
    plane = torch.tensor([[-50.0, -1, 9], [50, -1, 9], [50, -1, -9], [-50, -1, -9]])
    tri = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    pos = project(plane, distance=0.0)[None].requires_grad_()
    rast, _ = backend.rasterize(pos, tri, (64, 64))
    y = (torch.arange(64) + 0.5) / 32 - 1
    depth = -2.0 / y  # of the plane along each row's rays, focal length 2
    covered = (y < 0) & (depth < 9)
    rows = (rast[0, ..., 3] > 0).all(1)
    assert (rows == covered).sum() >= 63
    assert (rast[0, ..., 3] > 0).any(1).sum() == rows.sum()
    w = pos[0, :, 3]
    corners = tri.long()[rast[0, rows][..., 3].long() - 1]
    weights = torch.cat([rast[0, rows][..., :2], 1 - rast[0, rows][..., :2].sum(-1, keepdim=True)], -1)
    seen_w = (w[corners] * weights).sum(-1)
    torch.testing.assert_close(seen_w, depth[rows][:, None].expand(-1, 64), rtol=2e-2, atol=1e-2)
    (rast[..., :2].sum()).backward()
    assert torch.isfinite(pos.grad).all()


def test_invalid_and_degenerate_triangles_are_ignored(backend):
    pos = flat([(-1, -1), (1, -1), (-1, 1)])
    pos = torch.cat([pos, torch.zeros(1, 1, 4), torch.full((1, 1, 4), float("nan"))], 1)
    tri = torch.tensor([[0, 1, 7], [-1, 1, 2], [0, 0, 1], [0, 1, 3], [0, 1, 4]], dtype=torch.int32)
    assert (backend.rasterize(pos, tri, (8, 8))[0] == 0).all()


def test_empty_mesh_gives_an_empty_image(backend):
    rast, _ = backend.rasterize(torch.zeros(2, 0, 4), torch.zeros(0, 3, dtype=torch.int32), (4, 5))
    assert rast.shape == (2, 4, 5, 4)
    assert (rast == 0).all()


def test_runs_are_bit_identical(backend):
    pos, tri = views(columns=32, count=5)
    results = []
    for _ in range(2):
        p = pos.clone().requires_grad_()
        rast, rast_db = backend.rasterize(p, tri, (64, 64))
        rast.square().sum().backward()
        results.append((rast, rast_db, p.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("extra", [0, 7, 65536])
def test_a_queue_of_large_and_clipped_triangles_covers_the_same_pixels(extra):
    # What CUDA does for triangles too large for one thread, here by one thread in the place of all.
    launcher = Launcher(torch.device("cpu"), threads=1)
    generator = torch.Generator().manual_seed(0)
    views, vertices, faces, height, width = 2, 90, 30, 200, 300
    pos = torch.randn(views, vertices, 4, generator=generator) * 0.6 + torch.tensor([0.0, 0.0, 0.0, 0.7])
    tri = torch.arange(vertices, dtype=torch.int32).reshape(faces, 3)
    sizes = [vertices, faces, height, width]
    expected, keys = torch.zeros(2, views * height * width + 2, dtype=torch.int64)
    launcher.run(visibility, views, faces, [pos, tri, expected, *sizes])
    queue = torch.full((views * faces + extra,), -2)
    work = [pos, tri, keys, queue, *sizes, views, extra]
    launcher.run(visibility_of_small, views, faces, work)
    queued, more = keys[-2:].tolist()
    assert 10 < queued < views * faces
    assert more > 7
    assert (queue[:queued] >= 0).all()
    launcher.run(visibility_of_queued, 1, 32 * 5, [*work, 5])
    assert len(expected.unique()) > 20
    assert torch.equal(keys[:-2], expected[:-2])
