"""A few transfers at the same time, watched by the thread that waits for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

TICK_S = 0.25


def run_parallel(tasks: Sequence[Callable[[], None]], threads: int, tick: Callable[[], None]) -> None:
    """Run tasks on a few threads; the first exception ends the call once the running ones have stopped.

    Args:
        tasks: Each runs once, on any thread.
        threads: How many run at the same time.
        tick: Called in the caller's thread while it waits; it may raise, for a cancel.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="transfer") as pool:
        pending: set[Future[None]] = {pool.submit(task) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, timeout=TICK_S, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                tick()
        except BaseException:
            for future in pending:
                future.cancel()
            raise
