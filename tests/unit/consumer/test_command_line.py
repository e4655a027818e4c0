"""The `recon` command, as far as it goes without broker and storage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consumer import arguments, local, steps
from consumer.cli import app
from consumer.protocol import EnginePipeline
from pipeline.settings import PipelineSettings
from schemas.errors import InvalidJob
from tests.unit.consumer.miniatures import Miniature

JOB_ID = "6b1c4b3e-1111-4000-8000-000000000000"


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture
def views(tmp_path: Path) -> Path:
    folder = tmp_path / "views"
    folder.mkdir()
    return folder


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    """`recon run` with a miniature pipeline that behaves as the environment of the test says."""
    monkeypatch.setattr(
        local.run_local, "__kwdefaults__", local.run_local.__kwdefaults__ | {"factory": _make}
    )


def _make(settings: PipelineSettings) -> EnginePipeline:
    return _Planned(settings.s3)


class _Planned(Miniature):
    do = "nothing"

    def _behave(self, wish: Any, cancel: Any, emit: Any) -> None:
        super()._behave({"do": self.do}, cancel, emit)


def test_neither_command_line_nor_control_plane_imports_torch():
    program = "import sys, consumer.cli, consumer.worker, consumer.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_help_names_commands_and_environment_variables(runner: CliRunner):
    shown = runner.invoke(app, ["--help"]).output
    for word in ("worker", "submit", "watch", "fetch", "run", "RECON_AMQP_URL", "RECON_S3_ENDPOINT", "130"):
        assert word in shown
    assert "RECON_OUTPUT_PREFIX" in runner.invoke(app, ["submit", "--help"]).output


@pytest.mark.parametrize(
    ("model", "own", "other"),
    [("nvdiffrec", "geometry_iterations", "latent_steps"), ("reconviagen", "latent_steps", "geometry_")],
)
def test_options_are_listed_for_each_model(runner: CliRunner, model, own, other):
    shown = runner.invoke(app, ["options", "--model", model]).output
    assert own in shown
    assert other not in shown
    assert "quality.holdout" in shown


def test_settings_are_listed_without_secrets(runner: CliRunner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RECON_AMQP_URL", "amqp://me:hush@broker/")
    monkeypatch.setenv("RECON_S3_SECRET_KEY", "quiet")
    shown = runner.invoke(app, ["settings"]).output
    assert "RECON_MAX_ATTEMPTS" in shown
    assert "hush" not in shown
    assert "quiet" not in shown


@pytest.mark.parametrize(
    ("command", "code", "word"),
    [
        (["watch", JOB_ID], 5, "BROKER_UNAVAILABLE"),
        (["submit", "s3://recon/x"], 5, "STORAGE_UNAVAILABLE"),
        (["submit", "s3://recon/x", "--no-check"], 5, "BROKER_UNAVAILABLE"),
        (["fetch", JOB_ID, "--out", "unused"], 5, "STORAGE_UNAVAILABLE"),
        (["submit", "s3://recon/x", "--option", "seed=-1"], 4, "INVALID_OPTIONS"),
        (["submit", "s3://recon/x", "--option", "colour=red"], 4, "options.colour: there is nothing"),
        (["submit", "s3://recon/x", "--option", "nonsense"], 4, "INVALID_OPTIONS"),
        (["submit", "http://recon/x"], 4, "INVALID_MESSAGE"),
        (["submit", "/no/such/folder"], 4, "INPUT_NOT_FOUND"),
        (["submit", "s3://recon/x", "--output", "s3://UPPER/x"], 4, "INVALID_MESSAGE"),
        (["submit", "file:///views"], 4, "uploaded"),
        (["watch", "no uuid"], 2, "UUID"),
        (["worker", "--device", "abacus"], 2, "--device"),
        (["worker", "--models", "reconviagen", "--device", "cpu"], 5, "needs a GPU with 12 GiB"),
    ],
)
def test_every_failure_is_one_line_and_an_exit_code(runner: CliRunner, tmp_path, command, code, word):
    nowhere = {
        "RECON_AMQP_URL": "amqp://me:hush@127.0.0.1:1/",
        "RECON_S3_ENDPOINT": "http://127.0.0.1:1",
        "RECON_S3_ACCESS_KEY": "x",
        "RECON_S3_SECRET_KEY": "y",
    }
    done = runner.invoke(app, [part.replace("unused", str(tmp_path)) for part in command], env=nowhere)
    assert done.exit_code == code, done.output
    assert word in done.output
    assert "Traceback" not in done.output
    assert "hush" not in done.output
    if code != 2:
        assert [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_a_file_that_cannot_be_read_or_written_is_one_line(runner, views, monkeypatch):
    async def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "images/0.png")

    monkeypatch.setattr(steps, "check_and_upload", refuse)
    done = runner.invoke(app, ["submit", str(views)])
    assert done.exit_code == 5
    assert "Permission denied: 'images/0.png'" in done.stderr
    assert "Traceback" not in done.output


def test_a_wrong_setting_is_one_line(runner: CliRunner):
    done = runner.invoke(app, ["worker"], env={"RECON_MODELS": "magic"})
    assert done.exit_code == 4
    assert "RECON_MODELS" in done.stderr


@pytest.mark.usefixtures("miniature")
def test_run_writes_a_record_and_prints_the_verdict(runner: CliRunner, views: Path, tmp_path: Path):
    done = runner.invoke(app, ["run", str(views), "--out", str(tmp_path / "out"), "--job-id", JOB_ID])
    assert done.exit_code == 0, done.output
    result = tmp_path / "out" / JOB_ID
    assert done.stdout.strip() == str(result)
    assert "normal" in done.stderr
    record = json.loads((result / "job.json").read_text())
    assert (record["state"], record["quality_status"], record["attempt"]) == ("completed", "normal", 1)


@pytest.mark.usefixtures("miniature")
@pytest.mark.parametrize(
    ("do", "error"), [("diverge", "MODEL_DIVERGED"), ("raise", "INTERNAL_ERROR"), ("storage away", "STORAGE")]
)
def test_run_tells_how_a_job_failed(runner, views, tmp_path, monkeypatch, do: str, error: str):
    monkeypatch.setattr(_Planned, "do", do)
    done = runner.invoke(app, ["run", str(views), "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 1
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["state"] == "failed"
    assert record["error"]["code"].startswith(error)
    assert "Traceback" not in done.output.replace("Traceback (most recent call last)", "", int(do == "raise"))


def test_options_are_dotted_typed_and_laid_over_a_file(tmp_path: Path):
    file = tmp_path / "options.json"
    file.write_text('{"seed": 1, "quality": {"holdout": 2}}')
    pairs = [
        "seed=5",
        "quality.psnr_normal_db=26.5",
        "raster=warp",
        "outputs.zip=true",
        "train_resolution=null",
    ]
    assert arguments.parse_options(pairs, file) == {
        "seed": 5,
        "quality": {"holdout": 2, "psnr_normal_db": 26.5},
        "raster": "warp",
        "outputs": {"zip": True},
        "train_resolution": None,
    }


@pytest.mark.parametrize("pairs", [["a"], ["=1"], ["a..b=1"], ["a=1", "a.b=2"]])
def test_a_pair_that_makes_no_sense_is_refused(pairs: list[str]):
    with pytest.raises(InvalidJob):
        arguments.parse_options(pairs)


@pytest.mark.parametrize("content", ["[]", "{", "3"])
def test_an_options_file_must_hold_an_object(tmp_path: Path, content: str):
    (tmp_path / "o.json").write_text(content)
    with pytest.raises(InvalidJob):
        arguments.parse_options([], tmp_path / "o.json")


def test_metadata_may_hold_equals_signs_and_json():
    assert arguments.parse_metadata(["a=b=c", "n=3", 'l=["x"]']) == {"a": "b=c", "n": 3, "l": ["x"]}
