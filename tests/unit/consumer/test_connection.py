"""The broker's connection, as far as that goes without a broker."""

from __future__ import annotations

import asyncio

import pytest

from consumer import connection
from consumer.connection import Broker
from consumer.settings import Settings
from schemas.errors import ErrorCode, ResourceError


async def test_a_connection_that_took_too_long_is_not_tried_on(monkeypatch: pytest.MonkeyPatch):
    """A server that accepts and says nothing; each try must leave nothing behind."""
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", 0.2)
    taken: list[asyncio.StreamWriter] = []

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        broker = Broker(Settings(amqp_url=f"amqp://127.0.0.1:{port}/", reconnect_s=0.05))
        before = asyncio.all_tasks()
        for _ in range(2):
            with pytest.raises(ResourceError) as caught:
                await broker.connect()
            assert caught.value.code is ErrorCode.BROKER_UNAVAILABLE
        tries = len(taken)
        await asyncio.sleep(0.5)
        assert len(taken) == tries
        assert {
            task for task in asyncio.all_tasks() - before if "connection" in repr(task.get_coro())
        } == set()
        for writer in taken:
            writer.close()
