import errno
import weakref

import cv2
import numpy as np
import pytest
import torch

from pipeline.failures import translate, translated_failures
from schemas.errors import AccessError, ErrorCode, JobCancelled, ModelError, ReconError

ACCELERATOR_ERROR = getattr(torch, "AcceleratorError", None)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), ErrorCode.HOST_OUT_OF_MEMORY),
        (OSError(errno.ENOSPC, "no space"), ErrorCode.DISK_FULL),
        (OSError(errno.EDQUOT, "quota"), ErrorCode.DISK_FULL),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), ErrorCode.MODEL_VRAM_OOM),
        (RuntimeError("CUDA error: out of memory"), ErrorCode.MODEL_VRAM_OOM),
        (RuntimeError("Failed to allocate 512 bytes on device 'cuda:0'"), ErrorCode.MODEL_VRAM_OOM),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED in cublasCreate"), ErrorCode.MODEL_VRAM_OOM),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), ErrorCode.GPU_UNAVAILABLE),
        (RuntimeError("Failed to allocate 512 bytes on device 'cpu'"), ErrorCode.HOST_OUT_OF_MEMORY),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), ErrorCode.GPU_UNAVAILABLE),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), ErrorCode.HOST_OUT_OF_MEMORY),
    ],
)
def test_failures_of_the_machine_get_their_code(error, code):
    with pytest.raises(ReconError) as caught, translated_failures():
        raise error
    assert caught.value.code is code
    assert caught.value.__cause__ is error
    assert caught.value.retryable


def test_a_real_failure_of_torchs_allocator_is_host_memory():
    with pytest.raises(ReconError) as caught, translated_failures():
        torch.empty(1 << 60, dtype=torch.uint8)
    assert caught.value.code is ErrorCode.HOST_OUT_OF_MEMORY


def test_a_real_failure_of_opencvs_allocator_is_host_memory():
    with pytest.raises(ReconError) as caught, translated_failures():
        cv2.resize(np.zeros((1, 1)), (1 << 20, 1 << 20))  # 8 TB
    assert caught.value.code is ErrorCode.HOST_OUT_OF_MEMORY


def test_other_failures_of_opencv_pass_as_they_are():
    with pytest.raises(cv2.error), translated_failures():
        cv2.resize(np.zeros((1, 1)), (0, 0))


@pytest.mark.skipif(ACCELERATOR_ERROR is None, reason="this torch has no AcceleratorError")
def test_a_device_fault_means_the_gpu_is_gone():
    found = translate(ACCELERATOR_ERROR.__new__(ACCELERATOR_ERROR, "launch failure"))
    assert found is not None
    assert found.code is ErrorCode.GPU_UNAVAILABLE


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes differ"),
        OSError(errno.ENOENT, "no file"),
        ValueError("x"),
        JobCancelled(),
        AccessError(ErrorCode.INPUT_NOT_FOUND),
    ],
)
def test_everything_else_passes_as_it_is(error):
    with pytest.raises(type(error)) as caught, translated_failures():
        raise error
    assert caught.value is error


TORCH = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 11.76 GiB of which "
    "512.00 MiB is free. Including non-PyTorch memory, this process has 11.20 GiB memory in use."
)


def test_a_lack_of_gpu_memory_is_told_with_its_figures():
    found = translate(torch.cuda.OutOfMemoryError(TORCH))
    assert found is not None
    assert "2.50 GiB were asked for, 512.00 MiB of 11.76 GiB were free" in found.message
    assert found.details == {"wanted": "2.50 GiB", "free": "512.00 MiB", "total": "11.76 GiB"}


def runs_out_of_memory(kept):
    activations = torch.zeros(1000)
    kept.append(weakref.ref(activations))
    raise torch.cuda.OutOfMemoryError(TORCH)


def tries_again_in_vain(kept):
    try:
        runs_out_of_memory(kept)
    except torch.cuda.OutOfMemoryError as first:
        weights = torch.zeros(1000)
        kept.append(weakref.ref(weights))
        raise ModelError(ErrorCode.MODEL_VRAM_OOM, "twice") from first


@pytest.mark.parametrize("model", [runs_out_of_memory, tries_again_in_vain])
def test_what_a_failed_computation_held_is_free_for_the_next_job(model):
    """The error itself is still in somebody's hand, and with it the frames of the model."""
    kept = []
    with pytest.raises(ModelError) as caught, translated_failures():
        model(kept)
    assert caught.value.code is ErrorCode.MODEL_VRAM_OOM
    assert kept
    assert [each() for each in kept] == [None] * len(kept)
