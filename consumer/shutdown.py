"""Signals as a context manager: the first asks for an orderly end, the second ends the process at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def on_stop(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first SIGTERM or SIGINT; restore the old handlers afterwards.

    The second signal ends the process on the spot: the broker then gives its job to another worker, and
    the engine leaves because its pipe is closed. Does nothing off the main thread, where signals cannot
    be handled.
    """
    if threading.current_thread() is not threading.main_thread():
        LOGGER.warning("Not the main thread: signals will not stop this in order.")
        yield
        return
    loop = asyncio.get_running_loop()
    old = {number: signal.getsignal(number) for number in SIGNALS}

    def first(number: signal.Signals) -> None:
        LOGGER.info("%s: stopping in order; a second signal stops at once.", number.name)
        for each in SIGNALS:
            loop.add_signal_handler(each, _die_of, each)
        stop()

    for number in SIGNALS:
        loop.add_signal_handler(number, first, number)
    try:
        yield
    finally:
        for number, handler in old.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _die_of(number: signal.Signals) -> None:
    """End as if nobody had handled the signal, so that our parent sees the true reason."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
