"""Texture lookup: nearest, bilinear, and trilinear over a chain of box-filtered levels."""

from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.raster.warp_ops.kernels.texture import sample, sample_backward
from models.raster.warp_ops.launch import Launcher, as_array


class Sample(torch.autograd.Function):
    """Looks coordinates up in a chain of levels laid out one after the other."""

    @staticmethod
    def forward(
        ctx: Any,
        chain: Tensor,
        uv: Tensor,
        uv_da: Tensor | None,
        launcher: Launcher,
        size: tuple[int, int],
        filtered: bool,
        last_level: int,
        wrap: bool,
    ) -> Tensor:
        """Samples `chain` [B or 1, T, C], whose level 0 has `size` (rows, columns)."""
        views, height, width = uv.shape[:3]
        channels = chain.shape[2]
        out = uv.new_empty(views, height, width, channels)
        ctx.numbers = [
            chain.shape[1],
            *size,
            channels,
            height * width,
            int(chain.shape[0] == 1),
            int(filtered),
            last_level,
            int(not wrap),
        ]
        slopes = uv.new_empty(0, 4) if uv_da is None else uv_da
        launcher.run(
            sample,
            views,
            height * width,
            [
                as_array(chain, wp.float32),
                as_array(uv, wp.vec2),
                as_array(slopes, wp.vec4),
                as_array(out, wp.float32),
                *ctx.numbers,
            ],
        )
        ctx.save_for_backward(chain, uv, slopes)
        ctx.launcher = launcher
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None, None, None, None, None]:
        """Carries the gradient to the texels and to the coordinates."""
        chain, uv, slopes = ctx.saved_tensors
        views, height, width = uv.shape[:3]
        shared = chain.shape[0] == 1
        want_tex = ctx.needs_input_grad[0]
        grad = grad.contiguous()
        grad_uv = torch.empty_like(uv)
        copies = ctx.launcher.slots(views) if shared else chain.shape[0]
        grad_chain = chain.new_zeros(copies if want_tex else 0, *chain.shape[1:])
        ctx.launcher.run(
            sample_backward,
            views,
            height * width,
            [
                as_array(grad, wp.float32),
                as_array(chain, wp.float32),
                as_array(uv, wp.vec2),
                as_array(slopes, wp.vec4),
                as_array(grad_chain, wp.float32),
                as_array(grad_uv, wp.vec2),
                *ctx.numbers,
                int(want_tex),
            ],
        )
        unused = (None,) * 6
        if not want_tex:
            return None, grad_uv, *unused
        return grad_chain.sum(0, keepdim=True) if shared else grad_chain, grad_uv, *unused


def mip_chain(tex: Tensor, levels: int) -> Tensor:
    """Lays a texture and its box-filtered halvings out one after the other.

    Plain torch, so that gradients at every level find their way back to the texture.

    Args:
        tex: Texture [B, H, W, C] whose sides are even, or one, as often as they are halved.
        levels: Number of halvings.

    Returns:
        Texels of all levels [B, T, C], the finest first, each row by row.
    """
    chain = [tex]
    for _ in range(levels):
        batch, height, width, channels = chain[-1].shape
        rows, columns = min(2, height), min(2, width)
        blocks = chain[-1].reshape(batch, height // rows, rows, width // columns, columns, channels)
        chain.append(blocks.mean(dim=(2, 4)))
    return torch.cat([level.flatten(1, 2) for level in chain], dim=1)
