"""Exchanges, queues and bindings as value objects, declared alike by whoever comes first.

Workers and clients both declare all of it: a job published before any worker ever ran is kept, not lost.
RabbitMQ compares the arguments of a queue that exists already, so everybody must use the same settings.

The acknowledgement time-out: `x-consumer-timeout` is honoured by RabbitMQ 3.12 and later. Older servers
accept the argument without effect (tried on 3.10.8); there, `consumer_timeout` in `rabbitmq.conf` must
be raised above the longest job, because its default of 30 minutes would take a running job away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.jobs import MODELS, ModelName, routing_key

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractQueue

# Above the longest `time_limit_s` a job may ask for (24 h), with an hour for download and upload.
CONSUMER_TIMEOUT_MS = 25 * 3600 * 1000


@dataclass(frozen=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: str


@dataclass(frozen=True)
class Queue:
    """A durable quorum queue: replicated where there are several brokers, with a delivery count where not."""

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()
    routing_key: str | None = None
    """Key of the binding to the jobs exchange; None where only the default exchange leads here."""


@dataclass(frozen=True)
class Topology:
    """All that must exist in the broker. The defaults are those of the message reference."""

    jobs: str = "recon.jobs"
    status: str = "recon.status"
    dead: str = "recon.jobs.dead"
    control: str = "recon.control"
    delivery_limit: int = 20

    def job_queue(self, model: ModelName) -> str:
        """Name of the queue that holds the jobs for a model."""
        return f"{self.jobs}.{model}"

    def exchanges(self) -> tuple[Exchange, ...]:
        """The exchanges: jobs in by topic, status events out to everybody."""
        return Exchange(self.jobs, "topic"), Exchange(self.status, "fanout")

    def queues(self) -> tuple[Queue, ...]:
        """The queues, dead letters first: it must exist before a message can be sent there."""
        quorum = ("x-queue-type", "quorum")
        jobs = (
            quorum,
            # Counts only deliveries that ended in a lost connection, and on RabbitMQ before 4.3 also `nack`:
            # the attempts that matter are counted by us, in the job's record.
            ("x-delivery-limit", self.delivery_limit),
            ("x-dead-letter-exchange", ""),
            ("x-dead-letter-routing-key", self.dead),
            ("x-consumer-timeout", CONSUMER_TIMEOUT_MS),
        )
        return (
            Queue(self.dead, (quorum,)),
            Queue(self.control, (quorum,)),
            *(Queue(self.job_queue(model), jobs, routing_key(model)) for model in MODELS),
        )


@dataclass(frozen=True)
class Declared:
    """Handles of what was declared on one channel."""

    exchanges: dict[str, AbstractExchange]
    queues: dict[str, AbstractQueue]


async def declare(channel: AbstractChannel, topology: Topology) -> Declared:
    """Declare everything; what exists already with the same arguments is left alone."""
    exchanges = {
        each.name: await channel.declare_exchange(each.name, each.kind, durable=True)
        for each in topology.exchanges()
    }
    queues = {}
    for each in topology.queues():
        queue = await channel.declare_queue(each.name, durable=True, arguments=dict(each.arguments))
        if each.routing_key is not None:
            await queue.bind(topology.jobs, each.routing_key)
        queues[each.name] = queue
    return Declared(exchanges, queues)
