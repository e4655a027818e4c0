"""Steps of `recon` commands that talk to the client library and to people."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from consumer import display
from schemas.errors import AccessError, ErrorCode
from schemas.events import JobCancelled, JobCompleted, JobEvent
from schemas.jobs import Job

if TYPE_CHECKING:
    from consumer.client import Client, Watch
    from pipeline.settings import S3Settings

EXIT_FAILED = 1
EXIT_CANCELLED = 3


async def check_and_upload(client: Client, folder: Path, job: Job, console: Console) -> None:
    """Check a folder as the worker would, and upload it to the job's input.

    Raises:
        InvalidJob, AccessError: as the job would fail.
        ResourceError: STORAGE_UNAVAILABLE.
    """
    if not folder.is_dir():
        raise AccessError(ErrorCode.INPUT_NOT_FOUND, f"There is no folder {str(folder)!r}.")
    # Imports torch, as the worker does for the same checks: only where an input is really checked.
    from pipeline.settings import Limits
    from pipeline.validate import validate_folder

    found = await asyncio.to_thread(validate_folder, folder, job.options, Limits())
    console.print(
        f"{found.views} views of {found.width}x{found.height}, {found.depth_views} with depth, "
        f"masks from {found.mask_source}, cameras from {found.camera_source}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    with display.transfer_bar(console, "Uploading") as bar:
        await client.upload(folder, job.input, lambda key, done, total: bar.update(done, total))


async def check_prefix(job: Job, s3: S3Settings, console: Console) -> None:
    """Check what the listing and transforms.json of a job's input tell, without downloading images.

    Raises:
        InvalidJob, AccessError: as the job would fail.
        ResourceError: STORAGE_UNAVAILABLE.
    """
    from pipeline.camera_source import source_of_cameras
    from pipeline.holdout import check_holdout
    from pipeline.ingest import plan_input
    from pipeline.settings import Limits
    from pipeline.storage import open_store

    plan = await asyncio.to_thread(plan_input, open_store(job.input, s3), job.options, Limits())
    check_holdout(plan, job.options)
    depth_views = sum(view.depth is not None for view in plan.views)
    console.print(
        f"{len(plan.views)} views, {depth_views} with depth, {plan.total_bytes / 1e6:.1f} MB, "
        f"cameras from {source_of_cameras(plan, job.options)}; "
        "the images themselves are checked by the worker",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def answer_submitted(job: Job, as_json: bool) -> None:
    """Print the job, for scripts."""
    typer.echo(job.model_dump_json() if as_json else str(job.job_id))
    sys.stdout.flush()  # a script reads it while we go on to watch


async def follow(events: Watch, as_json: bool, console: Console) -> int:
    """Show events until the job has ended; returns the exit code."""
    last: JobEvent | None = None
    with display.job_view(console) as view:
        if events.finished is not None:
            view.say(f"The job had already finished, at {events.finished.time:%Y-%m-%d %H:%M:%S} UTC.")
        async for last in events:
            if as_json:
                typer.echo(last.model_dump_json())
            else:
                display.show_event(view, last)
    if isinstance(last, JobCompleted):
        if not as_json:
            console.print(display.format_means(last.data.quality), highlight=False, soft_wrap=True)
        return 0
    return EXIT_CANCELLED if isinstance(last, JobCancelled) else EXIT_FAILED
