"""The cancel token: one latch, set by whoever hears of the cancel, polled by every loop."""

from __future__ import annotations

import threading

from schemas.errors import JobCancelled


class CancelToken:
    """A latch that can be set once from any thread; the first reason stays."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: str | None = None

    def cancel(self, reason: str = "user") -> None:
        """Ask the job to stop.

        Args:
            reason: Who asks: `user` or `shutdown`.
        """
        with self._lock:
            if self._reason is None:
                self._reason = reason

    @property
    def cancelled(self) -> bool:
        """Whether a cancel was asked for."""
        return self._reason is not None

    @property
    def reason(self) -> str | None:
        """Who asked first; None if nobody did."""
        return self._reason

    def check(self) -> None:
        """Stop here if a cancel was asked for.

        Raises:
            JobCancelled: with the reason.
        """
        reason = self._reason
        if reason is not None:
            raise JobCancelled(reason)
