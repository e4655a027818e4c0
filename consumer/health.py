"""HTTP on a port of its own, by which a worker says how it is.

The control plane answers, from memory: no answer waits for the engine, the broker or the storage.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel

LOGGER = logging.getLogger(__name__)

SHUTDOWN_S = 1.0
"""So long the end waits for clients. Answers take no time: only clients that stall are waited for."""

Answer = Callable[[], web.Response]
"""Makes the answer to a GET request; returns at once."""


def json_answer(document: BaseModel, status: int = 200) -> web.Response:
    """A document as an HTTP answer that nobody keeps."""
    return web.Response(
        text=document.model_dump_json(),
        content_type="application/json",
        status=status,
        headers={"Cache-Control": "no-store"},
    )


@asynccontextmanager
async def answering(host: str, port: int, answers: Mapping[str, Answer]) -> AsyncIterator[None]:
    """Answer GET requests as long as the context lasts.

    A port that cannot be had is logged: a worker that nobody can ask is still better than none.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 for none.
        answers: By path.
    """
    if port == 0:
        yield
        return
    application = web.Application()
    for path, answer in answers.items():
        application.router.add_get(path, _handler(answer))
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_S, logger=_server_log())
    await runner.setup()
    try:
        await _listen(runner, host, port)
        yield
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        LOGGER.error("Nobody can ask for this worker's health at %s:%d: %s", host, port, error.strerror)
    else:
        LOGGER.info("Health is told at http://%s:%d/health.", host, port)


def _server_log() -> logging.Logger:
    """Tells of our faults, not of clients that speak something else than HTTP."""
    log = LOGGER.getChild("server")
    log.addFilter(_is_our_fault)
    return log


def _is_our_fault(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


def _handler(answer: Answer) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        return answer()

    return handle
