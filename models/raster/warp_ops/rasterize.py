"""Rasterization: `visibility` finds the winner of every pixel, `shade` places the pixel in it."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.raster.warp_ops.kernels.coverage import (
    visibility,
    visibility_of_queued,
    visibility_of_small,
)
from models.raster.warp_ops.kernels.shading import shade, shade_backward
from models.raster.warp_ops.launch import Launcher, packed

# On CUDA large triangles are shared out among this many warps of 32 threads, about what a large card holds.
WARPS = 4096

# Places for the second and further shares of large triangles: of 16384 pixels each, 2^30 in all.
EXTRA_PLACES = 65536


class Rasterize(torch.autograd.Function):
    """`RasterBackend.rasterize`; the launcher and the size are not differentiated."""

    @staticmethod
    def forward(
        ctx: Any, pos: Tensor, tri: Tensor, launcher: Launcher, resolution: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Finds and shades the visible triangle of every pixel."""
        views, vertices, faces = pos.shape[0], pos.shape[1], tri.shape[0]
        height, width = resolution
        pixels = height * width
        # The keys of all pixels, and behind them the two counters of the queue.
        keys = torch.zeros(views * pixels + 2, dtype=torch.int64, device=pos.device)
        sizes = (vertices, faces, height, width)
        if pos.is_cuda:
            queue = torch.empty(views * faces + EXTRA_PLACES, dtype=torch.int64, device=pos.device)
            work = (pos, tri, keys, queue, *sizes, views, EXTRA_PLACES)
            launcher.run(visibility_of_small, views, faces, work)
            launcher.run(visibility_of_queued, 1, 32 * WARPS, [*work, WARPS])
        else:
            launcher.run(visibility, views, faces, [pos, tri, keys, *sizes])
        rast = pos.new_empty(views, height, width, 4)
        rast_db = torch.empty_like(rast)
        launcher.run(shade, views, pixels, [keys, pos, tri, rast, rast_db, vertices, height, width])
        ctx.save_for_backward(pos, tri, rast)
        ctx.launcher = launcher
        ctx.mark_non_differentiable(rast_db)
        return rast, rast_db

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rast: Tensor, _grad_db: Tensor | None) -> tuple[Tensor, None, None, None]:
        """Carries the gradients of the barycentrics to the positions."""
        pos, tri, rast = ctx.saved_tensors
        views, height, width = rast.shape[:3]
        grad_pos = torch.zeros_like(pos)
        ctx.launcher.run(
            shade_backward,
            views,
            height * width,
            [packed(grad_rast), rast, pos, tri, grad_pos, pos.shape[1], tri.shape[0], height, width],
        )
        return grad_pos, None, None, None
