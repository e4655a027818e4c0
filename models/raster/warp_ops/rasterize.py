"""Rasterization: `visibility` finds the winner of every pixel, `shade` places the pixel in it."""

from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.raster.warp_ops.kernels.coverage import EMPTY, visibility
from models.raster.warp_ops.kernels.shading import shade, shade_backward
from models.raster.warp_ops.launch import Launcher, as_array


class Rasterize(torch.autograd.Function):
    """`RasterBackend.rasterize`; the launcher and the size are not differentiated."""

    @staticmethod
    def forward(
        ctx: Any, pos: Tensor, tri: Tensor, launcher: Launcher, resolution: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Finds and shades the visible triangle of every pixel."""
        views, vertices, faces = pos.shape[0], pos.shape[1], tri.shape[0]
        height, width = resolution
        keys = torch.full((views, height, width), EMPTY, dtype=torch.int64, device=pos.device)
        rast = pos.new_empty(views, height, width, 4)
        rast_db = torch.empty_like(rast)
        pos_, tri_ = as_array(pos, wp.vec4), as_array(tri, wp.vec3i)
        keys_ = as_array(keys, wp.int64)
        launcher.run(visibility, views, faces, [pos_, tri_, keys_, vertices, faces, height, width])
        launcher.run(
            shade,
            views,
            height * width,
            [keys_, pos_, tri_, as_array(rast, wp.vec4), as_array(rast_db, wp.vec4), vertices, height, width],
        )
        ctx.save_for_backward(pos, tri, rast)
        ctx.launcher = launcher
        ctx.mark_non_differentiable(rast_db)
        return rast, rast_db

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rast: Tensor, _grad_db: Tensor) -> tuple[Tensor, None, None, None]:
        """Carries the gradients of the barycentrics to the positions."""
        pos, tri, rast = ctx.saved_tensors
        views, height, width = rast.shape[:3]
        grad_rast = grad_rast.contiguous()
        grad_pos = torch.zeros_like(pos)
        ctx.launcher.run(
            shade_backward,
            views,
            height * width,
            [
                as_array(grad_rast, wp.vec4),
                as_array(rast, wp.vec4),
                as_array(pos, wp.vec4),
                as_array(tri, wp.vec3i),
                as_array(grad_pos, wp.float32),
                pos.shape[1],
                tri.shape[0],
                height,
                width,
            ],
        )
        return grad_pos, None, None, None
