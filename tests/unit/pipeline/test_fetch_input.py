import threading
from pathlib import Path

import pytest
from input_folders import SPOT, copy_spot

from pipeline.cancel import CancelToken
from pipeline.ingest import fetch_input, plan_input
from pipeline.parallel import run_parallel
from pipeline.settings import Limits, S3Settings
from pipeline.storage import open_store
from schemas.errors import ErrorCode, InvalidJob, JobCancelled
from schemas.options import NvdiffrecOptions


def planned(source: Path):
    store = open_store(f"file://{source}", S3Settings())
    return store, plan_input(store, NvdiffrecOptions(), Limits())


def fetch(source: Path, target: Path, *, limits: Limits | None = None, cancel: CancelToken | None = None):
    store, plan = planned(source)
    reports = []
    fetch_input(
        store,
        plan,
        target,
        limits or Limits(),
        threads=3,
        cancel=cancel or CancelToken(),
        report=lambda fraction, message, metrics: reports.append(fraction),
    )
    return plan, reports


def test_exactly_the_files_of_the_plan_arrive_unchanged(tmp_path):
    source = copy_spot(tmp_path)
    (source / "notes.txt").write_text("not part of it")
    plan, reports = fetch(source, tmp_path / "target")
    arrived = {p.relative_to(tmp_path / "target").as_posix(): p for p in (tmp_path / "target").rglob("*.*")}
    assert set(arrived) == set(plan.sizes)
    for key, path in arrived.items():
        assert path.read_bytes() == (SPOT / key).read_bytes()
    assert reports[-1] == pytest.approx(1.0)


def test_bytes_are_counted_as_they_arrive_and_not_as_they_were_announced(tmp_path):
    with pytest.raises(InvalidJob) as caught:
        fetch(SPOT, tmp_path / "target", limits=Limits(max_input_bytes=30_000))
    assert caught.value.code is ErrorCode.INPUT_TOO_LARGE
    with pytest.raises(InvalidJob) as caught:
        fetch(SPOT, tmp_path / "target", limits=Limits(max_file_bytes=1000))
    assert caught.value.code is ErrorCode.INPUT_TOO_LARGE


def test_a_cancel_stops_the_download(tmp_path):
    cancel = CancelToken()
    cancel.cancel("shutdown")
    with pytest.raises(JobCancelled) as caught:
        fetch(SPOT, tmp_path / "target", cancel=cancel)
    assert caught.value.reason == "shutdown"


def test_parallel_tasks_all_run():
    done, ticks = [], []
    run_parallel([lambda i=i: done.append(i) for i in range(20)], 4, lambda: ticks.append(1))
    assert sorted(done) == list(range(20))
    assert ticks


def test_the_first_failure_ends_parallel_tasks_and_unstarted_ones_never_run():
    started, gate = [], threading.Event()

    def task(index: int) -> None:
        started.append(index)
        if index == 0:
            raise ValueError("first")
        gate.wait(5)

    def tick() -> None:
        gate.set()

    threading.Timer(0.2, gate.set).start()
    with pytest.raises(ValueError, match="first"):
        run_parallel([lambda i=i: task(i) for i in range(100)], 2, tick)
    assert len(started) < 10
