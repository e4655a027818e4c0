"""The broker at arm's length: connect, declare, take one message, publish. AMQP's errors end here.

How a worker takes jobs: it *asks* for one (`basic.get`) when it is free, queue by queue in turn, instead of
subscribing. `basic.qos` counts per consumer, and global QoS does not exist for quorum queues, so a
subscriber to two queues with prefetch 1 can hold two messages; one that asks can never hold a second one.
A busy worker is no consumer at all, and there is no consumer that the broker could cancel unheard (RabbitMQ
4.3 does so at an acknowledgement time-out). The price is a question every half second, which is nothing
beside jobs that run for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractMessage, AbstractRobustConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, DeliveryError, PublishError
from yarl import URL

from consumer.delivery import Delivery
from consumer.settings import Settings
from consumer.topology import Declared, Topology, declare
from schemas.errors import ErrorCode, ResourceError
from schemas.events import CONTENT_TYPE, Event, parse_event
from schemas.jobs import Job, routing_key

LOGGER = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 15.0
RPC_TIMEOUT_S = 15.0  # of one question to the broker; a healthy one answers in milliseconds

JSON_TYPE = "application/json"
FAILED = "The broker failed: "

_AMQP_ERRORS: tuple[type[BaseException], ...] = (*CONNECTION_EXCEPTIONS, TimeoutError)

T = TypeVar("T")


class AmqpDelivery:
    """One unacknowledged message; see `consumer.delivery.Delivery`."""

    def __init__(self, message: AbstractIncomingMessage, queue: str) -> None:
        self._message = message
        self.queue = queue

    @property
    def body(self) -> bytes:
        """The message."""
        return self._message.body

    @property
    def message_id(self) -> str | None:
        """The AMQP property `message_id`."""
        return self._message.message_id

    @property
    def headers(self) -> Mapping[str, object]:
        """The AMQP headers."""
        return self._message.headers

    async def ack(self) -> None:
        """The outcome is durable; forget the message."""
        await _guarded(self._message.ack())

    async def requeue(self) -> None:
        """Give the message back to its queue."""
        await _guarded(self._message.nack(requeue=True))


class Broker:
    """One connection. Deliveries come in by one channel, publications leave by another.

    A lost connection comes back by itself; meanwhile every method raises BROKER_UNAVAILABLE.
    """

    def __init__(self, settings: Settings, name: str = "recon") -> None:
        self._url = URL(settings.amqp_url.get_secret_value()).update_query(
            heartbeat=str(settings.heartbeat_s), reconnect_interval=str(settings.reconnect_s), name=name
        )
        self._shown_url = settings.masked_amqp_url
        self._topology: Topology = settings.topology()
        self._connection: AbstractRobustConnection | None = None
        self._out: Declared | None = None
        self._out_channel: AbstractChannel | None = None
        self._in: Declared | None = None
        self._in_channel: AbstractChannel | None = None
        self._turn = 0

    async def connect(self) -> None:
        """Connect and declare everything.

        Raises:
            ResourceError: BROKER_UNAVAILABLE.
        """
        try:
            # Ours before it connects: it goes on trying by itself until it is closed.
            self._connection = aio_pika.RobustConnection(self._url, asyncio.get_running_loop())
            await _guarded(self._connection.connect(CONNECT_TIMEOUT_S), CONNECT_TIMEOUT_S)
            self._out_channel = await _guarded(self._connection.channel(on_return_raises=True))
            self._out = await _guarded(declare(self._out_channel, self._topology))
        except ResourceError as error:
            await self.close()
            reason = error.message.removeprefix(FAILED)
            raise ResourceError(
                ErrorCode.BROKER_UNAVAILABLE, f"The broker at {self._shown_url} cannot be used: {reason}"
            ) from error
        except BaseException:
            await self.close()
            raise

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open, as far as is known: a silent loss shows after two heartbeats."""
        return self._connection is not None and self._connection.connected.is_set()

    async def close(self) -> None:
        """Close the connection; unacknowledged messages go back to their queues."""
        if self._connection is not None:
            with contextlib.suppress(ResourceError):
                await _guarded(self._connection.close())
        self._connection = self._out_channel = self._in_channel = self._out = self._in = None

    async def take(self, queues: Sequence[str]) -> AmqpDelivery | None:
        """One message of these queues, in turn; None if all are empty.

        Raises:
            ResourceError: BROKER_UNAVAILABLE.
        """
        try:
            declared = self._in or await self._open_in()
            for step in range(len(queues)):
                name = queues[(self._turn + step) % len(queues)]
                message = await _guarded(declared.queues[name].get(fail=False))
                if message is not None:
                    self._turn += step + 1
                    return AmqpDelivery(message, name)
        except BaseException:
            # A message may be on its way to us although we stopped waiting: only a closed channel returns it.
            await self.drop_deliveries()
            raise
        return None

    async def drop_deliveries(self) -> None:
        """Close the channel of the deliveries: what is not acknowledged goes back. `take` opens a new one."""
        channel, self._in_channel, self._in = self._in_channel, None, None
        if channel is not None:
            with contextlib.suppress(ResourceError):
                await _guarded(channel.close())

    async def publish_event(self, event: Event) -> None:
        """Publish a status event and wait for the broker's confirmation.

        Raises:
            ResourceError: BROKER_UNAVAILABLE.
        """
        message = aio_pika.Message(
            event.model_dump_json().encode(),
            content_type=CONTENT_TYPE,
            message_id=event.id,
            type=event.type,
            timestamp=event.time,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await self._publish(self._topology.status, "", message, mandatory=False)

    async def publish_job(self, job: Job) -> None:
        """Publish a job and wait until it is safe in its queue.

        Raises:
            ResourceError: BROKER_UNAVAILABLE; also when no queue takes the job.
        """
        message = aio_pika.Message(
            job.model_dump_json().encode(),
            content_type=JSON_TYPE,
            message_id=str(job.job_id),
            timestamp=job.created_at,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await self._publish(self._topology.jobs, routing_key(job.model), message, mandatory=True)

    async def publish_copy(
        self, delivery: Delivery, queue: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish a copy of a delivery straight to a queue and wait until it is safe there.

        Raises:
            ResourceError: BROKER_UNAVAILABLE.
        """
        # What the broker itself wrote there (`x-death`, `x-delivery-count`) speaks of the original.
        own = {name: value for name, value in delivery.headers.items() if not name.startswith("x-")}
        message = aio_pika.Message(
            delivery.body,
            content_type=JSON_TYPE,
            message_id=delivery.message_id,
            headers=cast("dict[str, Any]", {**own, **(headers or {})}),
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await self._publish("", queue, message, mandatory=True)

    async def subscribe(self, on_event: Callable[[Event], None]) -> Callable[[], Awaitable[None]]:
        """Call `on_event` with every status event from now on, also after a reconnect.

        Returns:
            A function that ends the subscription.

        Raises:
            ResourceError: BROKER_UNAVAILABLE.
        """
        connection = self._connected()
        channel = await _guarded(connection.channel(publisher_confirms=False))
        name = f"recon.watch.{uuid4().hex}"
        queue = await _guarded(channel.declare_queue(name, exclusive=True, auto_delete=True))
        await _guarded(queue.bind(self._topology.status))

        async def receive(message: AbstractIncomingMessage) -> None:
            try:
                on_event(parse_event(message.body))
            except ValueError:
                LOGGER.warning("Ignored a message on %s that is no event.", self._topology.status)

        await _guarded(queue.consume(receive, no_ack=True))

        async def end() -> None:
            with contextlib.suppress(ResourceError):
                await _guarded(channel.close())

        return end  # which also keeps the channel: a robust connection holds its channels weakly

    async def _publish(self, exchange: str, key: str, message: AbstractMessage, *, mandatory: bool) -> None:
        self._connected()
        assert self._out is not None
        assert self._out_channel is not None
        target = self._out.exchanges[exchange] if exchange else self._out_channel.default_exchange
        try:
            await _guarded(target.publish(message, key, mandatory=mandatory))
        except ResourceError as error:
            if not isinstance(error.__cause__, PublishError):
                raise
            where = f"exchange {exchange!r} with key {key!r}" if exchange else f"queue {key!r}"
            raise ResourceError(
                ErrorCode.BROKER_UNAVAILABLE, f"The broker returned the message: nothing takes {where}."
            ) from error

    async def _open_in(self) -> Declared:
        self._in_channel = await _guarded(self._connected().channel())
        self._in = await _guarded(declare(self._in_channel, self._topology))
        return self._in

    def _connected(self) -> AbstractRobustConnection:
        if self._connection is None:
            raise ResourceError(ErrorCode.BROKER_UNAVAILABLE, "There is no connection to the broker.")
        return self._connection


async def _guarded(awaitable: Awaitable[T], timeout_s: float = RPC_TIMEOUT_S) -> T:
    """Await an answer of the broker, in bounded time, in our own terms."""
    try:
        async with asyncio.timeout(timeout_s):
            return await awaitable
    except _AMQP_ERRORS as error:
        text = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        if isinstance(error, DeliveryError) and not isinstance(error, PublishError):
            text = "it did not accept the message"
        raise ResourceError(ErrorCode.BROKER_UNAVAILABLE, FAILED + text) from error
    except asyncio.CancelledError as error:
        # aiormq cancels its waiters when the connection is lost; that is not a cancel of this task.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ResourceError(ErrorCode.BROKER_UNAVAILABLE, "The broker's connection was lost.") from error
