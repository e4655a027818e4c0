"""Arguments and choices that several `recon` commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Model(StrEnum):
    """The models, as typer wants choices."""

    NVDIFFREC = "nvdiffrec"
    RECONVIAGEN = "reconviagen"


class LogFormat(StrEnum):
    """Forms of log lines."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """Levels of logging."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class Device(StrEnum):
    """Devices of the engine."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


ModelFlag = Annotated[Model, typer.Option(help="Reconstruction model.")]
OptionFlag = Annotated[
    list[str],
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="Option of the job, dotted: quality.holdout=1. `recon options` lists them.",
    ),
]
OptionsFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="JSON file with options.")
]
OutputFlag = Annotated[
    str | None,
    typer.Option(
        help="Prefix below which the result's folder lies.",
        envvar="RECON_OUTPUT_PREFIX",
        metavar="s3://BUCKET/PREFIX",
    ),
]
DeviceFlag = Annotated[
    Device | None, typer.Option(envvar="RECON_DEVICE", help="Device of the engine.", show_default=False)
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Answer with JSON on standard output.")]
