"""Features of a mesh decoder's cubes that make a surface as real objects have it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.voxels import bumpy_distance

CORNERS = [(x, y, z) for z, y, x in product((0, 1), repeat=3)]  # of a cube, in the published order
CHANNELS = 8 + 8 * 3 + 21 + 8 * 6  # distance, displacement, weights, colour and normal


def shell_distances(coords: Tensor, resolution: int) -> Tensor:
    """Distances [K, 8] of the corners of cubes [K, 3] from a bumpy sphere, negative inside, model units."""
    corners = coords[:, None] + coords.new_tensor(CORNERS)
    return bumpy_distance(corners / resolution - 0.5).float()


def shell_cubes(coords: Tensor, resolution: int) -> Tensor:
    """Features [K, 101] of cubes [K, 3], as a mesh decoder's last layer gives them.

    The distances at the corners are a bumpy sphere's; displacements, weights and colours are random.
    """
    generator = torch.Generator().manual_seed(0)
    rest = torch.randn(len(coords), CHANNELS - 8, generator=generator).to(coords.device)
    return torch.cat([shell_distances(coords, resolution), 0.5 * rest], dim=1)


@contextmanager
def forced_output(layer: nn.Module, features: Tensor) -> Iterator[list[Any]]:
    """Within it a last layer, upstream's or ours, gives these features; its own are put into the list."""
    own: list[Any] = []

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        own.append(output)
        if isinstance(output, Tensor):
            return features.reshape(output.shape).clone()
        return output.replace(features.clone())

    handle = layer.register_forward_hook(replace)
    try:
        yield own
    finally:
        handle.remove()
