"""Telling that a GPU ran out of memory, whoever asked for it."""

from __future__ import annotations

import re

import torch

# Of libraries that ask the driver themselves: Warp, cuBLAS and cuDNN, compiled extensions.
_TEXT = re.compile(r"(?i)Failed to allocate .* device 'cuda|out of memory|_STATUS_ALLOC_FAILED")


def is_gpu_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU has too little memory left."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _TEXT.search(str(error)) is not None
