"""`recon weights`: fetch the weights of reconviagen, check them, list them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

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

        def say(text: str) -> None:
            console.print(text, highlight=False, soft_wrap=True)

        with display.transfer_bar(console, "Downloading") as bar:
            lock = fetch_weights(
                root,
                update=update,
                on_progress=lambda path, done, total: bar.update(done, total),
                say=say,
            )
        size = sum(each.size for entry in lock.repositories.values() for each in entry.files.values())
        say(f"{size / 1e9:.2f} GB, all checksums right")
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
        with console.status("Checking") as status:
            states = check_weights(root, fast=fast, on_file=status.update)
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
    from consumer.settings import load_settings

    return load_settings(weights=folder).weights


def _answer(root: Path, states: list[FileState], as_json: bool) -> None:
    if as_json:
        files = [
            {"path": each.path, "size": each.size, "state": each.state, "problem": each.problem}
            for each in states
        ]
        typer.echo(json.dumps({"folder": str(root), "files": files}))
        return
    table = Table(title=str(root), title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("state")
    for each in states:
        size = "" if each.size is None else f"{each.size / 1e6:,.1f} MB"
        table.add_row(each.path, size, f"{each.state}: {each.problem}" if each.problem else each.state)
    Console().print(table, markup=False)
