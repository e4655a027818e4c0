"""Weighted, monotone progress over the stages of a job, an estimate of the time left, and true timings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from schemas.base import utc_now
from schemas.quality import StageTiming

MIN_ELAPSED_S = 2.0
MIN_FRACTION = 0.05
"""Before both are reached, the time left would be a guess: None is reported."""

SMOOTHING = 0.2
"""Time constant of the smoothed estimate, as a share of the time passed: jobs last seconds or hours."""


@dataclass(frozen=True)
class ProgressReport:
    """How far a job has come.

    Attributes:
        stage: Name of the running stage.
        fraction: Share of the whole job, in [0, 1]; never falls.
        message: For people.
        metrics: Figures of the stage; all finite.
        eta_s: Estimated seconds to the end; None while unknown.
    """

    stage: str
    fraction: float
    message: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    eta_s: float | None = None


StageReporter = Callable[[float, str, dict[str, float]], None]
"""Called by a running stage: its own fraction in [0, 1], a message, metrics."""


class ProgressTracker:
    """Turns the fractions of single stages into the progress of the job.

    Args:
        weights: Share of each stage, in order of execution; any positive unit.
        emit: Receives every report.
        clock: Monotonic seconds.
        now: Wall clock for the start of a stage, aware.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        emit: Callable[[ProgressReport], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        total = sum(weights.values())
        self._share = {name: weight / total for name, weight in weights.items()}
        self._emit = emit
        self._clock = clock
        self._now = now
        self._started = clock()
        self._done = 0.0
        self._fraction = 0.0
        self._eta = _Eta()
        self.timings: list[StageTiming] = []
        """Every stage that has finished, in order."""

    @contextmanager
    def stage(self, name: str) -> Iterator[StageReporter]:
        """Run a stage: reports its start and its end, and records how long it took.

        A stage that raises is not recorded as finished.

        Raises:
            KeyError: the stage has no weight.
        """
        share, base = self._share[name], self._done

        def report(fraction: float, message: str = "", metrics: dict[str, float] | None = None) -> None:
            inside = min(max(fraction, 0.0), 1.0) if math.isfinite(fraction) else 0.0
            self._report(name, base + share * inside, message, metrics or {})

        started_at, started = self._now(), self._clock()
        report(0.0)
        yield report
        seconds = max(0.0, self._clock() - started)
        self.timings.append(StageTiming(stage=name, started_at=started_at, seconds=seconds))
        self._done = base + share
        report(1.0)

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """Share what is left among the stages to come by other weights, between two stages.

        Args:
            weights: Of all stages; those that have finished keep the share they had.
        """
        finished = {timing.stage for timing in self.timings}
        left = {name: weight for name, weight in weights.items() if name not in finished}
        unit = (1.0 - self._done) / sum(left.values())
        self._share |= {name: weight * unit for name, weight in left.items()}

    def _report(self, stage: str, fraction: float, message: str, metrics: dict[str, float]) -> None:
        self._fraction = max(self._fraction, min(fraction, 1.0))
        eta = self._eta.update(self._clock() - self._started, self._fraction)
        finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
        self._emit(ProgressReport(stage, self._fraction, message, finite, eta))


class _Eta:
    """Time left: the total time is extrapolated, smoothed, and what has passed is taken away."""

    def __init__(self) -> None:
        self._total: float | None = None
        self._last = 0.0

    def update(self, elapsed: float, fraction: float) -> float | None:
        if elapsed < MIN_ELAPSED_S or fraction < MIN_FRACTION:
            return None
        extrapolated = elapsed / fraction
        if self._total is None:
            self._total = extrapolated
        else:
            weight = 1.0 - math.exp(-max(0.0, elapsed - self._last) / (SMOOTHING * elapsed))
            self._total += weight * (extrapolated - self._total)
        self._last = elapsed
        # At the very end the smoothed total lags behind what is known for certain.
        return 0.0 if fraction >= 1.0 else max(0.0, self._total - elapsed)
