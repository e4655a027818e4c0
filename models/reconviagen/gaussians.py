"""3D Gaussians as tensors: what the Gaussian decoder gives and the splatting renderer draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """G anisotropic 3D Gaussians (Kerbl et al., SIGGRAPH 2023), all parameters after their activations.

    Attributes:
        means: [G, 3] centres, model units.
        scales: [G, 3] standard deviations along the Gaussian's own axes, model units, positive.
        rotations: [G, 4] unit quaternions, w first, from the Gaussian's own axes to the model's.
        opacities: [G] in [0, 1].
        colors: [G, 3] sRGB, the same from every direction; meant for [0, 1] but not bound to it.
    """

    means: Tensor
    scales: Tensor
    rotations: Tensor
    opacities: Tensor
    colors: Tensor

    def __len__(self) -> int:
        return self.means.shape[0]

    def to(self, device: torch.device | str) -> Gaussians:
        """The same Gaussians on another device."""
        parts = (self.means, self.scales, self.rotations, self.opacities, self.colors)
        return Gaussians(*(part.to(device) for part in parts))
