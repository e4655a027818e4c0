"""Exit codes of the `recon` command, and errors turned into them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from consumer import display
from schemas.errors import AccessError, ConflictError, InvalidJob, ReconError

EXIT_REFUSED = 4
EXIT_UNAVAILABLE = 5
EXIT_INTERRUPTED = 130


@contextmanager
def errors() -> Iterator[None]:
    """Errors that we know become one line and an exit code; the others keep their traceback."""
    try:
        yield
    except ReconError as error:
        typer.echo(f"error: {display.format_error(error.info())}", err=True)
        refused = isinstance(error, InvalidJob | AccessError | ConflictError)
        raise typer.Exit(EXIT_REFUSED if refused else EXIT_UNAVAILABLE) from None
    except BrokenPipeError:
        raise  # whoever reads our output has left; typer ends in silence
    except OSError as error:
        typer.echo(f"error: {error or type(error).__name__}", err=True)
        raise typer.Exit(EXIT_UNAVAILABLE) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
