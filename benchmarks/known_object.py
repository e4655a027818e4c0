"""A true surface in place of what networks with random weights decode: a whole job has its real work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor, nn

from benchmarks.parity.cubes import CORNERS
from benchmarks.reconstruction.datasets import Truth, read_truth
from models.base import Views
from models.geometry.camera import Cameras
from models.reconviagen.alignment import known_cameras
from models.reconviagen.checkpoint import Part
from models.reconviagen.crops import crop_views
from models.reconviagen.generation import Generated, Generator
from models.reconviagen.memory import Networks
from models.reconviagen.model import Reconviagen
from models.sparse.grid import SparseGrid

SIDE = 0.96  # of the object's longest side, model units
SHARE = 4.9  # voxels per square of the resolution: 20 070 at 64, as objects have them


@dataclass(frozen=True)
class KnownObject:
    """A surface in model space, as the networks would put it.

    Attributes:
        resolution: Voxels along each axis.
        coords: [N, 3] int32, the voxels at the surface, lexicographic order.
        distances: [64 N, 8] float32 signed distances of the corners of the cubes that the mesh decoder makes
            of the voxels, model units, negative inside.
        points: [P, 3] float32 on the surface.
        center, scale: Model space is `(world - center) / scale`.
    """

    resolution: int
    coords: Tensor
    distances: Tensor
    points: Tensor
    center: Tensor
    scale: float

    @classmethod
    def read(cls, mesh: Path, resolution: int, device: torch.device) -> KnownObject:
        """From the file of a closed surface in the world of the views' cameras."""
        truth = read_truth(mesh)
        extent = np.ptp(truth.samples.points, axis=0).max()
        scale = float(extent / SIDE)
        distance = _Distance(truth, scale)
        axis = (np.arange(resolution) + 0.5) / resolution - 0.5
        centres = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        nearest = np.argpartition(np.abs(distance(centres)), int(SHARE * resolution**2))
        index = np.sort(nearest[: int(SHARE * resolution**2)])
        voxels = np.stack(np.unravel_index(index, (resolution,) * 3), -1)
        coords = torch.from_numpy(voxels).int()
        return cls(
            resolution,
            coords.to(device),
            _corner_distances(distance, coords, resolution).to(device),
            torch.from_numpy(distance.points).float().to(device),
            torch.from_numpy(truth.center).float(),
            scale,
        )

    def logits(self) -> Tensor:
        """What the structure decoder gives for it: [R, R, R], positive where a voxel is occupied."""
        logits = -torch.ones((self.resolution,) * 3, device=self.coords.device)
        logits[self.coords.long().unbind(1)] = 1.0
        return logits


class _Distance:
    """Signed distance from the nearest of many points of a surface along its normal, model units."""

    def __init__(self, truth: Truth, scale: float) -> None:
        self.points: NDArray[np.float64] = (truth.samples.points - truth.center) / scale
        self._normals = truth.samples.normals
        self._tree = cKDTree(self.points)

    def __call__(self, places: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """[K] of [K, 3]."""
        far, nearest = self._tree.query(places, workers=-1)
        along = ((places - self.points[nearest]) * self._normals[nearest]).sum(1)
        # Near the surface the distance from its plane is smoother than that from its samples.
        signed: NDArray[np.float64] = np.where(far < 0.02, along, np.copysign(far, along))
        return signed


def _corner_distances(distance: _Distance, coords: Tensor, resolution: int) -> Tensor:
    """[64 N, 8]: the mesh decoder cuts each voxel into four cubes along each axis."""
    cubes = SparseGrid(coords, resolution).subdivided().subdivided()
    corners = (cubes.coords[:, None] + cubes.coords.new_tensor(CORNERS)).long()
    count = cubes.resolution + 1
    index = (corners[..., 0] * count + corners[..., 1]) * count + corners[..., 2]
    known, place = index.unique(return_inverse=True)
    corner = np.stack(np.unravel_index(known.numpy(), (count,) * 3), -1)
    values = torch.from_numpy(distance(corner / cubes.resolution - 0.5)).float()
    return values[place]


class KnownGenerator(Generator):
    """All networks compute, but where their results would be noise the known object takes its place.

    These are: which voxels are occupied, the signed distances, the cameras and the points. Gaussians are of
    the network's own kind, and so are all gradients.

    Args:
        known: The object.
        networks, normalization, device: As for `Generator`.
    """

    def __init__(
        self, known: KnownObject, networks: Networks, normalization: Any, device: torch.device
    ) -> None:
        super().__init__(networks, normalization, device)
        self._known = known
        self._cameras: Cameras | None = None
        self._made: Generated | None = None
        networks.described(Part.STRUCTURE_DECODER).register_forward_hook(self._occupied)
        surface = networks.described(Part.MESH_DECODER).get_submodule("out_layer")
        surface.register_forward_hook(self._shaped)
        networks.described(Part.VGGT).get_submodule("camera_head").register_forward_hook(_any_cameras)

    def show(self, views: Views) -> None:
        """The views, with their cameras, of the job that comes next."""
        assert views.cameras is not None
        crops = crop_views(views.to("cpu"), size=self.image_size)
        cameras = crops.to_crops(views.cameras.to("cpu")).normalized(self._known.center, self._known.scale)
        self._cameras = cameras.to(self._known.coords.device)

    def decode(self, latent: Tensor, grid: SparseGrid) -> Generated:
        """As the base class."""
        self._made = super().decode(latent, grid)
        return self._made

    def predict_cameras(self, images: Tensor) -> Cameras:
        """The true ones, of the renderings that alignment shows before the crops too."""
        super().predict_cameras(images)
        assert self._cameras is not None
        assert self._made is not None
        if len(images) == len(self._cameras):
            return self._cameras
        rig = known_cameras(self._made.mesh, images.shape[-1])
        return Cameras(
            torch.cat([rig.camera_to_world, self._cameras.camera_to_world]),
            torch.cat([rig.intrinsics, self._cameras.intrinsics]),
            rig.width,
            rig.height,
        )

    def predict_points(self, images: Tensor) -> tuple[Cameras, Tensor, Tensor]:
        """The true cameras, and any points of the surface."""
        _, points, confidence = super().predict_points(images)
        assert self._cameras is not None
        chosen = torch.randint(len(self._known.points), points.shape[:-1], device=points.device)
        return self._cameras, self._known.points[chosen], confidence

    def _occupied(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # Refinement pulls gradients through the network's own output.
        return output if torch.is_grad_enabled() else self._known.logits()

    def _shaped(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        output = torch.zeros_like(output)  # neither displacements nor weights nor paint
        output[..., :8] = self._known.distances + 1 / (4 * self._known.resolution)  # the decoder's own bias
        return output


def _any_cameras(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Encodings of cameras, which those of random weights are not; others take their place later."""
    forward = output.new_tensor(
        [0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0, 0.785, 0.785]
    )  # place, turn, fields of view
    return forward.expand_as(output)


class KnownReconviagen(Reconviagen):
    """`reconviagen` that generates a known object.

    Args:
        device, weights: As for `Reconviagen`.
        mesh: File of the object.
    """

    def __init__(self, device: torch.device, weights: Path, mesh: Path) -> None:
        super().__init__(device, weights)
        self._mesh = mesh

    @property
    def networks(self) -> Networks:
        """What has been loaded."""
        return self._ready().networks

    def substitute(self, capacity: int | None = None) -> None:
        """After `load`: put the object in its place; plan as on a device of this memory, bytes.

        Args:
            capacity: None for the device's own.
        """
        loaded = self._ready()
        modules: Mapping[str, nn.Module] = {part: loaded.networks.described(part) for part in Part}
        networks = Networks(modules, self._device, capacity=capacity)
        resolution = loaded.generator.resolution
        known = KnownObject.read(self._mesh, resolution, self._device)
        generator = KnownGenerator(known, networks, loaded.checkpoint.normalization, self._device)
        self._loaded = replace(loaded, networks=networks, generator=generator)

    def show(self, views: Views) -> None:
        """The views, with their cameras, of the job that comes next."""
        cast(KnownGenerator, self._ready().generator).show(views)
