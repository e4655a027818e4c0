"""Miniature pipelines, one per behaviour, and what a test needs to make jobs and take events apart."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cancel import CancelToken
from pipeline.capabilities import Capabilities
from pipeline.progress import ProgressReport
from pipeline.record import result_location
from pipeline.settings import S3Settings
from pipeline.storage import open_store
from schemas.base import utc_now
from schemas.errors import ErrorCode, ModelError, ResourceError
from schemas.jobs import MODELS, Job, ModelName
from schemas.quality import Check, MeanMetrics, MeshStatistics, QualityReport

Emit = Callable[[ProgressReport], None]


@dataclass(frozen=True)
class Outcome:
    quality: QualityReport
    output: str
    manifest: str


class Miniature:
    """Does what the job's metadata asks for: `{"do": "sleep", "seconds": 3}`. Sets nothing up."""

    models: tuple[ModelName, ...] = MODELS

    def __init__(self, s3: S3Settings) -> None:
        self._s3 = s3

    def load(self) -> Capabilities:
        missing = ModelError(ErrorCode.MODEL_WEIGHTS_MISSING, "Run: recon weights fetch").info()
        unavailable = {model: missing for model in MODELS if model not in self.models}
        return Capabilities("cpu (miniature)", None, self.models, unavailable)

    def run(self, job: Job, *, cancel: CancelToken, emit: Emit) -> Outcome:
        _count_run(job)
        emit(ProgressReport("reconstruct", 0.1, "begun"))
        self._behave(job.metadata, cancel, emit)
        emit(ProgressReport("upload", 1.0))
        return self._finish(job)

    def _behave(self, wish: Mapping[str, Any], cancel: CancelToken, emit: Emit) -> None:
        seconds = float(wish.get("seconds", 0))
        deadline = time.monotonic() + seconds
        match wish.get("do", "nothing"):
            case "sleep":
                while time.monotonic() < deadline:
                    cancel.check()
                    emit(ProgressReport("reconstruct", 0.5, "sleeping", {"psnr_db": 20.0}, 1.0))
                    time.sleep(0.02)
            case "ignore cancel":
                time.sleep(seconds)
            case "hold the GIL":
                # PyDLL does not release the GIL: no other thread of this process runs in the first half.
                ctypes.PyDLL(None).sleep(int(seconds / 2))
                while time.monotonic() < deadline:
                    sum(range(1000))
            case "signal":
                os.kill(os.getpid(), getattr(signal, str(wish["signal"])))
            case "signal once":
                flag = Path(str(wish["flag"]))
                if not flag.exists():
                    flag.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                sys.exit(7)
            case "raise":
                raise ValueError("a model's own mistake")
            case "diverge":
                raise ModelError(ErrorCode.MODEL_DIVERGED, "no surface", step=3)
            case "storage away":
                raise ResourceError(ErrorCode.STORAGE_UNAVAILABLE, "the storage is away")
            case "cuda fault":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            case "bad quality":
                raise ModelError(ErrorCode.QUALITY_BELOW_THRESHOLD, "PSNR 12 dB")

    def _finish(self, job: Job) -> Outcome:
        report = quality_report(job)
        location = result_location(job)
        store = open_store(location, self._s3)
        store.put_bytes("quality.json", report.model_dump_json().encode(), "application/json")
        return Outcome(report, str(location), str(location.child("manifest.json")))


class WithoutWeights(Miniature):
    models = ("nvdiffrec",)


class FailsToLoad(Miniature):
    def load(self) -> Capabilities:
        raise ModelError(ErrorCode.MODEL_WEIGHTS_MISSING, "no weights here", file="x")


class DiesLoading(Miniature):
    def load(self) -> Capabilities:
        os.kill(os.getpid(), signal.SIGSEGV)
        return super().load()


class LoadsForever(Miniature):
    def load(self) -> Capabilities:
        time.sleep(600)
        return super().load()


def quality_report(job: Job) -> QualityReport:
    means = MeanMetrics(views=6, psnr_db=30.0, ssim=0.95, mask_iou=0.99)
    check = Check(
        metric="psnr_db", value=30.0, normal=25.0, warning=20.0, higher_is_better=True, status="normal"
    )
    return QualityReport(
        job_id=job.job_id,
        created_at=job.created_at,
        status="normal",
        checks=[check],
        input_views=means,
        views=[],
        mesh=MeshStatistics(
            vertices=8, faces=12, watertight=True, components=1, bounds=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        ),
        timings=[],
        model=job.model,
        raster="warp",
        device="cpu",
        mask_source="alpha",
        camera_source="transforms.json",
        versions={},
    )


def _count_run(job: Job) -> None:
    """Leave a trace of every computation, for tests that want to see none."""
    counter = job.metadata.get("counter")
    if counter is not None:
        with Path(str(counter)).open("a") as file:
            file.write(f"{utc_now().isoformat()} {job.job_id}\n")
