"""Turn what the machine raises into the taxonomy: memory, disk, GPU. Everything else passes as it is."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch

from models.out_of_memory import is_gpu_out_of_memory
from pipeline.transfer import DISK_FULL_ERRNOS
from schemas.errors import ErrorCode, ModelError, ReconError, ResourceError

# Torch raises a class of its own for device faults since 2.8; before, a RuntimeError of this text.
_DEVICE_FAULT: type[BaseException] | None = getattr(torch, "AcceleratorError", None)
_DEVICE_FAULT_TEXTS = ("CUDA error", "CUDA driver", "cuDNN error", "CUBLAS_STATUS", "Warp CUDA error")
_OPENCV_NO_MEMORY = -4  # cv::Error::StsNoMem; the Python module does not name it
_HOST_MEMORY = re.compile(r"can't allocate memory|not enough memory|Failed to allocate .* device 'cpu'")
_TORCH_MEMORY = re.compile(
    r"Tried to allocate (?P<wanted>[\d.]+ \w+)\..* total capacity of (?P<total>[\d.]+ \w+) "
    r"of which (?P<free>[\d.]+ \w+) is free"
)


@contextmanager
def translated_failures() -> Iterator[None]:
    """Translate failures of the machine inside of the block.

    After a lack of GPU memory, what the failed computation held there is let go.

    Raises:
        ResourceError: HOST_OUT_OF_MEMORY, DISK_FULL or GPU_UNAVAILABLE.
        ModelError: MODEL_VRAM_OOM.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError, cv2.error, ModelError) as error:
        translated = error if isinstance(error, ModelError) else translate(error)
        if translated is None:
            raise
        if translated.code is ErrorCode.MODEL_VRAM_OOM:
            _let_go(error)
        if translated is error:
            raise
        raise translated from error


def translate(error: BaseException) -> ReconError | None:
    """The error of the taxonomy that a foreign exception stands for; None if it is not the machine's."""
    if isinstance(error, MemoryError):
        return ResourceError(ErrorCode.HOST_OUT_OF_MEMORY)
    if isinstance(error, OSError):
        return ResourceError(ErrorCode.DISK_FULL) if error.errno in DISK_FULL_ERRNOS else None
    if isinstance(error, cv2.error):
        no_memory = getattr(error, "code", None) == _OPENCV_NO_MEMORY
        return ResourceError(ErrorCode.HOST_OUT_OF_MEMORY) if no_memory else None
    text = str(error)
    if _HOST_MEMORY.search(text):
        return ResourceError(ErrorCode.HOST_OUT_OF_MEMORY)
    if is_gpu_out_of_memory(error):
        return _out_of_gpu_memory(text)
    if _DEVICE_FAULT is not None and isinstance(error, _DEVICE_FAULT):
        return ResourceError(ErrorCode.GPU_UNAVAILABLE)
    if any(part in text for part in _DEVICE_FAULT_TEXTS):
        return ResourceError(ErrorCode.GPU_UNAVAILABLE)
    return None


def _out_of_gpu_memory(text: str) -> ModelError:
    remedy = "Fewer or smaller views need less; other programs on the GPU leave less."
    told = _TORCH_MEMORY.search(text)
    if told is None:
        return ModelError(ErrorCode.MODEL_VRAM_OOM, f"The GPU ran out of memory. {remedy}")
    wanted, free, total = told["wanted"], told["free"], told["total"]
    return ModelError(
        ErrorCode.MODEL_VRAM_OOM,
        f"The GPU ran out of memory: {wanted} were asked for, {free} of {total} were free. {remedy}",
        wanted=wanted,
        free=free,
        total=total,
    )


def _let_go(error: BaseException | None) -> None:
    """Free the GPU memory that the frames of an error hold, or the next job would find it taken."""
    chain, known = error, set[int]()
    while chain is not None and id(chain) not in known:
        known.add(id(chain))
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
    gc.collect()
    torch.cuda.empty_cache()
