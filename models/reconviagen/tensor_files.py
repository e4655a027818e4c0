"""Named tensors in safetensors files, whole or in shards. No other format is read: pickles can run code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.reconviagen.weights_folder import inside, invalid_weights, missing_weights, read_json

SUFFIX = ".safetensors"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorFiles:
    """The tensors of one network while their files are open.

    Attributes:
        label: What to call them in errors: the file, or the index of the shards, below the folder of weights.
    """

    def __init__(self, label: str, handles: Mapping[str, Any]) -> None:
        self.label = label
        self._handles = handles  # by tensor

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tensors, sorted."""
        return tuple(sorted(self._handles))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, from its file's header.

        Raises:
            ModelError: MODEL_WEIGHTS_INVALID, if it holds no floating-point numbers of a kind that is read.
        """
        part = self._handles[name].get_slice(name)
        if part.get_dtype() not in _DTYPES:
            raise invalid_weights(
                self.label, f"holds {name} as {part.get_dtype()}", f"tensors are of {', '.join(_DTYPES)}"
            )
        return tuple(part.get_shape())

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of one tensor, on the CPU, independent of the file."""
        tensor: Tensor = self._handles[name].get_tensor(name)
        return tensor.to(dtype, copy=True)


@contextmanager
def open_tensors(root: Path, stem: str) -> Iterator[TensorFiles]:
    """Open `<stem>.safetensors`, or the shards that `<stem>.safetensors.index.json` lists.

    Args:
        root: The folder of weights.
        stem: Path below it, without suffix.

    Raises:
        ModelError: MODEL_WEIGHTS_MISSING; MODEL_WEIGHTS_INVALID if a file is damaged or an index wrong.
    """
    whole, index = stem + SUFFIX, f"{stem}{SUFFIX}.index.json"
    with ExitStack() as stack:
        if (root / whole).is_file() or not (root / index).is_file():
            handle = stack.enter_context(_open(root, whole))
            yield TensorFiles(whole, dict.fromkeys(handle.keys(), handle))
        else:
            yield TensorFiles(index, _open_shards(root, index, stack))


def _open_shards(root: Path, index: str, stack: ExitStack) -> dict[str, Any]:
    shards = _shard_of_each(root, index)
    handles: dict[str, Any] = {}
    for shard in sorted(set(shards.values())):
        handle = stack.enter_context(_open(root, shard))
        for name in handle.keys():  # noqa: SIM118 - a file, not a mapping
            if shards.get(name) != shard:
                raise invalid_weights(
                    index, f"does not list {name} of {shard}", "an index lists every tensor"
                )
            handles[name] = handle
    lost = sorted(shards.keys() - handles.keys())
    if lost:
        raise invalid_weights(index, f"lists {lost[0]}, which its shard lacks", "shards hold what is listed")
    return handles


def _shard_of_each(root: Path, index: str) -> dict[str, str]:
    """Path of the shard, below the folder of weights, for each tensor."""
    places = read_json(root, index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise invalid_weights(index, "has no weight_map", "an index maps tensors to files")
    folder = PurePosixPath(index).parent
    shards: dict[str, str] = {}
    for name, file in places.items():
        if not isinstance(file, str) or not file.endswith(SUFFIX):
            raise invalid_weights(index, f"asks for the file {file!r}", f"only *{SUFFIX} files are read")
        shards[name] = str(folder / inside(index, file))
    return shards


@contextmanager
def _open(root: Path, file: str) -> Iterator[Any]:
    if not (root / file).is_file():
        raise missing_weights(root, file)
    try:
        handle = safe_open(root / file, framework="pt")
    except SafetensorError as error:
        raise invalid_weights(file, f"is no safetensors file: {error}", "weights are safetensors") from error
    with handle as opened:
        yield opened
