# mypy: ignore-errors
# ruff: noqa: UP018, RUF046
# Casting a literal is how a Warp kernel declares a variable that a loop or a branch may change.
"""Attributes at the pixels from those at the vertices, their slopes on the screen, and the adjoint."""

import warp as wp

from models.raster.warp_ops.kernels.common import corners


@wp.kernel(enable_backward=False)
def blend(
    first: int,
    slot: int,
    attr: wp.array(dtype=wp.float32),
    rast: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    out: wp.array(dtype=wp.float32),
    vertices: int,
    faces: int,
    channels: int,
    pixels: int,
    shared: int,
) -> None:
    """One item per pixel: the attributes of three vertices weighted by the barycentrics."""
    i = first + wp.tid()
    r = rast[i]
    v = corners(tri, r[3], faces, vertices)
    if v[0] < 0:
        for c in range(channels):
            out[i * channels + c] = 0.0
        return
    base = int(0)
    if shared == 0:
        base = (i // pixels) * vertices
    i0 = (base + v[0]) * channels
    i1 = (base + v[1]) * channels
    i2 = (base + v[2]) * channels
    w = 1.0 - r[0] - r[1]
    for c in range(channels):
        out[i * channels + c] = r[0] * attr[i0 + c] + r[1] * attr[i1 + c] + w * attr[i2 + c]


@wp.kernel(enable_backward=False)
def slopes(
    first: int,
    slot: int,
    attr: wp.array(dtype=wp.float32),
    rast: wp.array(dtype=wp.vec4),
    rast_db: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    out: wp.array(dtype=wp.float32),
    vertices: int,
    faces: int,
    channels: int,
    pixels: int,
    shared: int,
) -> None:
    """One item per pixel: d attr / dX and d attr / dY, channel by channel."""
    i = first + wp.tid()
    v = corners(tri, rast[i][3], faces, vertices)
    if v[0] < 0:
        for c in range(2 * channels):
            out[2 * i * channels + c] = 0.0
        return
    base = int(0)
    if shared == 0:
        base = (i // pixels) * vertices
    i0 = (base + v[0]) * channels
    i1 = (base + v[1]) * channels
    i2 = (base + v[2]) * channels
    db = rast_db[i]
    for c in range(channels):
        du = attr[i0 + c] - attr[i2 + c]
        dv = attr[i1 + c] - attr[i2 + c]
        out[2 * (i * channels + c)] = db[0] * du + db[2] * dv
        out[2 * (i * channels + c) + 1] = db[1] * du + db[3] * dv


@wp.kernel(enable_backward=False)
def blend_backward(
    first: int,
    slot: int,
    grad: wp.array(dtype=wp.float32),
    attr: wp.array(dtype=wp.float32),
    rast: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    grad_attr: wp.array(dtype=wp.float32),
    grad_rast: wp.array(dtype=wp.vec4),
    vertices: int,
    faces: int,
    channels: int,
    pixels: int,
    shared: int,
    want_attr: int,
) -> None:
    """One item per pixel: the adjoint of `blend`."""
    i = first + wp.tid()
    r = rast[i]
    v = corners(tri, r[3], faces, vertices)
    if v[0] < 0:
        grad_rast[i] = wp.vec4(0.0, 0.0, 0.0, 0.0)
        return
    base = int(0)
    scatter = slot * vertices
    if shared == 0:
        base = (i // pixels) * vertices
        scatter = base
    i0 = (base + v[0]) * channels
    i1 = (base + v[1]) * channels
    i2 = (base + v[2]) * channels
    s0 = (scatter + v[0]) * channels
    s1 = (scatter + v[1]) * channels
    s2 = (scatter + v[2]) * channels
    w = 1.0 - r[0] - r[1]
    gu = float(0.0)
    gv = float(0.0)
    for c in range(channels):
        g = grad[i * channels + c]
        if g != 0.0:
            last = attr[i2 + c]
            gu += g * (attr[i0 + c] - last)
            gv += g * (attr[i1 + c] - last)
            if want_attr != 0:
                wp.atomic_add(grad_attr, s0 + c, r[0] * g)
                wp.atomic_add(grad_attr, s1 + c, r[1] * g)
                wp.atomic_add(grad_attr, s2 + c, w * g)
    grad_rast[i] = wp.vec4(gu, gv, 0.0, 0.0)
