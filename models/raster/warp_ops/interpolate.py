"""Interpolation of vertex attributes at the pixels, and their slopes on the screen."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.raster.warp_ops.kernels.interpolate import blend, blend_backward
from models.raster.warp_ops.launch import Launcher


class Interpolate(torch.autograd.Function):
    """`RasterBackend.interpolate`; the slopes, which are not differentiated, only with `rast_db`."""

    @staticmethod
    def forward(
        ctx: Any, attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Tensor | None, launcher: Launcher
    ) -> tuple[Tensor, Tensor | None]:
        """Interpolates every channel at every pixel."""
        views, height, width = rast.shape[:3]
        vertices, channels = attr.shape[1:]
        pixels, shared = height * width, int(attr.shape[0] == 1)
        out = rast.new_empty(views, height, width, channels)
        slopes = None if rast_db is None else rast.new_empty(views, height, width, 2 * channels)
        sizes = [vertices, tri.shape[0], channels, pixels, shared, int(slopes is not None)]
        launcher.run(blend, views, pixels, [attr, rast, rast_db, tri, out, slopes, *sizes])
        ctx.save_for_backward(attr, rast, tri)
        ctx.launcher = launcher
        if slopes is not None:
            ctx.mark_non_differentiable(slopes)
        return out, slopes

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor, _grad_slopes: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Carries the gradient to the attributes and to the barycentrics."""
        attr, rast, tri = ctx.saved_tensors
        views, height, width = rast.shape[:3]
        vertices, channels = attr.shape[1:]
        pixels, shared = height * width, attr.shape[0] == 1
        want_attr, want_rast = ctx.needs_input_grad[:2]
        grad_rast = torch.empty_like(rast) if want_rast else None
        copies = ctx.launcher.slots(views) if shared else attr.shape[0]
        grad_attr = attr.new_zeros(copies, vertices, channels) if want_attr else None
        sizes = [vertices, tri.shape[0], channels, pixels, int(shared), int(want_attr), int(want_rast)]
        ctx.launcher.run(
            blend_backward,
            views,
            pixels,
            [grad.contiguous(), attr, rast, tri, grad_attr, grad_rast, *sizes],
        )
        if grad_attr is not None and shared and copies > 1:
            grad_attr = grad_attr.sum(0, keepdim=True)
        return grad_attr, grad_rast, None, None, None
