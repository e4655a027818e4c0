"""What is compared: one network of upstream's and ours, fed alike."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.parity.configurations import SCENES, Size, load_configurations
from benchmarks.parity.upstream import Upstream
from models.reconviagen.renaming import SAME, Renaming

Outputs = dict[str, Tensor]

SPECIAL = 5  # tokens before the patches: camera or class token, and registers


class Pair(ABC):
    """One network, built twice.

    Args:
        upstream: Upstream's modules.
        size: Of the networks.
    """

    name: ClassVar[str]
    half: ClassVar[torch.dtype] = torch.float16
    """What ours computes in where upstream computes in half precision, or could."""
    renaming: ClassVar[Renaming] = SAME

    def __init__(self, upstream: Upstream, size: Size) -> None:
        self.upstream = upstream
        self.size = size
        self.scene = SCENES[size]
        self.configurations = load_configurations(size)
        self.configuration = self.configurations[self.name]
        self.args: dict[str, Any] = self.configuration["args"]

    @abstractmethod
    def theirs(self, *, half: bool) -> nn.Module:
        """Upstream's module, as upstream runs it (`half`) or all in float32."""

    @abstractmethod
    def ours(self) -> nn.Module:
        """Our module in float32."""

    @abstractmethod
    def inputs(self) -> dict[str, Tensor]:
        """What both are fed, float32."""

    @abstractmethod
    def run_theirs(self, module: nn.Module, inputs: dict[str, Tensor], *, half: bool) -> Outputs:
        """Upstream's outputs, by names that `run_ours` uses too."""

    @abstractmethod
    def run_ours(self, module: nn.Module, inputs: dict[str, Tensor]) -> Outputs:
        """Our outputs."""

    @property
    def patches(self) -> int:
        """Patches along each side of an image."""
        encoder = self.configurations["dinov2"]["args"]
        return int(encoder["img_size"] // encoder["patch_size"])

    @property
    def tokens(self) -> int:
        """Tokens of one view."""
        return SPECIAL + self.patches**2

    def random(self, *shape: int, seed: int) -> Tensor:
        """Standard normal numbers, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.upstream.device)

    def published(self, module: str, *, half: bool) -> nn.Module:
        """Upstream's class of the configuration's name, with its arguments."""
        build = getattr(self.upstream.module(module), self.configuration["name"])
        network: nn.Module = build(**(self.args | ({"use_fp16": half} if "use_fp16" in self.args else {})))
        return network


def autocast(device: torch.device, *, half: bool) -> contextlib.AbstractContextManager[Any]:
    """How upstream runs VGGT: float32 weights, products in bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if half else contextlib.nullcontext()
