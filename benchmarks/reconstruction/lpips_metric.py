"""LPIPS (Zhang et al., 2018), where its package and weights happen to be installed. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

WEIGHTS = "alexnet-owt-7be5be79.pth"
"""The file that torchvision looks for (`AlexNet_Weights.IMAGENET1K_V1`) and would download otherwise."""

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Takes two batches of images [V, H, W, 3] in [0, 1] and returns a distance for each pair, [V]."""


def load_lpips(device: torch.device) -> Perceptual | None:
    """LPIPS with AlexNet, as most papers report it; None without the package `lpips` or AlexNet's weights."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if find_spec("lpips") is None or not weights.is_file():
        return None
    import lpips  # type: ignore[import-not-found, unused-ignore]

    network = lpips.LPIPS(net="alex", verbose=False).to(device).eval()

    def distance(image: Tensor, reference: Tensor) -> Tensor:
        one, two = (t.permute(0, 3, 1, 2).float() for t in (image, reference))
        values: Tensor = network(one, two, normalize=True)
        return values.reshape(len(image))

    return distance
