"""Upstream's sampler and ours on one velocity that both can call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.parity.compare import LIMITS, Row, relative_error
from benchmarks.parity.configurations import Configuration, Size, load_configurations
from benchmarks.parity.upstream import Upstream
from models.reconviagen.sampler import SamplerConfig, sample, seeded

SHAPE = (8, 4, 4, 4)


def velocity(x: Tensor, t: float, condition: Tensor) -> Tensor:
    """A velocity that depends on everything it can depend on."""
    return torch.sin(3 * x + 2 * t) + condition * torch.cos(x - t)


class Bound:
    """The velocity under one condition, as our sampler calls it."""

    def __init__(self, condition: Tensor) -> None:
        self.condition = condition

    def __call__(self, x: Tensor, t: float, *, unconditional: bool) -> tuple[Tensor, Tensor | None]:
        """With the condition and, if asked for, with zeros in its place."""
        without = velocity(x, t, torch.zeros_like(self.condition)) if unconditional else None
        return velocity(x, t, self.condition), without


def sampler_config(configuration: Configuration, rescale: float = 0.0) -> SamplerConfig:
    """Ours of upstream's arguments."""
    params = configuration["params"]
    return SamplerConfig(
        steps=params["steps"],
        guidance=params["cfg_strength"],
        interval=tuple(params["cfg_interval"]),
        rescale_t=params["rescale_t"],
        rescale=rescale,
        sigma_min=configuration["args"]["sigma_min"],
    )


def compare_samplers(upstream: Upstream, size: Size) -> list[Row]:
    """Both stages' samplers as published, and with rescaled guidance, which is published unused."""
    configurations = load_configurations(size)
    noise, condition = (torch.randn(SHAPE, generator=seeded(n)).to(upstream.device) for n in (1, 2))
    rows = []
    for name in ("structure_sampler", "latent_sampler"):
        for rescale in (0.0, 0.5):
            with upstream.running():
                wanted = _upstream_sample(upstream, configurations[name], noise, condition, rescale)
            config = sampler_config(configurations[name], rescale)
            found = sample(Bound(condition), noise, config, lambda *_: None, name=name)
            output = "sample, rescaled" if rescale else "sample"
            error = relative_error(found, wanted)
            rows.append(Row(name, output, "float32", error, None, LIMITS["float32"]))
    return rows


def _upstream_sample(
    upstream: Upstream, configuration: Configuration, noise: Tensor, condition: Tensor, rescale: float
) -> Tensor:
    sampler = upstream_sampler(upstream, configuration)
    result: Tensor = sampler.sample(
        lambda x, t, cond: velocity(x, float(t[0]) / 1000, cond),
        noise[None],
        condition[None],
        torch.zeros_like(condition)[None],
        guidance_rescale=rescale,
        verbose=False,
        **configuration["params"],
    ).samples[0]
    return result


def upstream_sampler(upstream: Upstream, configuration: Configuration) -> Any:
    """Upstream's sampler of a configuration's class and arguments."""
    build = getattr(upstream.module("trellis.pipelines.samplers"), configuration["name"])
    return build(**configuration["args"])
