"""The control plane: one job at a time, from the queues to the engine and back. Never computes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from consumer.connection import AmqpDelivery, Broker
from consumer.delivery import Ending
from consumer.engine import pipeline_factory
from consumer.events import source
from consumer.handler import Handler
from consumer.health import answering, json_answer
from consumer.log import LogConfig
from consumer.protocol import PipelineFactory
from consumer.publisher import EventPublisher
from consumer.records import RecordKeeper
from consumer.settings import Settings
from consumer.supervisor import SHUTDOWN, UNKNOWN, EngineState, Supervisor
from pipeline.capabilities import Capabilities
from pipeline.versions import worker_version
from schemas.errors import ReconError
from schemas.events import Unavailable, WorkerData, WorkerOffline, WorkerOnline
from schemas.health import Health, HealthStatus, RunningJob
from schemas.jobs import ModelName

LOGGER = logging.getLogger(__name__)

MAX_LOAD_FAILURES = 3
"""Starts of the engine that may fail in a row before the worker gives up and lets its own supervisor see."""

END_JOB_POLL_S = 0.2

GIB = 2**30


class Worker:
    """A worker: control plane and engine.

    Args:
        settings: All there is to know.
        factory: Makes the pipeline in the engine; the real one by default.
        log_config: How the engine logs.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        factory: PipelineFactory | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        self._settings = settings
        self._topology = settings.topology()
        self._version = worker_version()
        self._broker = Broker(settings, name=f"recon worker {settings.worker_id}")
        self._publisher = EventPublisher(self._broker, patience_s=settings.broker_patience_s)
        self.engine = Supervisor(
            factory or pipeline_factory(settings.pipeline()),
            load_timeout_s=settings.load_timeout_s,
            cancel_grace_s=settings.cancel_grace_s,
            log_config=log_config,
        )
        self._handler = Handler(
            settings,
            broker=self._broker,
            publisher=self._publisher,
            records=RecordKeeper(settings.s3(), patience_s=settings.storage_patience_s),
            engine=self.engine,
        )
        self._stopping = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self._told = UNKNOWN
        self._can_take = True  # as the last question for a job has shown
        self.ready = asyncio.Event()
        """Set once the worker takes jobs."""

    def stop(self) -> None:
        """Ask for an orderly end: no new job; the running one gets its grace time, then goes back."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self.engine.state is EngineState.BUSY:
            LOGGER.info("Waiting up to %g s for the running job.", self._settings.shutdown_grace_s)
        self._ending = asyncio.get_running_loop().create_task(self._end_job())

    async def run(self) -> None:
        """Work until `stop`.

        Raises:
            ReconError: the engine cannot be started.
        """
        LOGGER.info(
            "Worker %s, version %s, starts; its broker is %s.",
            self._settings.worker_id,
            self._version,
            self._settings.masked_amqp_url,
        )
        answers = {"/health": lambda: json_answer(self.health())}
        async with answering(self._settings.health_host, self._settings.health_port, answers):
            try:
                await self._start_engine()
                await self._connect()
                await self._work()
            finally:
                if self._ending is not None:
                    self._ending.cancel()
                if self.ready.is_set():  # also where the engine has failed for good
                    await self._announce(WorkerOffline)
                await self.engine.stop()
                await self._broker.close()
                LOGGER.info("Worker %s has stopped.", self._settings.worker_id)

    def health(self) -> Health:
        """How the worker is, from memory."""
        found, job = self.engine.capabilities, self.engine.job
        memory = found.gpu_memory_bytes
        return Health(
            status=self._status(),
            worker_id=self._settings.worker_id,
            version=self._version,
            models=list(found.models),
            unavailable=_reasons(found),
            engine=self.engine.state,
            device=found.device,
            gpu_memory_gib=None if memory is None else round(memory / GIB, 2),
            job=None if job is None else RunningJob(job_id=job.job_id, model=job.model),
            broker_connected=self._broker.is_connected,
        )

    def _status(self) -> HealthStatus:
        if self._stopping.is_set():
            return "stopping"
        if not self.ready.is_set():
            return "starting"
        working = self.engine.state in (EngineState.READY, EngineState.BUSY)
        return "ok" if working and self._can_take and self._broker.is_connected else "degraded"

    async def _end_job(self) -> None:
        """Cancel what runs after the grace time; again and again, for a job may just be about to begin."""
        await asyncio.sleep(self._settings.shutdown_grace_s)
        while True:
            self.engine.cancel(SHUTDOWN)
            await asyncio.sleep(END_JOB_POLL_S)

    async def _start_engine(self) -> None:
        """A few tries: a start may fail for what passes by, such as memory that is just being freed."""
        for failures in range(1, MAX_LOAD_FAILURES + 1):
            try:
                await self._unless_stopping(self.engine.ensure_ready())
                await self._tell_capabilities()
                return
            except ReconError as error:
                LOGGER.error("The engine did not start: %s", error)
                if not error.retryable or failures == MAX_LOAD_FAILURES or self._stopping.is_set():
                    raise
            await self._pause(self._settings.reconnect_s)

    async def _tell_capabilities(self) -> None:
        """A new engine may find another machine than the last one: weights that came, a GPU that went."""
        found = self.engine.capabilities
        if found == self._told:
            return
        self._told = found
        LOGGER.info("Serving %s on %s.", ", ".join(found.models) or "no model", found.device)
        for model, reason in found.unavailable.items():
            LOGGER.warning("Not serving %s: %s: %s", model, reason.code, reason.message)
        if self.ready.is_set():
            await self._announce(WorkerOnline)

    async def _connect(self) -> None:
        """The broker may start later than we do."""
        while not self._stopping.is_set():
            try:
                await self._broker.connect()
                await self._announce(WorkerOnline)
                self.ready.set()
                return
            except ReconError as error:
                LOGGER.warning("%s", error)
            await self._pause(self._settings.reconnect_s)

    async def _work(self) -> None:
        while not self._stopping.is_set():
            await self._start_engine()  # before a job is taken, so that no job waits in our hand meanwhile
            if self._stopping.is_set():
                return
            try:
                delivery = await self._broker.take(self._queues())
            except ReconError as error:
                self._can_take = False
                LOGGER.warning("No jobs for the moment: %s", error.message)
                await self._pause(self._settings.reconnect_s)
                continue
            self._can_take = True
            if delivery is None:
                await self._pause(self._settings.poll_s)
            elif self._stopping.is_set():
                with contextlib.suppress(ReconError):  # the end of the connection gives it back too
                    await delivery.requeue()
            else:
                await self._handle(delivery)

    def _queues(self) -> list[str]:
        return [self._topology.job_queue(model) for model in self.engine.capabilities.models]

    async def _handle(self, delivery: AmqpDelivery) -> None:
        try:
            ending = await self._handler.handle(delivery)
        except ReconError as error:
            LOGGER.error("The delivery could not be settled and will come again: %s", error)
        except Exception:
            # A mistake of ours must not end the worker, and the job must not stay in our hand.
            LOGGER.exception("The delivery failed in an unforeseen way and will come again.")
        else:
            if ending is Ending.NO_STORAGE:  # the job is in its queue again: do not spin
                await self._pause(self._settings.reconnect_s)
            return
        await self._broker.drop_deliveries()
        await self._pause(self._settings.reconnect_s)

    async def _announce(self, kind: type[WorkerOnline] | type[WorkerOffline]) -> None:
        found = self.engine.capabilities
        data = WorkerData(
            worker_id=self._settings.worker_id,
            models=list(found.models),
            unavailable=_reasons(found),
            device=found.device,
            version=self._version,
        )
        event = kind(source=source(self._settings.worker_id), data=data)
        await self._publisher.best_effort(event)

    async def _unless_stopping(self, work: Coroutine[Any, Any, None]) -> None:
        """Do some work, but give it up when the worker stops."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            for each in (task, stop):
                each.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not into a stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


def _reasons(found: Capabilities) -> dict[ModelName, Unavailable]:
    return {
        model: Unavailable(code=reason.code, message=reason.message)
        for model, reason in found.unavailable.items()
    }
