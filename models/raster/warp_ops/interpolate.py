"""Interpolation of vertex attributes at the pixels, and their slopes on the screen."""

from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.raster.warp_ops.kernels.interpolate import blend, blend_backward, slopes
from models.raster.warp_ops.launch import Launcher, as_array


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
    @once_differentiable
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
