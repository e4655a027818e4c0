"""What is asked of a shape besides matching the images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sign_loss(sdf: Tensor) -> Tensor:
    """Binary cross-entropy that pulls both ends of a cut grid edge to one sign; the mean over cut edges.

    Removes surface that no image supports. Munkberg et al., 2022, equation 2.

    Args:
        sdf: Signed distance at the grid's vertices [S, S, S], scaled so that a cell is about 1.
    """
    total, count = sdf.new_zeros(()), sdf.new_zeros(())
    for axis in range(3):
        low, high = sdf.narrow(axis, 0, sdf.shape[axis] - 1), sdf.narrow(axis, 1, sdf.shape[axis] - 1)
        cut = (low < 0) != (high < 0)
        error = F.softplus(low.abs()) + F.softplus(high.abs())  # each end against the other's sign
        total = total + (error * cut).sum()
        count = count + cut.sum()
    return total / count.clamp(min=1)


def laplacian_loss(vertices: Tensor, edges: Tensor) -> Tensor:
    """Mean squared distance of each vertex from the centroid of its neighbours.

    Args:
        vertices: Positions [N, 3], model units.
        edges: Edges [E, 2], int64, see `umbrella`.

    Reference: Desbrun et al., 1999, umbrella operator.
    """
    return umbrella(vertices, edges).square().sum(-1).mean()


def crease_loss(normals: Tensor, edges: Tensor) -> Tensor:
    """Mean of one minus the cosine between the normals of neighbouring vertices.

    Args:
        normals: Unit normals of the vertices [N, 3].
        edges: Edges [E, 2], int64.
    """
    return (1 - (normals[edges[:, 0]] * normals[edges[:, 1]]).sum(-1)).mean()


def umbrella(vertices: Tensor, edges: Tensor) -> Tensor:
    """Vector from each vertex to the centroid of its neighbours, [N, 3]; zero without neighbours.

    Args:
        vertices: Positions [N, 3].
        edges: Edges [E, 2], int64; each once, or each as often as any other.
    """
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
