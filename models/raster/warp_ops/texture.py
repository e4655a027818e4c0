"""Texture lookup: nearest, bilinear, and trilinear over a chain of box-filtered levels."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.raster.warp_ops.kernels.texture import halve, sample, sample_backward, unhalve
from models.raster.warp_ops.launch import Launcher

# Levels that one launch makes. An item reads the square of two to this power of texels, one after the other.
STEPS = 2

# Levels that one launch adds to a finer one. An item reads a texel of each.
GATHERED = 3


def level_sizes(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """Rows and columns of a texture and of its halvings."""
    return [(max(height >> level, 1), max(width >> level, 1)) for level in range(levels + 1)]


def mip_levels_of(tex: Tensor, levels: int, launcher: Launcher) -> Tensor:
    """Averages a texture's blocks of two by two texels, again and again.

    Args:
        tex: Texture [B, H, W, C] whose sides are even, or one, as often as they are halved.
        levels: Number of halvings.
        launcher: Runs the kernels.

    Returns:
        Texels of all levels but the first [B, T, C], the finest first, each row by row.
    """
    batch, height, width, channels = tex.shape
    sizes = level_sizes(height, width, levels)
    counts = [rows * columns for rows, columns in sizes]
    texels = sum(counts[1:])
    mips = tex.new_empty(batch, texels, channels)
    for level in range(0, levels, STEPS):
        steps = min(STEPS, levels - level)
        source, source_texels = (mips, texels) if level else (tex, counts[0])
        source_start, start = sum(counts[1:level]) if level else 0, sum(counts[1 : level + 1])
        rows, columns = sizes[level + steps]
        places = [source_start, source_texels, start, texels]
        launcher.run(
            halve, batch * rows, columns * channels, [source, mips, *places, *sizes[level], steps, channels]
        )
    return mips


def gather_levels(
    grad: Tensor, height: int, width: int, levels: int, channels: int, launcher: Launcher
) -> Tensor:
    """Carries the gradients of all levels to the texture: the adjoint of `mip_levels_of`.

    Args:
        grad: Gradients of the texture's and all other levels' texels [B, T, S]; overwritten.
        height: Rows of the texture.
        width: Columns of the texture.
        levels: Number of halvings.
        channels: Channels of the texture, C; S may be larger.
        launcher: Runs the kernels.

    Returns:
        Gradient of the texture [B, H, W, C].
    """
    batch, texels, stride = grad.shape
    sizes = level_sizes(height, width, levels)
    counts = [rows * columns for rows, columns in sizes]
    out = grad.new_empty(batch, height, width, channels)
    for level in reversed(range(0, max(levels, 1), GATHERED)):
        rows, columns = sizes[level]
        start = sum(counts[:level])
        target, place = (grad, [start, texels, stride]) if level else (out, [0, counts[0], channels])
        steps = min(GATHERED, levels - level)
        launcher.run(
            unhalve,
            batch * rows,
            columns,
            [grad, target, start, texels, *place, rows, columns, steps, channels, stride],
        )
    return out


class Sample(torch.autograd.Function):
    """`RasterBackend.texture`, given the number of halvings; 0 for all but "linear-mipmap-linear"."""

    @staticmethod
    def forward(
        ctx: Any,
        tex: Tensor,
        uv: Tensor,
        uv_da: Tensor | None,
        launcher: Launcher,
        filtered: bool,
        levels: int,
        wrap: bool,
    ) -> Tensor:
        """Looks every pixel's coordinates up."""
        views, height, width = uv.shape[:3]
        channels = tex.shape[3]
        mips = mip_levels_of(tex, levels, launcher) if levels else None
        out = uv.new_empty(views, height, width, channels)
        ctx.levels = levels
        ctx.numbers = [
            0 if mips is None else mips.shape[1],
            tex.shape[1],
            tex.shape[2],
            channels,
            height * width,
            int(tex.shape[0] == 1),
            int(filtered),
            levels,
            int(not wrap),
        ]
        launcher.run(sample, views, height * width, [tex, mips, uv, uv_da, out, *ctx.numbers])
        ctx.save_for_backward(tex, mips, uv, uv_da)
        ctx.launcher = launcher
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None, None]:
        """Carries the gradient to the texels and to the coordinates."""
        tex, mips, uv, uv_da = ctx.saved_tensors
        views, pixels = uv.shape[0], uv.shape[1] * uv.shape[2]
        batch, height, width, channels = tex.shape
        want_tex, want_uv = ctx.needs_input_grad[:2]
        grad_uv = torch.empty_like(uv) if want_uv else None
        # A texel of three channels and more is added to in vectors of four, where the card can.
        stride = 4 * ((channels + 3) // 4) if tex.is_cuda and channels > 2 else channels
        copies = ctx.launcher.slots(views) if batch == 1 else batch
        texels = height * width + ctx.numbers[0]
        grad_all = tex.new_zeros(copies, texels, stride) if want_tex else None
        wanted = [stride, int(want_tex), int(want_uv)]
        ctx.launcher.run(
            sample_backward,
            views,
            pixels,
            [grad.contiguous(), tex, mips, uv, uv_da, grad_all, grad_uv, *ctx.numbers, *wanted],
        )
        grad_tex = None
        if grad_all is not None:
            if batch == 1 and copies > 1:
                grad_all = grad_all.sum(0, keepdim=True)
            if ctx.levels or stride != channels:
                grad_tex = gather_levels(grad_all, height, width, ctx.levels, channels, ctx.launcher)
            else:
                grad_tex = grad_all.reshape(tex.shape)
        return grad_tex, grad_uv, None, None, None, None, None
