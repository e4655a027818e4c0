"""Which models a machine serves, and what it says of the others."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from workplace import Miniature

from pipeline.run import Pipeline
from pipeline.serving import GIB, check_gpu_memory, load_models
from pipeline.settings import PipelineSettings, S3Settings
from schemas.errors import ErrorCode, ErrorInfo, ReconError, ResourceError
from tests.checkpoints import write_checkpoint


def settings(folder: Path, **changes) -> PipelineSettings:
    return PipelineSettings(S3Settings(), (), (), folder / "work", device="cpu", **changes)


def test_a_machine_without_a_gpu_serves_what_needs_none_and_says_why_not_the_rest(tmp_path):
    found = Pipeline(settings(tmp_path)).load()
    assert (found.device, found.gpu_memory_bytes, found.models) == ("cpu", None, ("nvdiffrec",))
    reason = found.unavailable["reconviagen"]
    assert reason.code is ErrorCode.GPU_TOO_SMALL
    assert "12 GiB" in reason.message
    assert "RECON_MIN_GPU_MEMORY_GIB" in reason.message
    assert not reason.retryable, "the same job would fail on the same machine for ever"


def test_missing_weights_are_told_with_the_command_that_fetches_them(tmp_path):
    found = Pipeline(settings(tmp_path, min_gpu_memory_gib=0, weights=tmp_path / "weights")).load()
    assert found.models == ("nvdiffrec",)
    reason = found.unavailable["reconviagen"]
    assert reason.code is ErrorCode.MODEL_WEIGHTS_MISSING
    assert f"recon weights fetch --folder {tmp_path / 'weights'}" in reason.message


@pytest.mark.parametrize(
    ("changes", "code"),
    [({}, ErrorCode.GPU_TOO_SMALL), ({"min_gpu_memory_gib": 0}, ErrorCode.MODEL_WEIGHTS_MISSING)],
)
def test_a_model_that_is_asked_for_by_name_must_be_there(tmp_path, changes, code):
    with pytest.raises(ReconError) as caught:
        Pipeline(settings(tmp_path, models=("nvdiffrec", "reconviagen"), **changes)).load()
    assert caught.value.code is code


def test_a_model_that_is_not_wanted_is_not_missed(tmp_path):
    found = Pipeline(settings(tmp_path, models=("nvdiffrec",))).load()
    assert (found.models, found.unavailable) == (("nvdiffrec",), {})


def test_models_that_are_given_are_served(tmp_path):
    pipeline = Pipeline(settings(tmp_path), {"reconviagen": Miniature(None)})
    assert pipeline.load().models == ("reconviagen",)


def test_a_gpu_that_was_chosen_and_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ResourceError) as caught:
        Pipeline(PipelineSettings(S3Settings(), (), (), tmp_path / "work", device="cuda")).load()
    assert caught.value.code is ErrorCode.GPU_UNAVAILABLE


@pytest.mark.parametrize("told", [11.75, 12.0, 139.8])
def test_a_gpu_sold_with_12_gigabytes_is_large_enough_though_its_driver_keeps_some(told):
    check_gpu_memory("reconviagen", int(told * GIB), 12.0)


@pytest.mark.parametrize("told", [7.8, 10.75, 11.0])
def test_a_smaller_gpu_is_refused_with_both_sizes(told):
    with pytest.raises(ResourceError) as caught:
        check_gpu_memory("reconviagen", int(told * GIB), 12.0)
    assert caught.value.code is ErrorCode.GPU_TOO_SMALL
    assert (caught.value.details["limit"], caught.value.details["actual"]) == (12.0, told)
    assert f"{told:.1f} GiB" in caught.value.message


def test_zero_asks_for_nothing():
    check_gpu_memory("reconviagen", None, 0)
    check_gpu_memory("reconviagen", 2 * GIB, 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights in which nothing seems to be wrong."""
    folder = tmp_path_factory.mktemp("weights")
    write_checkpoint(folder)
    return folder


def test_damaged_weights_are_told_with_the_file(tmp_path, weights):
    copy = shutil.copytree(weights, tmp_path / "weights")
    (file,) = copy.rglob("slat_vggt_cond.safetensors")
    file.write_bytes(b"cut off")
    found = Pipeline(settings(tmp_path, min_gpu_memory_gib=0, weights=copy)).load()
    assert found.models == ("nvdiffrec",)
    reason = found.unavailable["reconviagen"]
    assert reason.code is ErrorCode.MODEL_WEIGHTS_INVALID
    assert reason.details["file"] == str(file.relative_to(copy))


def served_beside(
    folder: Path, weights: Path, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> ErrorInfo:
    """What is said of reconviagen where reading its weights fails."""

    def fail(self) -> None:
        raise fault

    monkeypatch.setattr("models.reconviagen.model.Reconviagen.load", fail)
    found = Pipeline(settings(folder, min_gpu_memory_gib=0, weights=weights)).load()
    assert found.models == ("nvdiffrec",)
    return found.unavailable["reconviagen"]


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), ErrorCode.MODEL_VRAM_OOM, "out of memory"),
        (PermissionError(13, "Permission denied", "dinov2"), ErrorCode.MODEL_WEIGHTS_INVALID, "denied"),
        (ImportError("no module named 'spconv'"), ErrorCode.INTERNAL_ERROR, "spconv"),
        (MemoryError(), ErrorCode.HOST_OUT_OF_MEMORY, "memory"),
    ],
)
def test_a_fault_of_reconviagen_leaves_the_other_model_alone(
    tmp_path, weights, monkeypatch, fault, code, text
):
    reason = served_beside(tmp_path, weights, fault, monkeypatch)
    assert reason.code is code
    assert text in reason.message


def test_a_gpu_that_is_lost_while_reconviagen_loads_ends_the_start(tmp_path, weights, monkeypatch):
    with pytest.raises(ResourceError) as caught:
        served_beside(tmp_path, weights, RuntimeError("CUDA error: an illegal memory access"), monkeypatch)
    assert caught.value.code is ErrorCode.GPU_UNAVAILABLE


def test_code_of_reconviagen_that_cannot_be_imported_leaves_the_other_model_alone(tmp_path, weights):
    """In a process of its own, in which nothing has imported it yet."""
    program = """
import sys
from pathlib import Path

sys.modules["safetensors"] = None  # importing it fails

from pipeline.run import Pipeline
from pipeline.settings import PipelineSettings, S3Settings

work, weights = map(Path, sys.argv[1:])
machine = {"device": "cpu", "min_gpu_memory_gib": 0, "weights": weights}
found = Pipeline(PipelineSettings(S3Settings(), (), (), work, **machine)).load()
print(found.models, found.unavailable["reconviagen"].message)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "work", weights],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "('nvdiffrec',)" in done.stdout
    assert "safetensors" in done.stdout


def test_a_machine_that_can_serve_nothing_says_why(tmp_path, monkeypatch):
    def full(self) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("models.nvdiffrec.model.Nvdiffrec.load", full)
    with pytest.raises(ReconError) as caught:
        Pipeline(settings(tmp_path)).load()
    assert caught.value.code is ErrorCode.MODEL_VRAM_OOM
    assert "nvdiffrec: The GPU ran out of memory" in caught.value.message
    assert "RECON_MIN_GPU_MEMORY_GIB" in caught.value.message


def test_a_fault_while_loading_is_no_reason_to_serve_less(tmp_path, monkeypatch):
    """A GPU that is just being reset must not turn a worker of two models into one of one for good."""

    def fault(self) -> None:
        raise ResourceError(ErrorCode.GPU_UNAVAILABLE)

    monkeypatch.setattr("models.nvdiffrec.model.Nvdiffrec.load", fault)
    with pytest.raises(ResourceError):
        load_models(settings(tmp_path), Pipeline(settings(tmp_path))._device)
