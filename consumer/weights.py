"""`recon weights`: fetch the weights of reconviagen, check them, list them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from consumer import display
from consumer.exits import errors
from consumer.flags import JsonFlag

if TYPE_CHECKING:
    from pipeline.weights import FileState

weights_app = typer.Typer(
    help="Fetch, check and list the weights of reconviagen.",
    epilog="HF_TOKEN, HF_ENDPOINT and the other variables of huggingface_hub are honoured.",
    no_args_is_help=True,
)

FolderFlag = Annotated[
    Path | None,
    typer.Option(
        "--folder", file_okay=False, envvar="RECON_WEIGHTS", help="Folder of the weights.", show_default=False
    ),
]


@weights_app.command()
def fetch(
    folder: FolderFlag = None,
    update: Annotated[
        bool, typer.Option("--update", help="Take the newest revisions instead of the pinned ones.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Download what is missing or damaged, and check it; an interrupted download goes on."""
    from pipeline.weights_fetch import fetch_weights

    with errors():
        root = _root(folder)
        console = Console(stderr=True)

        with display.transfer_bar(console, "Downloading") as bar:
            lock = fetch_weights(
                root,
                update=update,
                on_progress=lambda path, done, total: bar.update(done, total),
                say=partial(_say, console),
            )
        size = sum(each.size for entry in lock.repositories.values() for each in entry.files.values())
        _say(console, f"{size / 1e9:.2f} GB, all checksums right")
        typer.echo(lock.model_dump_json() if as_json else str(root))


@weights_app.command()
def check(
    folder: FolderFlag = None,
    fast: Annotated[bool, typer.Option("--fast", help="Sizes and headers only, no checksums.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check that every file is here and right; the exit code is 0 only if all are."""
    from pipeline.weights import check_weights, require, require_revisions

    with errors():
        root = _root(folder)
        console = Console(stderr=True)
        if console.is_terminal:
            with console.status("Checking") as status:
                states = check_weights(
                    root, fast=fast, on_file=lambda path: status.update(f"Checking {path}")
                )
        else:
            states = check_weights(root, fast=fast, on_file=lambda path: _say(console, f"checking {path}"))
        _answer(root, states, as_json)
        require(root, states)
        require_revisions(root)


@weights_app.command("list")
def list_weights(folder: FolderFlag = None, as_json: JsonFlag = False) -> None:
    """List every file that is needed: its size and whether it is here."""
    from pipeline.weights import inventory

    with errors():
        root = _root(folder)
        _answer(root, inventory(root), as_json)


def _root(folder: Path | None) -> Path:
    """The folder that is asked for, else the default; whether other settings are right is not asked here."""
    from consumer.settings import Settings

    default: Path = Settings.model_fields["weights"].default
    return (folder or default).expanduser()


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _answer(root: Path, states: list[FileState], as_json: bool) -> None:
    from pipeline.weights import megabytes

    if as_json:
        files = [
            {"path": each.path, "size": each.size, "state": each.state, "problem": each.problem}
            for each in states
        ]
        typer.echo(json.dumps({"folder": str(root), "files": files}))
        return
    _say(Console(stderr=True), f"Weights in {root}:")
    for each in states:
        size = "" if each.size is None else megabytes(each.size)
        # The path is never broken, so that it can be copied from a terminal and found in a pipe.
        typer.echo(f"{each.state:<8}{size:>13}  {each.path}" + (f": {each.problem}" if each.problem else ""))
