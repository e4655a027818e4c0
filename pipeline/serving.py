"""Which models this machine can serve, and those models, loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from models.base import Reconstructor
from models.nvdiffrec.model import Nvdiffrec
from pipeline.failures import translate, translated_failures
from pipeline.settings import PipelineSettings
from pipeline.weights import weights_problem
from pipeline.weights_lock import Lock, read_lock
from schemas.errors import ErrorCode, ErrorInfo, ModelError, ReconError, ResourceError
from schemas.jobs import MODELS, ModelName

GIB = 2**30

NOMINAL_SHARE = 0.95
"""Of the memory that a GPU is sold with, at least so much is told by its driver, which keeps the rest."""


@dataclass(frozen=True)
class Served:
    """The models of a machine.

    Attributes:
        reconstructors: Those that are loaded.
        unavailable: Those that were wanted and cannot be served, with the reason.
    """

    reconstructors: dict[str, Reconstructor]
    unavailable: dict[ModelName, ErrorInfo]


def load_models(settings: PipelineSettings, device: torch.device) -> Served:
    """Load the models that are asked for by name; if none is, every one that this machine can serve.

    In the second case a model's own fault leaves the others alone.

    Raises:
        ResourceError: GPU_UNAVAILABLE.
        ReconError: MODEL_WEIGHTS_MISSING, MODEL_WEIGHTS_INVALID, MODEL_VRAM_OOM, GPU_TOO_SMALL,
            HOST_OUT_OF_MEMORY, INTERNAL_ERROR: of a model that is asked for by name, or of the first one
            where none can be served.
    """
    served = Served({}, {})
    for model in settings.models or MODELS:
        try:
            served.reconstructors[model] = _loaded(model, settings, device)
        except ReconError as error:
            if settings.models is not None or error.code is ErrorCode.GPU_UNAVAILABLE:
                raise
            served.unavailable[model] = error.info()
    if not served.reconstructors:
        raise _nothing_to_serve(served.unavailable)
    return served


def gpu_memory(device: torch.device) -> int | None:
    """All memory of a GPU, bytes; None for a CPU."""
    if device.type == "cpu":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def check_gpu_memory(model: ModelName, memory: int | None, minimum_gib: float) -> None:
    """Refuse a GPU that is too small for a model, or that there is none.

    Args:
        model: The model.
        memory: Of the GPU, bytes; None where the CPU computes.
        minimum_gib: What the model needs, as printed on the GPU's box; 0 asks for nothing.

    Raises:
        ResourceError: GPU_TOO_SMALL.
    """
    if minimum_gib == 0 or (memory is not None and memory >= NOMINAL_SHARE * minimum_gib * GIB):
        return
    actual = 0.0 if memory is None else memory / GIB
    has = "this worker computes on the CPU" if memory is None else f"this one has {actual:.1f} GiB"
    rule = f"{model} needs a GPU with {minimum_gib:g} GiB of memory (RECON_MIN_GPU_MEMORY_GIB)"
    raise ResourceError(
        ErrorCode.GPU_TOO_SMALL, f"{rule}; {has}.", rule=rule, limit=minimum_gib, actual=round(actual, 2)
    )


def _nothing_to_serve(unavailable: Mapping[ModelName, ErrorInfo]) -> ReconError:
    reasons = " ".join(f"{model}: {reason.message}" for model, reason in unavailable.items())
    code = next(iter(unavailable.values())).code
    return ModelError(code, f"This machine can serve no model. {reasons}", models=list(unavailable))


def _loaded(model: ModelName, settings: PipelineSettings, device: torch.device) -> Reconstructor:
    if model == "nvdiffrec":
        nvdiffrec = Nvdiffrec(device)
        with translated_failures():
            nvdiffrec.load()
        return nvdiffrec
    # In this order: who lacks the GPU need not fetch gigabytes to be told.
    check_gpu_memory(model, gpu_memory(device), settings.min_gpu_memory_gib)
    with translated_failures(), _faults_of_reconviagen():
        return _reconviagen(device, settings.weights)


@contextmanager
def _faults_of_reconviagen() -> Iterator[None]:
    """Say what an installation or a folder of weights lacks that was looked at and seemed right."""
    try:
        yield
    except ImportError as error:
        raise ResourceError(
            ErrorCode.INTERNAL_ERROR, f"The code of reconviagen cannot be imported: {error}"
        ) from error
    except OSError as error:
        if translate(error) is not None:
            raise
        raise ModelError(
            ErrorCode.MODEL_WEIGHTS_INVALID,
            f"The weights of reconviagen cannot be read: {error}",
            file=None if error.filename is None else str(error.filename),
            rule="the worker may read its weights",
        ) from error


def _reconviagen(device: torch.device, weights: Path | None) -> Reconstructor:
    problem = weights_problem(weights)
    if problem is not None:
        raise problem
    assert weights is not None  # that would be a problem
    # Here, so that what it alone imports cannot keep a machine from serving the other model.
    from models.reconviagen.model import Reconviagen

    lock = read_lock(weights) or Lock()
    revisions = {name: entry.revision for name, entry in lock.repositories.items()}
    reconviagen = Reconviagen(device, weights, revisions)
    reconviagen.load()
    return reconviagen
