# mypy: ignore-errors
# ruff: noqa: UP018, RUF046
# Casting a literal is how a Warp kernel declares a variable that a loop or a branch may change.
"""Analytic antialiasing of silhouettes, the source of gradients for the visibility of triangles.

Wherever two neighbouring pixels see different triangles, a silhouette edge of the nearer one may pass between
their centres. Where along the line between the centres it passes decides how much of either colour moves
over the border; moving the edge's vertices moves that point. Laine et al., "Modular Primitives for
High-Performance Differentiable Rendering", 2020, section 3.4.
"""

import warp as wp

from models.raster.warp_ops.kernels.common import corners, cross2
from models.raster.warp_ops.kernels.native import add4, load4

# Coverage is decided from snapped vertices: a crossing may appear to miss the gap by that much, in pixels.
SLACK = wp.constant(0.0625)


RIGHT = wp.constant(1)
"""Flag of a pixel: a silhouette passes between it and its right neighbour."""

UP = wp.constant(2)
"""Flag of a pixel: a silhouette passes between it and its upper neighbour."""


@wp.struct
class Crossing:
    """Where a silhouette edge passes between a pixel and its right or upper neighbour."""

    alpha: float  # share of the colour difference that moves; > 0: into the pixel, < 0: into the neighbour
    v1: int  # the edge's vertices
    v2: int
    x: int  # the pixel, of the two, whose triangle owns the edge
    y: int
    found: int


@wp.func
def on_screen(p: wp.vec4, centre: wp.vec2, half: wp.vec2) -> wp.vec2:
    """A clip-space position in pixels, relative to a pixel's centre."""
    return wp.vec2(p[0] / p[3] * half[0] - centre[0], p[1] / p[3] * half[1] - centre[1])


@wp.func
def same_side(a: float, b: float) -> bool:
    """Whether two numbers have the same sign, zero being positive."""
    return (a < 0.0) == (b < 0.0)


@wp.func
def axis_crossing(a: wp.vec2, b: wp.vec2, sign: float) -> float:
    """Where the segment meets the first axis, measured towards the other pixel; -1e30 if it does not."""
    if same_side(a[1], b[1]):
        return -1.0e30
    d = b - a
    return sign * cross2(a, d) / d[1]


@wp.func
def find_crossing(
    rast: wp.array(dtype=wp.vec4),
    pos: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    opposite: wp.array(dtype=wp.vec3i),
    i: int,
    j: int,
    x: int,
    y: int,
    base: int,
    upward: int,
    vertices: int,
    faces: int,
    half: wp.vec2,
) -> Crossing:
    """Examines the pixel i at (x, y) and its neighbour j, known to see different triangles."""
    result = Crossing()
    result.found = 0
    r0 = load4(rast, i)
    r1 = load4(rast, j)
    # The edge belongs to the nearer triangle; nothing is behind everything.
    sign = float(1.0)
    seen = r0[3]
    if r0[3] == 0.0 or (r1[3] != 0.0 and r1[2] <= r0[2]):
        sign = -1.0
        seen = r1[3]
        x += 1 - upward
        y += upward
    v = corners(tri, seen, faces, vertices)
    if v[0] < 0:
        return result
    p0 = load4(pos, base + v[0])
    p1 = load4(pos, base + v[1])
    p2 = load4(pos, base + v[2])
    if p0[3] <= 0.0 or p1[3] <= 0.0 or p2[3] <= 0.0:
        return result  # reaches behind the camera: its edges have no place on the screen
    centre = wp.vec2(float(x) + 0.5 - half[0], float(y) + 0.5 - half[1])
    s0 = on_screen(p0, centre, half)
    s1 = on_screen(p1, centre, half)
    s2 = on_screen(p2, centre, half)
    area = cross2(s1 - s0, s2 - s0)
    if upward != 0:  # from here on the neighbour is to the right
        s0 = wp.vec2(s0[1], s0[0])
        s1 = wp.vec2(s1[1], s1[0])
        s2 = wp.vec2(s2[1], s2[0])
    at0 = axis_crossing(s1, s2, sign)
    at1 = axis_crossing(s2, s0, sign)
    at2 = axis_crossing(s0, s1, sign)
    # The line leaves the triangle through the edge that it meets last.
    at = at0
    edge = int(0)
    span = s2 - s1
    result.v1 = v[1]
    result.v2 = v[2]
    if at1 > at:
        at = at1
        edge = 1
        span = s0 - s2
        result.v1 = v[2]
        result.v2 = v[0]
    if at2 > at:
        at = at2
        edge = 2
        span = s1 - s0
        result.v1 = v[0]
        result.v2 = v[1]
    # Flat edges are left to the neighbours in the other direction.
    if not (wp.abs(span[1]) >= wp.abs(span[0]) and at > -SLACK and at < 1.0 + SLACK):
        return result
    # An edge is a silhouette where the triangle across it folds back to the same side, or is missing.
    far = opposite[int(seen) - 1][edge]
    if far >= 0:
        a = on_screen(load4(pos, base + result.v1), centre, half)
        b = on_screen(load4(pos, base + result.v2), centre, half)
        tip = on_screen(load4(pos, base + far), centre, half)
        if not same_side(cross2(a - tip, b - tip), area):
            return result
    result.alpha = sign * (0.5 - wp.min(wp.max(at, 0.0), 1.0))
    result.x = x
    result.y = y
    result.found = 1
    return result


@wp.kernel(enable_backward=False, grid_stride=False)
def find_silhouettes(
    first: int,
    slot: int,
    rast: wp.array(dtype=wp.vec4),
    pos: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    opposite: wp.array(dtype=wp.vec3i),
    flags: wp.array(dtype=wp.uint8),
    vertices: int,
    faces: int,
    views: int,
    height: int,
    width: int,
) -> None:
    """One item per pixel: RIGHT and UP where a silhouette passes between it and that neighbour."""
    i = first + wp.tid()
    pixels = height * width
    own = rast[i][3]
    # Most pixels end here, before any division; past a border this looks at pixels that are no neighbours.
    last = views * pixels - 1
    if rast[wp.min(i + 1, last)][3] == own and rast[wp.min(i + width, last)][3] == own:
        flags[i] = wp.uint8(0)
        return
    view = i // pixels
    y = (i - view * pixels) // width
    x = i - view * pixels - y * width
    half = wp.vec2(0.5 * float(width), 0.5 * float(height))
    found = int(0)
    for upward in range(2):
        j = i
        if upward == 0 and x + 1 < width:
            j = i + 1
        if upward == 1 and y + 1 < height:
            j = i + width
        if rast[j][3] != own:
            hit = find_crossing(
                rast, pos, tri, opposite, i, j, x, y, view * vertices, upward, vertices, faces, half
            )
            if hit.found != 0:
                found += RIGHT + upward * (UP - RIGHT)
    flags[i] = wp.uint8(found)


@wp.func
def may_be_touched(flags: wp.array(dtype=wp.uint8), i: int, width: int) -> bool:
    """Whether `touched` is worth asking; cheap, and blind to the borders."""
    right = int(flags[wp.max(i - 1, 0)]) & RIGHT
    up = int(flags[wp.max(i - width, 0)]) & UP
    return int(flags[i]) + right + up != 0


@wp.func
def touched(flags: wp.array(dtype=wp.uint8), i: int, x: int, y: int, width: int, side: int) -> bool:
    """Whether a silhouette passes between a pixel and a neighbour, by side: below, left, right, above."""
    if side == 0:
        return y > 0 and (int(flags[i - width]) & UP) != 0
    if side == 1:
        return x > 0 and (int(flags[i - 1]) & RIGHT) != 0
    if side == 2:
        return (int(flags[i]) & RIGHT) != 0
    return (int(flags[i]) & UP) != 0


@wp.kernel(enable_backward=False, grid_stride=False)
def smooth(
    first: int,
    slot: int,
    color: wp.array(dtype=wp.float32),
    rast: wp.array(dtype=wp.vec4),
    pos: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    opposite: wp.array(dtype=wp.vec3i),
    flags: wp.array(dtype=wp.uint8),
    out: wp.array(dtype=wp.float32),
    vertices: int,
    faces: int,
    channels: int,
    height: int,
    width: int,
) -> None:
    """One item per pixel: adds what it gains from its neighbours across silhouettes to its colour in `out`.

    Pixels collect what is theirs instead of adding to their neighbours, which keeps the sums in order.
    """
    i = first + wp.tid()
    if not may_be_touched(flags, i, width):
        return
    pixels = height * width
    view = i // pixels
    y = (i - view * pixels) // width
    x = i - view * pixels - y * width
    half = wp.vec2(0.5 * float(width), 0.5 * float(height))
    sides = int(4)  # not a literal in the loop, which Warp would unroll
    for side in range(sides):
        if touched(flags, i, x, y, width, side):
            upward = int(0)
            p = i
            px = x
            py = y
            if side == 0:
                p = i - width
                py = y - 1
            if side == 1:
                p = i - 1
                px = x - 1
            if side == 0 or side == 3:
                upward = 1
            q = p + 1 + upward * (width - 1)
            hit = find_crossing(
                rast, pos, tri, opposite, p, q, px, py, view * vertices, upward, vertices, faces, half
            )
            if hit.found != 0 and (hit.alpha > 0.0) == (p == i):
                for c in range(channels):
                    change = hit.alpha * (color[q * channels + c] - color[p * channels + c])
                    out[i * channels + c] = out[i * channels + c] + change


@wp.func
def move_edge(
    grad_pos: wp.array(dtype=wp.vec4),
    pos: wp.array(dtype=wp.vec4),
    hit: Crossing,
    base: int,
    upward: int,
    half: wp.vec2,
    weight: float,
) -> None:
    """Adds `weight` times the derivative of alpha to the gradients of an edge's two vertices."""
    p1 = load4(pos, base + hit.v1)
    p2 = load4(pos, base + hit.v2)
    centre = wp.vec2(float(hit.x) + 0.5 - half[0], float(hit.y) + 0.5 - half[1])
    s1 = on_screen(p1, centre, half)
    s2 = on_screen(p2, centre, half)
    if upward != 0:
        s1 = wp.vec2(s1[1], s1[0])
        s2 = wp.vec2(s2[1], s2[0])
    # alpha is a constant minus the crossing c = (s1 x d) / d_y with d = s2 - s1. The small number bounds
    # the gradient of edges that hardly cross the line.
    d = s2 - s1
    rise = d[1] + 1.0e-3
    if d[1] < 0.0:
        rise = d[1] - 1.0e-3
    at = cross2(s1, d) / rise
    g1 = wp.vec2(s2[1], at - s2[0]) * (-weight / rise)
    g2 = wp.vec2(s1[1], at - s1[0]) * (weight / rise)
    if upward != 0:
        g1 = wp.vec2(g1[1], g1[0])
        g2 = wp.vec2(g2[1], g2[0])
    g1 = wp.vec2(g1[0] * half[0], g1[1] * half[1]) / p1[3]
    g2 = wp.vec2(g2[0] * half[0], g2[1] * half[1]) / p2[3]
    add4(grad_pos, base + hit.v1, wp.vec4(g1[0], g1[1], 0.0, -(p1[0] * g1[0] + p1[1] * g1[1]) / p1[3]))
    add4(grad_pos, base + hit.v2, wp.vec4(g2[0], g2[1], 0.0, -(p2[0] * g2[0] + p2[1] * g2[1]) / p2[3]))


@wp.kernel(enable_backward=False, grid_stride=False)
def smooth_backward(
    first: int,
    slot: int,
    grad: wp.array(dtype=wp.float32),
    color: wp.array(dtype=wp.float32),
    rast: wp.array(dtype=wp.vec4),
    pos: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    opposite: wp.array(dtype=wp.vec3i),
    flags: wp.array(dtype=wp.uint8),
    grad_color: wp.array(dtype=wp.float32),
    grad_pos: wp.array(dtype=wp.vec4),
    vertices: int,
    faces: int,
    channels: int,
    height: int,
    width: int,
    want_color: int,
    want_pos: int,
) -> None:
    """One item per pixel: the adjoint of `smooth`; where silhouettes pass, crossings are found anew.

    `grad_color` begins as a copy of `grad`.
    """
    i = first + wp.tid()
    if not may_be_touched(flags, i, width):
        return
    pixels = height * width
    view = i // pixels
    y = (i - view * pixels) // width
    x = i - view * pixels - y * width
    half = wp.vec2(0.5 * float(width), 0.5 * float(height))
    sides = int(4)  # not a literal in the loop, which Warp would unroll
    for side in range(sides):
        if touched(flags, i, x, y, width, side):
            upward = int(0)
            p = i
            px = x
            py = y
            if side == 0:
                p = i - width
                py = y - 1
            if side == 1:
                p = i - 1
                px = x - 1
            if side == 0 or side == 3:
                upward = 1
            q = p + 1 + upward * (width - 1)
            hit = find_crossing(
                rast, pos, tri, opposite, p, q, px, py, view * vertices, upward, vertices, faces, half
            )
            target = q
            if hit.alpha > 0.0:
                target = p
            if want_color != 0 and hit.found != 0:
                share = hit.alpha
                if p == i:
                    share = -hit.alpha
                for c in range(channels):
                    change = share * grad[target * channels + c]
                    grad_color[i * channels + c] = grad_color[i * channels + c] + change
            # A saturated crossing no longer moves with the edge.
            if hit.found != 0 and want_pos != 0 and p == i and wp.abs(hit.alpha) < 0.5:
                weight = float(0.0)
                for c in range(channels):
                    weight += grad[target * channels + c] * (
                        color[q * channels + c] - color[p * channels + c]
                    )
                if weight != 0.0:
                    move_edge(grad_pos, pos, hit, view * vertices, upward, half, weight)
