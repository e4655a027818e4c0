"""Where the views stand before a generated object, or where the object stands before given cameras.

Model space: the object within [-0.5, 0.5]^3, z up, turned as the network liked.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Callback
from models.geometry.camera import Cameras
from models.geometry.clustering import clustered
from models.geometry.rigs import bounding_sphere, cameras_around, spread_directions
from models.geometry.rotation import rotation_between, rotation_matrix
from models.geometry.similarity import Similarity
from models.painted import PaintedMesh, render_painted
from models.raster import RasterBackend
from models.reconviagen.camera_transfer import fit_cameras, uncropped
from models.reconviagen.comparison import Drawing, Observed, observed
from models.reconviagen.crops import Crops, evenly_spaced
from models.reconviagen.fitting import Schedule, fit_poses, fit_similarities
from models.reconviagen.placement import place, placing_steps, sample, spread_rotations, turns_about_z
from models.render import clip_matrices
from schemas.errors import ModelError

LOGGER = logging.getLogger(__name__)

Predict = Callable[[Tensor], Cameras]
"""From images [M, 3, S, S], sRGB in [0, 1] on black, to their cameras in any one world: VGGT."""

Tick = Callable[[], None]

_DETAILED = 60_000  # a mesh of more triangles
_CELLS = 64  # is aligned by what is left of it in so many cells a side: a few pixels where it is looked at
_SPREAD = 26  # directions all round, of which those of usual elevations are rendered: 16
_LOWEST, _HIGHEST = -0.35, 0.85  # sines of these
_SHOWN = 16  # crops that the network is shown at a time, with as many renderings
_HELD = 48  # views that an object is put before: a placement has seven numbers
_JUDGED = 16  # views that are judged at a time: distances of silhouettes are found on the CPU
_SEARCH_SIDE = 32  # pixels at which placements are tried
_SIDES = (64, 128, 256)  # pixels of the descents
_PLACING = (30, 30, 40)  # steps of them for the object
_POSING = (60, 50, 40)  # or for the cameras
_LOST = 0.6  # a view whose mask overlaps less than this,
_ODD = 2.0  # or which is off by more than this times as much as usual, is looked for from nothing
_TRIED = 700  # rotations for such a view,
_FOLLOWED = 6  # of which the best so many are followed
_FOLLOWING = 40  # steps long
_YAWS = 36
_TILTS = (-0.4, 0.4)  # radians, about x and about y
_ANYHOW = 200  # rotations of every kind, for an object whose up is not the world's
_STARTS = 8  # placements that are followed
_DIFFERENT = math.radians(15.0)  # placements are different that are turned by more than this
_SURVIVORS = (3, 1)  # of them after the first and the second descent


@dataclass(frozen=True)
class Alignment:
    """An object and the cameras of its views.

    Attributes:
        similarity: From model space to the world of the given cameras; the identity without these.
        cameras: Of the V full images, in model space.
        iou: [V] intersection over union of drawn and seen masks.
        silhouette_px: [V] root mean square distance of the drawn silhouette from the seen one, pixels of the
            full images.
    """

    similarity: Similarity
    cameras: Cameras
    iou: Tensor
    silhouette_px: Tensor

    def figures(self) -> dict[str, float]:
        """For the quality report."""
        return {
            "alignment/mask_iou": float(self.iou.mean()),
            "alignment/mask_iou_min": float(self.iou.min()),
            "alignment/silhouette_px": float(self.silhouette_px.square().mean().sqrt()),
        }


def align_to_cameras(
    raster: RasterBackend,
    mesh: PaintedMesh,
    crops: Crops,
    cameras: Cameras,
    *,
    depths: Tensor | None = None,
    up: Tensor | None = None,
    guess: Alignment | None = None,
    callback: Callback | None = None,
) -> Alignment:
    """Find the similarity that puts an object where given cameras saw it.

    Rotations about `up`, slightly tilted ones and some of every kind are tried, and what `guess` says. The
    best are refined by silhouettes, depth and paint, coarse to fine, and the one that fits best is taken.

    Args:
        raster: The rasterizer; everything is on its device.
        mesh: The object in model space.
        crops: What the views show.
        cameras: Of the V full images, world frame.
        depths: [V, H, W] z-depth of the full images, world units, 0 where unknown.
        up: [3] the world's up, where model space's z probably points; z by default.
        guess: Cameras that were estimated in model space (`estimate_cameras`), to start from as well.
        callback: Called after every step; what it raises is let through.
    """
    mesh = _simplified(mesh)
    progress = _Progress("alignment", callback)
    held = evenly_spaced(len(crops), _HELD)
    some, cropped = crops[held], crops[held].to_crops(cameras[held])
    depths = None if depths is None else depths[held]
    rotations = _usual_rotations(up).to(raster.device)
    tick = progress.phase("search", 0.3, placing_steps(len(held), len(rotations)))
    tiny = cropped.resized(_SEARCH_SIDE, _SEARCH_SIDE)
    starts = _starts(mesh, tiny, observed(some, depths, _SEARCH_SIDE), rotations, tick)
    starts += _guessed(guess, cameras)
    extent = float(torch.linalg.vector_norm(mesh.vertices.amax(0) - mesh.vertices.amin(0)))
    diameter = float(torch.stack([start.scale for start in starts]).median()) * extent
    for level, (side, steps) in enumerate(zip(_SIDES, _PLACING, strict=True)):
        tick = progress.phase(f"{side} pixels", 0.5 + 0.2 * level, steps)
        drawing = Drawing(raster, mesh, observed(some, depths, side), diameter)
        schedule = Schedule(steps, 0.5**level)
        starts, cost = fit_similarities(drawing, cropped.resized(side, side), starts, schedule, tick)
        kept = cost.argsort()[: _SURVIVORS[level] if level < len(_SURVIVORS) else 1]
        starts = [starts[int(index)] for index in kept]
    result = _judged(raster, mesh, crops, starts[0].inverse().cameras(cameras), starts[0], progress)
    _tell("alignment", result)
    return result


def estimate_cameras(
    raster: RasterBackend,
    mesh: PaintedMesh,
    crops: Crops,
    predict: Predict,
    *,
    callback: Callback | None = None,
) -> Alignment:
    """Find the views' cameras in model space.

    `predict` is shown renderings of the object together with the crops; what it says of the renderings, whose
    cameras are known, carries over what it says of the crops. Views that do not fit are looked for anew, and
    all are refined by silhouettes and paint, coarse to fine, with one factor on the focal lengths.

    Args:
        raster: The rasterizer; everything is on its device.
        mesh: The object in model space.
        crops: What the views show; V views.
        predict: The network.
        callback: Called after every step; what it raises is let through.

    Raises:
        ModelError: CAMERA_ESTIMATION_FAILED: `predict` raises it, or puts all renderings into one place.
    """
    mesh = _simplified(mesh)
    progress = _Progress("cameras", callback)
    cameras = _transferred(raster, mesh, crops, predict, progress)
    ends = (0.4, 0.75, 0.95)
    for level, (side, steps) in enumerate(zip(_SIDES, _POSING, strict=True)):
        tick = progress.phase(f"{side} pixels", ends[level], steps)
        drawing = Drawing(raster, mesh, observed(crops, None, side))
        schedule = Schedule(steps, 0.5**level)
        fitted, cost = fit_poses(drawing, crops.to_crops(cameras).resized(side, side), schedule, tick)
        cameras = crops.to_full(fitted.resized(crops.size, crops.size))
        if level == 0:
            cameras = _lost_found(drawing, crops, cameras, cost, progress)
    identity = Similarity.identity(raster.device)
    result = _judged(raster, mesh, crops, cameras, identity, progress)
    _tell("cameras", result)
    return result


class _Progress:
    """Tells the callback of steps, phase by phase: only in its course one knows how long the next one is."""

    def __init__(self, name: str, callback: Callback | None) -> None:
        self._name, self._callback, self._done = name, callback, 0.0

    def phase(self, what: str, end: float, steps: int) -> Tick:
        """Begin the next phase.

        Args:
            what: Its name.
            end: Share of the whole at which it ends.
            steps: How many it has.

        Returns:
            What is called after each of them.
        """
        first, self._done, count = self._done, end, 0

        def tick() -> None:
            nonlocal count
            count += 1
            if self._callback:
                message = f"{self._name}: step {count} of {steps}, {what}"
                self._callback(first + (end - first) * count / steps, message, {})

        return tick


def _simplified(mesh: PaintedMesh) -> PaintedMesh:
    """The mesh with so few triangles that many views of it are drawn fast."""
    if len(mesh.faces) <= _DETAILED:
        return mesh
    merged, faces = clustered(torch.cat([mesh.vertices, mesh.colors], 1), mesh.faces, _CELLS)
    vertices, colors = merged.split(3, 1)
    return PaintedMesh(vertices.contiguous(), faces, colors.contiguous())


def known_cameras(mesh: PaintedMesh, size: int) -> Cameras:
    """The cameras of the renderings that `estimate_cameras` shows the network, from where objects are
    photographed.

    Args:
        mesh: The object.
        size: Side of the images, pixels.
    """
    directions = spread_directions(_SPREAD)
    usual = (directions[:, 2] > _LOWEST) & (directions[:, 2] < _HIGHEST)
    return cameras_around(directions[usual], *bounding_sphere(mesh.vertices), size=size)


def _transferred(
    raster: RasterBackend, mesh: PaintedMesh, crops: Crops, predict: Predict, progress: _Progress
) -> Cameras:
    """The full images' cameras in model space, as the network sees them, with one focal length.

    Of many views the network sees some at a time, each part from all round and with all renderings.
    """
    rig = known_cameras(mesh, crops.size)
    shown = render_painted(raster, mesh, rig).color.permute(0, 3, 1, 2)
    count = math.ceil(len(crops) / _SHOWN)
    tick = progress.phase("networks", 0.2, count)
    parts, order = [], []
    for first in range(count):
        index = list(range(first, len(crops), count))
        parts.append(_carried(rig, shown, crops[index], predict))
        order += index
        tick()
    back = torch.tensor(order).argsort().tolist()
    pose = torch.cat([part.camera_to_world for part in parts])[back]
    intrinsics = torch.cat([part.intrinsics for part in parts])[back]
    return _of_one_focal(Cameras(pose, intrinsics, crops.width, crops.height))


def _carried(rig: Cameras, shown: Tensor, crops: Crops, predict: Predict) -> Cameras:
    """The full images' cameras in model space, by the `shown` renderings from known cameras."""
    found = predict(torch.cat([shown, crops.images]))
    count = len(rig)
    fit = fit_cameras(found[:count], rig)
    LOGGER.info("%d of %d known cameras were recognised", int(fit.agreeing.sum()), count)
    # How far the network is off with known focal lengths it will be off with the others.
    bias = (rig.intrinsics[:, 0, 0] / found.intrinsics[:count, [0, 1], [0, 1]].mean(1)).quantile(0.5)
    carried = fit.similarity.cameras(found[count:])
    intrinsics = carried.intrinsics.clone()
    intrinsics[:, [0, 1], [0, 1]] *= bias
    return uncropped(replace(carried, intrinsics=intrinsics), crops)


def _of_one_focal(cameras: Cameras) -> Cameras:
    """Cameras of the median focal length, so far from the origin that it appears as large as before."""
    focal = cameras.intrinsics[:, 0, 0]
    common = focal.quantile(0.5)
    pose, intrinsics = cameras.camera_to_world.clone(), cameras.intrinsics.clone()
    pose[:, :3, 3] *= (common / focal)[:, None]
    intrinsics[:, [0, 1], [0, 1]] = common
    return replace(cameras, camera_to_world=pose, intrinsics=intrinsics)


def _lost_found(
    drawing: Drawing, crops: Crops, cameras: Cameras, cost: Tensor, progress: _Progress
) -> Cameras:
    """The cameras, those that do not fit replaced by the best that a search finds.

    Args:
        drawing: The object against the views.
        crops: The views.
        cameras: Of the full images, in model space.
        cost: [V] how far each view is off.
        progress: To be told.
    """
    mesh, side = drawing.mesh, drawing.views.size[0]
    cropped = crops.to_crops(cameras)
    small = cropped.resized(side, side)
    iou = drawing.overlap(clip_matrices(small, mesh.vertices))
    lost = torch.nonzero((iou < _LOST) | (cost > _ODD * cost.quantile(0.5)))[:, 0].tolist()
    if not lost:
        return cameras
    LOGGER.info("%d of %d views are looked for from nothing", len(lost), len(cameras))
    device = mesh.vertices.device
    samples, rotations = sample(mesh), spread_rotations(_TRIED).to(device)
    tiny, coarse = observed(crops, None, _SEARCH_SIDE), cropped.resized(_SEARCH_SIDE, _SEARCH_SIDE)
    pose = cameras.camera_to_world.clone()
    tick = progress.phase("lost views", 0.55, len(lost) * (placing_steps(1, _TRIED) + _FOLLOWING))
    for view in lost:
        here = replace(coarse[[view]], camera_to_world=torch.eye(4, device=device)[None])
        found = place(samples, here, tiny[[view]], rotations, tick)
        best = found[found.score.topk(_FOLLOWED).indices].similarities(samples)
        # Seen from one camera an object of scale s is the object itself s times as near.
        tried = torch.cat([_before(similarity) for similarity in best] + [pose[[view]]])
        proposals = replace(
            small[[view]], camera_to_world=tried, intrinsics=small.intrinsics[[view]].expand(len(tried), 3, 3)
        )
        several = Drawing(drawing.raster, mesh, drawing.views[[view] * len(tried)])
        fitted, cost = fit_poses(several, proposals, Schedule(_FOLLOWING), tick, focal=False)
        chosen = int(cost.argmin())
        LOGGER.info("view %d: off by %.3f, before by %.3f", view + 1, float(cost[chosen]), float(cost[-1]))
        pose[view] = fitted.camera_to_world[chosen]
    return replace(cameras, camera_to_world=pose)


def _before(similarity: Similarity) -> Tensor:
    """The camera [1, 4, 4] that sees an object as one at the origin sees it after `similarity`."""
    pose = torch.eye(4, device=similarity.rotation.device)
    pose[:3, :3] = similarity.rotation.T
    pose[:3, 3] = -(similarity.rotation.T @ similarity.translation) / similarity.scale
    return pose[None]


def _usual_rotations(up: Tensor | None) -> Tensor:
    """Rotations [C, 3, 3] that generated objects may want: most about the world's up."""
    zenith = torch.tensor([0.0, 0.0, 1.0])
    upright = torch.eye(3) if up is None else rotation_between(zenith, F.normalize(up.cpu().float(), dim=0))
    tilts = [torch.zeros(3)] + [sign * axis for axis in torch.eye(3)[:2] for sign in _TILTS]
    yaws = turns_about_z(_YAWS)
    rotations = torch.cat([upright @ rotation_matrix(tilt) @ yaws for tilt in tilts])
    return torch.cat([rotations, spread_rotations(_ANYHOW)])


def _starts(
    mesh: PaintedMesh, cameras: Cameras, seen: Observed, rotations: Tensor, tick: Tick
) -> list[Similarity]:
    """The best placements of all that are tried, no two of them nearly the same."""
    samples = sample(mesh)
    found = place(samples, cameras, seen, rotations, tick)
    order = found.score.argsort(descending=True)
    chosen: list[int] = []
    for index in order.tolist():
        if len(chosen) == _STARTS:
            break
        relative = found.rotation[chosen].transpose(1, 2) @ found.rotation[index]
        cosine = (relative.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
        if not bool((cosine > math.cos(_DIFFERENT)).any()):
            chosen.append(index)
    return found[torch.tensor(chosen, device=rotations.device)].similarities(samples)


def _guessed(guess: Alignment | None, cameras: Cameras) -> list[Similarity]:
    """The placement by estimated cameras, if they say anything."""
    if guess is None:
        return []
    try:
        return [fit_cameras(guess.cameras, cameras).similarity]
    except ModelError as error:
        LOGGER.info("no placement by the estimated cameras: %s", error.message)
        return []


def _judged(
    raster: RasterBackend,
    mesh: PaintedMesh,
    crops: Crops,
    cameras: Cameras,
    similarity: Similarity,
    progress: _Progress,
) -> Alignment:
    """The result with its figures; `cameras` are in model space."""
    side = _SIDES[-1]
    parts = torch.arange(len(crops)).split(_JUDGED)
    tick = progress.phase("figures", 1.0, len(parts))
    overlaps, distances = [], []
    for part in parts:
        index = part.tolist()
        drawing = Drawing(raster, mesh, observed(crops[index], None, side))
        small = crops[index].to_crops(cameras[index]).resized(side, side)
        matrices = clip_matrices(small, mesh.vertices)
        overlaps.append(drawing.overlap(matrices))
        distances.append(drawing.rim_distance(matrices))
        tick()
    distance = torch.cat(distances)
    pixel = distance.new_tensor([window.side / side for window in crops.windows])
    return Alignment(similarity, cameras, torch.cat(overlaps), distance * pixel)


def _tell(name: str, found: Alignment) -> None:
    iou, worst, off = found.figures().values()
    LOGGER.info("%s: mask IoU %.3f, %.3f at worst; silhouettes %.1f px off", name, iou, worst, off)
