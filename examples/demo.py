"""`make demo`: one job through a real RabbitMQ and a real S3 server, from six views to a checked mesh.

Starts broker, storage and worker with throw-away state, submits `examples/spot-small/views`, shows the job's
progress, fetches the result below `out/demo/`, checks it against its manifest, prints the verdict, and stops
everything it started. Exit code 0 means that all of that worked and the verdict was `normal` or `warning`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from examples.local_services import (
    RabbitMQ,
    S3Server,
    ServiceUnavailable,
    rabbitmq,
    s3_server,
    stop_process,
)
from schemas.quality import QualityReport, Status
from schemas.results import MANIFEST_NAME, Manifest

ROOT = Path(__file__).resolve().parent.parent
VIEWS = ROOT / "examples" / "spot-small" / "views"
OUT = ROOT / "out" / "demo"
BUCKET = "recon"
JOB_TIMEOUT_S = 600
WORKER_STOP_TIMEOUT_S = 45.0  # the worker's own grace for a running job, and a little more

STATUS_COLOUR: dict[Status, str] = {"normal": "green", "warning": "yellow", "failure": "red"}

CONSOLE = Console(highlight=False, soft_wrap=True)


class DemoFailed(Exception):
    """A step did not work; the message says which and shows what it said."""


def main() -> int:
    """Run the demo and tell its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    started = time.monotonic()
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        status = _run()
    except (DemoFailed, ServiceUnavailable) as error:
        CONSOLE.print(f"[red]The demo failed:[/] {error}", markup=True)
        return 1
    except KeyboardInterrupt:
        CONSOLE.print("Interrupted; everything that was started has been stopped.")
        return 130
    CONSOLE.print(
        f"Done in {time.monotonic() - started:.0f} s; everything that was started has been stopped."
    )
    return 0 if status in ("normal", "warning") else 1


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run() -> Status:
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="recon-demo-")))
        with _step("Starting RabbitMQ"):
            broker = stack.enter_context(rabbitmq(state))
        with _step("Starting the S3 server"):
            storage = stack.enter_context(s3_server(state))
            storage.client().create_bucket(Bucket=BUCKET)
        environment = _environment(broker, storage, state)
        with _step("Starting a worker"):
            worker = stack.enter_context(_worker(environment, OUT / "worker.log"))
        with _step(f"Submitting {VIEWS.relative_to(ROOT)}"):
            job_id = _recon(environment, "submit", str(VIEWS)).split()[-1]
        CONSOLE.print(f"Job {job_id}")
        _watch(environment, job_id, worker)
        with _step("Fetching the result"):
            result = OUT / job_id
            _recon(environment, "fetch", job_id, "--out", str(result))
        with _step("Checking it against its manifest"):
            files = _verify(result)
        report = QualityReport.model_validate_json((result / "quality.json").read_text())
        _print_verdict(report)
        _print_where(result, files)
        return report.status


def _environment(broker: RabbitMQ, storage: S3Server, state: Path) -> dict[str, str]:
    """The worker's and the CLI's settings, and nothing of the developer's own."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("RECON_", "AWS_"))}
    return keep | {
        "PYTHONPATH": str(ROOT),
        "RECON_AMQP_URL": broker.amqp_url,
        "RECON_S3_ENDPOINT": storage.endpoint_url,
        "RECON_S3_ACCESS_KEY": storage.access_key,
        "RECON_S3_SECRET_KEY": storage.secret_key,
        "RECON_ALLOWED_INPUTS": f"s3://{BUCKET}",
        "RECON_ALLOWED_OUTPUTS": f"s3://{BUCKET}",
        "RECON_INPUT_PREFIX": f"s3://{BUCKET}/inputs",
        "RECON_OUTPUT_PREFIX": f"s3://{BUCKET}/results",
        "RECON_WORK_ROOT": str(state / "work"),
    }


@contextmanager
def _worker(environment: dict[str, str], log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A `recon worker` process of its own; Ctrl-C reaches us first, and we stop it in order."""
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "consumer", "worker"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop_process(process, WORKER_STOP_TIMEOUT_S)


def _recon(environment: dict[str, str], *arguments: str) -> str:
    """Run a `recon` command to its end and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "consumer", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=JOB_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise DemoFailed(f"recon {arguments[0]} ended with {done.returncode}:\n{done.stderr or done.stdout}")
    return done.stdout


def _watch(environment: dict[str, str], job_id: str, worker: subprocess.Popen[bytes]) -> None:
    """Show live progress: `recon watch` draws a bar on a terminal and prints lines elsewhere."""
    CONSOLE.file.flush()
    watch = subprocess.Popen(
        [sys.executable, "-m", "consumer", "watch", job_id], env=environment, stdin=subprocess.DEVNULL
    )
    deadline = time.monotonic() + JOB_TIMEOUT_S
    try:
        while watch.poll() is None:
            if worker.poll() is not None:
                raise DemoFailed(f"The worker ended with {worker.returncode}. {_log_hint()}")
            if time.monotonic() > deadline:
                raise DemoFailed(f"The job took longer than {JOB_TIMEOUT_S} s. {_log_hint()}")
            time.sleep(0.2)
    finally:
        stop_process(watch)
    if watch.returncode != 0:
        raise DemoFailed(f"The job did not complete. {_log_hint()}")


def _log_hint() -> str:
    path = OUT / "worker.log"
    tail = "\n".join(path.read_text(errors="replace").splitlines()[-15:])
    return f"The worker's log, {path}, ends:\n{tail}"


def _verify(result: Path) -> int:
    """Compare size and SHA-256 of every file with the manifest; the number of files."""
    manifest = Manifest.model_validate_json((result / MANIFEST_NAME).read_text())
    for file in manifest.files:
        body = (result / file.path).read_bytes()
        if len(body) != file.size or hashlib.sha256(body).hexdigest() != file.sha256:
            raise DemoFailed(f"{file.path} is not the file that the manifest describes")
    return len(manifest.files)


@contextmanager
def _step(text: str) -> Iterator[None]:
    CONSOLE.print(f"{text} ... ", end="")
    started = time.monotonic()
    try:
        yield
    except BaseException:
        CONSOLE.print("")
        raise
    CONSOLE.print(f"{time.monotonic() - started:.1f} s")


def _print_verdict(report: QualityReport) -> None:
    table = Table(title="Input views, re-rendered from the result", title_justify="left")
    for name in ("Metric", "Measured", "Normal", "Warning", "Verdict"):
        table.add_column(name, justify="left" if name in ("Metric", "Verdict") else "right")
    for check in report.checks:
        sign = ">=" if check.higher_is_better else "<="
        table.add_row(
            check.metric,
            f"{check.value:.4g}",
            f"{sign} {check.normal:g}",
            f"{sign} {check.warning:g}",
            f"[{STATUS_COLOUR[check.status]}]{check.status}[/]",
        )
    CONSOLE.print(table)
    timings = "  ".join(f"{timing.stage} {timing.seconds:.1f} s" for timing in report.timings)
    CONSOLE.print(f"Stages: {timings}")
    CONSOLE.print(
        f"Mesh: {report.mesh.vertices} vertices, {report.mesh.faces} triangles, "
        f"{'watertight' if report.mesh.watertight else 'not watertight'}; {report.raster} on {report.device}"
    )
    CONSOLE.print(f"Verdict: [bold {STATUS_COLOUR[report.status]}]{report.status}[/]")


def _print_where(result: Path, files: int) -> None:
    CONSOLE.print(f"{files} files, all as the manifest says. Look at:")
    for name, what in (
        ("model.glb", "the model, for any glTF viewer"),
        ("previews/turntable.webp", "a turn around it, for any browser"),
        ("report.html", "the report"),
        ("quality.json", "every figure"),
    ):
        if (result / name).exists():
            CONSOLE.print(f"  {(result / name).relative_to(ROOT)}   {what}")


if __name__ == "__main__":
    sys.exit(main())
