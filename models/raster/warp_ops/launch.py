"""Launching Warp kernels on torch tensors: CPU views spread over threads, CUDA on torch's current stream."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import warp as wp
from torch import Tensor

# Warp otherwise prints its devices and every compilation. Newer versions have levels, older ones a switch.
if hasattr(wp.config, "log_level"):
    wp.config.log_level = wp.LOG_WARNING
else:
    wp.config.quiet = True  # type: ignore[attr-defined, unused-ignore]

# By default every CPU launch keeps a pointer into its own stack in a variable common to all threads, for the
# sake of tiles, which the kernels here do not use. Two launches at once overwrite it, and crash.
THREADS_ARE_SAFE = hasattr(wp.config, "enable_tiles_in_stack_memory")
wp.config.enable_tiles_in_stack_memory = False

# Below this many kernel threads the hand-over to a second thread costs more than it gives.
SMALL_LAUNCH = 2048

# Kernels index flat arrays with 32-bit integers.
MAX_ELEMENTS = 2**31 - 1


def as_array(tensor: Tensor, dtype: Any) -> Any:
    """Hands a contiguous tensor to a kernel without copying.

    The result borrows the tensor's memory: keep the tensor alive until the launch has returned.

    Args:
        tensor: Contiguous tensor; for a vector `dtype` its last dimension is the vector's length.
        dtype: Warp scalar or vector type of the flat array that the kernel sees.

    Returns:
        A one-dimensional array descriptor for `Launcher.run`.
    """
    if tensor.numel() > MAX_ELEMENTS:
        raise ValueError(f"tensor of shape {tuple(tensor.shape)} has more than 2^31 - 1 elements")
    scalar = dtype in (wp.float32, wp.int32, wp.int64)
    flat = tensor.detach().reshape(-1) if scalar else tensor.detach().reshape(-1, tensor.shape[-1])
    return wp.from_torch(flat, dtype=dtype, requires_grad=False, return_ctype=True)


class Launcher:
    """Runs a kernel over `views x per_view` items on one device.

    Every kernel takes `first` and `slot` as its first two arguments: its item is `first + tid`, and scatters
    into storage shared by all views go to buffer `slot`. On the CPU a launch is a serial loop, so the views
    are split into `slots(views)` consecutive groups that run on threads of their own; a group writes only to
    its own views and to its own slot, which keeps every sum in a fixed order. On CUDA it is a single launch.

    Args:
        device: Where the tensors live.
        threads: CPU threads; None for torch's own number. Ignored on CUDA.
    """

    def __init__(self, device: torch.device, threads: int | None = None) -> None:
        wp.init()
        self.device = device
        self._warp_device = wp.device_from_torch(device)
        several = device.type == "cpu" and THREADS_ARE_SAFE
        self._threads = max(1, threads or torch.get_num_threads()) if several else 1
        self._pool: ThreadPoolExecutor | None = None
        self._compiled: set[Any] = set()
        self._streams: dict[int, Any] = {}
        self._lock = threading.Lock()

    def slots(self, views: int) -> int:
        """Number of separate buffers that a scatter shared between views needs."""
        return max(1, min(self._threads, views))

    def run(self, kernel: Any, views: int, per_view: int, inputs: Sequence[Any]) -> None:
        """Launches a kernel and, on the CPU, waits for it.

        Args:
            kernel: The Warp kernel; its first two arguments are supplied here.
            views: Number of views, B.
            per_view: Items per view, for example H * W.
            inputs: The kernel's arguments after `first` and `slot`.
        """
        if views * per_view == 0:
            return
        if views * per_view > MAX_ELEMENTS:
            raise ValueError(f"{views} views of {per_view} items exceed 2^31 - 1")
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                wp.launch(
                    kernel,
                    dim=views * per_view,
                    inputs=[0, 0, *inputs],
                    device=self._warp_device,
                    stream=self._stream(),
                )
            return
        slots = self.slots(views)
        bounds = [views * slot // slots for slot in range(slots + 1)]

        def launch(slot: int) -> None:
            first, last = bounds[slot] * per_view, bounds[slot + 1] * per_view
            wp.launch(kernel, dim=last - first, inputs=[first, slot, *inputs], device=self._warp_device)

        # The first launch compiles, which is not safe from several threads at once.
        if kernel not in self._compiled:
            with self._lock:
                for slot in range(slots):
                    launch(slot)
                self._compiled.add(kernel)
            return
        if slots == 1 or views * per_view < SMALL_LAUNCH:
            for slot in range(slots):
                launch(slot)
            return
        others = [self._workers().submit(launch, slot) for slot in range(1, slots)]
        launch(0)
        for other in others:
            other.result()

    def _workers(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads - 1, thread_name_prefix="raster")
            return self._pool

    def _stream(self) -> Any:
        stream = torch.cuda.current_stream(self.device)
        with self._lock:
            if stream.cuda_stream not in self._streams:
                self._streams[stream.cuda_stream] = wp.stream_from_torch(stream)
            return self._streams[stream.cuda_stream]
