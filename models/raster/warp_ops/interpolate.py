# ruff: noqa: UP018, RUF046
# Casting a literal is how a Warp kernel declares a variable that a loop or a branch may change.
"""Interpolation of vertex attributes at the pixels, and their slopes on the screen."""

from typing import Any

import torch
import warp as wp
from torch import Tensor

from models.raster.warp_ops.common import corners
from models.raster.warp_ops.launch import Launcher, as_array


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


class Interpolate(torch.autograd.Function):
    """`RasterBackend.interpolate` without the slopes."""

    @staticmethod
    def forward(ctx: Any, attr: Tensor, rast: Tensor, tri: Tensor, launcher: Launcher) -> Tensor:
        """Interpolates every channel at every pixel."""
        views, height, width = rast.shape[:3]
        channels = attr.shape[2]
        out = rast.new_empty(views, height, width, channels)
        launcher.run(
            blend,
            views,
            height * width,
            [
                as_array(attr, wp.float32),
                as_array(rast, wp.vec4),
                as_array(tri, wp.vec3i),
                as_array(out, wp.float32),
                attr.shape[1],
                tri.shape[0],
                channels,
                height * width,
                int(attr.shape[0] == 1),
            ],
        )
        ctx.save_for_backward(attr, rast, tri)
        ctx.launcher = launcher
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        """Carries the gradient to the attributes and to the barycentrics."""
        attr, rast, tri = ctx.saved_tensors
        views, height, width = rast.shape[:3]
        shared = attr.shape[0] == 1
        want_attr = ctx.needs_input_grad[0]
        grad = grad.contiguous()
        grad_rast = torch.empty_like(rast)
        copies = ctx.launcher.slots(views) if shared else attr.shape[0]
        grad_attr = attr.new_zeros(copies if want_attr else 0, *attr.shape[1:])
        ctx.launcher.run(
            blend_backward,
            views,
            height * width,
            [
                as_array(grad, wp.float32),
                as_array(attr, wp.float32),
                as_array(rast, wp.vec4),
                as_array(tri, wp.vec3i),
                as_array(grad_attr, wp.float32),
                as_array(grad_rast, wp.vec4),
                attr.shape[1],
                tri.shape[0],
                attr.shape[2],
                height * width,
                int(shared),
                int(want_attr),
            ],
        )
        if not want_attr:
            return None, grad_rast, None, None
        return grad_attr.sum(0, keepdim=True) if shared else grad_attr, grad_rast, None, None


def attribute_slopes(attr: Tensor, rast: Tensor, rast_db: Tensor, tri: Tensor, launcher: Launcher) -> Tensor:
    """Screen-space derivatives of every attribute, without gradients; see `RasterBackend.interpolate`."""
    views, height, width = rast.shape[:3]
    channels = attr.shape[2]
    out = rast.new_empty(views, height, width, 2 * channels)
    launcher.run(
        slopes,
        views,
        height * width,
        [
            as_array(attr, wp.float32),
            as_array(rast, wp.vec4),
            as_array(rast_db, wp.vec4),
            as_array(tri, wp.vec3i),
            as_array(out, wp.float32),
            attr.shape[1],
            tri.shape[0],
            channels,
            height * width,
            int(attr.shape[0] == 1),
        ],
    )
    return out
