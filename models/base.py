"""What a reconstruction model takes and gives: one interface, whatever the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from models.geometry.camera import Cameras
from models.geometry.mesh import TexturedMesh
from schemas.options import Options

if TYPE_CHECKING:
    from models.render import Rendering


@dataclass(frozen=True)
class Views:
    """V posed views of one object, all of one size, row 0 at the top.

    Attributes:
        names: File names of the views, relative to the input prefix.
        images: [V, H, W, 3] float32, sRGB in [0, 1], not premultiplied; meaningful on the object only.
        masks: [V, H, W] float32 in [0, 1], coverage by the object.
        depths: [V, H, W] float32 z-depth in world units, 0 where nothing was measured; None without depth.
        cameras: The V cameras.
    """

    names: tuple[str, ...]
    images: Tensor
    masks: Tensor
    depths: Tensor | None
    cameras: Cameras

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str) -> Views:
        """The same views on another device."""
        return Views(
            self.names,
            self.images.to(device),
            self.masks.to(device),
            None if self.depths is None else self.depths.to(device),
            self.cameras.to(device),
        )

    def subset(self, index: list[int]) -> Views:
        """Some of the views, in the order of `index`."""
        return Views(
            tuple(self.names[i] for i in index),
            self.images[index],
            self.masks[index],
            None if self.depths is None else self.depths[index],
            self.cameras[index],
        )


Callback = Callable[[float, str, dict[str, float]], None]
"""Called in every loop of a model: fraction in [0, 1], message, metrics. It may raise `JobCancelled`."""


Snapshot = Callable[[str, "Callable[[Cameras], Rendering]"], None]
"""Called every few steps with the step's name and a function that renders the object as it stands.

The function takes cameras in the input's world, on the model's device, of at most 2048 pixels a side, and
holds until the next step."""


class Checkpoints(Protocol):
    """Where a model keeps its state while it runs, so that another run of the job can go on from there."""

    def due(self) -> bool:
        """Whether it is time for another checkpoint; asked after every step."""
        ...

    def save(self, state: dict[str, Tensor]) -> None:
        """Keep a state, instead of an earlier one; the tensors are on the CPU."""
        ...

    def load(self) -> dict[str, Tensor] | None:
        """The state that was kept last, if there is one."""
        ...


@dataclass(frozen=True)
class Reconstruction:
    """What a model made.

    Attributes:
        mesh: In the world frame and scale of the input cameras.
        raster: Name of the rasterizer that ran.
        curves: Optimisation curves by name, for the quality report.
        extra: Further figures of the model.
        cameras: The input's cameras as the model corrected them, perhaps for another image size; None where
            it took them as given.
    """

    mesh: TexturedMesh
    raster: str
    curves: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    cameras: Cameras | None = None


class Reconstructor(Protocol):
    """A reconstruction model, warm from job to job."""

    name: str

    def load(self) -> None:
        """Load weights or compile kernels; called once, before the first job.

        Raises:
            ModelError: MODEL_WEIGHTS_MISSING.
        """

    def reconstruct(
        self,
        views: Views,
        options: Options,
        callback: Callback,
        *,
        snapshot: Snapshot | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> Reconstruction:
        """Reconstruct one object.

        Args:
            views: The input.
            options: The job's, of this model.
            callback: Told the progress.
            snapshot: Shown the object while it takes shape.
            checkpoints: Asked for a state to go on from, and given states to keep.

        Raises:
            ModelError: MODEL_DIVERGED, MODEL_VRAM_OOM, CAMERA_ESTIMATION_FAILED.
            JobCancelled: through `callback`.
        """
