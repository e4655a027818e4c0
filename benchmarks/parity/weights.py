"""The same random weights for two implementations."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor, nn

from models.reconviagen.renaming import Renaming

SPREAD = 0.1  # of factors around 1, and of biases around 0
TOKENS = 0.5  # standard deviation of learned tokens and position embeddings


@torch.no_grad()
def randomize(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter a random value of a trained network's order of magnitude.

    What upstream starts at zero or at one (gates, last layers, scales) would otherwise hide mistakes. A
    parameter's values depend on its name, its shape, the seed and the device, not on its module.
    """
    for name, parameter in module.named_parameters():
        generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()) ^ seed)
        parameter.normal_(generator=generator)
        kind = name.rpartition(".")[2]
        if kind == "bias":
            parameter.mul_(SPREAD)
        elif kind == "gamma" or parameter.ndim == 1:
            parameter.mul_(SPREAD).add_(1)
        elif kind == "weight":
            parameter.div_(math.sqrt(parameter[0].numel()))
        else:
            parameter.mul_(TOKENS)


def renamed(state: dict[str, Tensor], renaming: Renaming) -> dict[str, Tensor]:
    """Upstream's tensors under our names."""
    return {
        ours: torch.cat([state[name] for name in names]) if len(names) > 1 else state[names[0]]
        for ours, names in renaming.sources(state).items()
    }


def differences(theirs: nn.Module, ours: nn.Module, renaming: Renaming) -> list[str]:
    """Names or shapes in which two modules' state dicts differ after the renaming; none is parity."""
    wanted = {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in renamed(theirs.state_dict(), renaming).items()}
    return (
        [f"only upstream has {name} {given[name]}" for name in sorted(given.keys() - wanted.keys())]
        + [f"only ours has {name} {wanted[name]}" for name in sorted(wanted.keys() - given.keys())]
        + [
            f"{name}: upstream {given[name]}, ours {wanted[name]}"
            for name in sorted(given.keys() & wanted.keys())
            if given[name] != wanted[name]
        ]
    )
