"""Launching Warp kernels on torch tensors: CPU views spread over threads, CUDA on torch's current stream."""

import threading
from collections import OrderedDict
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

# A vector of four floats is read and written in one access, which traps if it is not aligned.
VECTOR_BYTES = 16

Argument = Tensor | int | None
"""What a kernel is given: a contiguous tensor, a number, or no array at all."""


def packed(tensor: Tensor) -> Tensor:
    """The tensor as kernels want it: contiguous, and beginning where a vector of four may begin.

    Only a view into the middle of another tensor begins elsewhere.
    """
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % VECTOR_BYTES else tensor


def _element(kernel: Any, index: int) -> Any:
    """Type of the elements of a kernel's array argument; None if the argument is a number."""
    return getattr(kernel.adj.args[index].type, "dtype", None)


def _describe(tensor: Tensor | None, element: Any) -> Any:
    """The flat array that a kernel sees of a contiguous tensor; it borrows the tensor's memory."""
    length = getattr(element, "_length_", 1)
    if tensor is None:
        tensor = torch.empty(
            0, length, dtype=wp.dtype_to_torch(getattr(element, "_wp_scalar_type_", element))
        )
    flat = tensor.detach().reshape(-1) if length == 1 else tensor.detach().reshape(-1, length)
    return wp.from_torch(flat, dtype=element, requires_grad=False, return_ctype=True)


class _CudaLaunch:
    """A recorded launch of one kernel that is repeated with other arrays.

    Packing a kernel's arguments anew costs Warp more time than most kernels here take on the card. So the
    descriptors of the arrays are kept, and a launch only writes its pointers into them. The driver copies all
    arguments before a launch returns, so that they may change at once.
    """

    def __init__(self, kernel: Any, arguments: Sequence[Argument], items: int, warp_device: Any) -> None:
        elements = [_element(kernel, index) for index in range(2, 2 + len(arguments))]
        arrays = [None if element is None else _describe(None, element) for element in elements]
        inputs = [value if array is None else array for value, array in zip(arguments, arrays, strict=True)]
        self._command = wp.launch(
            kernel, dim=items, inputs=[0, 0, *inputs], device=warp_device, record_cmd=True
        )
        self._arrays = [(at, array) for at, array in enumerate(arrays) if array is not None]
        for at, array in self._arrays:
            self._command.set_param_at_index_from_ctype(2 + at, array)

    def resize(self, items: int, numbers: dict[int, int]) -> None:
        """Takes over another number of items and other numbers at places among the arguments."""
        self._command.set_dim(items)
        for at, number in numbers.items():
            self._command.set_param_at_index_from_ctype(2 + at, number)

    def run(self, arguments: Sequence[Any], stream: Any) -> None:
        """Launches; the tensors must live until the stream has passed the launch, which torch sees to."""
        for at, array in self._arrays:
            tensor = arguments[at]
            array.data = 0 if tensor is None else tensor.data_ptr()
        self._command.launch(stream)


class _CudaLaunches:
    """The recorded launches of one kernel, by their sizes; the one unused for longest makes way.

    Args:
        kernel: The Warp kernel.
        count: Number of its arguments after `first` and `slot`.
        warp_device: Where it runs.
        most: How many are kept: more than one step of an optimiser needs.
    """

    def __init__(self, kernel: Any, count: int, warp_device: Any, most: int = 16) -> None:
        self._kernel = kernel
        self._warp_device = warp_device
        self._most = most
        self._scalars = [at for at in range(count) if _element(kernel, 2 + at) is None]
        self._launches: OrderedDict[tuple[int, ...], _CudaLaunch] = OrderedDict()

    def get(self, items: int, arguments: Sequence[Any]) -> _CudaLaunch:
        """A launch of that many items with the numbers among the arguments."""
        sizes = (items, *[arguments[at] for at in self._scalars])
        launch = self._launches.get(sizes)
        if launch is not None:
            self._launches.move_to_end(sizes)
            return launch
        if len(self._launches) < self._most:
            launch = _CudaLaunch(self._kernel, arguments, items, self._warp_device)
        else:
            launch = self._launches.popitem(last=False)[1]
            launch.resize(items, dict(zip(self._scalars, sizes[1:], strict=True)))
        self._launches[sizes] = launch
        return launch


class Launcher:
    """Runs a kernel over `views x per_view` items on one device.

    Every kernel takes `first` and `slot` as its first two arguments: its item is `first + tid`, and scatters
    into storage shared by all views go to buffer `slot`. On the CPU a launch is a serial loop, so the views
    are split into `slots(views)` consecutive groups that run on threads of their own; a group writes only to
    its own views and to its own slot, which keeps every sum in a fixed order. On CUDA it is a single launch
    that neither waits for the device nor allocates, so that it can be captured in a CUDA graph, once the
    kernel has run before (loading it allocates).

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
        self._recorded: dict[Any, _CudaLaunches] = {}
        self._streams: dict[int, Any] = {}
        self._lock = threading.Lock()

    def slots(self, views: int) -> int:
        """Number of separate buffers that a scatter shared between views needs."""
        return max(1, min(self._threads, views))

    def run(self, kernel: Any, views: int, per_view: int, arguments: Sequence[Argument]) -> None:
        """Launches a kernel and, on the CPU, waits for it.

        Args:
            kernel: The Warp kernel; its first two arguments are supplied here.
            views: Number of views, B, or of other independent parts.
            per_view: Items per view, for example H * W.
            arguments: The kernel's arguments after `first` and `slot`: contiguous tensors for arrays, of
                which a kernel sees the elements in a row, integers for the rest. Vectors of four must begin
                at a multiple of their 16 bytes, see `packed`.
        """
        items = views * per_view
        if items == 0:
            return
        if items > MAX_ELEMENTS:
            raise ValueError(f"{views} views of {per_view} items exceed 2^31 - 1")
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.numel() > MAX_ELEMENTS:
                raise ValueError(f"tensor of shape {tuple(argument.shape)} has more than 2^31 - 1 elements")
        if self.device.type == "cuda":
            self._run_on_cuda(kernel, items, arguments)
        else:
            self._run_on_cpu(kernel, views, per_view, arguments)

    def _run_on_cuda(self, kernel: Any, items: int, arguments: Sequence[Argument]) -> None:
        if torch.cuda.current_device() != self.device.index:
            with torch.cuda.device(self.device):
                self._run_on_cuda(kernel, items, arguments)
            return
        with self._lock:
            stream = self._stream()
            launches = self._recorded.get(kernel)
            if launches is None:
                launches = _CudaLaunches(kernel, len(arguments), self._warp_device)
                self._recorded[kernel] = launches
            launches.get(items, arguments).run(arguments, stream)

    def _stream(self) -> Any:
        # What torch.cuda.current_stream does, without the object that it makes: a third of a launch's time.
        handle = torch._C._cuda_getCurrentRawStream(self.device.index)
        stream = self._streams.get(handle)
        if stream is None:
            stream = wp.stream_from_torch(torch.cuda.current_stream(self.device))
            self._streams[handle] = stream
        return stream

    def _run_on_cpu(self, kernel: Any, views: int, per_view: int, arguments: Sequence[Argument]) -> None:
        inputs: list[Any] = []
        for index, argument in enumerate(arguments, start=2):
            element = _element(kernel, index)
            inputs.append(argument if element is None else _describe(argument, element))  # type: ignore[arg-type]
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
