"""What one running job owns: its work folder, its log, its progress."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.cancel import CancelToken
from pipeline.progress import ProgressTracker, StageReporter
from schemas.jobs import Job

LOGGER = logging.getLogger(__name__)

_LOGGED = ("pipeline", "models")


@dataclass(frozen=True)
class JobContext:
    """One running job.

    Attributes:
        job: What to do.
        work: Folder of this attempt, removed at its end.
        cancel: Polled by every loop.
        tracker: Progress and timings.
    """

    job: Job
    work: Path
    cancel: CancelToken
    tracker: ProgressTracker

    @property
    def input(self) -> Path:
        """Folder of the downloaded input."""
        return self.work / "input"

    @property
    def results(self) -> Path:
        """Folder whose files become the result."""
        return self.work / "results"

    @property
    def log_file(self) -> Path:
        """The job's log, outside of the results because it grows until they are uploaded."""
        return self.work / "job.log"

    @contextmanager
    def stage(self, name: str) -> Iterator[StageReporter]:
        """Run a stage with a line in the log at its start and its end; its reports poll the cancel token.

        Raises:
            JobCancelled: before the stage, or from a report inside of it.
        """
        self.cancel.check()
        LOGGER.info("job %s: %s started", self.job.job_id, name)
        started = time.monotonic()
        with self.tracker.stage(name) as report:

            def checked(fraction: float, message: str, metrics: dict[str, float]) -> None:
                self.cancel.check()
                report(fraction, message, metrics)

            yield checked
        LOGGER.info("job %s: %s finished in %.2f s", self.job.job_id, name, time.monotonic() - started)


@contextmanager
def work_folder(root: Path, job: Job) -> Iterator[Path]:
    """A folder named after job and process, with `input` and `results` in it; removed at the end."""
    folder = root / f"{job.job_id}.{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("input", "results"):
        (folder / name).mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove work folders whose process is gone: a killed engine cannot clean up after itself.

    To be called before the first job: a folder with this process's own number is taken for a left-over too,
    because an engine that is started again in a container often gets the number it had.
    """
    for folder in root.glob("????????-????-????-????-????????????.*"):
        owner = folder.name.rpartition(".")[2]
        if owner.isdigit() and (int(owner) == os.getpid() or not _alive(int(owner))):
            LOGGER.info("removing the left-over work folder %s", folder.name)
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextmanager
def job_log(path: Path) -> Iterator[None]:
    """Also write what pipeline and models log to a file, in UTC, however little is shown elsewhere."""
    handler = logging.FileHandler(path, encoding="utf-8")
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    levels = {logger: logger.level for logger in map(logging.getLogger, _LOGGED)}
    for logger in levels:
        logger.addHandler(handler)
        logger.setLevel(min(logging.INFO, logger.getEffectiveLevel()))
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()
