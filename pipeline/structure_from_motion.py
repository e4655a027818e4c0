"""Structure from motion with COLMAP, to be run as `python -m pipeline.structure_from_motion FOLDER`.

COLMAP ends the process when one of its own checks fails, and cannot be interrupted everywhere; a process of
its own can fail and be killed without harm to the job. It reads what `pipeline.photographs` and
`pipeline.camera_estimation` wrote to the folder (`task.json`, `images/`, `masks/`), tells its progress as
JSON lines on what was standard output when it began, and writes `model.npz`, again if a second attempt gives
a better one. Whatever libraries print goes to standard error.

The method is that of Schönberger and Frahm, Structure-from-Motion Revisited, CVPR 2016: SIFT features,
matches that agree with one relative pose, incremental mapping with bundle adjustment. Beyond
`EXHAUSTIVE_VIEWS` only neighbours by name are matched, and pairs that look alike by VLAD (Jégou et al.,
Aggregating local descriptors into a compact image representation, CVPR 2010) with a vocabulary of the input
itself.

Conventions are COLMAP's: world to camera, OpenCV axes, first pixel's centre at (0.5, 0.5).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TASK_NAME, IMAGES, MASKS = "task.json", "images", "masks"
MODEL_NAME, PART_NAME = "model.npz", "part.npz"

EXHAUSTIVE_VIEWS = 48
"""Up to so many views every pair is matched: 1128 pairs, a minute or two on two cores."""

LOOK_ALIKES = 16
"""Of a larger input, each view is matched with so many that look like it."""

NEIGHBOURS = 4
"""And with so many that follow it by name."""

FEW_VIEWS = 24
"""Of so few, neighbours may be far apart. Where plain features do not place all of them, those that stand a
change of view better are tried, which take several times as long: with estimated affine shape (Mikolajczyk
and Schmid, IJCV 2004) and domain-size pooling (Dong and Soatto, CVPR 2015)."""

FEATURES, FEATURES_OF_MANY = 4096, 2048
"""Most SIFT features of an image; fewer where views are many."""

VOCABULARY = 32
_SAMPLE = 20_000
_PAIRS_AT_ONCE = 64
_EXTRACTING, _MATCHING = 0.2, 0.7
"""Shares of the work that are done after extracting and after matching."""


@dataclass(frozen=True)
class Photograph:
    """One image of the task.

    Attributes:
        name: Of its file in `images/`; the mask's is the same with `.png` after it.
        camera: Images with the same number share one camera, and so have one size.
        focal: Expected focal length, pixels; None if nothing is known.
        width, height: Pixels.
    """

    name: str
    camera: int
    focal: float | None
    width: int
    height: int


@dataclass(frozen=True)
class Task:
    """What the process is asked for.

    Attributes:
        photographs: In the order of the input.
        masked: Whether features count only inside of masks.
        seed: Of every random number.
        time_limit_s: From the start of the process, after which mapping ends with what it has, and no second
            attempt begins.
    """

    photographs: tuple[Photograph, ...]
    masked: bool
    seed: int
    time_limit_s: int

    def write(self, folder: Path) -> None:
        """Write the task for the process."""
        (folder / TASK_NAME).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Task:
        """Read the task."""
        raw = json.loads((folder / TASK_NAME).read_text(encoding="utf-8"))
        return cls(**raw | {"photographs": tuple(Photograph(**one) for one in raw["photographs"])})


@dataclass(frozen=True)
class Model:
    """The largest reconstruction that was found; all arrays are empty if there is none.

    Attributes:
        views: [R] indices of the registered photographs, ascending.
        camera_from_world: [R, 3, 4], OpenCV axes.
        lenses: [R, 4] focal length, principal point x and y (pixels), and k1.
        points: [P, 3] world.
        seen_view: [O] row of `views` of each observation of a point.
        seen_point: [O] its point.
        seen_pixel: [O, 2] where it was seen, pixels.
        error: Mean reprojection error, pixels.
        other_models: How many views the next largest reconstruction has.
    """

    views: NDArray[np.int64]
    camera_from_world: NDArray[np.float64]
    lenses: NDArray[np.float64]
    points: NDArray[np.float64]
    seen_view: NDArray[np.int64]
    seen_point: NDArray[np.int64]
    seen_pixel: NDArray[np.float64]
    error: float
    other_models: int

    def write(self, folder: Path) -> None:
        """Write the model where the parent looks for it; it is there as a whole or not at all."""
        part = folder / PART_NAME
        np.savez(part, **asdict(self))
        part.replace(folder / MODEL_NAME)

    @classmethod
    def read(cls, folder: Path) -> Model:
        """Read the model.

        Raises:
            OSError: There is none.
        """
        with np.load(folder / MODEL_NAME, allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files}
        arrays |= {"error": float(arrays["error"]), "other_models": int(arrays["other_models"])}
        return cls(**arrays)


Say = Callable[[float, str], None]
"""Told how much of an attempt is done, in [0, 1], and what is being done."""


@dataclass(frozen=True)
class _Work:
    colmap: Any  # the module: importing it takes long, and nobody but this process needs it
    task: Task
    folder: Path
    say: Say
    ends: float  # of `time.monotonic`

    def seconds_left(self) -> int:
        return int(self.ends - time.monotonic())


def main(folder: Path, say: Say) -> None:
    """Do the task of a folder."""
    began = time.monotonic()
    import pycolmap

    task = Task.read(folder)
    pycolmap.set_random_seed(task.seed)
    work = _Work(pycolmap, task, folder, say, began + task.time_limit_s)
    model = _attempt(work, robust=False)
    model.write(folder)  # before a second attempt, which may take too long or too much memory
    if len(model.views) < len(task.photographs) <= FEW_VIEWS and work.seconds_left() > 0:
        again = _attempt(work, robust=True)
        if len(again.views) > len(model.views):
            again.write(folder)
    say(1.0, "cameras estimated")


def _attempt(work: _Work, *, robust: bool) -> Model:
    count, kind = len(work.task.photographs), "robust features" if robust else "features"
    work.say(0.0, f"finding {kind} in {count} images")
    database = work.folder / ("robust.db" if robust else "plain.db")
    _extract(work, database, robust=robust)
    _match(work, database, _pairs(work, database))
    return _map(work, database)


def _extract(work: _Work, database: Path, *, robust: bool) -> None:
    colmap, task, folder = work.colmap, work.task, work.folder
    many = len(task.photographs) > EXHAUSTIVE_VIEWS
    extraction = colmap.FeatureExtractionOptions(use_gpu=False)
    extraction.sift.estimate_affine_shape = extraction.sift.domain_size_pooling = robust
    extraction.sift.max_num_features = FEATURES_OF_MANY if many else FEATURES
    for number in sorted({photograph.camera for photograph in task.photographs}):
        group = [photograph for photograph in task.photographs if photograph.camera == number]
        first = group[0]
        reader = colmap.ImageReaderOptions(camera_model="SIMPLE_RADIAL")
        if task.masked:
            reader.mask_path = folder / MASKS
        if first.focal is not None:
            reader.camera_params = f"{first.focal},{first.width / 2},{first.height / 2},0"
        colmap.extract_features(
            database,
            folder / IMAGES,
            [photograph.name for photograph in group],
            colmap.CameraMode.SINGLE,
            reader,
            extraction,
            colmap.Device.cpu,
        )


def _pairs(work: _Work, database: Path) -> list[tuple[str, str]]:
    names = [photograph.name for photograph in work.task.photographs]
    if len(names) <= EXHAUSTIVE_VIEWS:
        return list(combinations(names, 2))
    with work.colmap.Database.open(database) as opened:
        numbers = {image.name: image.image_id for image in opened.read_all_images()}
        descriptors = [np.asarray(opened.read_descriptors(numbers[name]).data) for name in names]
    return [(names[i], names[j]) for i, j in sorted(likely_pairs(descriptors, work.task.seed))]


def likely_pairs(descriptors: list[NDArray[np.uint8]], seed: int) -> set[tuple[int, int]]:
    """Pairs of images that probably show the same things, or follow each other.

    Args:
        descriptors: [F, 128] SIFT descriptors of each image; F may be 0.
        seed: Of the vocabulary.

    Returns:
        Pairs of indices, the smaller one first.
    """
    count = len(descriptors)
    signatures = _vlad(descriptors, seed)
    likeness = signatures @ signatures.T
    np.fill_diagonal(likeness, -np.inf)
    pairs = {(i, (i + step) % count) for i in range(count) for step in range(1, NEIGHBOURS + 1)}
    for i, row in enumerate(likeness):
        pairs |= {(i, int(j)) for j in np.argsort(-row, kind="stable")[:LOOK_ALIKES]}
    return {(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}


def _vlad(descriptors: list[NDArray[np.uint8]], seed: int) -> NDArray[np.float64]:
    """One unit vector for each image: how its descriptors differ from the words of a small vocabulary."""
    from scipy.cluster.vq import kmeans2, vq

    everything = np.concatenate(descriptors).astype(np.float32)
    random = np.random.default_rng(seed)
    sample = everything[random.permutation(len(everything))[:_SAMPLE]]
    signatures = np.zeros((len(descriptors), VOCABULARY, 128))
    if len(sample) >= VOCABULARY:
        words, _ = kmeans2(sample, sample[:VOCABULARY], minit="matrix")
        for signature, each in zip(signatures, descriptors, strict=True):
            if len(each):
                nearest, _ = vq(each.astype(np.float32), words)
                np.add.at(signature, nearest, each - words[nearest])
    signatures /= np.maximum(np.linalg.norm(signatures, axis=2, keepdims=True), 1e-12)
    flat = signatures.reshape(len(descriptors), -1)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))


def _match(work: _Work, database: Path, pairs: list[tuple[str, str]]) -> None:
    colmap, listed = work.colmap, work.folder / "pairs.txt"
    verification = colmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = work.task.seed
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        done = start / len(pairs)
        work.say(_EXTRACTING + (_MATCHING - _EXTRACTING) * done, f"matching pair {start} of {len(pairs)}")
        chunk = pairs[start : start + _PAIRS_AT_ONCE]
        listed.write_text("".join(f"{one} {other}\n" for one, other in chunk), encoding="utf-8")
        colmap.match_image_pairs(
            database,
            colmap.FeatureMatchingOptions(use_gpu=False),
            colmap.ImportedPairingOptions(match_list_path=listed),
            verification,
            colmap.Device.cpu,
        )


def _map(work: _Work, database: Path) -> Model:
    task = work.task
    options = work.colmap.IncrementalPipelineOptions(
        min_model_size=3,
        extract_colors=False,
        random_seed=task.seed,
        max_runtime_seconds=max(1, work.seconds_left()),  # it counts from here; less than 1 is no limit
    )
    total, registered = len(task.photographs), 2

    def next_image() -> None:
        nonlocal registered
        registered = min(registered + 1, total)
        work.say(_MATCHING + (1 - _MATCHING) * registered / total, f"placing camera {registered} of {total}")

    found = work.colmap.incremental_mapping(
        database, work.folder / IMAGES, database.with_suffix(""), options, next_image_callback=next_image
    )
    models = sorted(found.values(), key=lambda model: -int(model.num_reg_images()))
    if not models:
        return _no_model()
    return _exported(models[0], task, int(models[1].num_reg_images()) if len(models) > 1 else 0)


def _exported(reconstruction: Any, task: Task, other_models: int) -> Model:
    index = {photograph.name: i for i, photograph in enumerate(task.photographs)}
    images = sorted(
        (reconstruction.images[number] for number in reconstruction.reg_image_ids()),
        key=lambda image: index[image.name],
    )
    rows = {image.image_id: row for row, image in enumerate(images)}
    points = list(reconstruction.points3D.values())
    seen = [
        (rows[element.image_id], number, *_pixel(reconstruction, element))
        for number, point in enumerate(points)
        for element in point.track.elements
    ]
    table = np.array(seen, float).reshape(-1, 4)
    return Model(
        views=np.array([index[image.name] for image in images], np.int64),
        camera_from_world=np.stack([image.cam_from_world().matrix() for image in images]),
        lenses=np.stack([reconstruction.cameras[image.camera_id].params for image in images]),
        points=np.array([point.xyz for point in points], float).reshape(-1, 3),
        seen_view=table[:, 0].astype(np.int64),
        seen_point=table[:, 1].astype(np.int64),
        seen_pixel=table[:, 2:],
        error=float(reconstruction.compute_mean_reprojection_error()),
        other_models=other_models,
    )


def _pixel(reconstruction: Any, element: Any) -> tuple[float, float]:
    x, y = reconstruction.images[element.image_id].points2D[element.point2D_idx].xy
    return float(x), float(y)


def _no_model() -> Model:
    none = np.zeros(0, np.int64)
    return Model(
        none,
        np.zeros((0, 3, 4)),
        np.zeros((0, 4)),
        np.zeros((0, 3)),
        none,
        none,
        np.zeros((0, 2)),
        error=0.0,
        other_models=0,
    )


def _own_output() -> Say:
    """Take standard output for reports alone: what libraries print there goes to standard error from now."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(fraction: float, message: str) -> None:
        reports.write(json.dumps({"fraction": fraction, "message": message}) + "\n")
        reports.flush()

    return say


def _leave_with_parent() -> None:
    """End this process when the parent's end of standard input is closed, as it is when the parent dies."""
    while os.read(0, 1):  # not `sys.stdin`: its lock would be held when the interpreter ends
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    main(Path(sys.argv[1]), _own_output())
