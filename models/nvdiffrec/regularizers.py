"""What is asked of a shape besides matching the images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sign_loss(sdf: Tensor, edges: Tensor) -> Tensor:
    """Binary cross-entropy that pulls both ends of a cut grid edge to one sign.

    Removes surface that no image supports. Munkberg et al., 2022, equation 2.

    Args:
        sdf: Signed distance at the grid's vertices [N], scaled so that a cell is about 1.
        edges: Grid edges [E, 2], int64.
    """
    value = sdf[edges]  # [E, 2]
    cut = (value[:, 0] < 0) != (value[:, 1] < 0)
    a, b = value[cut].unbind(1)
    if a.numel() == 0:
        return sdf.sum() * 0
    positive_a, positive_b = (a > 0).to(a.dtype), (b > 0).to(b.dtype)
    return F.binary_cross_entropy_with_logits(a, positive_b) + F.binary_cross_entropy_with_logits(
        b, positive_a
    )


def laplacian_loss(vertices: Tensor, edges: Tensor) -> Tensor:
    """Mean squared distance of each vertex from the centroid of its neighbours.

    Args:
        vertices: Positions [N, 3], model units.
        edges: Undirected edges [E, 2], int64, each once.

    Reference: Desbrun et al., 1999, umbrella operator.
    """
    return umbrella(vertices, edges).square().sum(-1).mean()


def umbrella(vertices: Tensor, edges: Tensor) -> Tensor:
    """Vector from each vertex to the centroid of its neighbours, [N, 3]; zero without neighbours."""
    a, b = edges.unbind(1)
    total = torch.zeros_like(vertices).index_add(0, a, vertices[b]).index_add(0, b, vertices[a])
    one = vertices.new_ones(edges.shape[0])
    count = vertices.new_zeros(vertices.shape[0]).index_add(0, a, one).index_add(0, b, one)
    return (total - vertices * count[:, None]) / count.clamp(min=1)[:, None]


def total_variation(texture: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring texels of a texture [H, W, C]."""
    return (texture[1:] - texture[:-1]).abs().mean() + (texture[:, 1:] - texture[:, :-1]).abs().mean()


def color_cast(light: Tensor) -> Tensor:
    """Mean absolute distance of radiances [..., 3] from their own grey.

    A coloured light and a paint of the complementary colour look white: light is nearly white, so the paint
    is. Munkberg et al., 2022, section 3.3.
    """
    return (light - light.mean(-1, keepdim=True)).abs().mean()
