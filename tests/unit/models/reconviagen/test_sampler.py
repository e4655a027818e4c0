"""The sampler against flows that can be solved by hand."""

import pytest
import torch
from torch import Tensor

from models.reconviagen.sampler import (
    SamplerConfig,
    draw_noise,
    guided_velocity,
    predict_data,
    sample,
    seeded,
    times,
)
from schemas.errors import ErrorCode, JobCancelled, ModelError


def silent(fraction: float, message: str, metrics: dict[str, float]) -> None:
    pass


class StraightFlow:
    """All states lead to one point of data with the condition, to another without."""

    def __init__(self, data: Tensor, other: Tensor | None = None, sigma_min: float = 1e-5) -> None:
        self.data, self.other, self.sigma_min = data, other, sigma_min
        self.asked: list[tuple[float, bool]] = []

    def towards(self, x: Tensor, t: float, data: Tensor) -> Tensor:
        return ((1 - self.sigma_min) * x - data) / (self.sigma_min + (1 - self.sigma_min) * t)

    def __call__(self, x: Tensor, t: float, *, unconditional: bool) -> tuple[Tensor, Tensor | None]:
        self.asked.append((t, unconditional))
        without = self.towards(x, t, self.other) if unconditional and self.other is not None else None
        return self.towards(x, t, self.data), without


@pytest.mark.parametrize("rescale_t", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 7])
def test_a_straight_flow_ends_exactly_at_its_data(steps: int, rescale_t: float) -> None:
    data, noise = torch.randn(4, 5), torch.randn(4, 5)
    config = SamplerConfig(steps=steps, guidance=1.0, rescale_t=rescale_t, sigma_min=0.0)
    found = sample(StraightFlow(data, sigma_min=0.0), noise, config, silent, name="points")
    torch.testing.assert_close(found, data, atol=1e-6, rtol=0)


def test_sigma_min_is_the_noise_that_is_left() -> None:
    data, noise = torch.zeros(64), torch.randn(64)
    flow = StraightFlow(data, sigma_min=0.1)
    found = sample(flow, noise, SamplerConfig(steps=9, guidance=1.0, sigma_min=0.1), silent, name="points")
    torch.testing.assert_close(found, 0.1 * noise, atol=1e-6, rtol=0)


def test_times_are_finer_near_the_noise_by_the_factor() -> None:
    assert times(4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert times(2, 3.0) == [1.0, 0.75, 0.0]
    widths = [a - b for a, b in zip(times(50, 3.0), times(50, 3.0)[1:], strict=False)]
    assert widths == sorted(widths)


def test_guidance_goes_as_far_beyond_the_condition_as_its_strength_says() -> None:
    data, other = torch.randn(6), torch.randn(6)
    for strength in (0.0, 0.5, 1.0, 7.5):
        config = SamplerConfig(steps=5, guidance=strength, sigma_min=0.0)
        found = sample(StraightFlow(data, other, 0.0), torch.randn(6), config, silent, name="points")
        torch.testing.assert_close(found, other + strength * (data - other), atol=1e-5, rtol=0)


def test_outside_the_interval_only_the_conditional_row_runs() -> None:
    flow = StraightFlow(torch.ones(3), torch.zeros(3))
    config = SamplerConfig(steps=10, guidance=3.0, interval=(0.5, 0.9))
    sample(flow, torch.randn(3), config, silent, name="points")
    assert [t for t, unconditional in flow.asked if unconditional] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    assert len(flow.asked) == 10


def test_guidance_of_strength_one_never_asks_for_the_unconditional_row() -> None:
    flow = StraightFlow(torch.ones(3), torch.zeros(3))
    sample(flow, torch.randn(3), SamplerConfig(steps=4, guidance=1.0), silent, name="points")
    assert not any(unconditional for _, unconditional in flow.asked)


def test_rescaled_guidance_keeps_the_spread_of_the_conditional_data() -> None:
    flow = StraightFlow(torch.randn(500), torch.randn(500))
    x, t = torch.randn(500), 0.6
    spreads = {}
    for share in (0.0, 0.5, 1.0):
        config = SamplerConfig(steps=1, guidance=5.0, rescale=share)
        velocity = guided_velocity(flow, x, t, config)
        spreads[share] = float(predict_data(x, t, velocity, config.sigma_min).std())
    assert spreads[1.0] == pytest.approx(float(flow.data.std()), rel=1e-4)
    assert spreads[0.0] == pytest.approx(float((flow.other + 5 * (flow.data - flow.other)).std()), rel=1e-4)
    assert spreads[0.5] == pytest.approx((spreads[0.0] + spreads[1.0]) / 2, rel=1e-4)


def test_a_seed_fixes_the_noise_as_the_global_generator_would() -> None:
    generator = seeded(7)
    drawn = [draw_noise((1, 8, 4, 4, 4), generator, "cpu"), draw_noise((37, 8), generator, "cpu")]
    torch.manual_seed(7)
    for noise in drawn:
        assert torch.equal(noise, torch.randn(noise.shape))
    assert not torch.equal(draw_noise((37, 8), seeded(8), "cpu"), draw_noise((37, 8), seeded(7), "cpu"))


def test_a_correction_replaces_the_velocity_and_reports_within_its_step() -> None:
    heard: list[float] = []
    seen: list[float] = []

    def towards_two(x: Tensor, t: float, velocity: Tensor, callback) -> Tensor:
        seen.append(t)
        callback(0.5, "half", {})
        return (x - 2) / t if t <= 0.5 else velocity

    config = SamplerConfig(steps=4, guidance=1.0, sigma_min=0.0)
    flow, noise = StraightFlow(torch.zeros(3), sigma_min=0.0), torch.randn(3)
    found = sample(
        flow,
        noise,
        config,
        lambda fraction, *_: heard.append(fraction),
        name="points",
        correction=towards_two,
    )
    torch.testing.assert_close(found, torch.full((3,), 2.0))
    assert seen == [1.0, 0.75, 0.5, 0.25]
    assert heard == [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]


def test_a_cancel_ends_the_sampling_after_the_step_in_which_it_comes() -> None:
    flow = StraightFlow(torch.zeros(3))

    def cancel(fraction: float, message: str, metrics: dict[str, float]) -> None:
        if fraction >= 0.3:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        sample(flow, torch.randn(3), SamplerConfig(steps=10, guidance=1.0), cancel, name="points")
    assert len(flow.asked) == 3


def test_values_that_are_not_finite_are_a_failure_of_the_model() -> None:
    flow = StraightFlow(torch.tensor([0.0, float("nan")]))
    with pytest.raises(ModelError) as caught:
        sample(flow, torch.randn(2), SamplerConfig(steps=3, guidance=1.0), silent, name="points")
    assert caught.value.code == ErrorCode.MODEL_DIVERGED


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rescale_t": 0.0}, {"sigma_min": -0.1}, {"rescale": 1.5}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="not a way to sample"):
        SamplerConfig(**{"steps": 3, "guidance": 1.0, **wrong})  # type: ignore[arg-type]
