# mypy: ignore-errors
# ruff: noqa: UP018, RUF046
# Casting a literal is how a Warp kernel declares a variable that a loop or a branch may change.
"""Texture lookup in one level or between two, the chain of levels, and their adjoints.

Level 0 is the texture itself; the levels beyond it, `mips`, lie one after the other, the finest first, each
row by row.
"""

import warp as wp

from models.raster.warp_ops.kernels.native import add_run, leads, load, load4, same_lanes, sum_lanes

NEAREST = wp.constant(0)
WRAP = wp.constant(0)


@wp.struct
class Tap:
    """The four texels around a lookup in one level, and the place among them."""

    level: int
    start: int  # the level's first texel, counted from that of level 0
    i00: int  # the texels, counted from the level's first
    i10: int
    i01: int
    i11: int
    s: float  # 0..1 from column 0 to column 1
    t: float  # 0..1 from row 0 to row 1
    width: float  # of the level, in texels
    height: float


@wp.func
def clamp_index(i: int, extent: int) -> int:
    """An index that is safe to read, whatever the coordinate was."""
    return wp.min(wp.max(i, 0), extent - 1)


@wp.func
def locate(uv: wp.vec2, level: int, height: int, width: int, boundary: int) -> Tap:
    """Finds the four texels of a bilinear lookup."""
    w = width
    h = height
    start = int(0)
    for _step in range(level):
        start += w * h
        w = wp.max(w >> 1, 1)
        h = wp.max(h >> 1, 1)
    u = uv[0]
    v = uv[1]
    if boundary == WRAP:
        u -= wp.floor(u)
        v -= wp.floor(v)
    u = u * float(w) - 0.5
    v = v * float(h) - 0.5
    next_u = int(1)
    next_v = int(1)
    if boundary != WRAP:
        u = wp.min(wp.max(u, 0.0), float(w - 1))
        v = wp.min(wp.max(v, 0.0), float(h - 1))
        # On the rim both texels are the same, so that the gradient is zero.
        if u == 0.0 or u == float(w - 1):
            next_u = 0
        if v == 0.0 or v == float(h - 1):
            next_v = 0
    u0 = int(wp.floor(u))
    v0 = int(wp.floor(v))
    u1 = u0 + next_u
    v1 = v0 + next_v
    tap = Tap()
    tap.s = u - float(u0)
    tap.t = v - float(v0)
    if boundary == WRAP:
        if u0 < 0:
            u0 += w
        if v0 < 0:
            v0 += h
        if u1 >= w:
            u1 -= w
        if v1 >= h:
            v1 -= h
    u0 = clamp_index(u0, w)
    u1 = clamp_index(u1, w)
    v0 = clamp_index(v0, h)
    v1 = clamp_index(v1, h)
    tap.i00 = v0 * w + u0
    tap.i10 = v0 * w + u1
    tap.i01 = v1 * w + u0
    tap.i11 = v1 * w + u1
    tap.level = level
    tap.start = start
    tap.width = float(w)
    tap.height = float(h)
    return tap


@wp.func
def nearest_texel(uv: wp.vec2, height: int, width: int, boundary: int) -> int:
    """Index of the texel whose square contains the coordinate."""
    u = uv[0]
    v = uv[1]
    if boundary == WRAP:
        u -= wp.floor(u)
        v -= wp.floor(v)
    column = clamp_index(int(wp.floor(u * float(width))), width)
    row = clamp_index(int(wp.floor(v * float(height))), height)
    return row * width + column


@wp.func
def lod(da: wp.vec4, height: int, width: int, last_level: int) -> float:
    """Level of detail: the logarithm of the longer axis of the pixel's elliptical footprint, in texels."""
    sx = da[0] * float(width)
    sy = da[1] * float(width)
    tx = da[2] * float(height)
    ty = da[3] * float(height)
    a = sx * sx + tx * tx
    b = sy * sy + ty * ty
    c = sx * sy + tx * ty
    major = 0.5 * (a + b) + wp.sqrt(0.25 * (a - b) * (a - b) + c * c)
    level = 0.5 * wp.log2(major)
    if not (level > 0.0):  # magnified, or not a number
        return 0.0
    return wp.min(level, float(last_level))


@wp.func
def texel(
    tex: wp.array(dtype=wp.float32),
    mips: wp.array(dtype=wp.float32),
    level: int,
    begin: int,
    i: int,
    channels: int,
    c: int,
) -> float:
    """A channel of the i-th texel of a level that begins at texel `begin` of its array."""
    if level == 0:
        return tex[(begin + i) * channels + c]
    return mips[(begin + i) * channels + c]


@wp.func
def begin_of(tap: Tap, view: int, fine: int, coarse: int) -> int:
    """Where a lookup's level begins; of a view, level 0 has `fine` texels, and all others have `coarse`."""
    if tap.level == 0:
        return view * fine
    return view * coarse + tap.start - fine


@wp.func
def bilinear(
    tex: wp.array(dtype=wp.float32),
    mips: wp.array(dtype=wp.float32),
    begin: int,
    tap: Tap,
    channels: int,
    c: int,
) -> float:
    """The weighted mean of four texels."""
    a = texel(tex, mips, tap.level, begin, tap.i00, channels, c)
    b = texel(tex, mips, tap.level, begin, tap.i10, channels, c)
    low = a + tap.s * (b - a)
    a = texel(tex, mips, tap.level, begin, tap.i01, channels, c)
    b = texel(tex, mips, tap.level, begin, tap.i11, channels, c)
    high = a + tap.s * (b - a)
    return low + tap.t * (high - low)


@wp.kernel(enable_backward=False, grid_stride=False)
def sample(
    first: int,
    slot: int,
    tex: wp.array(dtype=wp.float32),
    mips: wp.array(dtype=wp.float32),
    uv: wp.array(dtype=wp.vec2),
    uv_da: wp.array(dtype=wp.vec4),
    out: wp.array(dtype=wp.float32),
    coarse: int,
    height: int,
    width: int,
    channels: int,
    pixels: int,
    shared: int,
    filtered: int,
    last_level: int,
    boundary: int,
) -> None:
    """One item per pixel: looks its coordinate up in the chain of levels."""
    i = first + wp.tid()
    view = int(0)
    if shared == 0:
        view = i // pixels
    fine = height * width
    if filtered == NEAREST:
        nearest = view * fine + nearest_texel(uv[i], height, width, boundary)
        for c in range(channels):
            out[i * channels + c] = tex[nearest * channels + c]
        return
    level = float(0.0)
    if last_level > 0:
        level = lod(load4(uv_da, i), height, width, last_level)
    whole = int(level)
    part = level - float(whole)
    tap = locate(uv[i], whole, height, width, boundary)
    begin = begin_of(tap, view, fine, coarse)
    beyond = Tap()
    if part > 0.0:
        beyond = locate(uv[i], whole + 1, height, width, boundary)
    begin_beyond = begin_of(beyond, view, fine, coarse)
    for c in range(channels):
        value = bilinear(tex, mips, begin, tap, channels, c)
        if part > 0.0:
            value += part * (bilinear(tex, mips, begin_beyond, beyond, channels, c) - value)
        out[i * channels + c] = value


@wp.func
def tap_backward(
    grad: wp.array(dtype=wp.float32),
    tex: wp.array(dtype=wp.float32),
    mips: wp.array(dtype=wp.float32),
    grad_tex: wp.array(dtype=wp.float32),
    view: int,
    fine: int,
    coarse: int,
    tap: Tap,
    shift: int,
    i: int,
    channels: int,
    stride: int,
    share: float,
    want_tex: int,
    want_uv: int,
) -> wp.vec2:
    """Scatters a pixel's gradient to four texels and returns its gradient towards (u, v)."""
    gu = float(0.0)
    gv = float(0.0)
    s = tap.s
    t = tap.t
    if want_uv != 0:
        begin = begin_of(tap, view, fine, coarse)
        for c in range(channels):
            g = share * grad[i * channels + c]
            a00 = texel(tex, mips, tap.level, begin, tap.i00, channels, c)
            a10 = texel(tex, mips, tap.level, begin, tap.i10, channels, c)
            a01 = texel(tex, mips, tap.level, begin, tap.i01, channels, c)
            a11 = texel(tex, mips, tap.level, begin, tap.i11, channels, c)
            twist = a11 + a00 - a10 - a01
            gu += g * ((a10 - a00) + t * twist) * tap.width
            gv += g * ((a01 - a00) + s * twist) * tap.height
    if want_tex != 0:
        # The first and the last of the four texels name them all.
        to = shift + tap.start
        lanes = same_lanes((wp.int64(to + tap.i00) << wp.int64(32)) | wp.int64(to + tap.i11))
        first_of_texel = leads(lanes)
        weights = share * wp.vec4((1.0 - s) * (1.0 - t), s * (1.0 - t), (1.0 - s) * t, s * t)
        for c in range(0, channels, 4):
            count = wp.min(channels - c, 4)
            # Of one channel each, for all four texels.
            a = sum_lanes(lanes, grad[i * channels + c] * weights)
            b = wp.vec4()
            d = wp.vec4()
            e = wp.vec4()
            if count > 1:
                b = sum_lanes(lanes, grad[i * channels + c + 1] * weights)
            if count > 2:
                d = sum_lanes(lanes, grad[i * channels + c + 2] * weights)
            if count > 3:
                e = sum_lanes(lanes, grad[i * channels + c + 3] * weights)
            if first_of_texel:
                at = to * stride + c
                add_run(grad_tex, at + tap.i00 * stride, a[0], b[0], d[0], e[0], count, stride)
                add_run(grad_tex, at + tap.i10 * stride, a[1], b[1], d[1], e[1], count, stride)
                add_run(grad_tex, at + tap.i01 * stride, a[2], b[2], d[2], e[2], count, stride)
                add_run(grad_tex, at + tap.i11 * stride, a[3], b[3], d[3], e[3], count, stride)
    return wp.vec2(gu, gv)


@wp.kernel(enable_backward=False, grid_stride=False)
def sample_backward(
    first: int,
    slot: int,
    grad: wp.array(dtype=wp.float32),
    tex: wp.array(dtype=wp.float32),
    mips: wp.array(dtype=wp.float32),
    uv: wp.array(dtype=wp.vec2),
    uv_da: wp.array(dtype=wp.vec4),
    grad_tex: wp.array(dtype=wp.float32),
    grad_uv: wp.array(dtype=wp.vec2),
    coarse: int,
    height: int,
    width: int,
    channels: int,
    pixels: int,
    shared: int,
    filtered: int,
    last_level: int,
    boundary: int,
    stride: int,
    want_tex: int,
    want_uv: int,
) -> None:
    """One item per pixel: the adjoint of `sample`.

    `grad_tex` holds all levels one after the other, with `stride` numbers per texel.
    """
    i = first + wp.tid()
    largest = float(0.0)
    for c in range(channels):
        largest = wp.max(largest, wp.abs(grad[i * channels + c]))
    total = wp.vec2(0.0, 0.0)
    if largest != 0.0:
        view = int(0)
        fine = height * width
        shift = slot * (fine + coarse)  # to this slot's copy of a shared texture
        if shared == 0:
            view = i // pixels
            shift = view * (fine + coarse)
        if filtered == NEAREST:
            if want_tex != 0:
                nearest = shift + nearest_texel(uv[i], height, width, boundary)
                lanes = same_lanes(wp.int64(nearest))
                for c in range(channels):
                    total_of = sum_lanes(lanes, wp.vec4(grad[i * channels + c], 0.0, 0.0, 0.0))
                    if leads(lanes):
                        wp.atomic_add(grad_tex, nearest * stride + c, total_of[0])
        else:
            level = float(0.0)
            if last_level > 0:
                level = lod(load4(uv_da, i), height, width, last_level)
            whole = int(level)
            part = level - float(whole)
            taps = int(1)
            if part > 0.0:
                taps = 2
            for k in range(taps):
                share = part
                if k == 0:
                    share = 1.0 - part
                tap = locate(uv[i], whole + k, height, width, boundary)
                total += tap_backward(
                    grad,
                    tex,
                    mips,
                    grad_tex,
                    view,
                    fine,
                    coarse,
                    tap,
                    shift,
                    i,
                    channels,
                    stride,
                    share,
                    want_tex,
                    want_uv,
                )
    if want_uv != 0:
        grad_uv[i] = total


@wp.func
def mean_of_block(
    source: wp.array(dtype=wp.float32), corner: int, width: int, rows: int, columns: int, channels: int
) -> float:
    """The mean of one, two or four texels in a block, of which the first number is at `corner`."""
    right = (columns - 1) * channels
    up = (rows - 1) * width * channels
    low = load(source, corner) + load(source, corner + right)
    high = load(source, corner + up) + load(source, corner + up + right)
    return 0.25 * (low + high)


@wp.kernel(enable_backward=False, grid_stride=False)
def halve(
    first: int,
    slot: int,
    source: wp.array(dtype=wp.float32),
    mips: wp.array(dtype=wp.float32),
    source_start: int,
    source_texels: int,
    start: int,
    texels: int,
    height: int,
    width: int,
    steps: int,
    channels: int,
) -> None:
    """Several levels of the chain at once: one item per view, texel of the coarsest of them, and channel.

    Args:
        first: First item.
        slot: Not used.
        source: The level before them, of `height` by `width`, from texel `source_start` of each view's
            `source_texels` on.
        mips: All levels but the first; these begin at texel `start` of each view's `texels`.
        source_start: See `source`.
        source_texels: See `source`.
        start: See `mips`.
        texels: See `mips`.
        height: Rows of the source.
        width: Columns of the source.
        steps: Number of halvings.
        channels: Numbers per texel.
    """
    i = first + wp.tid()
    last_h = wp.max(height >> steps, 1)
    last_w = wp.max(width >> steps, 1)
    c = i % channels
    place = i // channels
    x0 = place % last_w
    y0 = (place // last_w) % last_h
    view = place // (last_w * last_h)
    before = (view * source_texels + source_start) * channels + c
    here = (view * texels + start) * channels + c
    h = height
    w = width
    for step in range(steps):
        next_h = wp.max(h >> 1, 1)
        next_w = wp.max(w >> 1, 1)
        rows = h // next_h
        columns = w // next_w
        block_h = next_h // last_h
        block_w = next_w // last_w
        for y in range(y0 * block_h, (y0 + 1) * block_h):
            for x in range(x0 * block_w, (x0 + 1) * block_w):
                corner = before + (y * rows * w + x * columns) * channels
                mean = float(0.0)
                if step == 0:
                    mean = mean_of_block(source, corner, w, rows, columns, channels)
                else:  # that it has written itself
                    right = (columns - 1) * channels
                    up = (rows - 1) * w * channels
                    low = mips[corner] + mips[corner + right]
                    mean = 0.25 * (low + mips[corner + up] + mips[corner + up + right])
                mips[here + (y * next_w + x) * channels] = mean
        before = here
        here += next_h * next_w * channels
        h = next_h
        w = next_w


@wp.kernel(enable_backward=False, grid_stride=False)
def unhalve(
    first: int,
    slot: int,
    chain: wp.array(dtype=wp.float32),
    out: wp.array(dtype=wp.float32),
    start: int,
    texels: int,
    out_start: int,
    out_texels: int,
    out_stride: int,
    height: int,
    width: int,
    steps: int,
    channels: int,
    stride: int,
) -> None:
    """The adjoint of `halve`: one item per view and texel of the source level.

    Args:
        first: First item.
        slot: Not used.
        chain: Gradients of all levels, with `stride` numbers per texel; the source level, of `height` by
            `width`, begins at texel `start` of each view's `texels`.
        out: Where the source level's gradient goes with what it gets from the levels beyond, with
            `out_stride` numbers per texel; may be the chain.
        start: See `chain`.
        texels: See `chain`.
        out_start: Where the level begins in `out`.
        out_texels: Texels of a view in `out`.
        out_stride: See `out`.
        height: Rows of the source level.
        width: Columns of the source level.
        steps: Number of levels beyond it that are to be added.
        channels: Numbers of a texel that count.
        stride: See `chain`.
    """
    i = first + wp.tid()
    view = i // (height * width)
    texel_here = i - view * height * width
    level_begin = view * texels + start
    to = (view * out_texels + out_start + texel_here) * out_stride
    for c in range(channels):
        y = texel_here // width
        x = texel_here - y * width
        begin = level_begin
        h = height
        w = width
        share = float(1.0)
        total = chain[(begin + texel_here) * stride + c]
        for _step in range(steps):
            begin += h * w
            if h > 1:
                y = y >> 1
                share *= 0.5
            if w > 1:
                x = x >> 1
                share *= 0.5
            h = wp.max(h >> 1, 1)
            w = wp.max(w >> 1, 1)
            total += share * chain[(begin + y * w + x) * stride + c]
        out[to + c] = total
