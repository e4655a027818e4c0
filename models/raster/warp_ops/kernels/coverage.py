# mypy: ignore-errors
# ruff: noqa: UP018, RUF046
# Casting a literal is how a Warp kernel declares a variable that a loop or a branch may change.
"""Which triangle is nearest at every pixel.

Coverage is decided in integers: vertices snap to 1/16 pixel and the edge functions are exact, so that two
triangles with a common edge cover each pixel centre once. Only triangles that leave the depth range or the
guard band are clipped first, and a cut along a common edge gives both neighbours the same point.
"""

import warp as wp

from models.raster.warp_ops.kernels.common import corners
from models.raster.warp_ops.kernels.native import load4

EMPTY = 0
"""Visibility key of a pixel without a triangle; every triangle has a higher one."""

LARGE = wp.constant(2048)
"""Most pixels in the bounding box of a triangle that one CUDA thread looks at alone."""

SHARE = wp.constant(16384)
"""Pixels of a larger triangle's bounding box, about, that one warp looks at."""

CLIPPED_SHARES = wp.constant(16)
"""Shares of a triangle that is to be clipped; how large it is nobody knows yet."""

LANES = wp.constant(32)
"""Threads of a warp."""

# Vertices within this multiple of the view's half-extent need no clipping in x and y: 32 * 2048 pixels in
# sixteenths is 2^20, and a product of two differences stays far below 2^63.
GUARD = wp.constant(32.0)

MAX_CORNERS = wp.constant(9)
Polygon = wp.types.matrix(shape=(9, 4), dtype=wp.float32)


@wp.func
def snap(ndc: float, extent: int) -> int:
    """Sixteenths of a pixel, from the centre of the view."""
    return int(wp.rint(ndc * float(extent * 8)))


@wp.func
def tie_bias(dx: wp.int64, dy: wp.int64) -> wp.int64:
    """-1 for edges that do not own pixel centres exactly on them; left and bottom edges do."""
    if dy > wp.int64(0) or (dy == wp.int64(0) and dx <= wp.int64(0)):
        return wp.int64(-1)
    return wp.int64(0)


@wp.func
def key_of(depth: float, face: int) -> wp.int64:
    """Nearest depth first, then the lowest face: the same winner in whatever order they come."""
    near = wp.int64(2147483647) - wp.int64(wp.float64(depth) * wp.float64(2147483647.0))
    return (near << wp.int64(32)) | wp.int64(2147483647 - face)


@wp.func
def face_of(key: wp.int64) -> int:
    """The face of a key that is not EMPTY."""
    return 2147483647 - int(key & wp.int64(4294967295))


@wp.func
def box(p0: wp.vec4, p1: wp.vec4, p2: wp.vec4, width: int, height: int) -> wp.vec4i:
    """First and last column, first and last row that a triangle may cover; none if out of order."""
    if p0[3] <= 0.0 or p1[3] <= 0.0 or p2[3] <= 0.0:
        return wp.vec4i(0, -1, 0, -1)
    x0 = snap(p0[0] / p0[3], width)
    y0 = snap(p0[1] / p0[3], height)
    x1 = snap(p1[0] / p1[3], width)
    y1 = snap(p1[1] / p1[3], height)
    x2 = snap(p2[0] / p2[3], width)
    y2 = snap(p2[1] / p2[3], height)
    # Pixel centre i lies at 16 i + 8 - 8 extent sixteenths.
    offset_x = 8 * width - 8
    offset_y = 8 * height - 8
    left = wp.max((wp.min(x0, wp.min(x1, x2)) + offset_x + 15) >> 4, 0)
    right = wp.min((wp.max(x0, wp.max(x1, x2)) + offset_x) >> 4, width - 1)
    bottom = wp.max((wp.min(y0, wp.min(y1, y2)) + offset_y + 15) >> 4, 0)
    top = wp.min((wp.max(y0, wp.max(y1, y2)) + offset_y) >> 4, height - 1)
    return wp.vec4i(left, right, bottom, top)


@wp.func
def cover(
    keys: wp.array(dtype=wp.int64),
    base: int,
    face: int,
    p0: wp.vec4,
    p1: wp.vec4,
    p2: wp.vec4,
    width: int,
    height: int,
    row: int,
    rows: int,
    column: int,
    columns: int,
) -> None:
    """Enters one triangle into the visibility keys of its view.

    Looks at every `rows`-th row of its box from the `row`-th on, and of those at every `columns`-th column
    from the `column`-th on.
    """
    pixels = box(p0, p1, p2, width, height)
    left = pixels[0] + column
    right = pixels[1]
    bottom = pixels[2] + row
    top = pixels[3]
    if left > right or bottom > top:
        return
    z0 = p0[2] / p0[3]
    z1 = p1[2] / p1[3]
    z2 = p2[2] / p2[3]
    x0 = snap(p0[0] / p0[3], width)
    y0 = snap(p0[1] / p0[3], height)
    x1 = snap(p1[0] / p1[3], width)
    y1 = snap(p1[1] / p1[3], height)
    x2 = snap(p2[0] / p2[3], width)
    y2 = snap(p2[1] / p2[3], height)
    offset_x = 8 * width - 8
    offset_y = 8 * height - 8

    area = wp.int64(x1 - x0) * wp.int64(y2 - y0) - wp.int64(x2 - x0) * wp.int64(y1 - y0)
    if area == wp.int64(0):
        return
    if area < wp.int64(0):  # no culling: turn it round
        area = -area
        swap_x = x1
        x1 = x2
        x2 = swap_x
        swap_y = y1
        y1 = y2
        y2 = swap_y
        swap_z = z1
        z1 = z2
        z2 = swap_z

    dx0 = wp.int64(x2 - x1)
    dy0 = wp.int64(y2 - y1)
    dx1 = wp.int64(x0 - x2)
    dy1 = wp.int64(y0 - y2)
    dx2 = wp.int64(x1 - x0)
    dy2 = wp.int64(y1 - y0)
    tie0 = tie_bias(dx0, dy0)
    tie1 = tie_bias(dx1, dy1)
    tie2 = tie_bias(dx2, dy2)
    cx = 16 * left - offset_x
    cy = 16 * bottom - offset_y
    row0 = wp.int64(x1 - cx) * dy0 - wp.int64(y1 - cy) * dx0
    row1 = wp.int64(x2 - cx) * dy1 - wp.int64(y2 - cy) * dx1
    row2 = wp.int64(x0 - cx) * dy2 - wp.int64(y0 - cy) * dx2

    step_x = wp.int64(16 * columns)
    step_y = wp.int64(16 * rows)
    scale1 = (z1 - z0) / float(area)
    scale2 = (z2 - z0) / float(area)
    for y in range(bottom, top + 1, rows):
        e0 = row0
        e1 = row1
        e2 = row2
        for x in range(left, right + 1, columns):
            if e0 + tie0 >= wp.int64(0) and e1 + tie1 >= wp.int64(0) and e2 + tie2 >= wp.int64(0):
                depth = z0 + float(e1) * scale1 + float(e2) * scale2
                depth = wp.min(wp.max(0.5 * depth + 0.5, 0.0), 1.0)
                wp.atomic_max(keys, base + y * width + x, key_of(depth, face))
            e0 -= step_x * dy0
            e1 -= step_x * dy1
            e2 -= step_x * dy2
        row0 += step_y * dx0
        row1 += step_y * dx1
        row2 += step_y * dx2


@wp.func
def clip(polygon: Polygon, count: int, plane: wp.vec4):  # noqa: ANN201 (Warp infers pairs)
    """The part of a convex polygon where `plane . p >= 0`, and its number of corners."""
    kept = Polygon()
    n = int(0)
    for i in range(count):
        a = polygon[i]
        b = polygon[(i + 1) % count]
        da = wp.dot(plane, a)
        db = wp.dot(plane, b)
        if da >= 0.0 and n < MAX_CORNERS:
            kept[n] = a
            n += 1
        if (da >= 0.0) != (db >= 0.0) and n < MAX_CORNERS:
            # Always from the inner to the outer end: the neighbour finds the same point.
            cut = a + (b - a) * (da / (da - db))
            if db >= 0.0:
                cut = b + (a - b) * (db / (db - da))
            kept[n] = cut
            n += 1
    return kept, n


@wp.func
def clip_to_view(p0: wp.vec4, p1: wp.vec4, p2: wp.vec4, planes: int):  # noqa: ANN201 (Warp infers pairs)
    """The part of a triangle within the depth range and the guard band, and its number of corners.

    `planes` is 6. As an argument it keeps the compiler from unrolling the loop, which takes it long.
    """
    polygon = Polygon()
    polygon[0] = p0
    polygon[1] = p1
    polygon[2] = p2
    count = int(3)
    for k in range(planes):
        axis = k // 2
        plane = wp.vec4(0.0, 0.0, 0.0, GUARD)
        if axis == 2:
            plane[3] = 1.0
        plane[axis] = float(1 - 2 * (k % 2))
        polygon, count = clip(polygon, count, plane)
    return polygon, count


@wp.func
def regular(p: wp.vec4) -> bool:
    """Whether a vertex needs no clipping: within the depth range and the guard band, before the camera."""
    w = p[3]
    return w > 0.0 and wp.abs(p[2]) <= w and wp.abs(p[0]) <= GUARD * w and wp.abs(p[1]) <= GUARD * w


@wp.func
def all_outside(p0: wp.vec4, p1: wp.vec4, p2: wp.vec4) -> bool:
    """Whether one face of the view volume has the whole triangle on its outer side."""
    for axis in range(3):
        if p0[axis] > p0[3] and p1[axis] > p1[3] and p2[axis] > p2[3]:
            return True
        if p0[axis] < -p0[3] and p1[axis] < -p1[3] and p2[axis] < -p2[3]:
            return True
    return False


@wp.func
def enter(
    pos: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    keys: wp.array(dtype=wp.int64),
    item: int,
    vertices: int,
    faces: int,
    height: int,
    width: int,
    row: int,
    rows: int,
    column: int,
    columns: int,
) -> None:
    """Covers one triangle of one view, clipped if need be, in the rows and columns that `cover` names."""
    view = item // faces
    face = item - view * faces
    v = corners(tri, float(face + 1), faces, vertices)
    if v[0] < 0:
        return
    p0 = load4(pos, view * vertices + v[0])
    p1 = load4(pos, view * vertices + v[1])
    p2 = load4(pos, view * vertices + v[2])
    if all_outside(p0, p1, p2):
        return
    whole = regular(p0) and regular(p1) and regular(p2)
    polygon = Polygon()
    count = int(3)
    if not whole:
        polygon, count = clip_to_view(p0, p1, p2, 6)
    base = view * height * width
    for k in range(2, count):
        if not whole:
            p0 = polygon[0]
            p1 = polygon[k - 1]
            p2 = polygon[k]
        cover(keys, base, face, p0, p1, p2, width, height, row, rows, column, columns)


@wp.kernel(enable_backward=False)
def visibility(
    first: int,
    slot: int,
    pos: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    keys: wp.array(dtype=wp.int64),
    vertices: int,
    faces: int,
    height: int,
    width: int,
) -> None:
    """One item per view and triangle: raises the keys of the pixels that it covers. For the CPU."""
    enter(pos, tri, keys, first + wp.tid(), vertices, faces, height, width, 0, 1, 0, 1)


@wp.func
def queue_entry(item: int, share: int, shares: int) -> wp.int64:
    """A share of a triangle of a view: every `shares`-th of its rows from the `share`-th on."""
    return (wp.int64(shares) << wp.int64(48)) | (wp.int64(share) << wp.int64(32)) | wp.int64(item)


@wp.kernel(enable_backward=False, grid_stride=False)
def visibility_of_small(
    first: int,
    slot: int,
    pos: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    keys: wp.array(dtype=wp.int64),
    queue: wp.array(dtype=wp.int64),
    vertices: int,
    faces: int,
    height: int,
    width: int,
    views: int,
    extra: int,
) -> None:
    """One item per view and triangle: raises keys, or leaves the triangle to `visibility_of_queued`.

    Queued are triangles to be clipped, and those too large for one thread, in shares. The first share of each
    goes to the first `views * faces` places, the others to `extra` places behind them; where those are full,
    a triangle has one share. The two numbers behind the keys of all pixels count the places taken.
    """
    item = first + wp.tid()
    view = item // faces
    face = item - view * faces
    v = corners(tri, float(face + 1), faces, vertices)
    if v[0] < 0:
        return
    p0 = load4(pos, view * vertices + v[0])
    p1 = load4(pos, view * vertices + v[1])
    p2 = load4(pos, view * vertices + v[2])
    if all_outside(p0, p1, p2):
        return
    shares = int(0)
    if regular(p0) and regular(p1) and regular(p2):
        pixels = box(p0, p1, p2, width, height)
        work = wp.max(pixels[1] - pixels[0] + 1, 0) * wp.max(pixels[3] - pixels[2] + 1, 0)
        if work > LARGE:
            shares = (work + SHARE - 1) // SHARE
        else:
            cover(keys, view * height * width, face, p0, p1, p2, width, height, 0, 1, 0, 1)
    else:
        shares = CLIPPED_SHARES
    if shares > 0:
        counters = views * height * width
        if shares > 1:
            place = int(wp.atomic_add(keys, counters + 1, wp.int64(shares - 1)))
            fits = place >= 0 and place + shares - 1 <= extra
            for share in range(1, shares):
                if place >= 0 and place + share <= extra:
                    entry = wp.int64(-1)  # nothing
                    if fits:
                        entry = queue_entry(item, share, shares)
                    queue[views * faces + place + share - 1] = entry
            if not fits:
                shares = 1
        place = int(wp.atomic_add(keys, counters, wp.int64(1)))
        queue[place] = queue_entry(item, 0, shares)


@wp.kernel(enable_backward=False)
def visibility_of_queued(
    first: int,
    slot: int,
    pos: wp.array(dtype=wp.vec4),
    tri: wp.array(dtype=wp.vec3i),
    keys: wp.array(dtype=wp.int64),
    queue: wp.array(dtype=wp.int64),
    vertices: int,
    faces: int,
    height: int,
    width: int,
    views: int,
    extra: int,
    warps: int,
) -> None:
    """One warp per entry of the queue, in turns: its threads take one column each."""
    i = first + wp.tid()
    counters = views * height * width
    length = int(keys[counters])
    total = length + int(wp.min(keys[counters + 1], wp.int64(extra)))
    for k in range(i // LANES, total, warps):
        place = k
        if k >= length:
            place = views * faces + k - length
        entry = queue[place]
        if entry >= wp.int64(0):
            item = int(entry & wp.int64(4294967295))
            share = int((entry >> wp.int64(32)) & wp.int64(65535))
            shares = int(entry >> wp.int64(48))
            enter(pos, tri, keys, item, vertices, faces, height, width, share, shares, i % LANES, LANES)
