"""Fixtures that all tests share: real services, a clean environment, fixed seeds."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # so that tests can import `examples` and `benchmarks`

from examples import local_services  # noqa: E402
from tests.gltf.khronos import installed_validator  # noqa: E402

SERVICES = ("rabbitmq", "s3")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own settings must not reach a test."""
    for name in list(os.environ):
        if name.startswith(("RECON_", "AWS_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local_services.RabbitMQ]:
    """A RabbitMQ of this session's own."""
    with _skipped_if_absent(local_services.rabbitmq(tmp_path_factory.mktemp("rabbitmq"))) as broker:
        yield broker


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local_services.S3Server]:
    """An S3 server of this session's own."""
    with _skipped_if_absent(local_services.s3_server(tmp_path_factory.mktemp("s3"))) as server:
        yield server


@pytest.fixture(scope="session")
def validator() -> Path:
    """The glTF validator's script."""
    return installed_validator()


@pytest.fixture
def bucket(s3: local_services.S3Server) -> str:
    """The name of a fresh, empty bucket."""
    name = f"test-{uuid4().hex[:16]}"
    s3.client().create_bucket(Bucket=name)
    return name


@contextmanager
def _skipped_if_absent(service: AbstractContextManager[Any]) -> Iterator[Any]:
    """A developer without RabbitMQ can still run the rest; CI must never skip in silence."""
    try:
        running = service.__enter__()
    except local_services.ServiceUnavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    try:
        yield running
    finally:
        service.__exit__(None, None, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Show the services' logs beside the failure of a test that used them."""
    report = yield
    if report.failed:
        used = getattr(item, "funcargs", {})
        for name in SERVICES:
            if name in used:
                report.sections.append((f"Log of {name}", used[name].log_tail()))
    return report
