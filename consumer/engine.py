"""The engine: a spawned child that holds models and GPU, runs jobs one by one and decides nothing.

The main thread computes. A second thread listens on the pipe, so that a cancel reaches the running job;
it also ends the process when the control plane is gone, because an orphan must not keep the GPU.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import signal
import threading
from uuid import UUID

from consumer import log
from consumer.protocol import (
    Cancel,
    Cancelled,
    EngineEvent,
    EnginePipeline,
    Failed,
    Finished,
    JobEnd,
    LoadFailed,
    Pipe,
    PipelineFactory,
    Progress,
    Ready,
    Run,
    Stop,
)
from pipeline.cancel import CancelToken
from pipeline.progress import ProgressReport
from pipeline.settings import PipelineSettings
from schemas.errors import ErrorCode, JobCancelled, ReconError, ResourceError
from schemas.jobs import Job

LOGGER = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_UNFIT = 1  # loading failed, or the last job left the process unfit for another
EXIT_ORPHANED = 3  # the control plane is gone

MAX_FOREIGN_MESSAGE = 500  # characters of a foreign exception that travel in our error


def engine_main(pipe: Pipe, factory: PipelineFactory, config: log.LogConfig | None) -> None:
    """Entry point of the child process."""
    # Ctrl-C and a supervisor such as systemd signal every process of the group; only the control plane
    # may decide what becomes of the running job.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if config is not None:
        log.configure(config)
    raise SystemExit(Engine(pipe).serve(factory))


def make_pipeline(settings: PipelineSettings) -> EnginePipeline:
    """The real pipeline. Imports torch, therefore called in the engine's process only."""
    from pipeline.run import Pipeline

    pipeline: EnginePipeline = Pipeline(settings)
    return pipeline


def pipeline_factory(settings: PipelineSettings) -> PipelineFactory:
    """A picklable factory of the real pipeline."""
    return functools.partial(make_pipeline, settings)


class Engine:
    """The child's loop.

    Args:
        pipe: The engine's end.
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Job, CancelToken] | None] = queue.SimpleQueue()
        self._current: tuple[UUID, CancelToken] | None = None  # written by the listener only

    def serve(self, factory: PipelineFactory) -> int:
        """Load, then run jobs until told to stop; returns the exit code."""
        threading.Thread(target=self._listen, name="engine-listener", daemon=True).start()
        try:
            pipeline = factory()
            capabilities = pipeline.load()
        except ReconError as error:
            self._send(LoadFailed(error.info()))  # the control plane tells it
            return EXIT_UNFIT
        except Exception as error:
            LOGGER.exception("The models could not be loaded.")
            self._send(LoadFailed(translate(error).info()))
            return EXIT_UNFIT
        self._send(Ready(capabilities))
        while (work := self._jobs.get()) is not None:
            end = self._run(pipeline, *work)
            self._send(end)
            if isinstance(end, Failed) and end.leaves:
                return EXIT_UNFIT
        return EXIT_OK

    def _run(self, pipeline: EnginePipeline, job: Job, token: CancelToken) -> JobEnd:
        """Three kinds of ending; anything else (SystemExit, say) ends the process, which the parent sees."""

        def emit(report: ProgressReport) -> None:
            self._send(
                Progress(
                    job.job_id, report.stage, report.fraction, report.message, report.metrics, report.eta_s
                )
            )

        with log.job_id_context(job.job_id):
            try:
                token.check()
                outcome = pipeline.run(job, cancel=token, emit=emit)
            except JobCancelled as cancelled:
                return Cancelled(job.job_id, cancelled.reason)
            except ReconError as error:
                return _failed(job, error)
            except Exception as error:
                LOGGER.exception("The job failed in an unforeseen way.")
                return _failed(job, translate(error))
        return Finished(job.job_id, outcome.quality, outcome.output, outcome.manifest)

    def _listen(self) -> None:
        while True:
            try:
                command = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(EXIT_ORPHANED)  # the main thread may be deep in a kernel; do not wait for it
            match command:
                case Run(job):
                    token = CancelToken()
                    self._current = (job.job_id, token)
                    self._jobs.put((job, token))
                case Cancel(job_id, reason):
                    if self._current is not None and self._current[0] == job_id:
                        self._current[1].cancel(reason)
                case Stop():
                    self._jobs.put(None)

    def _send(self, event: EngineEvent) -> None:
        with self._sending:
            self._pipe.send(event)


def _failed(job: Job, error: ReconError) -> Failed:
    # After a fault of the GPU every further call in this process fails too.
    return Failed(job.job_id, error.info(), leaves=error.code is ErrorCode.GPU_UNAVAILABLE)


def translate(error: Exception) -> ReconError:
    """A foreign exception in our own terms."""
    if isinstance(error, ReconError):
        return error
    from pipeline.failures import translate as machine_failure  # imports torch: in the engine's process only

    text = f"{type(error).__name__}: {error}"[:MAX_FOREIGN_MESSAGE]
    return machine_failure(error) or ResourceError(
        ErrorCode.INTERNAL_ERROR, f"The engine failed in an unforeseen way: {text}"
    )
