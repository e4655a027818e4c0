# mypy: ignore-errors
# ruff: noqa: UP018, RUF046
# Casting a literal is how a Warp kernel declares a variable that a loop or a branch may change.
"""Texture lookup in one level or between two, and its adjoint."""

import warp as wp

NEAREST = wp.constant(0)
WRAP = wp.constant(0)


@wp.struct
class Tap:
    """The four texels around a lookup in one level, as indices into the chain, and the place among them."""

    i00: int
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
def locate(uv: wp.vec2, level: int, base: int, height: int, width: int, boundary: int) -> Tap:
    """Finds the four texels of a bilinear lookup."""
    w = width
    h = height
    start = base
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
    tap.i00 = start + v0 * w + u0
    tap.i10 = start + v0 * w + u1
    tap.i01 = start + v1 * w + u0
    tap.i11 = start + v1 * w + u1
    tap.width = float(w)
    tap.height = float(h)
    return tap


@wp.func
def nearest_texel(uv: wp.vec2, base: int, height: int, width: int, boundary: int) -> int:
    """Index of the texel whose square contains the coordinate."""
    u = uv[0]
    v = uv[1]
    if boundary == WRAP:
        u -= wp.floor(u)
        v -= wp.floor(v)
    column = clamp_index(int(wp.floor(u * float(width))), width)
    row = clamp_index(int(wp.floor(v * float(height))), height)
    return base + row * width + column


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
def bilinear(tex: wp.array(dtype=wp.float32), tap: Tap, channels: int, c: int) -> float:
    """The weighted mean of four texels."""
    a = tex[tap.i00 * channels + c]
    b = tex[tap.i10 * channels + c]
    low = a + tap.s * (b - a)
    a = tex[tap.i01 * channels + c]
    b = tex[tap.i11 * channels + c]
    high = a + tap.s * (b - a)
    return low + tap.t * (high - low)


@wp.kernel(enable_backward=False)
def sample(
    first: int,
    slot: int,
    tex: wp.array(dtype=wp.float32),
    uv: wp.array(dtype=wp.vec2),
    uv_da: wp.array(dtype=wp.vec4),
    out: wp.array(dtype=wp.float32),
    texels: int,
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
    base = int(0)
    if shared == 0:
        base = (i // pixels) * texels
    if filtered == NEAREST:
        texel = nearest_texel(uv[i], base, height, width, boundary)
        for c in range(channels):
            out[i * channels + c] = tex[texel * channels + c]
        return
    level = float(0.0)
    if last_level > 0:
        level = lod(uv_da[i], height, width, last_level)
    fine = int(level)
    part = level - float(fine)
    tap = locate(uv[i], fine, base, height, width, boundary)
    for c in range(channels):
        out[i * channels + c] = bilinear(tex, tap, channels, c)
    if part > 0.0:
        tap = locate(uv[i], fine + 1, base, height, width, boundary)
        for c in range(channels):
            here = out[i * channels + c]
            out[i * channels + c] = here + part * (bilinear(tex, tap, channels, c) - here)


@wp.func
def tap_backward(
    grad: wp.array(dtype=wp.float32),
    tex: wp.array(dtype=wp.float32),
    grad_tex: wp.array(dtype=wp.float32),
    tap: Tap,
    shift: int,
    i: int,
    channels: int,
    share: float,
    want_tex: int,
) -> wp.vec2:
    """Scatters a pixel's gradient to four texels and returns its gradient towards (u, v)."""
    gu = float(0.0)
    gv = float(0.0)
    for c in range(channels):
        g = share * grad[i * channels + c]
        if g != 0.0:
            a00 = tex[tap.i00 * channels + c]
            a10 = tex[tap.i10 * channels + c]
            a01 = tex[tap.i01 * channels + c]
            a11 = tex[tap.i11 * channels + c]
            twist = a11 + a00 - a10 - a01
            gu += g * ((a10 - a00) + tap.t * twist) * tap.width
            gv += g * ((a01 - a00) + tap.s * twist) * tap.height
            if want_tex != 0:
                wp.atomic_add(grad_tex, (shift + tap.i00) * channels + c, g * (1.0 - tap.s) * (1.0 - tap.t))
                wp.atomic_add(grad_tex, (shift + tap.i10) * channels + c, g * tap.s * (1.0 - tap.t))
                wp.atomic_add(grad_tex, (shift + tap.i01) * channels + c, g * (1.0 - tap.s) * tap.t)
                wp.atomic_add(grad_tex, (shift + tap.i11) * channels + c, g * tap.s * tap.t)
    return wp.vec2(gu, gv)


@wp.kernel(enable_backward=False)
def sample_backward(
    first: int,
    slot: int,
    grad: wp.array(dtype=wp.float32),
    tex: wp.array(dtype=wp.float32),
    uv: wp.array(dtype=wp.vec2),
    uv_da: wp.array(dtype=wp.vec4),
    grad_tex: wp.array(dtype=wp.float32),
    grad_uv: wp.array(dtype=wp.vec2),
    texels: int,
    height: int,
    width: int,
    channels: int,
    pixels: int,
    shared: int,
    filtered: int,
    last_level: int,
    boundary: int,
    want_tex: int,
) -> None:
    """One item per pixel: the adjoint of `sample`."""
    i = first + wp.tid()
    base = int(0)
    shift = slot * texels  # to this slot's copy of a shared texture
    if shared == 0:
        base = (i // pixels) * texels
        shift = 0
    if filtered == NEAREST:
        texel = nearest_texel(uv[i], base, height, width, boundary)
        if want_tex != 0:
            for c in range(channels):
                wp.atomic_add(grad_tex, (shift + texel) * channels + c, grad[i * channels + c])
        grad_uv[i] = wp.vec2(0.0, 0.0)
        return
    level = float(0.0)
    if last_level > 0:
        level = lod(uv_da[i], height, width, last_level)
    fine = int(level)
    part = level - float(fine)
    tap = locate(uv[i], fine, base, height, width, boundary)
    total = tap_backward(grad, tex, grad_tex, tap, shift, i, channels, 1.0 - part, want_tex)
    if part > 0.0:
        tap = locate(uv[i], fine + 1, base, height, width, boundary)
        total += tap_backward(grad, tex, grad_tex, tap, shift, i, channels, part, want_tex)
    grad_uv[i] = total
