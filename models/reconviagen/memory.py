"""Where the networks live: on the device while they compute, elsewhere when memory is short.

A job uses one network after the other, so the device needs room for the largest, not for all. Where all fit
beside the largest working set, they stay, from job to job; else each is copied in for its turn and dropped
after it. The weights never change, so nothing is ever copied back.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum

import torch
from torch import Tensor, nn

LOGGER = logging.getLogger(__name__)

GIB = 2**30

WORKING_SET = 11 * GIB
"""Room that a job of sixteen views needs beside the weights, what torch keeps in reserve included: bytes."""

RESTING_SHARE = 0.4
"""Of the device's memory: weights that take more make room for other models between two jobs."""


class Plan(StrEnum):
    """How networks share the device."""

    RESIDENT = "resident"
    SEQUENTIAL = "sequential"


class Networks:
    """The networks of a model and their way to the device and back.

    Args:
        modules: By name, on the CPU, in the precision they compute in. They are changed for inference.
        device: Where they compute.
        capacity: Memory of the device, bytes; measured if None.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], device: torch.device, *, capacity: int | None = None
    ) -> None:
        self._modules = {name: module.eval().requires_grad_(False) for name, module in modules.items()}
        self._host = {name: [t.data for t in _tensors(module)] for name, module in modules.items()}
        self._device = device
        self._capacity = _memory_of(device) if capacity is None else capacity
        self.bytes = sum(t.numel() * t.element_size() for each in self._host.values() for t in each)
        """Size of all parameters and buffers."""
        self.plan = self._fitting_plan()
        """How the networks share the device now."""
        LOGGER.info("networks of %.1f GiB, %s on the device", self.bytes / GIB, self.plan)

    @contextmanager
    def use(self, name: str) -> Iterator[nn.Module]:
        """A network on the device, for as long as the context lasts.

        Raises:
            KeyError: there is none of that name.
            torch.OutOfMemoryError: it does not fit.
        """
        module = self._modules[name]
        try:
            self._enter(name)
            yield module
        finally:
            if self.plan is Plan.SEQUENTIAL:
                self._leave(name)

    def described(self, name: str) -> nn.Module:
        """A network wherever it is, for its configuration.

        Raises:
            KeyError: there is none of that name.
        """
        return self._modules[name]

    def economize(self) -> None:
        """Choose the plan that needs least memory, until the job is over (`rest`)."""
        self.plan = Plan.SEQUENTIAL
        self._leave_all()

    def rest(self) -> None:
        """Between two jobs: stay on the device only where that leaves other models enough room."""
        self.plan = self._fitting_plan()
        if self.bytes > RESTING_SHARE * self._capacity:
            self._leave_all()
        release_memory(self._device)

    def _enter(self, name: str) -> None:
        for tensor, host in zip(_tensors(self._modules[name]), self._host[name], strict=True):
            if tensor.device != self._device:
                tensor.data = host.to(self._device, non_blocking=True)

    def _leave(self, name: str) -> None:
        for tensor, host in zip(_tensors(self._modules[name]), self._host[name], strict=True):
            tensor.data = host
        release_memory(self._device)

    def _leave_all(self) -> None:
        for name in self._modules:
            self._leave(name)

    def _fitting_plan(self) -> Plan:
        return Plan.RESIDENT if self.bytes + WORKING_SET <= self._capacity else Plan.SEQUENTIAL


def release_memory(device: torch.device) -> None:
    """Give memory that torch keeps in reserve back to the device."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _memory_of(device: torch.device) -> int:
    """Bytes; the host's memory is taken for unlimited, since the weights are there in any case."""
    if device.type != "cuda":
        return 2**62
    return int(torch.cuda.get_device_properties(device).total_memory)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
