"""Antialiasing of silhouettes as an autograd function; the kernels say how."""

from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.raster.warp_ops.kernels.antialias import smooth, smooth_backward
from models.raster.warp_ops.launch import Launcher, as_array


class Antialias(torch.autograd.Function):
    """`RasterBackend.antialias`, given the mesh's opposite vertices."""

    @staticmethod
    def forward(
        ctx: Any, color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor, opposite: Tensor, launcher: Launcher
    ) -> Tensor:
        """Blends colours across silhouettes."""
        views, height, width, channels = color.shape
        out = color.clone()
        launcher.run(
            smooth,
            views,
            height * width,
            [
                as_array(color, wp.float32),
                as_array(rast, wp.vec4),
                as_array(pos, wp.vec4),
                as_array(tri, wp.vec3i),
                as_array(opposite, wp.vec3i),
                as_array(out, wp.float32),
                pos.shape[1],
                tri.shape[0],
                channels,
                height,
                width,
            ],
        )
        ctx.save_for_backward(color, rast, pos, tri, opposite)
        ctx.launcher = launcher
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, None, None, None]:
        """Carries the gradient to the colours and to the silhouettes' vertices."""
        color, rast, pos, tri, opposite = ctx.saved_tensors
        views, height, width, channels = color.shape
        grad = grad.contiguous()
        grad_color = grad.clone()
        grad_pos = torch.zeros_like(pos)
        ctx.launcher.run(
            smooth_backward,
            views,
            height * width,
            [
                as_array(grad, wp.float32),
                as_array(color, wp.float32),
                as_array(rast, wp.vec4),
                as_array(pos, wp.vec4),
                as_array(tri, wp.vec3i),
                as_array(opposite, wp.vec3i),
                as_array(grad_color, wp.float32),
                as_array(grad_pos, wp.float32),
                pos.shape[1],
                tri.shape[0],
                channels,
                height,
                width,
            ],
        )
        return grad_color, None, grad_pos, None, None, None
