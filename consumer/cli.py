"""The `recon` command: parse, call, show, exit. Answers go to standard output, the rest to standard error.

Exit codes: 0 done or job completed; 1 job failed; 2 wrong usage; 3 job cancelled; 4 refused (message, input
or location); 5 a service or resource failed; 130 interrupted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import UUID, uuid4

import typer
from rich.console import Console

from consumer import arguments, display, log, steps
from consumer.exits import errors
from consumer.flags import (
    DeviceFlag,
    JsonFlag,
    LogFormat,
    LogLevel,
    Model,
    ModelFlag,
    OptionFlag,
    OptionsFile,
    OutputFlag,
)
from consumer.weights import weights_app
from schemas.errors import AccessError, ErrorCode
from schemas.jobs import ModelName

if TYPE_CHECKING:
    from consumer.settings import Settings

T = TypeVar("T")

app = typer.Typer(
    help="Turn photographs of an object into a validated, textured 3D mesh.",
    epilog="Settings are environment variables RECON_*; `recon settings` lists them all. "
    "Exit codes: 0 done, 1 job failed, 2 wrong usage, 3 job cancelled, 4 refused, "
    "5 a service or resource failed, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(weights_app, name="weights")


@app.callback()
def configure(
    context: typer.Context,
    amqp_url: Annotated[
        str | None, typer.Option(envvar="RECON_AMQP_URL", help="RabbitMQ.", show_default=False)
    ] = None,
    s3_endpoint: Annotated[
        str | None, typer.Option(envvar="RECON_S3_ENDPOINT", help="S3 server; AWS if unset.")
    ] = None,
    log_format: Annotated[
        LogFormat, typer.Option(envvar="RECON_LOG_FORMAT", help="Form of log lines.")
    ] = LogFormat.TEXT,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(envvar="RECON_LOG_LEVEL", help="Least level that is logged: INFO for a worker."),
    ] = None,
) -> None:
    """Turn photographs of an object into a validated, textured 3D mesh."""
    level = log_level or (LogLevel.INFO if context.invoked_subcommand == "worker" else LogLevel.WARNING)
    config = log.LogConfig(log_format.value, level.value)
    log.configure(config)
    context.obj = ({"amqp_url": amqp_url, "s3_endpoint": s3_endpoint}, config)


@app.command()
def worker(
    context: typer.Context,
    worker_id: Annotated[
        str | None,
        typer.Option(envvar="RECON_WORKER_ID", help="Name in events; host and process by default."),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            envvar="RECON_MODELS",
            help="Models to serve, separated by commas; `auto`: those that this machine can serve.",
        ),
    ] = None,
    device: DeviceFlag = None,
) -> None:
    """Take jobs and run them, one at a time, until SIGTERM or Ctrl-C; a second one stops at once."""
    from consumer.shutdown import on_stop
    from consumer.worker import Worker

    with errors():
        settings = _settings(context, worker_id=worker_id, models=models, device=device)

        async def work() -> None:
            running = Worker(settings, log_config=context.obj[1])
            with on_stop(running.stop):
                await running.run()

        _run(work())


@app.command()
def submit(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="FOLDER|s3://PREFIX", help="The views.")],
    model: ModelFlag = Model.NVDIFFREC,
    output: OutputFlag = None,
    option: OptionFlag = [],  # noqa: B006 - typer never changes it
    options_file: OptionsFile = None,
    batch_id: Annotated[str | None, typer.Option(help="Groups jobs; echoed in every event.")] = None,
    metadata: Annotated[
        list[str], typer.Option("--metadata", metavar="KEY=VALUE", help="Echoed in every event.")
    ] = [],  # noqa: B006
    job_id: Annotated[UUID | None, typer.Option(help="Idempotency key; a new one by default.")] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Longest time one attempt may run, seconds.")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Check a prefix first, which takes the right to list and read it.")
    ] = True,
    watch_job: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check the views, upload them if they are in a folder, submit a job and print its id."""
    from consumer.client import Client

    with errors():
        settings = _settings(context)
        chosen = job_id or uuid4()
        if source.startswith("file:"):
            text = "A worker reads no files of this machine: give the folder itself, and it is uploaded."
            raise AccessError(ErrorCode.LOCATION_NOT_ALLOWED, text)
        folder = None if "://" in source else Path(source)

        async def work() -> int:
            async with Client(settings) as client:
                job = client.new_job(
                    source if folder is None else client.input_location(chosen),
                    model=_model(model),
                    output=output,
                    options=arguments.parse_options(option, options_file),
                    batch_id=batch_id,
                    metadata=arguments.parse_metadata(metadata),
                    job_id=chosen,
                    time_limit_s=time_limit,
                )
                if folder is not None:
                    await steps.check_and_upload(client, folder, job, _console())
                elif check:
                    await steps.check_prefix(job, settings.s3(), _console())
                if not watch_job:
                    await client.submit(job)
                    steps.answer_submitted(job, as_json)
                    return 0
                async with client.watch(job.job_id, output=job.output) as events:
                    await client.submit(job)
                    steps.answer_submitted(job, as_json)
                    return await steps.follow(events, as_json, _console())

        _exit(_run(work()))


@app.command()
def watch(
    context: typer.Context,
    job_id: Annotated[UUID, typer.Argument(help="The job.")],
    output: OutputFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Follow a job to its end; the exit code tells how it ended."""
    from consumer.client import Client

    with errors():
        settings = _settings(context)

        async def work() -> int:
            async with Client(settings) as client, client.watch(job_id, output=output) as events:
                return await steps.follow(events, as_json, _console())

        _exit(_run(work()))


@app.command()
def fetch(
    context: typer.Context,
    job_id: Annotated[UUID, typer.Argument(help="The job.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the files.")],
    output: OutputFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Download a result and check every file against its manifest."""
    from consumer.client import Client

    with errors():
        settings = _settings(context)
        console = _console()

        async def work() -> None:
            async with Client(settings) as client:
                with display.transfer_bar(console, "Downloading") as bar:
                    manifest = await client.fetch(
                        job_id,
                        out,
                        output=output,
                        on_progress=lambda each: bar.update(each.done_bytes, each.total_bytes),
                    )
                size = sum(each.size for each in manifest.files) / 1e6
                console.print(
                    f"{len(manifest.files)} files, {size:.1f} MB, all checksums right; "
                    f"quality {manifest.quality_status}",
                    highlight=False,
                    soft_wrap=True,
                )
                typer.echo(manifest.model_dump_json() if as_json else str(out))

        _run(work())


@app.command()
def run(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", exists=True, file_okay=False, help="Folder with the views.")
    ],
    out: Annotated[Path, typer.Option(file_okay=False, help="The result is written to OUT/<job id>.")],
    model: ModelFlag = Model.NVDIFFREC,
    option: OptionFlag = [],  # noqa: B006
    options_file: OptionsFile = None,
    device: DeviceFlag = None,
    job_id: Annotated[UUID | None, typer.Option(help="A new one by default.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Reconstruct a folder on this machine, without broker and S3."""
    import dataclasses

    from consumer.client import Client
    from consumer.local import run_local

    with errors():
        settings = _settings(context, device=device)
        places = source.resolve().as_uri(), out.resolve().as_uri()
        options = arguments.parse_options(option, options_file)
        job = Client(settings).new_job(
            places[0], output=places[1], model=_model(model), options=options, job_id=job_id
        )
        allowed = dataclasses.replace(
            settings.pipeline(),
            models=(job.model,),
            allowed_inputs=places[:1],
            allowed_outputs=places[1:],
        )
        console = _console()
        with display.job_view(console) as view:
            result = run_local(
                job,
                allowed,
                worker_id=settings.worker_id,
                emit=lambda each: view.progress(each.stage, each.fraction, each.message, each.eta_s),
            )
        if result.quality is not None:
            display.show_quality(console, result.quality)
        record = result.record
        if record.error is not None:
            console.print(
                f"failed: {display.format_error(record.error)}", markup=False, highlight=False, soft_wrap=True
            )
        typer.echo(record.model_dump_json() if as_json else str(out / str(job.job_id)))
        _exit({"completed": 0, "cancelled": steps.EXIT_CANCELLED}.get(record.state, steps.EXIT_FAILED))


@app.command("options")
def show_options(model: ModelFlag = Model.NVDIFFREC) -> None:
    """List every option that a job of a model has: its name, its default, what it means."""
    from rich.table import Table

    from consumer.option_table import option_rows

    table = Table("option", "default", "meaning", title=model.value, title_justify="left")
    for row in option_rows(_model(model)):
        table.add_row(*row)
    Console().print(table, markup=False)


@app.command("settings")
def show_settings(context: typer.Context) -> None:
    """List every setting: its environment variable, its value, what it means."""
    from rich.table import Table

    from consumer.settings import ENV_PREFIX, Settings

    with errors():
        settings = _settings(context)
        table = Table("variable", "value", "meaning")
        for name, field in Settings.model_fields.items():
            value = settings.masked_amqp_url if name == "amqp_url" else str(getattr(settings, name))
            table.add_row(f"{ENV_PREFIX}{name.upper()}", value, field.description)
        Console().print(table, markup=False)


def main() -> None:
    """Entry point of the `recon` command."""
    # Read once, when torch loads its OpenMP. Threads that spin between torch's many small operations keep the
    # rasterizer's threads, and other processes, from the cores: on few cores that costs a factor of several.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()


# --- Helpers


def _settings(context: typer.Context, **flags: Any) -> Settings:
    from consumer.settings import load_settings

    return load_settings(**context.obj[0], **flags)


def _model(model: Model) -> ModelName:
    return model.value


def _console() -> Console:
    return Console(stderr=True)


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _exit(code: int) -> None:
    if code:
        raise typer.Exit(code)
