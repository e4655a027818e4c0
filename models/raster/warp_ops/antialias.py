"""Antialiasing of silhouettes as an autograd function; the kernels say how."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.raster.warp_ops.kernels.antialias import find_silhouettes, smooth, smooth_backward
from models.raster.warp_ops.launch import Launcher


class Antialias(torch.autograd.Function):
    """`RasterBackend.antialias`, given the mesh's opposite vertices."""

    @staticmethod
    def forward(
        ctx: Any, color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor, opposite: Tensor, launcher: Launcher
    ) -> Tensor:
        """Blends colours across silhouettes."""
        views, height, width, channels = color.shape
        vertices, faces, pixels = pos.shape[1], tri.shape[0], height * width
        flags = torch.empty(views, height, width, dtype=torch.uint8, device=color.device)
        out = color.clone()
        mesh = [rast, pos, tri, opposite, flags]
        launcher.run(find_silhouettes, views, pixels, [*mesh, vertices, faces, views, height, width])
        launcher.run(smooth, views, pixels, [color, *mesh, out, vertices, faces, channels, height, width])
        ctx.save_for_backward(color, *mesh)
        ctx.launcher = launcher
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, None, None]:
        """Carries the gradient to the colours and to the silhouettes' vertices."""
        color, rast, pos, tri, opposite, flags = ctx.saved_tensors
        views, height, width, channels = color.shape
        want_color, _, want_pos = ctx.needs_input_grad[:3]
        grad = grad.contiguous()
        grad_color = grad.clone() if want_color else None
        grad_pos = torch.zeros_like(pos) if want_pos else None
        mesh = [rast, pos, tri, opposite, flags]
        sizes = [pos.shape[1], tri.shape[0], channels, height, width]
        ctx.launcher.run(
            smooth_backward,
            views,
            height * width,
            [grad, color, *mesh, grad_color, grad_pos, *sizes, int(want_color), int(want_pos)],
        )
        return grad_color, None, grad_pos, None, None, None
