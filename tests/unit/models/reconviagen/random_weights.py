"""Random values for every parameter, none of them trivial, of a size that keeps signals alive."""

import torch
from torch import nn


def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Fill all parameters in place; the network comes back in inference mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and "token" not in name and "pos_embed" not in name:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif name.endswith(("weight", "gamma")):
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return network.eval().requires_grad_(False)
