import pytest
import torch
from raster_scenes import flat, project, sphere

from models.raster.warp_ops.launch import Launcher
from models.raster.warp_ops.topology import TopologyCache, opposite_vertices

LAUNCHER = Launcher(torch.device("cpu"))


def quad(left, right, bottom=-2.0, top=2.0, z=0.0):
    """An upright rectangle as two welded triangles."""
    tri = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    return flat([(left, bottom), (right, bottom), (right, top), (left, top)], z), tri


def mask(backend, pos, tri, size):
    """Antialiased coverage."""
    rast, _ = backend.rasterize(pos, tri, (size, size))
    return backend.antialias((rast[..., 3:] > 0).float(), rast, pos, tri)


def oracle(color, rast, pos, tri):
    """The definition, pair of pixels by pair of pixels, differentiable by autograd in float64."""
    views, height, width = rast.shape[:3]
    faces = tri.tolist()
    around = {}
    for f in faces:
        for k in range(3):
            around.setdefault(frozenset((f[k], f[(k + 1) % 3])), []).append(f[(k + 2) % 3])
    out = color.clone()
    half = torch.tensor([width / 2, height / 2], dtype=pos.dtype)
    screen = (pos[..., :2] / pos[..., 3:] + 1) * half

    def side(a, b, c):
        return ((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]).item() >= 0

    for b in range(views):
        for y in range(height):
            for x in range(width):
                for axis, (x1, y1) in enumerate(((x + 1, y), (x, y + 1))):
                    if x1 == width or y1 == height or rast[b, y, x, 3] == rast[b, y1, x1, 3]:
                        continue
                    r0, r1 = rast[b, y, x], rast[b, y1, x1]
                    own = r0[3] > 0 and (r1[3] == 0 or r0[2] < r1[2])
                    face = faces[int(r0[3] if own else r1[3]) - 1]
                    near, far = ((x, y), (x1, y1)) if own else ((x1, y1), (x, y))
                    best = None
                    for k in range(3):
                        i, j, tip = face[(k + 1) % 3], face[(k + 2) % 3], face[k]
                        p, q = (
                            screen[b, i] - torch.tensor(near) - 0.5,
                            screen[b, j] - torch.tensor(near) - 0.5,
                        )
                        if (p[1 - axis] < 0) == (q[1 - axis] < 0):
                            continue
                        at = p[axis] + (q - p)[axis] * (0 - p[1 - axis]) / (q - p)[1 - axis]
                        at = at * (far[axis] - near[axis])
                        others = [v for v in around[frozenset((i, j))] if v != tip]
                        silhouette = not others or side(screen[b, i], screen[b, j], screen[b, tip]) == side(
                            screen[b, i], screen[b, j], screen[b, others[0]]
                        )
                        steep = (q - p)[1 - axis].abs() >= (q - p)[axis].abs()
                        if best is None or at > best[0]:
                            best = (at, silhouette and steep)
                    if best is None or not best[1] or not -1 / 16 < best[0] < 17 / 16:
                        continue
                    # The nearer surface reaches `at` of the way: what it has beyond or short of the border
                    # between the pixels, at one half, it gives to or takes from the pixel there.
                    at = best[0].clamp(0, 1)
                    gain = at - 0.5
                    (xn, yn), (xf, yf) = near, far
                    if gain > 0:
                        out[b, yf, xf] = out[b, yf, xf] + gain * (color[b, yn, xn] - color[b, yf, xf])
                    else:
                        out[b, yn, xn] = out[b, yn, xn] - gain * (color[b, yf, xf] - color[b, yn, xn])
    return out


@pytest.fixture
def scene(backend):
    vertices, tri = sphere(12)
    tri = torch.cat([tri, tri[:40] + len(vertices)])  # and an open piece of another, before it
    vertices = torch.cat([vertices, vertices * 0.45 + torch.tensor([0.4, 0.1, 1.1])])
    pos = torch.stack([project(vertices, 0.4 * k) for k in range(2)])
    rast, _ = backend.rasterize(pos, tri, (28, 32))
    return rast, pos, tri


def test_image_and_gradients_agree_with_the_definition(backend, scene):
    rast, pos, tri = scene
    color = torch.rand(2, 28, 32, 3, requires_grad=True)
    pos = pos.requires_grad_()
    color64, pos64 = (t.detach().double().requires_grad_() for t in (color, pos))
    out = backend.antialias(color, rast, pos, tri)
    expected = oracle(color64, rast.double(), pos64, tri)
    changed = (out != color).any(-1)
    assert changed.sum() > 50
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=1e-4)
    weight = torch.randn_like(color)
    grads = torch.autograd.grad(out, (color, pos), weight)
    wanted = torch.autograd.grad(expected, (color64, pos64), weight.double())
    torch.testing.assert_close(grads[0].double(), wanted[0], atol=1e-4, rtol=1e-3)
    # The gradient is damped a little (1/1000 pixel) for edges that hardly cross the line of centres.
    assert (grads[1].double() - wanted[1]).abs().max() < 1e-2 * wanted[1].abs().max()
    assert (grads[1][..., 2] == 0).all()


@pytest.mark.parametrize("shift", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_coverage_of_an_upright_edge_is_exact(backend, shift):
    size = 8
    out = mask(backend, *quad(-2.0, (4 + shift) * 2 / size - 1), size)
    row = out[0, 3, :, 0]
    assert row[:4].tolist() == [1, 1, 1, 1]
    assert row[4].item() == pytest.approx(shift, abs=1e-5)
    assert row[5:].tolist() == [0, 0, 0]


def test_gradient_of_coverage_is_the_length_of_the_edge(backend):
    size = 16
    pos, tri = quad(-2.0, 0.21, -3.0, 3.0)
    pos.requires_grad_()
    mask(backend, pos, tri, size).sum().backward()
    # Moving the right edge by one pixel covers one pixel more per row; x spans two units.
    assert pos.grad[0, [1, 2], 0].sum().item() == pytest.approx(size * size / 2, rel=1e-2)
    assert pos.grad[0, [0, 3], 0].abs().max() == 0


def test_inner_edges_of_a_surface_are_left_alone(backend):
    pos, tri = quad(-2.0, 2.0)
    rast, _ = backend.rasterize(pos, tri, (16, 16))
    assert len(rast[..., 3].unique()) == 2
    color = torch.rand(1, 16, 16, 3)
    assert torch.equal(backend.antialias(color, rast, pos, tri), color)


def test_unwelded_edges_count_as_silhouettes(backend):
    pos, tri = quad(-2.0, 2.0)
    pos, tri = pos[:, tri.flatten().long()], torch.arange(6, dtype=torch.int32).reshape(2, 3)
    rast, _ = backend.rasterize(pos, tri, (16, 16))
    color = torch.rand(1, 16, 16, 3)
    assert not torch.equal(backend.antialias(color, rast, pos, tri), color)


def test_translation_is_recovered_from_a_silhouette(backend):
    vertices, tri = sphere(12)
    vertices = vertices * 0.5

    def picture(offset):
        return mask(backend, project(vertices + torch.cat([offset, offset.new_zeros(1)]))[None], tri, 32)

    target = picture(torch.tensor([0.21, -0.13]))
    offset = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([offset], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (picture(offset) - target).square().mean().backward()
        optimizer.step()
    assert offset.tolist() == pytest.approx([0.21, -0.13], abs=0.01)


def test_runs_are_bit_identical(backend, scene):
    rast, pos, tri = scene
    color, weight = torch.rand(2, 28, 32, 3), torch.rand(2, 28, 32, 3)
    results = []
    for _ in range(2):
        p = pos.clone().requires_grad_()
        out = backend.antialias(color, rast, p, tri)
        results.append((out, *torch.autograd.grad(out, p, weight)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_opposite_vertices_agree_with_a_dictionary():
    _, tri = sphere(8)
    tri = tri[torch.randperm(len(tri))[:40]]
    around = {}
    for f in tri.tolist():
        for k in range(3):
            around.setdefault(frozenset((f[(k + 1) % 3], f[(k + 2) % 3])), []).append(f[k])
    expected = [
        [
            next((v for v in around[frozenset((f[(k + 1) % 3], f[(k + 2) % 3]))] if v != f[k]), -1)
            for k in range(3)
        ]
        for f in tri.tolist()
    ]
    assert opposite_vertices(tri, 100, LAUNCHER).tolist() == expected


def test_opposite_vertices_of_odd_meshes():
    fin = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4], [5, 5, 6]], dtype=torch.int32)
    assert opposite_vertices(fin, 7, LAUNCHER)[:, 2].tolist() == [3, 2, -1, -1]
    assert opposite_vertices(torch.zeros(0, 3, dtype=torch.int32), 0, LAUNCHER).shape == (0, 3)
    outside = torch.tensor([[0, 1, 2], [1, 0, 9], [2, 1, -1]], dtype=torch.int32)
    assert (opposite_vertices(outside, 3, LAUNCHER) == -1).all()


def test_cache_notices_other_tensors_and_changes_in_place():
    cache = TopologyCache(LAUNCHER, size=2)
    tri = torch.tensor([[0, 1, 2], [2, 1, 3]], dtype=torch.int32)
    first = cache.get(tri, 5)
    assert cache.get(tri, 5) is first
    tri[1, 2] = 4
    assert cache.get(tri, 5)[0].tolist() == [4, -1, -1]
    assert cache.get(tri.clone(), 5) is not cache.get(tri, 5)
    with torch.inference_mode():
        assert cache.get(tri.clone(), 5)[0].tolist() == [4, -1, -1]
