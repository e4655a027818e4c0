"""Sampling of flow-matching models: Euler steps from noise to data, guided by the condition.

Rectified flow (Lipman et al., "Flow Matching for Generative Modeling", ICLR 2023; Liu et al., "Flow Straight
and Fast", ICLR 2023) in the parametrisation of TRELLIS (Xiang et al., CVPR 2025): `x_t = (1 - t) x_0 + s e`,
`s = sigma_min + (1 - sigma_min) t`, with noise e; the model predicts the velocity `dx_t / dt`. Guidance: Ho
and Salimans, "Classifier-Free Diffusion Guidance", 2022; in an interval of t: Kynkaanniemi et al., NeurIPS
2024; rescaled: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", WACV 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from models.base import Callback
from models.progress import part
from schemas.errors import ErrorCode, ModelError


class VelocityModel(Protocol):
    """A flow network that holds its condition."""

    def __call__(self, x: Tensor, t: float, *, unconditional: bool) -> tuple[Tensor, Tensor | None]:
        """Velocity at x.

        Args:
            x: State [...] float32, without a batch dimension.
            t: Time in [0, 1]; 1 is noise, 0 is data.
            unconditional: Whether the velocity without the condition is wanted as well.

        Returns:
            The velocity with the condition, of x's shape, and the one without it, None if it was not wanted.
        """
        ...


class Correction(Protocol):
    """Changes the velocity of a step before it is taken."""

    def __call__(self, x: Tensor, t: float, velocity: Tensor, callback: Callback) -> Tensor:
        """The velocity to go on with.

        Args:
            x: State [...] float32 at time t.
            t: Time in (0, 1].
            velocity: The guided velocity, of x's shape.
            callback: Told the share of the correction's work that is done.
        """
        ...


@dataclass(frozen=True)
class SamplerConfig:
    """How to sample one flow.

    Attributes:
        steps: Number of Euler steps, each one or two passes of the network.
        guidance: Strength w of `w conditional + (1 - w) unconditional`: 1 is the conditional velocity itself,
            0 the unconditional.
        interval: Times from which to which, both included, guidance is applied; elsewhere the velocity is the
            conditional one, and the network runs without the unconditional row.
        rescale_t: Factor by which the steps are finer near t = 1 than near 0; 1 spaces them evenly.
        rescale: Share in [0, 1] of the guided prediction of the data that is brought back to the conditional
            prediction's standard deviation.
        sigma_min: Noise that is left at t = 0, as a standard deviation.
    """

    steps: int
    guidance: float
    interval: tuple[float, float] = (0.0, 1.0)
    rescale_t: float = 1.0
    rescale: float = 0.0
    sigma_min: float = 1e-5

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rescale_t <= 0 or self.sigma_min < 0 or not 0 <= self.rescale <= 1:
            raise ValueError(f"not a way to sample: {self}")


def seeded(seed: int) -> torch.Generator:
    """The generator of a job's noise: on the CPU, so that a seed gives the same noise on every device."""
    return torch.Generator().manual_seed(seed)


def draw_noise(shape: tuple[int, ...], generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Standard normal noise, float32.

    The draws from a generator `seeded(n)` are those of `torch.randn` after `torch.manual_seed(n)`, in order.

    Args:
        shape: Of the state.
        generator: On the CPU.
        device: Where the noise is wanted.
    """
    return torch.randn(shape, generator=generator).to(device)


def times(steps: int, rescale_t: float) -> list[float]:
    """The steps' times and the end, `steps + 1` values that fall from 1 to 0."""
    even = np.linspace(1, 0, steps + 1)
    rescaled: list[float] = (rescale_t * even / (1 + (rescale_t - 1) * even)).tolist()
    return rescaled


def predict_data(x: Tensor, t: float, velocity: Tensor, sigma_min: float) -> Tensor:
    """The data x_0 that a state at time t leads to along a straight line."""
    return (1 - sigma_min) * x - (sigma_min + (1 - sigma_min) * t) * velocity


@torch.no_grad()
def sample(
    model: VelocityModel,
    noise: Tensor,
    config: SamplerConfig,
    callback: Callback,
    *,
    name: str,
    correction: Correction | None = None,
) -> Tensor:
    """Follow the flow from noise to data.

    Args:
        model: The flow, with its condition.
        noise: State at t = 1, [...] float32.
        config: How.
        callback: Told the fraction after every step, and by a correction within one; what it raises ends the
            sampling.
        name: What is being sampled, for messages.
        correction: Asked for another velocity in every step.

    Returns:
        State at t = 0, of the noise's shape.

    Raises:
        ModelError: MODEL_DIVERGED, where the result is not finite.
    """
    x = noise
    schedule = times(config.steps, config.rescale_t)
    for step, (t, following) in enumerate(pairwise(schedule)):
        velocity = guided_velocity(model, x, t, config)
        if correction is not None:
            within = part(callback, step / config.steps, (step + 1) / config.steps)
            velocity = correction(x, t, velocity, within)
        x = x - (t - following) * velocity
        callback((step + 1) / config.steps, f"{name}: step {step + 1} of {config.steps}", {})
    if not torch.isfinite(x).all():
        raise ModelError(
            ErrorCode.MODEL_DIVERGED, f"The sampling of the {name} gave values that are not finite."
        )
    return x


def guided_velocity(model: VelocityModel, x: Tensor, t: float, config: SamplerConfig) -> Tensor:
    """Velocity at one state and time, guided where the interval says so.

    Args:
        model: The flow, with its condition.
        x: State [...] float32.
        t: Time in (0, 1].
        config: Strength, interval and rescaling of the guidance.
    """
    first, last = config.interval
    guide = first <= t <= last and config.guidance != 1
    conditional, unconditional = model(x, t, unconditional=guide)
    if unconditional is None:
        return conditional
    velocity = config.guidance * conditional + (1 - config.guidance) * unconditional
    if config.rescale == 0 or config.guidance == 0:
        return velocity
    return _rescaled(x, t, conditional, velocity, config)


def _rescaled(x: Tensor, t: float, conditional: Tensor, guided: Tensor, config: SamplerConfig) -> Tensor:
    """Guided velocity whose data has the conditional data's spread, by the share `config.rescale`."""
    data = predict_data(x, t, guided, config.sigma_min)
    spread = predict_data(x, t, conditional, config.sigma_min).std() / data.std()
    data = data * (config.rescale * spread + 1 - config.rescale)
    return ((1 - config.sigma_min) * x - data) / (config.sigma_min + (1 - config.sigma_min) * t)
