"""What people type, turned into what messages want: dotted options, metadata, locations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.errors import ErrorCode, InvalidJob


def parse_options(pairs: Sequence[str], file: Path | None = None) -> dict[str, Any]:
    """Options from a JSON file, then `a.b=value` pairs over them. Types are left to the job's schema.

    Raises:
        InvalidJob: INVALID_OPTIONS.
    """
    options = {} if file is None else _read_file(file)
    for pair in pairs:
        key, value = _split(pair, "--option")
        *parents, last = key.split(".")
        place = options
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise _invalid(f"--option {key}: {name!r} has a value already, not a group of options")
        place[last] = _json_or_text(value)
    return options


def parse_metadata(pairs: Sequence[str]) -> dict[str, Any]:
    """Metadata from `key=value` pairs; values that are JSON are taken as such.

    Raises:
        InvalidJob: INVALID_OPTIONS.
    """
    return {key: _json_or_text(value) for key, value in (_split(pair, "--metadata") for pair in pairs)}


def _split(pair: str, flag: str) -> tuple[str, str]:
    key, separator, value = pair.partition("=")
    if not separator or not all(key.split(".")):
        raise _invalid(f"{flag} wants key=value, not {pair!r}")
    return key, value


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_file(path: Path) -> dict[str, Any]:
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _invalid(f"--options-file {path}: {error}") from error
    if not isinstance(options, dict):
        raise _invalid(f"--options-file {path} must hold a JSON object")
    return options


def _invalid(text: str) -> InvalidJob:
    return InvalidJob(ErrorCode.INVALID_OPTIONS, text + ".")
