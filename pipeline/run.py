"""One job, from its input location to its uploaded result."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch

from models.base import Reconstruction, Reconstructor
from models.raster import BackendName, make_backend
from pipeline.camera_source import STRUCTURE_FROM_MOTION, source_of_cameras
from pipeline.cancel import CancelToken
from pipeline.capabilities import Capabilities
from pipeline.context import JobContext, job_log, sweep, work_folder
from pipeline.export import export_mesh
from pipeline.failures import translated_failures
from pipeline.holdout import check_holdout
from pipeline.ingest import InputPlan, fetch_input, plan_input
from pipeline.objects import ObjectStore
from pipeline.preview import render_previews
from pipeline.progress import ProgressReport, ProgressTracker
from pipeline.publish import LOG_KEY, keep_log, publish
from pipeline.quality import QualityMeasurement, build_report, measure_quality
from pipeline.reconstruct import choose_reconstructor, reconstruct_views, views_as_found
from pipeline.record import result_location
from pipeline.serving import Served, gpu_memory, load_models
from pipeline.settings import PipelineSettings
from pipeline.stages import stage_weights
from pipeline.storage import check_allowed, open_store
from pipeline.validate import load_checked, split_holdout
from pipeline.views import LoadedInput
from schemas.errors import ErrorCode, ModelError, ReconError, ResourceError
from schemas.jobs import MODELS, Job
from schemas.quality import Check, QualityReport
from schemas.results import MANIFEST_NAME

LOGGER = logging.getLogger(__name__)

REPORT_NAME = "quality.json"


@dataclass(frozen=True)
class Outcome:
    """A job whose result is durable.

    Attributes:
        quality: The whole report.
        output: Location of the result.
        manifest: Location of `manifest.json`.
    """

    quality: QualityReport
    output: str
    manifest: str


class Pipeline:
    """Runs jobs one by one; models stay warm between them.

    Args:
        settings: Storage, allow-lists, limits, models, device.
        reconstructors: By name of the model; those that the settings ask for if None.
    """

    def __init__(
        self, settings: PipelineSettings, reconstructors: Mapping[str, Reconstructor] | None = None
    ) -> None:
        self._settings = settings
        self._device = _choose_device(settings.device)
        self._given = reconstructors
        self._served = Served({}, {})

    @property
    def device(self) -> str:
        """The device that computes, such as `cpu` or `cuda (NVIDIA H200)`."""
        if self._device.type == "cpu":
            return "cpu"
        return f"{self._device} ({torch.cuda.get_device_name(self._device)})"

    def load(self) -> Capabilities:
        """Load the models, and remove what killed processes left in the work folder.

        Raises:
            ModelError: MODEL_WEIGHTS_MISSING, MODEL_WEIGHTS_INVALID, MODEL_VRAM_OOM.
            ResourceError: GPU_UNAVAILABLE, GPU_TOO_SMALL, HOST_OUT_OF_MEMORY.
        """
        with translated_failures():
            self._settings.work_root.mkdir(parents=True, exist_ok=True)
            sweep(self._settings.work_root)
            _check_device(self._device)
            if self._given is None:
                self._served = load_models(self._settings, self._device)
            else:
                for reconstructor in self._given.values():
                    reconstructor.load()
                self._served = Served(dict(self._given), {})
            return Capabilities(
                device=self.device,
                gpu_memory_bytes=gpu_memory(self._device),
                models=tuple(model for model in MODELS if model in self._served.reconstructors),
                unavailable=self._served.unavailable,
            )

    def run(self, job: Job, *, cancel: CancelToken, emit: Callable[[ProgressReport], None]) -> Outcome:
        """Run one job.

        A result below the quality thresholds is uploaded like any other before the job fails for it.

        Args:
            job: What to do.
            cancel: Polled by every loop.
            emit: Receives every progress report, in the caller's thread.

        Raises:
            ReconError: the input, a location, the model, the machine or the quality.
            JobCancelled: as soon as a loop notices.
        """
        check_allowed(job.input, self._settings.allowed_inputs)
        check_allowed(job.output, self._settings.allowed_outputs)
        reconstructor = choose_reconstructor(self._served, job.model)
        store = open_store(result_location(job), self._settings.s3)
        with translated_failures(), work_folder(self._settings.work_root, job) as work:
            weights = stage_weights(job.model, previews=job.options.outputs.previews)
            tracker = ProgressTracker(weights, emit)
            context = JobContext(job, work, cancel, tracker)
            with job_log(context.log_file):
                try:
                    report = self._compute(context, reconstructor, store)
                except Exception as error:
                    _keep_failed_log(context, store, error)
                    raise
        return Outcome(report, str(store.location), str(store.location.child(MANIFEST_NAME)))

    def _compute(
        self, context: JobContext, reconstructor: Reconstructor, store: ObjectStore
    ) -> QualityReport:
        loaded = self._validate(context, self._download(context))
        views, heldout = split_holdout(loaded.views, context.job.options)
        with context.stage("reconstruct") as report:
            reconstruction = reconstruct_views(reconstructor, views, context.job.options, report)
            seen = views_as_found(views, reconstruction, context.job.options)
        mesh, outputs = reconstruction.mesh, context.job.options.outputs
        with context.stage("export"):
            export_mesh(mesh, context.results, up_axis=outputs.up_axis, name=str(context.job.job_id))
        raster = make_backend(cast(BackendName, reconstruction.raster), self._device)
        with context.stage("quality") as report:
            quality = context.job.options.quality
            measurement = measure_quality(raster, mesh, seen, heldout, quality, callback=report)
        if outputs.previews:
            with context.stage("preview") as report:
                render_previews(
                    raster,
                    mesh,
                    context.results,
                    size=outputs.preview_size,
                    up_axis=outputs.up_axis,
                    callback=report,
                )
        return self._upload(context, store, loaded, reconstruction, measurement)

    def _download(self, context: JobContext) -> InputPlan:
        with context.stage("download") as report:
            source = open_store(context.job.input, self._settings.s3)
            plan = plan_input(source, context.job.options, self._settings.limits)
            check_holdout(plan, context.job.options)  # before gigabytes come for nothing
            fetch_input(
                source,
                plan,
                context.input,
                self._settings.limits,
                threads=self._settings.transfer_threads,
                cancel=context.cancel,
                report=report,
            )
        options = context.job.options
        estimating = source_of_cameras(plan, options) == STRUCTURE_FROM_MOTION
        weights = stage_weights(context.job.model, previews=options.outputs.previews, estimating=estimating)
        context.tracker.reweigh(weights)
        return plan

    def _validate(self, context: JobContext, plan: InputPlan) -> LoadedInput:
        with context.stage("validate") as report:
            return load_checked(
                context.input,
                plan,
                context.job.options,
                self._settings.limits,
                lambda fraction, message: report(fraction, message, {}),
                scratch=context.work,
            )

    def _upload(
        self,
        context: JobContext,
        store: ObjectStore,
        loaded: LoadedInput,
        reconstruction: Reconstruction,
        measurement: QualityMeasurement,
    ) -> QualityReport:
        with context.stage("upload") as report:
            quality = build_report(
                context.job,
                measurement,
                timings=list(context.tracker.timings),
                reconstruction=reconstruction,
                device=self.device,
                mask_source=loaded.mask_source,
                camera_source=loaded.camera_source,
                dropped_views=loaded.dropped,
            )
            text = quality.model_dump_json(indent=1)
            (context.results / REPORT_NAME).write_text(text, encoding="utf-8")
            (context.results / LOG_KEY).parent.mkdir(parents=True)
            shutil.copyfile(context.log_file, context.results / LOG_KEY)
            publish(
                store,
                context.results,
                context.job,
                quality.status,
                threads=self._settings.transfer_threads,
                report=report,
            )
        if quality.status == "failure":
            raise _below_threshold(quality, str(store.location))
        return quality


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _check_device(device: torch.device) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            ErrorCode.GPU_UNAVAILABLE, f"The device {str(device)!r} was chosen, and PyTorch finds no GPU."
        )


def _below_threshold(quality: QualityReport, output: str) -> ModelError:
    failed = [check for check in quality.checks if check.status == "failure"]
    return ModelError(
        ErrorCode.QUALITY_BELOW_THRESHOLD,
        f"The result does not match its views well enough: {'; '.join(map(_describe, failed))}. "
        "It was kept for inspection.",
        checks=[check.model_dump(mode="json") for check in failed],
        output=output,
    )


def _describe(check: Check) -> str:
    relation = "at least" if check.higher_is_better else "at most"
    return f"{check.metric} is {check.value:.4g}, {relation} {check.warning:.4g} is required"


def _keep_failed_log(context: JobContext, store: ObjectStore, error: Exception) -> None:
    """Best effort: the failure itself matters more than its log."""
    if isinstance(error, ReconError) and error.code is ErrorCode.QUALITY_BELOW_THRESHOLD:
        return  # everything is uploaded already, the manifest too
    LOGGER.info("job %s failed: %s", context.job.job_id, error)  # whoever runs the job tells people
    try:
        keep_log(store, context.log_file)
    except (ReconError, OSError):
        LOGGER.warning("job %s: its log could not be kept", context.job.job_id)
