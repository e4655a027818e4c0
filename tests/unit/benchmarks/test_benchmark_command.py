"""The command as it is called, on the sample with as little work as possible."""

import json
import shutil
import sys

import pytest

from benchmarks.reconstruct import combine, main
from tests.unit.pipeline.textured_meshes import SPOT

QUICK = {
    "grid_resolution": 16,
    "geometry_iterations": 2,
    "texture_iterations": 2,
    "train_resolution": 48,
    "texture_resolution": 64,
}


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["reconstruct.py", *map(str, arguments)])
    return main()


def refusal(monkeypatch, capsys, *arguments):
    """What is said of a wrong command line."""
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, *arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_run_is_scored_recorded_and_can_be_printed_again(monkeypatch, capsys, tmp_path):
    results = tmp_path / "results.jsonl"
    noise = ["--camera-noise-degrees", 0.5, "--camera-noise-distance", 0.01, "--depth-holes", 0.3]
    arguments = [SPOT, "--device", "cpu", "--options", json.dumps(QUICK), "--json", results]
    assert call(monkeypatch, *arguments) == 0
    assert call(monkeypatch, *arguments, *noise) == 0
    exact, noisy = map(json.loads, results.read_text().splitlines())
    for run in (exact, noisy):
        assert run["data"] == "spot-small/views"
        assert 10 < run["test"]["psnr_db"] < run["input"]["psnr_db"] + 3
        assert run["test"]["depth_error"] < 0.1
        assert run["surface"]["chamfer"] < 0.1
        assert run["surface"]["normal_consistency"] > 0.7
        assert sum(run["stages"].values()) == pytest.approx(run["seconds"])
        assert run["baseline"] is None
    assert "pose_errors" not in exact
    assert 0.2 < noisy["pose_errors"]["given"]["degrees"] < 0.8
    assert 0.002 < noisy["pose_errors"]["given"]["distance_share"] < 0.02
    capsys.readouterr()
    assert call(monkeypatch, "--table", results) == 0
    printed = capsys.readouterr().out
    assert f"{exact['test']['psnr_db']:.2f}" in printed
    assert "camera_noise_degrees 0.5" in printed


def test_a_run_that_a_worker_would_refuse_is_recorded_and_the_others_go_on(monkeypatch, capsys, tmp_path):
    shutil.copytree(SPOT, tmp_path / "spot")
    (tmp_path / "spot" / "views" / "images" / "000.png").write_bytes(b"no picture")
    assert call(monkeypatch, tmp_path / "spot", "--device", "cpu", "--presets", "preview", "standard") == 1
    printed = capsys.readouterr()
    assert printed.out.count("UNSUPPORTED_IMAGE_FORMAT") == 2
    assert "[2/2]" in printed.err


def test_an_input_that_cannot_be_made_worse_is_recorded_too(monkeypatch, capsys, tmp_path):
    shutil.copytree(SPOT / "views" / "images", tmp_path / "spot" / "views" / "images")
    transforms = json.loads((SPOT / "views" / "transforms.json").read_text())
    for frame in transforms["frames"]:
        del frame["depth_file_path"]
    (tmp_path / "spot" / "views" / "transforms.json").write_text(json.dumps(transforms))
    assert call(monkeypatch, tmp_path / "spot", "--device", "cpu", "--depth-holes", 0.3) == 1
    assert "CANNOT_DEGRADE" in capsys.readouterr().out


def test_folders_of_another_layout_are_refused(monkeypatch, capsys, tmp_path):
    assert "is not a folder" in refusal(monkeypatch, capsys, tmp_path / "absent")
    assert "has no sub-folder of input views" in refusal(monkeypatch, capsys, tmp_path)
    said = refusal(monkeypatch, capsys, SPOT, "--rigs", "orbit6")
    assert "has no orbit6/transforms.json; its rigs: views" in said


def test_what_cannot_be_measured_is_refused_before_anything_runs(monkeypatch, capsys, tmp_path):
    shutil.copytree(SPOT / "views", tmp_path / "bare" / "views")
    bare = tmp_path / "bare"
    assert "no mesh.ply" in refusal(monkeypatch, capsys, bare, "--depth-noise", 0.01)
    assert "no test/transforms.json" in refusal(monkeypatch, capsys, bare, "--time-to-psnr", 26.8)
    assert "exact cameras" in refusal(
        monkeypatch, capsys, SPOT, "--time-to-psnr", "--camera-noise-degrees", 1
    )
    assert "both degraded and left out" in refusal(
        monkeypatch, capsys, SPOT, "--no-depth", "--depth-holes", 0.3
    )
    assert "name at least one data set" in refusal(monkeypatch, capsys)
    assert "batch" in refusal(monkeypatch, capsys, SPOT, "--options", '{"batch": 3}')
    assert "JSON object" in refusal(monkeypatch, capsys, SPOT, "--options", "[1]")
    assert "at least 1" in refusal(monkeypatch, capsys, SPOT, "--repeat", 0)


def test_every_option_meets_every_preset_and_rasterizer():
    combined = combine(['{"seed": 1}', "{}"], ["preview", "high"], ["warp"])
    assert combined == [
        {"seed": 1, "preset": "preview", "raster": "warp"},
        {"seed": 1, "preset": "high", "raster": "warp"},
        {"preset": "preview", "raster": "warp"},
        {"preset": "high", "raster": "warp"},
    ]
    assert combine(["{}"], [], []) == [{}]
