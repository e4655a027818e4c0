"""Turn what the machine raises into the taxonomy: memory, disk, GPU. Everything else passes as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch

from pipeline.transfer import DISK_FULL_ERRNOS
from schemas.errors import ErrorCode, ModelError, ReconError, ResourceError

# Torch raises a class of its own for device faults since 2.8; before, a RuntimeError of this text.
_DEVICE_FAULT: type[BaseException] | None = getattr(torch, "AcceleratorError", None)
_DEVICE_FAULT_TEXTS = ("CUDA error", "CUDA driver", "cuDNN error", "CUBLAS_STATUS", "Warp CUDA error")
_OPENCV_NO_MEMORY = -4  # cv::Error::StsNoMem; the Python module does not name it
_HOST_MEMORY_TEXTS = ("can't allocate memory", "not enough memory")


@contextmanager
def translated_failures() -> Iterator[None]:
    """Translate failures of the machine inside of the block.

    Raises:
        ResourceError: HOST_OUT_OF_MEMORY, DISK_FULL or GPU_UNAVAILABLE.
        ModelError: MODEL_VRAM_OOM.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError, cv2.error) as error:
        translated = translate(error)
        if translated is None:
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
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return ModelError(ErrorCode.MODEL_VRAM_OOM)
    text = str(error)
    if any(part in text for part in _HOST_MEMORY_TEXTS):
        return ResourceError(ErrorCode.HOST_OUT_OF_MEMORY)
    if _DEVICE_FAULT is not None and isinstance(error, _DEVICE_FAULT):
        return ResourceError(ErrorCode.GPU_UNAVAILABLE)
    if any(part in text for part in _DEVICE_FAULT_TEXTS):
        return ResourceError(ErrorCode.GPU_UNAVAILABLE)
    return None
