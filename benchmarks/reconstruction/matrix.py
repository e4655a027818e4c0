"""Every combination of data set, rig, options and rasterizer: run, score, record."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.reconstruction.alignment import Similarity, align_cameras, pose_errors
from benchmarks.reconstruction.baseline import Baseline, find_baseline
from benchmarks.reconstruction.datasets import DataSet, Truth
from benchmarks.reconstruction.degrade import CannotDegrade, Degradation, degrade
from benchmarks.reconstruction.evaluate import mean_psnr_db, renderer, score_images, score_surface, through
from benchmarks.reconstruction.lpips_metric import Perceptual, load_lpips
from benchmarks.reconstruction.measure import (
    Clock,
    Cost,
    Score,
    Snapshot,
    end_line,
    measure_run,
    seconds_to,
    snapshot_record,
)
from models.base import Reconstruction, Reconstructor, Views
from models.geometry.camera import Cameras
from models.raster import make_backend
from pipeline.depth_check import check_depths
from schemas.errors import ReconError
from schemas.options import NvdiffrecOptions

_ALIGNED_POINTS = 100  # every so many samples of the true surface are looked at to align cameras

Record = dict[str, Any]
"""One run, as JSON; see `Bench.record`."""


@dataclass(frozen=True)
class Plan:
    """How every combination is run.

    Attributes:
        degradation: What is done to the input.
        repeat: Reconstructions of each combination. Of several, the first compiles and does not count in the
            time.
        targets_db: Held-out PSNRs whose time is wanted, beside the baseline's; None: no snapshots are taken.
    """

    degradation: Degradation
    repeat: int
    targets_db: tuple[float, ...] | None


class Bench:
    """Runs combinations on one device.

    Args:
        model: Loaded.
        device: The model's.
        plan: How.
    """

    def __init__(self, model: Reconstructor, device: torch.device, plan: Plan) -> None:
        self._model = model
        self._device = device
        self._plan = plan
        self._perceptual: Perceptual | None = load_lpips(device)

    def records(self, data_sets: Sequence[DataSet], options: Sequence[dict[str, Any]]) -> Iterator[Record]:
        """One record for each combination, as soon as it is there.

        Args:
            data_sets: The data sets with their rigs.
            options: Options of the jobs, valid for `NvdiffrecOptions`.
        """
        for data in data_sets:
            for rig in data.rigs:
                for given in options:
                    yield self.record(data, rig, given)

    def record(self, data: DataSet, rig: str, given: dict[str, Any]) -> Record:
        """Run and score one combination.

        A run that fails as a job can fail, or whose input cannot be made worse, is recorded with its `error`
        and without figures.
        """
        head = {
            "data": f"{data.name}/{rig}",
            "options": given,
            "degradation": self._plan.degradation.figures(),
            "device": _device_name(self._device),
            "torch": torch.__version__,
        }
        try:
            return {**head, **self._run(data, rig, NvdiffrecOptions.model_validate(given))}
        except ReconError as error:
            return {**head, "error": {"code": str(error.code), "message": error.message}}
        except CannotDegrade as error:
            return {**head, "error": {"code": "CANNOT_DEGRADE", "message": str(error)}}

    def _run(self, data: DataSet, rig: str, options: NvdiffrecOptions) -> Record:
        exact = data.views(rig, options)
        views = degrade(exact, self._plan.degradation, data.truth)
        check_depths(views)  # what a worker would refuse is refused
        size = (exact.cameras.width, exact.cameras.height)
        baseline = find_baseline(f"{data.name}/{rig}", size, len(data.test) if data.test else 0)
        made, costs = self._repeated(views, options, data.test)
        clock = Clock(self._device)
        scores = self._scores(made, views, exact.cameras, data)
        return {
            "views": len(views),
            "size": f"{size[0]}x{size[1]}",
            "raster": made.raster,
            **_summary(costs),
            "vertices": int(made.mesh.vertices.shape[0]),
            "faces": int(made.mesh.faces.shape[0]),
            **scores,
            **self._times_to(costs[-1].snapshots, baseline),
            "baseline": None if baseline is None else asdict(baseline),
            "extra": dict(made.extra),
            "scoring_seconds": clock.seconds(),
        }

    def _repeated(
        self, views: Views, options: NvdiffrecOptions, test: Views | None
    ) -> tuple[Reconstruction, list[Cost]]:
        """The last result, and what every run took; snapshots, if any are wanted, are the last run's.

        Earlier results are let go at once: they are not part of the next run's memory.
        """
        score: Score | None = None
        if self._plan.targets_db is not None and test is not None:
            score = partial(mean_psnr_db, views=test, device=self._device)
        costs = [self._timed(views, options)[1] for _ in range(self._plan.repeat - 1)]
        made, last = self._timed(views, options, score)
        return made, [*costs, last]

    def _timed(
        self, views: Views, options: NvdiffrecOptions, score: Score | None = None
    ) -> tuple[Reconstruction, Cost]:
        made, cost = measure_run(self._model, views, options, self._device, score)
        end_line(f"  reconstructed in {cost.seconds:.2f} s")
        return made, cost

    def _scores(self, made: Reconstruction, views: Views, exact: Cameras, data: DataSet) -> Record:
        """Figures of the result; in the true world, into which it is aligned if the cameras were noisy."""
        refined = None if made.cameras is None else _like(made.cameras, views.cameras)
        similarity = None
        poses: Record = {}
        if self._plan.degradation.moves_cameras and data.truth is not None:
            own = views.cameras if refined is None else refined
            similarity = align_cameras(own, exact, data.truth.samples.points[::_ALIGNED_POINTS])
            poses = _poses(views.cameras, refined, exact, similarity, data.truth)
        raster = make_backend(made.raster, self._device)  # type: ignore[arg-type, unused-ignore]
        mesh = made.mesh.to(raster.device)
        color, depth = renderer(raster, mesh), renderer(raster, mesh, samples=1)
        if similarity is not None:
            test_color, test_depth = through(color, similarity), through(depth, similarity)
        else:
            test_color, test_depth = color, depth
        seen = replace(views, depths=None, cameras=views.cameras if refined is None else refined)
        scores: Record = {
            "input": score_images(color, seen, self._device, perceptual=self._perceptual),
            **poses,
        }
        if data.test is not None:
            scores["test"] = score_images(
                test_color, data.test, self._device, depth=test_depth, perceptual=self._perceptual
            )
        if data.truth is not None:
            scores["surface"] = score_surface(made.mesh, data.truth.samples, similarity)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # what scoring needed is not the next reconstruction's
        return scores

    def _times_to(self, snapshots: list[Snapshot], baseline: Baseline | None) -> Record:
        if self._plan.targets_db is None:
            return {}
        targets = {f"{target:g}": target for target in self._plan.targets_db}
        if baseline is not None:
            targets["baseline"] = baseline.psnr_db
        return {
            "snapshots": [snapshot_record(snapshot) for snapshot in snapshots],
            "seconds_to_psnr": {name: seconds_to(snapshots, target) for name, target in targets.items()},
        }


def _summary(runs: list[Cost]) -> Record:
    warm = runs[1:] or runs
    return {
        "seconds": statistics.median(run.seconds for run in warm),
        "seconds_each": [run.seconds for run in runs],
        "stages": warm[-1].stages,
        "memory": {name: max(run.memory[name] for run in runs) for name in runs[-1].memory},
    }


def _poses(
    given: Cameras, refined: Cameras | None, exact: Cameras, similarity: Similarity, truth: Truth
) -> Record:
    points = truth.samples.points[::_ALIGNED_POINTS]
    record: Record = {
        "similarity": {"scale": similarity.scale, "degrees": similarity.degrees},
        "pose_errors": {"given": asdict(pose_errors(given, exact, truth.center, points))},
    }
    if refined is not None:
        record["pose_errors"]["refined"] = asdict(pose_errors(refined, exact, truth.center, points))
    return record


def _like(cameras: Cameras, given: Cameras) -> Cameras:
    """Corrected cameras for the images and on the device of the given ones."""
    return cameras.to(given.camera_to_world.device).resized(given.width, given.height)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
