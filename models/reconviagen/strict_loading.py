"""Fill a network with published tensors: every parameter exactly once, nothing left over, little memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.reconviagen.renaming import Renaming
from models.reconviagen.tensor_files import TensorFiles
from models.reconviagen.weights_folder import invalid_weights

NAMED_IN_ERRORS = 8
"""Tensors named in one error; the others are counted."""


class Network(Protocol):
    """What a network offers the loader, beside being a module."""

    def to_precision(self, dtype: torch.dtype) -> nn.Module:
        """Hold what multiplies matrices in `dtype`."""
        ...


M = TypeVar("M", bound=nn.Module)


def build(make: Callable[[], M], precision: torch.dtype) -> M:
    """A network without its weights: parameters on the meta device, in the precision they are to have.

    Buffers are real, so that what is computed rather than loaded keeps its values.

    Args:
        make: Builds the network.
        precision: Of what multiplies matrices.
    """
    with _WithoutInitialization():
        network = make()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().to("meta"), requires_grad=False))
    network.to_precision(precision)  # type: ignore[operator]
    return network.eval()


def fill(network: nn.Module, tensors: TensorFiles, renaming: Renaming) -> None:
    """Give a network its weights, in the dtypes that its parameters have.

    Args:
        network: From `build`.
        tensors: The published ones.
        renaming: What they are called here.

    Raises:
        ModelError: MODEL_WEIGHTS_INVALID, naming tensors that are missing, unexpected or of another shape.
    """
    wanted = network.state_dict()
    sources = renaming.sources(tensors.names)
    _check(wanted, sources, tensors, renaming)
    filled = {
        name: _joined([tensors.read(part, tensor.dtype) for part in sources[name]])
        for name, tensor in wanted.items()
    }
    network.load_state_dict(filled, assign=True)


def _check(
    wanted: Mapping[str, Tensor],
    sources: Mapping[str, Sequence[str]],
    tensors: TensorFiles,
    renaming: Renaming,
) -> None:
    problems = {
        "lacks": [name for name in wanted if len(sources.get(name, ())) != _parts(sources, name, renaming)],
        "holds, and should not,": [
            part for name, parts in sources.items() if name not in wanted for part in parts
        ],
    }
    if not any(problems.values()):
        problems["holds in another shape"] = [
            _compared(name, found, tensor)
            for name, tensor in wanted.items()
            if (found := _shape([tensors.shape(part) for part in sources[name]])) != tuple(tensor.shape)
        ]
    texts = [f"{verb} {_listed(names)}" for verb, names in problems.items() if names]
    if texts:
        raise invalid_weights(
            tensors.label,
            "; it ".join(texts),
            "a network's tensors have its names and shapes, no more, no fewer",
        )


def _parts(sources: Mapping[str, Sequence[str]], name: str, renaming: Renaming) -> int:
    parts = sources.get(name, ())
    return renaming.parts(parts[0]) if parts else 1


def _shape(parts: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """Of the parts one after the other along the first dimension; None if they do not fit each other."""
    if len(parts) == 1:
        return parts[0]
    if len({part[1:] for part in parts}) > 1 or not all(parts):
        return None
    return (sum(part[0] for part in parts), *parts[0][1:])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _compared(name: str, found: tuple[int, ...] | None, wanted: Tensor) -> str:
    return f"{name} ({'parts that differ' if found is None else list(found)}, not {list(wanted.shape)})"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED_IN_ERRORS
    return ", ".join(names[:NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")


class _WithoutInitialization(TorchFunctionMode):
    """Leaves parameters as they were allocated: untouched memory costs neither time nor room."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func.__name__, kwargs or {}
        changed = args[0] if args else kwargs.get("tensor")  # so are they named in torch.nn.init
        if name.endswith("_") and not name.endswith("__") and isinstance(changed, nn.Parameter):
            return changed
        return func(*args, **kwargs)
