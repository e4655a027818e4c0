"""Events out: what matters is confirmed and retried patiently, the rest is best effort."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from schemas.errors import ReconError
from schemas.events import Event

LOGGER = logging.getLogger(__name__)

RETRY_S = 1.0  # pause between two tries of an event that must go out
BEST_EFFORT_S = 2.0  # longest time that one progress event is tried


class EventSink(Protocol):
    """Where events go: the broker, or a list in tests."""

    async def publish_event(self, event: Event) -> None:
        """Publish and wait for the confirmation; raises ResourceError BROKER_UNAVAILABLE."""


class EventPublisher:
    """Publishes events.

    Args:
        sink: Takes them.
        patience_s: How long an event that must go out is tried.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        sink: EventSink,
        *,
        patience_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._patience_s = patience_s
        self._clock = clock

    async def confirmed(self, event: Event) -> None:
        """Publish an event that must not be lost.

        Raises:
            ResourceError: BROKER_UNAVAILABLE, after the whole patience.
        """
        deadline = self._clock() + self._patience_s
        while True:
            try:
                await self._sink.publish_event(event)
                return
            except ReconError as error:
                if self._clock() >= deadline:
                    raise
                LOGGER.warning("%s was not confirmed; trying again: %s", event.type, error.message)
            await asyncio.sleep(RETRY_S)

    async def best_effort(self, event: Event) -> None:
        """Publish an event that the next one makes stale anyway."""
        try:
            async with asyncio.timeout(BEST_EFFORT_S):
                await self._sink.publish_event(event)
        except (ReconError, TimeoutError) as error:
            LOGGER.debug("%s was not published: %s", event.type, error)
