"""The services that tests and the demo run on: real, reachable, and gone afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import aio_pika
import pytest

from examples import local_services


@pytest.mark.broker
async def test_broker_keeps_a_message_in_a_quorum_queue(rabbitmq):
    connection = await aio_pika.connect(rabbitmq.amqp_url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(
            "local-services-test", durable=True, arguments={"x-queue-type": "quorum"}
        )
        await channel.default_exchange.publish(aio_pika.Message(b"hello"), routing_key=queue.name)
        message = await queue.get(timeout=10)
        await message.ack()
    assert message.body == b"hello"


@pytest.mark.storage
def test_object_comes_back_as_it_went(s3, bucket):
    client, body = s3.client(), os.urandom(70_000)
    client.put_object(Bucket=bucket, Key="folder/name with space.bin", Body=body)
    listing = client.list_objects_v2(Bucket=bucket, Prefix="folder/")
    assert [entry["Size"] for entry in listing["Contents"]] == [len(body)]
    assert client.get_object(Bucket=bucket, Key="folder/name with space.bin")["Body"].read() == body


@pytest.mark.storage
def test_wrong_key_is_refused(s3, bucket):
    from dataclasses import replace

    from botocore.exceptions import ClientError

    with pytest.raises(ClientError):
        replace(s3, secret_key="wrong").client().list_buckets()


@pytest.mark.broker
@pytest.mark.storage
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_services_end_with_the_program_that_started_them(tmp_path, end):
    """Ctrl-C, a polite request and a kill: none may leave a server behind."""
    if sys.platform != "linux":
        pytest.skip("relies on /proc")
    program = textwrap.dedent("""
        import signal, sys, time
        from pathlib import Path
        from examples.local_services import rabbitmq, s3_server
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        with rabbitmq(Path(sys.argv[1])), s3_server(Path(sys.argv[1])):
            print("ready", flush=True)
            time.sleep(60)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=Path(local_services.__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout.readline() == b"ready\n"
        assert _processes_in(tmp_path)
        process.send_signal(end)
        process.wait(60)
    deadline = time.monotonic() + 30
    while _processes_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _processes_in(tmp_path) == []


def _processes_in(folder: Path) -> list[str]:
    """Command lines of the processes whose working folder lies below `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().is_relative_to(folder):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
        except OSError:
            continue
    return found
