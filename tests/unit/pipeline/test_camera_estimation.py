"""Structure from motion on photographs whose cameras are known: what is found is the truth, or is refused."""

import logging
import shutil
import time
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
from pipeline.camera_estimation import MIN_SEEN, trusted_views
from pipeline.colmap_process import ProcessFailed, solve
from pipeline.ingest import InputPlan, plan_input
from pipeline.settings import Limits
from pipeline.storage_file import FolderStore
from pipeline.structure_from_motion import Model, Photograph, Task, likely_pairs
from pipeline.validate import load_checked, validate_folder
from pipeline.views import LoadedInput
from schemas.errors import ErrorCode, InvalidJob, JobCancelled
from schemas.locations import Location
from schemas.options import NvdiffrecOptions

pytestmark = pytest.mark.timeout(240)

VIEWS = 16
DEPTH_SCALE = 0.001  # what an input without transforms.json counts in


@pytest.fixture(scope="module")
def spot(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """Photographs all around spot, with depth, and the true poses."""
    folder, poses = tmp_path_factory.mktemp("spot"), around(VIEWS, rings=(20.0,))
    photograph(folder, speckled_spot(), poses, size=(360, 330), depth_scale=DEPTH_SCALE)
    return folder, poses


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
    return load_checked(folder, plan_of(folder, chosen), chosen, Limits(), tick)


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


def test_the_world_stands_upright_around_the_object(spot, tmp_path):
    poses = poses_of(load(some(spot, tmp_path, list(range(10)))))
    ups = spot[1][:10, 2, 1]  # how much of each camera's upward axis is the true up
    np.testing.assert_allclose(poses[:, 2, 1], ups, atol=0.02)
    assert poses[0, 0, 3] == pytest.approx(0, abs=1e-6)
    assert poses[0, 1, 3] < 0
    distances = np.linalg.norm(poses[:, :3, 3], axis=1)
    assert np.median(distances) == pytest.approx(1, abs=1e-3)
    assert distances.min() > 0.7


def test_a_photograph_of_something_else_is_left_out(spot, tmp_path, caplog):
    folder = some(spot, tmp_path / "input", list(range(6)))
    other = tmp_path / "other"
    photograph(other, speckled_ball(), around(8)[2:3], size=(360, 330))
    shutil.copy(other / "images" / "000.png", folder / "images" / "004_other.png")
    messages = []
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        loaded = load(folder, lambda fraction, message: messages.append(message))
    assert loaded.dropped == ("images/004_other.png",)
    assert loaded.views.names == tuple(f"images/{i:03}.png" for i in range(6))
    assert "004_other.png" in caplog.text
    assert "cameras found for 6 of 7 images" in messages
    degrees, positions, _ = errors(poses_of(loaded), spot[1][:6])
    assert degrees < 1
    assert positions < 0.03


def test_neighbours_45_degrees_apart_are_found_with_features_that_stand_it(tmp_path):
    poses, reports = around(8, rings=(20.0,)), []
    photograph(tmp_path, speckled_spot(), poses, size=(480, 480))
    loaded = load(tmp_path, lambda fraction, message: reports.append((fraction, message)))
    assert any("robust features" in message for _, message in reports)
    assert [fraction for fraction, _ in reports] == sorted(fraction for fraction, _ in reports)
    assert len(loaded.views) == 8
    degrees, positions, _ = errors(poses_of(loaded), poses)
    assert degrees < 1
    assert positions < 0.02


def test_photographs_too_far_apart_are_refused_with_what_to_do(spot, tmp_path):
    error = refusal(some(spot, tmp_path, [0, 4, 8, 12]))
    assert error.details["actual"] < 3
    assert error.details["file"] in error.details["missing"]


def test_enough_views_for_the_job_must_be_found(spot, tmp_path):
    folder = some(spot, tmp_path, [0, 1, 2, 3, 8, 12])
    error = refusal(folder, input={"min_views": 5})
    assert error.details["limit"] == 5


def test_two_sides_without_what_is_between_them_are_refused(spot, tmp_path):
    error = refusal(some(spot, tmp_path, [0, 1, 2, 3, 8, 9, 10, 11]))
    assert "belong together but not with these" in error.message
    assert error.details["limit"] == 5


def test_an_object_without_texture_is_refused(tmp_path):
    photograph(tmp_path, speckled_spot(contrast=0), around(8, rings=(20.0,)), size=(300, 300))
    refusal(tmp_path)


def over_background(folder: Path, background: np.ndarray) -> None:
    """Turn images with alpha into opaque ones over a background [H, W, 3], and masks."""
    (folder / "masks").mkdir()
    for path in sorted((folder / "images").iterdir()):
        rgba = np.asarray(Image.open(path)).astype(float) / 255
        mixed = rgba[..., :3] * rgba[..., 3:] + background * (1 - rgba[..., 3:])
        Image.fromarray((mixed * 255).round().astype(np.uint8)).save(path)
        Image.fromarray((rgba[..., 3] * 255).round().astype(np.uint8)).save(folder / "masks" / path.name)


def test_a_turntable_before_a_background_that_stands_still(spot, tmp_path):
    folder = some(spot, tmp_path, list(range(VIEWS)))
    backdrop = take(speckled_ball(), around(8)[:1] * [[[1], [1], [1], [1]]], _wide(), 360, 330).color[0]
    over_background(folder, backdrop)
    degrees, positions, _ = errors(poses_of(load(folder)), spot[1])
    assert degrees < 0.5
    assert positions < 0.01


def _wide() -> np.ndarray:
    return np.array([[1200.0, 0, 180], [0, 1200, 165], [0, 0, 1]])


def test_a_plain_object_in_surroundings_that_stand_still(tmp_path):
    scene, ball = plain_ball_on_speckled_ground()
    poses, intrinsics = around(14, rings=(30.0,)), intrinsics_from_fov(np.radians(40), 400, 400)
    shots, alone = take(scene, poses, intrinsics, 400, 400), take(ball, poses, intrinsics, 400, 400)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for index in range(len(poses)):
        Image.fromarray(shots.rgba(index)[..., :3]).save(tmp_path / "images" / f"{index:03}.png")
        mask = (alone.alpha[index] * 255).round().astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index:03}.png")
    assert "features = 'all'" in refusal(tmp_path).message
    loaded = load(tmp_path, cameras={"features": "all"})
    degrees, positions, _ = errors(poses_of(loaded), poses)
    assert degrees < 0.5
    assert positions < 0.01


def test_checking_a_folder_does_not_estimate(spot):
    began = time.monotonic()
    summary = validate_folder(spot[0], NvdiffrecOptions(), Limits())
    assert (summary.views, summary.camera_source) == (VIEWS, "sfm:pycolmap")
    assert time.monotonic() - began < 10


def test_a_cancel_ends_the_process_at_once(spot):
    def tick(fraction: float, message: str) -> None:
        if "features" in message:
            raise JobCancelled

    began = time.monotonic()
    with pytest.raises(JobCancelled):
        load(spot[0], tick)
    assert time.monotonic() - began < 20


def blank_task(folder: Path) -> Path:
    for name in ("images", "masks"):
        (folder / name).mkdir()
    photographs = tuple(Photograph(f"{i:06}.png", 0, None, 64, 64) for i in range(3))
    for one in photographs:
        Image.new("L", (64, 64), 128).save(folder / "images" / one.name)
        Image.new("L", (64, 64), 255).save(folder / "masks" / f"{one.name}.png")
    Task(photographs, True, 0, 60).write(folder)
    return folder


def test_a_process_that_takes_too_long_is_ended(tmp_path):
    began = time.monotonic()
    with pytest.raises(ProcessFailed, match="too long"):
        solve(blank_task(tmp_path), 0.01, lambda fraction, message: None)
    assert time.monotonic() - began < 5


def test_a_process_that_dies_is_told_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="pipeline"), pytest.raises(ProcessFailed, match="unexpect"):
        solve(tmp_path, 60, lambda fraction, message: None)
    assert "task.json" in caplog.text


def test_blank_photographs_have_no_model(tmp_path):
    model = solve(blank_task(tmp_path), 60, lambda fraction, message: None)
    assert (len(model.views), len(model.points)) == (0, 0)


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
