import logging
import os
from uuid import UUID

import pytest

from pipeline.context import job_log, sweep, work_folder
from schemas.jobs import NvdiffrecJob

JOB = NvdiffrecJob(job_id=UUID(int=5), input="file:///in", output="file:///out")


def test_the_folder_is_named_after_the_job_and_removed_whatever_happens(tmp_path):
    with work_folder(tmp_path / "root", JOB) as folder:
        assert folder.name.startswith(str(JOB.job_id))
        assert sorted(p.name for p in folder.iterdir()) == ["input", "results"]
    with pytest.raises(RuntimeError), work_folder(tmp_path / "root", JOB):
        raise RuntimeError
    assert list((tmp_path / "root").iterdir()) == []


def test_what_the_same_process_left_behind_is_not_mixed_in(tmp_path):
    with work_folder(tmp_path, JOB) as folder:
        (folder / "results" / "stale").write_text("x")
        with work_folder(tmp_path, JOB) as again:
            assert list((again / "results").iterdir()) == []


def test_the_sweep_takes_folders_of_dead_processes_and_of_its_own_number(tmp_path):
    dead, own, alive, other = (
        tmp_path / f"{JOB.job_id}.{owner}" for owner in ("999999999", os.getpid(), os.getppid(), "x")
    )
    unrelated = tmp_path / "models"
    for folder in (dead, own, alive, other, unrelated):
        folder.mkdir()
    (own / "input").mkdir()
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted((alive, other, unrelated))


def test_the_job_log_holds_what_pipeline_and_models_say_while_it_is_open(tmp_path):
    """Whatever the level of the rest: `recon run` shows warnings only."""
    assert logging.getLogger().level == logging.WARNING
    with job_log(tmp_path / "job.log"):
        logging.getLogger("pipeline.x").info("during %s", "the job")
        logging.getLogger("models.y").warning("careful")
        logging.getLogger("pipeline.x").debug("too much")
        logging.getLogger("elsewhere").info("not ours")
    logging.getLogger("pipeline.x").info("after")
    text = (tmp_path / "job.log").read_text()
    assert "INFO pipeline.x: during the job" in text
    assert "careful" in text
    assert "after" not in text
    assert "not ours" not in text
    assert "too much" not in text
    assert logging.getLogger("pipeline").level == logging.NOTSET
    assert logging.getLogger("pipeline").handlers == []
