"""A coarse copy of a fine mesh, fast."""

from __future__ import annotations

import torch
from torch import Tensor


def clustered(vertices: Tensor, faces: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Merge all vertices that lie in one cell of a grid.

    Nothing is known of the result's topology: sheets nearer to each other than a cell grow together. It is
    good for looking at, from afar. Takes milliseconds on a GPU, where quadric decimation takes seconds.

    Args:
        vertices: [N, C], the first three columns positions; others, such as colours, are averaged with them.
        faces: [F, 3] int32.
        cells: Of the grid, along the longest side of the bounding box.

    Returns:
        Vertices [M, C] and faces [G, 3] int32, none of them twice.

    Reference: Rossignac and Borrel, "Multi-resolution 3D approximations for rendering complex scenes", 1993.
    """
    low = vertices[:, :3].amin(0)
    cell = ((vertices[:, :3] - low).amax() / cells).clamp(min=1e-12)
    place = ((vertices[:, :3] - low) / cell).long()
    side = cells + 1
    key = (place[:, 0] * side + place[:, 1]) * side + place[:, 2]
    kept, group = torch.unique(key, return_inverse=True)
    total = vertices.new_zeros(len(kept), vertices.shape[1]).index_add_(0, group, vertices)
    mean = total / torch.bincount(group, minlength=len(kept))[:, None]
    merged = group[faces.long()]
    a, b, c = merged.unbind(1)
    merged = merged[(a != b) & (b != c) & (c != a)]
    ordered, count = merged.sort(1).values, len(kept)  # below 2^21, so that three numbers fit into one
    triple, owner = torch.unique(
        (ordered[:, 0] * count + ordered[:, 1]) * count + ordered[:, 2], return_inverse=True
    )
    first = torch.full_like(triple, len(merged)).scatter_reduce(
        0, owner, torch.arange(len(merged), device=owner.device), "amin"
    )
    return mean, merged[first].to(torch.int32)
