"""A pipeline over folders, with a miniature model."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from input_folders import copy_spot

from models.base import Reconstruction
from pipeline.cancel import CancelToken
from pipeline.run import Pipeline
from pipeline.settings import PipelineSettings, S3Settings
from schemas.errors import ReconError
from schemas.jobs import Job, NvdiffrecJob, ReconviagenJob


class Miniature:
    """A model that returns a mesh that it was given, or does what a test tells it."""

    def __init__(self, make, name="nvdiffrec") -> None:
        self.make = make
        self.name = name
        self.loaded = 0
        self.seen = []

    def load(self) -> None:
        self.loaded += 1

    def reconstruct(self, views, options, callback) -> Reconstruction:
        self.seen.append(views)
        callback(0.5, "half", {"psnr_db": 20.0})
        made = self.make()
        if isinstance(made, Reconstruction):
            return made
        return Reconstruction(made, "warp", {"x": [1.0, 2.0]}, {"figure": 1.0})


class Workplace:
    """A pipeline over folders: `in` and `out` are allowed."""

    def __init__(self, folder: Path, make, model="nvdiffrec") -> None:
        self.folder = folder
        self.model = Miniature(make, model)
        (folder / "out").mkdir()
        self.input = copy_spot(folder)
        self.pipeline = Pipeline(
            PipelineSettings(
                S3Settings(),
                (f"file://{self.input}",),
                (f"file://{folder}/out",),
                folder / "work",
                device="cpu",
            ),
            {model: self.model},
        )
        self.pipeline.load()
        self.reports = []

    def job(self, **options) -> Job:
        options.setdefault("outputs", {"previews": False})
        kind = {"nvdiffrec": NvdiffrecJob, "reconviagen": ReconviagenJob}[self.model.name]
        return kind(
            job_id=uuid4(), input=f"file://{self.input}", output=f"file://{self.folder}/out", options=options
        )

    def run(self, job, cancel: CancelToken | None = None):
        return self.pipeline.run(job, cancel=cancel or CancelToken(), emit=self.reports.append)

    def fails(self, job) -> ReconError:
        with pytest.raises(ReconError) as caught:
            self.run(job)
        assert self.leftovers() == []
        return caught.value

    def result(self, job) -> Path:
        return self.folder / "out" / str(job.job_id)

    def leftovers(self) -> list[Path]:
        return list((self.folder / "work").iterdir())


LENIENT = {
    "psnr_normal_db": 1, "psnr_warning_db": 0, "ssim_normal": -1, "ssim_warning": -1,
    "mask_iou_normal": 0, "mask_iou_warning": 0, "depth_error_normal": 9, "depth_error_warning": 10,
}  # fmt: skip
