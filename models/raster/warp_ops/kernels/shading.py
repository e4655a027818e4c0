# mypy: ignore-errors
"""Where in its triangle each pixel lies, and how that moves with the vertices.

Perspective-correct barycentrics from homogeneous edge functions: Olano and Greer, "Triangle scan conversion
using 2D homogeneous coordinates", 1997.
"""

import warp as wp

from models.raster.warp_ops.kernels.common import corners, cross2
from models.raster.warp_ops.kernels.coverage import EMPTY, face_of
from models.raster.warp_ops.kernels.native import add4, leads, load4, same_lanes, store4, sum_lanes


@wp.kernel(enable_backward=False, grid_stride=False)
def shade(
    first: int,
    slot: int,
    keys: wp.array(dtype=wp.int64),
    pos: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    rast: wp.array(dtype=wp.vec4),
    rast_db: wp.array(dtype=wp.vec4),
    vertices: int,
    height: int,
    width: int,
) -> None:
    """One item per pixel: barycentrics, depth and face of the winner, and the barycentrics' slopes."""
    i = first + wp.tid()
    key = keys[i]
    if key == wp.int64(EMPTY):
        store4(rast, i, wp.vec4(0.0, 0.0, 0.0, 0.0))
        store4(rast_db, i, wp.vec4(0.0, 0.0, 0.0, 0.0))
        return
    face = face_of(key)
    pixels = height * width
    view = i // pixels
    y = (i - view * pixels) // width
    x = i - view * pixels - y * width
    v = tri[face]
    p0 = load4(pos, view * vertices + v[0])
    p1 = load4(pos, view * vertices + v[1])
    p2 = load4(pos, view * vertices + v[2])

    scale_x = 2.0 / float(width)
    scale_y = 2.0 / float(height)
    fx = scale_x * (float(x) + 0.5) - 1.0
    fy = scale_y * (float(y) + 0.5) - 1.0
    q0 = wp.vec2(p0[0] - fx * p0[3], p0[1] - fy * p0[3])
    q1 = wp.vec2(p1[0] - fx * p1[3], p1[1] - fy * p1[3])
    q2 = wp.vec2(p2[0] - fx * p2[3], p2[1] - fy * p2[3])
    a0 = cross2(q1, q2)
    a1 = cross2(q2, q0)
    a2 = cross2(q0, q1)
    inverse = 1.0 / (a0 + a1 + a2)
    depth = (p0[2] * a0 + p1[2] * a1 + p2[2] * a2) / (p0[3] * a0 + p1[3] * a1 + p2[3] * a2)

    # Snapping lets a pixel centre lie a little outside of its triangle: pull it back in. In this order of
    # the comparisons a triangle seen exactly from its side gives zeros, not NaN.
    u = wp.min(wp.max(0.0, a0 * inverse), 1.0)
    v_ = wp.min(wp.max(0.0, a1 * inverse), 1.0)
    if not (u >= 0.0):
        u = 0.0
    if not (v_ >= 0.0):
        v_ = 0.0
    if not (depth >= -1.0):
        depth = -1.0
    excess = wp.max(u + v_, 1.0)
    u = u / excess
    v_ = v_ / excess
    store4(rast, i, wp.vec4(u, v_, wp.min(depth, 1.0), float(face + 1)))

    # Edge functions are linear in the pixel: a0 = (p1 x p2) . (fx, fy, 1) and so on.
    slope0 = wp.vec2(p2[1] * p1[3] - p1[1] * p2[3], p1[0] * p2[3] - p2[0] * p1[3])
    slope1 = wp.vec2(p0[1] * p2[3] - p2[1] * p0[3], p2[0] * p0[3] - p0[0] * p2[3])
    slope2 = wp.vec2(p1[1] * p0[3] - p0[1] * p1[3], p0[0] * p1[3] - p1[0] * p0[3])
    total = slope0 + slope1 + slope2
    kx = scale_x * inverse
    ky = scale_y * inverse
    store4(
        rast_db,
        i,
        wp.vec4(
            kx * (u * total[0] - slope0[0]),
            ky * (u * total[1] - slope0[1]),
            kx * (v_ * total[0] - slope1[0]),
            ky * (v_ * total[1] - slope1[1]),
        ),
    )


@wp.kernel(enable_backward=False, grid_stride=False)
def shade_backward(
    first: int,
    slot: int,
    grad_rast: wp.array(dtype=wp.vec4),
    rast: wp.array(dtype=wp.vec4),
    pos: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    grad_pos: wp.array(dtype=wp.vec4),
    vertices: int,
    faces: int,
    height: int,
    width: int,
) -> None:
    """One item per pixel: carries the gradients of u and v to x, y and w of three vertices."""
    i = first + wp.tid()
    seen = rast[i][3]
    v = corners(tri, seen, faces, vertices)
    if v[0] < 0:
        return
    grad = load4(grad_rast, i)
    if grad[0] == 0.0 and grad[1] == 0.0:
        return
    pixels = height * width
    view = i // pixels
    y = (i - view * pixels) // width
    x = i - view * pixels - y * width
    i0 = view * vertices + v[0]
    i1 = view * vertices + v[1]
    i2 = view * vertices + v[2]
    p0 = load4(pos, i0)
    p1 = load4(pos, i1)
    p2 = load4(pos, i2)

    fx = 2.0 / float(width) * (float(x) + 0.5) - 1.0
    fy = 2.0 / float(height) * (float(y) + 0.5) - 1.0
    q0 = wp.vec2(p0[0] - fx * p0[3], p0[1] - fy * p0[3])
    q1 = wp.vec2(p1[0] - fx * p1[3], p1[1] - fy * p1[3])
    q2 = wp.vec2(p2[0] - fx * p2[3], p2[1] - fy * p2[3])
    a0 = cross2(q1, q2)
    a1 = cross2(q2, q0)
    a2 = cross2(q0, q1)
    area = a0 + a1 + a2
    # Slivers: about the area of one pixel of a thousand by a thousand bounds the gradient.
    if area < 0.0:
        area -= 1.0e-6
    else:
        area += 1.0e-6
    inverse = 1.0 / area
    mean = (grad[0] * a0 + grad[1] * a1) * inverse
    g0 = (grad[0] - mean) * inverse
    g1 = (grad[1] - mean) * inverse
    g2 = -mean * inverse
    # a0 = q1 x q2, a1 = q2 x q0, a2 = q0 x q1, and d(a x b) = (b_y, -b_x) . da + (-a_y, a_x) . db
    gx0 = g2 * q1[1] - g1 * q2[1]
    gy0 = g1 * q2[0] - g2 * q1[0]
    gx1 = g0 * q2[1] - g2 * q0[1]
    gy1 = g2 * q0[0] - g0 * q2[0]
    gx2 = g1 * q0[1] - g0 * q1[1]
    gy2 = g0 * q1[0] - g1 * q0[0]
    lanes = same_lanes(wp.int64(view) * wp.int64(faces) + wp.int64(seen))
    sum0 = sum_lanes(lanes, wp.vec4(gx0, gy0, 0.0, -fx * gx0 - fy * gy0))
    sum1 = sum_lanes(lanes, wp.vec4(gx1, gy1, 0.0, -fx * gx1 - fy * gy1))
    sum2 = sum_lanes(lanes, wp.vec4(gx2, gy2, 0.0, -fx * gx2 - fy * gy2))
    if leads(lanes):
        add4(grad_pos, i0, sum0)
        add4(grad_pos, i1, sum1)
        add4(grad_pos, i2, sum2)
