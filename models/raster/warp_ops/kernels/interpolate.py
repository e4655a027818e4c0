# mypy: ignore-errors
# ruff: noqa: UP018, RUF046
# Casting a literal is how a Warp kernel declares a variable that a loop or a branch may change.
"""Attributes at the pixels from those at the vertices, their slopes on the screen, and the adjoint."""

import warp as wp

from models.raster.warp_ops.kernels.common import corners
from models.raster.warp_ops.kernels.native import leads, load4, same_lanes, store4, sum_lanes


@wp.kernel(enable_backward=False, grid_stride=False)
def blend(
    first: int,
    slot: int,
    attr: wp.array(dtype=wp.float32),
    rast: wp.array(dtype=wp.vec4),
    rast_db: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    out: wp.array(dtype=wp.float32),
    slopes: wp.array(dtype=wp.float32),
    vertices: int,
    faces: int,
    channels: int,
    pixels: int,
    shared: int,
    want_slopes: int,
) -> None:
    """One item per pixel: the attributes of three vertices weighted by the barycentrics.

    With `want_slopes` also d attr / dX and d attr / dY, channel by channel.
    """
    i = first + wp.tid()
    r = load4(rast, i)
    v = corners(tri, r[3], faces, vertices)
    if v[0] < 0:
        for c in range(channels):
            out[i * channels + c] = 0.0
        if want_slopes != 0:
            for c in range(2 * channels):
                slopes[2 * i * channels + c] = 0.0
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
    if want_slopes != 0:
        db = load4(rast_db, i)
        for c in range(channels):
            du = attr[i0 + c] - attr[i2 + c]
            dv = attr[i1 + c] - attr[i2 + c]
            slopes[2 * (i * channels + c)] = db[0] * du + db[2] * dv
            slopes[2 * (i * channels + c) + 1] = db[1] * du + db[3] * dv


@wp.kernel(enable_backward=False, grid_stride=False)
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
    want_rast: int,
) -> None:
    """One item per pixel: the adjoint of `blend`, without the slopes."""
    i = first + wp.tid()
    r = load4(rast, i)
    v = corners(tri, r[3], faces, vertices)
    gu = float(0.0)
    gv = float(0.0)
    if v[0] >= 0:
        view = i // pixels
        base = int(0)
        scatter = slot * vertices
        group = wp.int64(r[3])
        if shared == 0:
            base = view * vertices
            scatter = base
            group += wp.int64(view) * wp.int64(faces)
        i0 = (base + v[0]) * channels
        i1 = (base + v[1]) * channels
        i2 = (base + v[2]) * channels
        s0 = (scatter + v[0]) * channels
        s1 = (scatter + v[1]) * channels
        s2 = (scatter + v[2]) * channels
        w = 1.0 - r[0] - r[1]
        any = float(0.0)
        for c in range(channels):
            g = grad[i * channels + c]
            any = wp.max(any, wp.abs(g))
            if want_rast != 0 and g != 0.0:
                last = attr[i2 + c]
                gu += g * (attr[i0 + c] - last)
                gv += g * (attr[i1 + c] - last)
        if want_attr != 0 and any != 0.0:
            lanes = same_lanes(group)
            first_of_face = leads(lanes)
            for c in range(channels):
                g = grad[i * channels + c]
                total = sum_lanes(lanes, wp.vec4(r[0] * g, r[1] * g, w * g, 0.0))
                if first_of_face:
                    wp.atomic_add(grad_attr, s0 + c, total[0])
                    wp.atomic_add(grad_attr, s1 + c, total[1])
                    wp.atomic_add(grad_attr, s2 + c, total[2])
    if want_rast != 0:
        store4(grad_rast, i, wp.vec4(gu, gv, 0.0, 0.0))
