import itertools
import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.progress import ProgressReport, ProgressTracker
from pipeline.stages import WEIGHTS, stage_weights
from schemas.jobs import MODELS

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)


def tracker_of(weights: dict[str, float]) -> tuple[ProgressTracker, list[ProgressReport], Clock]:
    clock, reports = Clock(), []
    return ProgressTracker(weights, reports.append, clock=clock, now=clock.now), reports, clock


def test_stages_share_the_whole_by_their_weights():
    tracker, reports, _ = tracker_of({"a": 1, "b": 3})
    with tracker.stage("a"):
        pass
    with tracker.stage("b") as report:
        report(0.5, "half", {"psnr_db": 20.0})
    assert [r.fraction for r in reports] == [0.0, 0.25, 0.25, 0.625, 1.0]
    assert reports[3] == ProgressReport("b", 0.625, "half", {"psnr_db": 20.0}, None)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=8), min_size=1, max_size=5))
def test_the_fraction_never_falls_and_never_leaves_the_unit_interval(stages):
    tracker, reports, clock = tracker_of({str(i): 1.0 + i for i in range(len(stages))})
    for index, fractions in enumerate(stages):
        with tracker.stage(str(index)) as report:
            for fraction in fractions:
                clock.seconds += 1
                report(fraction, "", {})
    values = [r.fraction for r in reports]
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert all(0 <= value <= 1 for value in values)
    assert values[-1] == pytest.approx(1.0)
    assert all(r.eta_s is None or (math.isfinite(r.eta_s) and r.eta_s >= 0) for r in reports)


def test_time_left_is_unknown_at_first_and_right_for_steady_work():
    tracker, reports, clock = tracker_of({"a": 1})
    with tracker.stage("a") as report:
        for step in range(100):
            clock.seconds += 1
            report((step + 1) / 100, "", {})
    by_second = {step: r.eta_s for step, r in enumerate(reports[1:-1], start=1)}
    assert by_second[1] is None
    assert by_second[4] is None
    for second in range(5, 100):
        assert by_second[second] == pytest.approx(100 - second)
    assert reports[-1].eta_s == 0.0


def test_time_left_is_smoothed_when_the_pace_changes():
    tracker, reports, clock = tracker_of({"a": 1})
    with tracker.stage("a") as report:
        clock.seconds = 10
        report(0.5, "", {})
        clock.seconds = 11
        report(0.9, "", {})
    # The extrapolation alone falls from 10 s to 1.2 s at once.
    assert 1.3 < reports[2].eta_s < 9


def test_what_is_left_is_shared_anew_between_two_stages():
    tracker, reports, _ = tracker_of({"a": 1, "b": 1, "c": 8})
    with tracker.stage("a"):
        pass
    tracker.reweigh({"a": 5, "b": 2, "c": 1})
    with tracker.stage("b") as report:
        report(0.5, "", {})
    with tracker.stage("c"):
        pass
    assert [r.fraction for r in reports] == pytest.approx([0, 0.1, 0.1, 0.4, 0.7, 0.7, 1])


def test_estimating_cameras_is_a_part_of_the_job_that_shows():
    usual, weights = WEIGHTS["nvdiffrec"], stage_weights("nvdiffrec", estimating=True)
    assert tuple(weights) == tuple(usual)
    assert weights["validate"] > 10 * usual["validate"]
    assert {name for name in weights if weights[name] != usual[name]} == {"validate"}


def test_timings_are_those_of_the_clock():
    tracker, _, clock = tracker_of({"a": 1, "b": 1})
    clock.seconds = 5
    with tracker.stage("a"):
        clock.seconds += 2.5
    with tracker.stage("b"):
        clock.seconds += 1
    first, second = tracker.timings
    assert (first.stage, first.seconds, first.started_at) == ("a", 2.5, START + timedelta(seconds=5))
    assert (second.stage, second.seconds, second.started_at) == ("b", 1.0, START + timedelta(seconds=7.5))


def test_a_stage_that_fails_is_not_recorded_as_finished():
    tracker, reports, _ = tracker_of({"a": 1})
    with pytest.raises(RuntimeError), tracker.stage("a"):
        raise RuntimeError
    assert tracker.timings == []
    assert reports[-1].fraction == 0


def test_figures_that_json_cannot_hold_are_left_out():
    tracker, reports, _ = tracker_of({"a": 1})
    with tracker.stage("a") as report:
        report(0.5, "", {"loss": math.nan, "psnr_db": math.inf, "step": 3})
    assert reports[1].metrics == {"step": 3.0}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_the_same_stages_and_its_own_weights(model):
    names = ("download", "validate", "reconstruct", "export", "quality", "preview", "upload")
    assert tuple(stage_weights(model)) == names
    assert tuple(stage_weights(model, previews=False)) == tuple(n for n in names if n != "preview")
    assert sum(WEIGHTS[model].values()) == pytest.approx(100)
