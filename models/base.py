"""What a reconstruction model takes and gives: one interface, whatever the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor

from models.geometry.camera import Cameras
from models.geometry.mesh import TexturedMesh
from schemas.errors import ErrorCode, ModelError
from schemas.options import Options

if TYPE_CHECKING:
    from models.render import Rendering


@dataclass(frozen=True)
class Views:
    """V views of one object, all of one size, row 0 at the top.

    Attributes:
        names: File names of the views, relative to the input prefix.
        images: [V, H, W, 3] float32, sRGB in [0, 1], not premultiplied; meaningful on the object only.
        masks: [V, H, W] float32 in [0, 1], coverage by the object.
        depths: [V, H, W] float32 z-depth in world units, 0 where nothing was measured; None without depth.
        cameras: The V cameras; None where the model is to find them.
    """

    names: tuple[str, ...]
    images: Tensor
    masks: Tensor
    depths: Tensor | None
    cameras: Cameras | None

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str) -> Self:
        """The same views on another device."""
        return replace(
            self,
            images=self.images.to(device),
            masks=self.masks.to(device),
            depths=None if self.depths is None else self.depths.to(device),
            cameras=None if self.cameras is None else self.cameras.to(device),
        )

    def subset(self, index: list[int]) -> Self:
        """Some of the views, in the order of `index`."""
        return replace(
            self,
            names=tuple(self.names[i] for i in index),
            images=self.images[index],
            masks=self.masks[index],
            depths=None if self.depths is None else self.depths[index],
            cameras=None if self.cameras is None else self.cameras[index],
        )

    def posed(self) -> PosedViews:
        """The same views, for what cannot do without cameras.

        Raises:
            ModelError: INVALID_CAMERAS: there are none.
        """
        if self.cameras is None:
            text = "The views have no cameras, and this model does not find them by itself."
            raise ModelError(ErrorCode.INVALID_CAMERAS, text)
        return PosedViews(self.names, self.images, self.masks, self.depths, self.cameras)

    def with_cameras(self, cameras: Cameras) -> PosedViews:
        """The same views with other cameras, which are brought to the size and the device of the images."""
        height, width = self.masks.shape[1:]
        fitting = cameras.resized(width, height).to(self.images.device)
        return PosedViews(self.names, self.images, self.masks, self.depths, fitting)


@dataclass(frozen=True)
class PosedViews(Views):
    """Views whose cameras are known."""

    cameras: Cameras


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
        mesh: In the world frame and scale of the input cameras. Without them, in that of `cameras`, whose
            unit is the depth maps' where they were used.
        raster: Name of the rasterizer that ran.
        curves: Optimisation curves by name, for the quality report.
        extra: Further figures of the model.
        cameras: The input's cameras as the model found or corrected them, perhaps for another image size;
            None where it took them as given.
        parts: The networks that ran, by name, each with repository and revision of its weights.
    """

    mesh: TexturedMesh
    raster: str
    curves: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    cameras: Cameras | None = None
    parts: dict[str, str] = field(default_factory=dict)


class Reconstructor(Protocol):
    """A reconstruction model, warm from job to job."""

    name: str

    def load(self) -> None:
        """Load weights or compile kernels; called once, before the first job.

        Raises:
            ModelError: MODEL_WEIGHTS_MISSING.
            ResourceError: GPU_TOO_SMALL.
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
            views: The input. Where it has no cameras, `Reconstruction.cameras` gives them.
            options: The job's, of this model.
            callback: Told the progress.
            snapshot: Shown the object while it takes shape.
            checkpoints: Asked for a state to go on from, and given states to keep.

        Raises:
            ModelError: MODEL_DIVERGED, MODEL_VRAM_OOM, CAMERA_ESTIMATION_FAILED.
            JobCancelled: through `callback`.
        """
