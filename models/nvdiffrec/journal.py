"""Checkpoints of a run: written while it goes, read when the job is taken up again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from models.base import Checkpoints, PosedViews
from models.nvdiffrec.config import NvdiffrecConfig
from models.nvdiffrec.descent import Descent, State

LOGGER = logging.getLogger(__name__)

_FORMAT = 1  # raised when the meaning of a state changes


class Journal:
    """The checkpoints of one run. A state belongs to a phase and, within it, to a part of it.

    Args:
        checkpoints: Where states are kept; None keeps none.
        fingerprint: [32] uint8 (`fingerprint`); a state of another one is not used.
    """

    def __init__(self, checkpoints: Checkpoints | None = None, fingerprint: Tensor | None = None) -> None:
        self._checkpoints = checkpoints
        self._fingerprint = torch.zeros(32, dtype=torch.uint8) if fingerprint is None else fingerprint
        self.state = self._load()
        """What the run goes on from; None at a fresh start."""
        self._scene: State = {}

    def keep(self, scene: State) -> None:
        """Add to every state from now on what was found before the first phase."""
        self._scene = scene

    def resumed(self, phase: int, part: int = 0) -> State | None:
        """The state that the run goes on from, if that lies in this part."""
        if self.state is None or self._at(self.state) != (phase, part):
            return None
        return self.state

    def passed(self, phase: int, part: int = 0) -> bool:
        """Whether the state that the run goes on from lies behind this part."""
        return self.state is not None and self._at(self.state) > (phase, part)

    def writer(self, descent: Descent, phase: int, part: int, extra: State) -> Callable[[int], None] | None:
        """What a descent calls after each step; None where nothing is kept.

        Args:
            descent: Its state is kept.
            phase, part: Where it is.
            extra: What else the run needs in order to go on there.
        """
        checkpoints = self._checkpoints
        if checkpoints is None:
            return None
        fixed = self._scene | extra | {"fingerprint": self._fingerprint, "at": torch.tensor([phase, part])}

        def write(done: int) -> None:
            if checkpoints.due():
                kept = {name: tensor.detach().cpu() for name, tensor in fixed.items()}
                checkpoints.save(kept | descent.state())

        return write

    def _load(self) -> State | None:
        state = self._checkpoints.load() if self._checkpoints else None
        if state is None:
            return None
        if "fingerprint" not in state or not torch.equal(state["fingerprint"], self._fingerprint):
            LOGGER.warning("a checkpoint of another input or of other options is not used")
            return None
        LOGGER.info("going on from a checkpoint")
        return state

    @staticmethod
    def _at(state: State) -> tuple[int, int]:
        phase, part = state["at"].tolist()
        return phase, part


def fingerprint(views: PosedViews, config: NvdiffrecConfig) -> Tensor:
    """A hash [32] uint8 of what shapes a run: options, cameras and images."""
    digest = hashlib.sha256(f"{_FORMAT} {config!r} {views.names}".encode())
    images = [views.images, views.masks, *([] if views.depths is None else [views.depths])]
    for tensor in (*images, views.cameras.camera_to_world, views.cameras.intrinsics):
        digest.update(memoryview(tensor.cpu().contiguous().numpy()).cast("B"))
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)
