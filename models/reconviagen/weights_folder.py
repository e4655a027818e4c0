"""The folder of weights: where each file lies, and reading its JSON with suspicion. Imports no torch.

Layout, as the three repositories publish it:

    <root>/Stable-X/trellis-vggt-v0-2/pipeline.json              samplers, statistics, paths of seven networks
    <root>/Stable-X/trellis-vggt-v0-2/ckpts/<name>.json          class and arguments of one network
    <root>/Stable-X/trellis-vggt-v0-2/ckpts/<name>.safetensors   its parameters
    <root>/Stable-X/vggt-object-v0-1/{config.json, model.safetensors}
    <root>/facebook/dinov2-with-registers-large/{config.json, model.safetensors}
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from schemas.errors import ErrorCode, ModelError

TRELLIS = "Stable-X/trellis-vggt-v0-2"
VGGT = "Stable-X/vggt-object-v0-1"
DINOV2 = "facebook/dinov2-with-registers-large"

MAX_JSON_BYTES = 4 * 1024 * 1024
"""The largest published one, an index of shards, has some hundred kilobytes."""


def fetch_command(root: Path) -> str:
    """What to type to get the weights."""
    return f"recon weights fetch --folder {shlex.quote(str(root))}"


def missing_weights(root: Path, file: str, problem: str = "it is not there") -> ModelError:
    """The error for a file that is not there, or not as one that was fetched.

    Args:
        root: The folder of weights.
        file: Path below it.
        problem: What is wrong, a sentence without its full stop.
    """
    command = fetch_command(root)
    return ModelError(
        ErrorCode.MODEL_WEIGHTS_MISSING,
        f"The weights of reconviagen lack {file}: {problem}. Run: {command}",
        file=file,
        rule="every network's JSON and safetensors files must be there",
        command=command,
    )


def invalid_weights(file: str, problem: str, rule: str) -> ModelError:
    """The error for a file that is there and cannot be used.

    Args:
        file: Relative to the folder of weights.
        problem: What is wrong, a sentence without its subject and full stop.
        rule: What the file would have to obey.
    """
    return ModelError(ErrorCode.MODEL_WEIGHTS_INVALID, f"{file} {problem}; {rule}.", file=file, rule=rule)


def read_json(root: Path, file: str) -> dict[str, Any]:
    """A JSON object from the folder of weights.

    Args:
        root: The folder of weights.
        file: Path below it.

    Raises:
        ModelError: MODEL_WEIGHTS_MISSING; MODEL_WEIGHTS_INVALID if it is too large or no JSON object.
    """
    try:
        with (root / file).open("rb") as stream:
            data = stream.read(MAX_JSON_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise missing_weights(root, file) from None
    if len(data) > MAX_JSON_BYTES:
        raise invalid_weights(file, "is too large", f"JSON files have at most {MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise invalid_weights(file, f"is not JSON: {error}", "configurations are JSON objects") from error
    if not isinstance(value, dict):
        raise invalid_weights(file, "holds no JSON object", "configurations are JSON objects")
    return value


def inside(file: str, path: str) -> PurePosixPath:
    """A path that a file names, checked to stay below the file's own folder.

    Raises:
        ModelError: MODEL_WEIGHTS_INVALID.
    """
    parts = PurePosixPath(path)
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or set(path) & set("\\:\0"):
        raise invalid_weights(file, f"names the path {path!r}", "paths may not leave the file's folder")
    return parts


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
