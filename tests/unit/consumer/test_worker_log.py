"""Log lines: text or JSON, with the job's id on each."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from consumer import log


@pytest.fixture(autouse=True)
def _restored_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_json_lines_carry_job_and_extra_fields(capsys: pytest.CaptureFixture[str]):
    log.configure(log.LogConfig("json", "INFO"))
    logger = logging.getLogger("consumer.test")
    with log.job_id_context("j-1"):
        logger.info("attempt %d", 2, extra={"action": "accepted"})
    logger.info("idle")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["job_id"], first["message"], first["action"]) == ("j-1", "attempt 2", "accepted")
    assert first["time"].endswith("Z")
    assert second["job_id"] == "-"


def test_text_lines_carry_the_job_too(capsys: pytest.CaptureFixture[str]):
    log.configure(log.LogConfig("text", "WARNING"))
    with log.job_id_context("j-2"):
        logging.getLogger("consumer.test").warning("hot")
        logging.getLogger("consumer.test").info("not shown")
    assert capsys.readouterr().err.count("[j-2]") == 1


def test_a_traceback_stays_inside_its_json_line(capsys: pytest.CaptureFixture[str]):
    log.configure(log.LogConfig("json", "INFO"))
    try:
        raise ValueError("oops")
    except ValueError:
        logging.getLogger("consumer.test").exception("failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: oops" in json.loads(line)["traceback"]


@pytest.mark.parametrize("name", ["aiormq.connection", "aio_pika.robust_connection"])
def test_the_broker_libraries_do_not_repeat_what_we_report(capsys: pytest.CaptureFixture[str], name: str):
    log.configure(log.LogConfig("text", "DEBUG"))
    logging.getLogger(name).error("Unexpected connection close")
    assert capsys.readouterr().err == ""


def test_what_a_logger_tells_others_in_addition_is_not_shown(capsys: pytest.CaptureFixture[str]):
    """A job's own log asks its loggers for more than the console shows."""
    log.configure(log.LogConfig("text", "WARNING"))
    logger = logging.getLogger("consumer.test")
    logger.setLevel("INFO")
    try:
        logger.info("for the file")
    finally:
        logger.setLevel("NOTSET")
    assert capsys.readouterr().err == ""
