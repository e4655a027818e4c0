"""Structure from motion on photographs whose cameras are known: what is found is the truth, or is refused."""

import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from photographs import (
    around,
    photograph,
    plain_ball_on_speckled_ground,
    speckled_ball,
    speckled_spot,
    take,
)
from PIL import Image

from models.geometry.camera import intrinsics_from_fov
from pipeline.camera_estimation import (
    MAX_ERROR,
    MIN_POINTS,
    MIN_SEEN,
    check_frames,
    check_model,
    trusted_views,
)
from pipeline.colmap_process import OutOfTime, solve
from pipeline.distortion import Distortion
from pipeline.images import Header
from pipeline.ingest import InputPlan, plan_input
from pipeline.settings import Limits
from pipeline.storage_file import FolderStore
from pipeline.structure_from_motion import MODEL_NAME, PART_NAME, Model, Photograph, Task, likely_pairs
from pipeline.transforms import Frame, Lens
from pipeline.validate import load_checked, validate_folder
from pipeline.views import LoadedInput
from schemas.errors import ErrorCode, InvalidJob, JobCancelled, ReconError
from schemas.locations import Location
from schemas.options import NvdiffrecOptions

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).resolve().parents[3]
VIEWS = 16
DEPTH_SCALE = 0.001  # what an input without transforms.json counts in


@pytest.fixture(scope="module")
def spot(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """Photographs all around spot, with depth, and the true poses."""
    folder, poses = tmp_path_factory.mktemp("spot"), around(VIEWS, rings=(20.0,))
    photograph(folder, speckled_spot(), poses, size=(360, 330), depth_scale=DEPTH_SCALE)
    return folder, poses


@pytest.fixture
def started(monkeypatch) -> list[subprocess.Popen]:
    """Every process that is started."""
    processes = []

    class Noted(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return processes


def some(spot: tuple[Path, np.ndarray], folder: Path, indices: list[int], *parts: str) -> Path:
    """An input of some of the photographs."""
    for part in parts or ("images",):
        (folder / part).mkdir(parents=True)
        for index in indices:
            shutil.copy(spot[0] / part / f"{index:03}.png", folder / part)
    return folder


def plan_of(folder: Path, options: NvdiffrecOptions) -> InputPlan:
    return plan_input(FolderStore(Location("file", "", str(folder))), options, Limits())


def load(folder: Path, tick=lambda fraction, message: None, **options) -> LoadedInput:
    chosen = NvdiffrecOptions(**options)
    return load_checked(folder, plan_of(folder, chosen), chosen, Limits(), tick, scratch=folder.parent)


def refusal(folder: Path, **options) -> InvalidJob:
    with pytest.raises(InvalidJob) as caught:
        load(folder, **options)
    assert caught.value.code is ErrorCode.CAMERA_ESTIMATION_FAILED, caught.value
    assert "15 to 30 degrees" in caught.value.details["rule"]
    assert "transforms.json" in caught.value.message
    return caught.value


def errors(found: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """How far poses [V, 4, 4] are from the true ones after the best similarity (Umeyama 1991).

    Returns:
        Largest rotation error, degrees; largest error of a position as a share of the cameras' mean distance
        from their centre; scale from the found world to the true one.
    """
    a, b = found[:, :3, 3], truth[:, :3, 3]
    a, b = a - a.mean(0), b - b.mean(0)
    left, stretch, right = np.linalg.svd(b.T @ a)
    sign = np.diag([1, 1, np.linalg.det(left @ right)])
    turn = left @ sign @ right
    scale = float(np.trace(sign @ np.diag(stretch)) / (a**2).sum())
    positions = np.linalg.norm(scale * a @ turn.T - b, axis=1).max() / np.linalg.norm(b, axis=1).mean()
    between = np.einsum("vij,vik->vjk", turn @ found[:, :3, :3], truth[:, :3, :3])
    angles = np.degrees(np.arccos(np.clip((np.trace(between, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    return float(angles.max()), float(positions), scale


def poses_of(loaded: LoadedInput) -> np.ndarray:
    return loaded.views.cameras.camera_to_world.numpy().astype(float)


def test_cameras_of_photographs_with_depth_are_the_true_ones_at_the_true_scale(spot):
    messages = []
    loaded = load(spot[0], lambda fraction, message: messages.append((fraction, message)))
    degrees, positions, scale = errors(poses_of(loaded), spot[1])
    assert degrees < 0.3
    assert positions < 0.005
    assert scale == pytest.approx(1, abs=0.005)
    assert (loaded.camera_source, loaded.mask_source, loaded.depth_views) == ("sfm:pycolmap", "alpha", VIEWS)
    assert loaded.dropped == ()
    assert loaded.views.cameras.intrinsics[0, 0, 0].item() == pytest.approx(180 / np.tan(np.pi / 9), rel=0.02)
    fractions = [fraction for fraction, _ in messages]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert any("placing camera" in message for _, message in messages)


def test_a_photograph_of_something_else_is_left_out_also_if_a_second_attempt_dies(
    spot, tmp_path, caplog, started
):
    folder = some(spot, tmp_path / "input", list(range(5)))
    other = tmp_path / "other"
    photograph(other, speckled_ball(), around(8)[2:3], size=(360, 330))
    shutil.copy(other / "images" / "000.png", folder / "images" / "004_other.png")
    messages = []

    def tick(fraction: float, message: str) -> None:
        messages.append(message)
        if "robust" in message:
            started[0].kill()

    with caplog.at_level(logging.WARNING, logger="pipeline"):
        loaded = load(folder, tick)
    assert any("robust" in message for message in messages)
    assert "what it had found until then is used" in caplog.text
    assert loaded.dropped == ("images/004_other.png",)
    assert loaded.views.names == tuple(f"images/{i:03}.png" for i in range(5))
    assert "004_other.png" in caplog.text
    assert "cameras found for 5 of 6 images" in messages
    degrees, positions, _ = errors(poses_of(loaded), spot[1][:5])
    assert degrees < 1
    assert positions < 0.03


def test_neighbours_45_degrees_apart_are_found_with_features_that_stand_it(tmp_path):
    poses, reports = around(8, rings=(20.0,)), []
    photograph(tmp_path, speckled_spot(), poses, size=(400, 400))
    loaded = load(tmp_path, lambda fraction, message: reports.append((fraction, message)))
    assert any("robust features" in message for _, message in reports)
    assert [fraction for fraction, _ in reports] == sorted(fraction for fraction, _ in reports)
    assert len(loaded.views) == 8
    degrees, positions, _ = errors(poses_of(loaded), poses)
    assert degrees < 1
    assert positions < 0.02


def test_two_sides_without_what_is_between_them_are_refused_with_what_to_do(spot, tmp_path):
    folder = some(spot, tmp_path, [0, 1, 2, 8, 9, 10])
    for path in (folder / "images").iterdir():
        image = Image.open(path)
        image.resize((240, 220), Image.Resampling.LANCZOS).save(path)
    error = refusal(folder)
    assert "3 others belong together but not with these" in error.message
    assert "features = 'all'" in error.message
    assert (error.details["actual"], error.details["limit"]) == (3, 4)
    assert error.details["missing"] in (
        [f"images/{i:03}.png" for i in side] for side in ((0, 1, 2), (8, 9, 10))
    )
    assert error.details["file"] == error.details["missing"][0]


def a_model(views: int) -> Model:
    """Good enough to be accepted."""
    return Model(
        views=np.arange(views),
        camera_from_world=np.tile(np.eye(4)[:3], (views, 1, 1)),
        lenses=np.tile([500.0, 200.0, 200.0, 0.0], (views, 1)),
        points=np.zeros((MIN_POINTS, 3)),
        seen_view=np.repeat(np.arange(views), MIN_POINTS),
        seen_point=np.tile(np.arange(MIN_POINTS), views),
        seen_pixel=np.zeros((views * MIN_POINTS, 2)),
        error=MAX_ERROR,
        other_models=0,
    )


def check(model: Model, total: int, **options) -> None:
    dropped = [f"images/{index:03}.png" for index in range(len(model.views), total)]
    check_model(model, dropped, total, NvdiffrecOptions(**options))


def test_a_model_of_more_than_half_of_the_views_is_accepted():
    check(a_model(6), 10)


@pytest.mark.parametrize(
    ("found", "total", "options", "required"),
    [
        (0, 4, {}, 3),
        (5, 10, {}, 6),
        (2, 3, {}, 3),
        (6, 8, {"input": {"min_views": 7}}, 7),
        (6, 8, {"input": {"min_views": 6}, "quality": {"holdout": 2}}, 8),
    ],
)
def test_a_model_of_too_few_views_is_refused(found, total, options, required):
    with pytest.raises(InvalidJob, match=f"for {found} of {total} images, {required} are needed") as caught:
        check(a_model(found), total, **options)
    assert caught.value.code is ErrorCode.CAMERA_ESTIMATION_FAILED
    assert caught.value.details["file"] == f"images/{found:03}.png"
    assert len(caught.value.details["missing"]) == total - found


def test_a_model_of_few_points_or_of_large_errors_is_refused():
    with pytest.raises(InvalidJob, match=f"only {MIN_POINTS - 1} points"):
        check(replace(a_model(6), points=np.zeros((MIN_POINTS - 1, 3))), 6)
    with pytest.raises(InvalidJob, match=r"miss the images by 2\.1 pixels"):
        check(replace(a_model(6), error=MAX_ERROR + 0.1), 6)


def test_estimates_that_cannot_be_real_are_refused_with_the_rule_they_break():
    def frames(focal: float) -> list[Frame]:
        lens = Lens(64, 64, focal, focal, 32.0, 32.0, None, None, Distortion())
        return [Frame(f"images/{i}.png", None, None, pose, lens) for i, pose in enumerate(around(4))]

    headers = [Header("PNG", 64, 64, has_alpha=True)] * 4
    check_frames(frames(80.0), headers)
    with pytest.raises(InvalidJob, match=r"real ones: .*focal") as caught:
        check_frames(frames(1e6), headers)
    assert caught.value.code is ErrorCode.CAMERA_ESTIMATION_FAILED
    assert caught.value.details["file"] == "images/0.png"
    with pytest.raises(
        InvalidJob, match=r"'images/0\.png' and 'images/1\.png' have the same camera"
    ) as caught:
        check_frames([replace(one, camera_to_world=np.eye(4)) for one in frames(80.0)], headers)
    assert caught.value.details["file"] == "images/"


def over_background(folder: Path, background: np.ndarray) -> None:
    """Turn images with alpha into opaque ones over a background [H, W, 3], and masks."""
    (folder / "masks").mkdir()
    for path in sorted((folder / "images").iterdir()):
        rgba = np.asarray(Image.open(path)).astype(float) / 255
        mixed = rgba[..., :3] * rgba[..., 3:] + background * (1 - rgba[..., 3:])
        Image.fromarray((mixed * 255).round().astype(np.uint8)).save(path)
        Image.fromarray((rgba[..., 3] * 255).round().astype(np.uint8)).save(folder / "masks" / path.name)


def test_a_turntable_before_a_background_that_stands_still(spot, tmp_path):
    folder = some(spot, tmp_path, list(range(10)))
    backdrop = take(speckled_ball(), around(8)[:1] * [[[1], [1], [1], [1]]], _wide(), 360, 330).color[0]
    over_background(folder, backdrop)
    poses = poses_of(load(folder))
    degrees, positions, _ = errors(poses, spot[1][:10])
    assert degrees < 0.5
    assert positions < 0.01
    # The world that was chosen stands upright around the object, the first camera in front.
    np.testing.assert_allclose(poses[:, 2, 1], spot[1][:10, 2, 1], atol=0.02)
    assert poses[0, 0, 3] == pytest.approx(0, abs=1e-6)
    assert poses[0, 1, 3] < 0
    distances = np.linalg.norm(poses[:, :3, 3], axis=1)
    assert np.median(distances) == pytest.approx(1, abs=1e-3)
    assert distances.min() > 0.7


def _wide() -> np.ndarray:
    return np.array([[1200.0, 0, 180], [0, 1200, 165], [0, 0, 1]])


def test_a_plain_object_in_surroundings_that_stand_still(tmp_path):
    scene, ball = plain_ball_on_speckled_ground()
    poses, intrinsics = around(14, rings=(30.0,))[:8], intrinsics_from_fov(np.radians(40), 320, 320)
    shots, alone = take(scene, poses, intrinsics, 320, 320), take(ball, poses, intrinsics, 320, 320)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for index in range(len(poses)):
        Image.fromarray(shots.rgba(index)[..., :3]).save(tmp_path / "images" / f"{index:03}.png")
        mask = (alone.alpha[index] * 255).round().astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index:03}.png")
    loaded = load(tmp_path, cameras={"features": "all"})
    degrees, positions, _ = errors(poses_of(loaded), poses)
    assert degrees < 0.5
    assert positions < 0.01


def test_checking_a_folder_does_not_estimate(spot, started):
    summary = validate_folder(spot[0], NvdiffrecOptions(), Limits())
    assert (summary.views, summary.camera_source) == (VIEWS, "sfm:pycolmap")
    assert started == []


def test_a_cancel_ends_the_process_at_once(spot, started):
    cancelled_at = 0.0

    def tick(fraction: float, message: str) -> None:
        nonlocal cancelled_at
        if "features" in message:
            assert started[0].poll() is None
            cancelled_at = time.monotonic()
            raise JobCancelled

    with pytest.raises(JobCancelled):
        load(spot[0], tick)
    assert time.monotonic() - cancelled_at < 3
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)


def task_of(folder: Path, pictures: list[np.ndarray], time_limit_s: int = 60) -> Path:
    """A task whose masks hide nothing, of grey pictures [H, W] of one size."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    height, width = pictures[0].shape
    photographs = tuple(Photograph(f"{i:06}.png", 0, None, width, height) for i in range(len(pictures)))
    for one, picture in zip(photographs, pictures, strict=True):
        Image.fromarray(picture).save(folder / "images" / one.name)
        Image.new("L", (width, height), 255).save(folder / "masks" / f"{one.name}.png")
    Task(photographs, True, 0, time_limit_s).write(folder)
    return folder


def blank_task(folder: Path, time_limit_s: int = 60) -> Path:
    return task_of(folder, [np.full((64, 64), 128, np.uint8)] * 3, time_limit_s)


def silent(fraction: float, message: str) -> None:
    pass


def test_a_process_that_takes_too_long_is_ended(tmp_path, started):
    began = time.monotonic()
    with pytest.raises(OutOfTime, match="too long"):
        solve(blank_task(tmp_path), 0.01, silent)
    assert time.monotonic() - began < 5
    assert started[0].returncode is not None


def test_a_process_that_has_nothing_more_to_say_still_has_its_limit(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os, time\nos.close(1)\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ticks = []
    with pytest.raises(OutOfTime):
        solve(blank_task(tmp_path), 3, lambda fraction, message: ticks.append(time.monotonic()))
    assert ticks[-1] - ticks[0] > 1.5
    assert max(np.diff(ticks)) < 1


def test_what_others_print_is_no_report(tmp_path, monkeypatch, caplog):
    (tmp_path / "sitecustomize.py").write_text("print('{}')\nprint('hello')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    messages = []
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        solve(blank_task(tmp_path), 60, lambda fraction, message: messages.append(message))
    assert "b'hello'" in caplog.text
    assert messages[-1] == "cameras estimated"
    assert "hello" not in messages


def death(folder: Path, tick=silent) -> ReconError:
    with pytest.raises(ReconError) as caught:
        solve(folder, 60, tick)
    assert caught.value.retryable
    return caught.value


def test_a_process_that_dies_is_told_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        error = death(tmp_path)
    assert (error.code, error.details["exit_code"]) == (ErrorCode.MODEL_CRASHED, 1)
    assert "task.json" in caplog.text


def test_a_process_that_the_kernel_kills_lacked_memory(tmp_path, started):
    error = death(blank_task(tmp_path), lambda fraction, message: started[0].kill())
    assert error.code is ErrorCode.HOST_OUT_OF_MEMORY


def test_a_full_disk_is_told_as_such(tmp_path):
    (blank_task(tmp_path) / PART_NAME).symlink_to("/dev/full")
    assert death(tmp_path).code is ErrorCode.DISK_FULL


def test_blank_photographs_have_no_model(tmp_path):
    model = solve(blank_task(tmp_path), 60, silent)
    assert (len(model.views), len(model.points)) == (0, 0)


def test_no_second_attempt_begins_when_time_is_up(tmp_path):
    messages = []
    solve(blank_task(tmp_path, time_limit_s=1), 60, lambda fraction, message: messages.append(message))
    assert messages[-1] == "cameras estimated"
    assert not any("robust" in message for message in messages)


def test_the_process_leaves_when_nobody_is_there_any_more(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (12, 700, 700), dtype=np.uint8)
    folder = task_of(tmp_path, list(noise))
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.structure_from_motion", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            assert b"finding features" in process.stdout.readline()
            assert process.poll() is None
            process.stdin.close()
            assert process.wait(3) == 1
        finally:
            process.kill()
        assert b"cameras estimated" not in process.stdout.read()
    assert not (folder / MODEL_NAME).exists()


def test_pairs_of_many_views_are_neighbours_and_look_alikes():
    random = np.random.default_rng(0)
    scenes = random.integers(0, 255, (4, 300, 128), dtype=np.uint8)
    views = [scenes[i % 4][random.permutation(300)[:200]] for i in range(80)]
    views[7] = np.zeros((0, 128), np.uint8)
    pairs = likely_pairs(views, 0)
    assert all(0 <= i < j < 80 for i, j in pairs)
    assert {(3, 4), (3, 7), (0, 79)} <= pairs
    alike = [abs(i - j) % 4 == 0 for i, j in pairs if min(j - i, 80 - j + i) > 4 and 7 not in (i, j)]
    assert np.mean(alike) > 0.95
    assert len(pairs) < 80 * 21
    assert pairs == likely_pairs(views, 0)


def test_views_that_see_too_little_are_not_trusted():
    seen = np.repeat([0, 1, 2], [MIN_SEEN, MIN_SEEN - 1, 40])
    model = Model(
        views=np.array([3, 5, 8]),
        camera_from_world=np.arange(36, dtype=float).reshape(3, 3, 4),
        lenses=np.arange(12, dtype=float).reshape(3, 4),
        points=np.zeros((40, 3)),
        seen_view=seen,
        seen_point=np.concatenate([np.arange(n) for n in np.bincount(seen)]),
        seen_pixel=np.zeros((len(seen), 2)),
        error=0.5,
        other_models=0,
    )
    kept = trusted_views(model)
    assert kept.views.tolist() == [3, 8]
    np.testing.assert_array_equal(kept.lenses, model.lenses[[0, 2]])
    assert np.bincount(kept.seen_view).tolist() == [MIN_SEEN, 40]
