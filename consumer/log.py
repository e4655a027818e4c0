"""Logging set-up, done once by the CLI (and by the engine on its behalf): job id on each line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from schemas.base import format_time, utc_now

LogFormat = Literal["text", "json"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

_JOB_ID: ContextVar[str] = ContextVar("job_id", default="-")

# What every LogRecord has; whatever else one carries came in by `extra=`.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "job_id", "taskName"}


@dataclass(frozen=True)
class LogConfig:
    """How to log. Picklable, because the engine's process logs the same way."""

    format: LogFormat = "text"
    level: LogLevel = "INFO"


@contextmanager
def job_id_context(job_id: object) -> Iterator[None]:
    """Every line logged inside carries this job id."""
    token = _JOB_ID.set(str(job_id))
    try:
        yield
    finally:
        _JOB_ID.reset(token)


def configure(config: LogConfig) -> None:
    """Send all logging to standard error; standard output belongs to the commands' answers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(config.level)  # a job's own log takes more
    handler.addFilter(_add_job_id)
    handler.setFormatter(_JsonFormatter() if config.format == "json" else _TextFormatter())
    logging.basicConfig(level=config.level, handlers=[handler], force=True)
    # Their debug lines carry whole messages, and their warnings repeat what we report ourselves.
    for name in ("botocore", "boto3", "urllib3", "s3transfer", "PIL"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("aiormq", "aio_pika"):  # their errors too, with tracebacks
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _add_job_id(record: logging.LogRecord) -> bool:
    record.job_id = _JOB_ID.get()
    return True


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s [%(job_id)s] %(name)s: %(message)s")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": format_time(utc_now()),
            "level": record.levelname,
            "logger": record.name,
            "job_id": getattr(record, "job_id", "-"),
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)
