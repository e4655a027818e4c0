"""The world of estimated cameras: chosen from a model in any frame, at any scale."""

from dataclasses import replace

import numpy as np
import pytest
from photographs import around
from scipy.spatial.transform import Rotation

from pipeline.structure_from_motion import Model
from pipeline.world_frame import MIN_DEPTHS, camera_to_world, choose_world

POSES = around(12, distance=4.0, rings=(25.0,))
POINTS = np.random.default_rng(0).uniform(-0.5, 0.5, (60, 3))


def model(poses: np.ndarray = POSES, scale: float = 0.3, seed: int = 1) -> Model:
    """Every point seen by every camera, in a world that was turned, moved and scaled."""
    turn = Rotation.random(random_state=seed).as_matrix()
    shift = np.array([3.0, -2.0, 5.0])
    moved = poses.copy()
    moved[:, :3, :3] = turn @ poses[:, :3, :3]
    moved[:, :3, 3] = scale * poses[:, :3, 3] @ turn.T + shift
    axes = moved[:, :3, :3] * [1, -1, -1]
    rotation = axes.transpose(0, 2, 1)
    translation = -np.einsum("vij,vj->vi", rotation, moved[:, :3, 3])
    views, points = len(poses), len(POINTS)
    return Model(
        views=np.arange(views),
        camera_from_world=np.concatenate([rotation, translation[..., None]], 2),
        lenses=np.tile([500.0, 200.0, 200.0, 0.0], (views, 1)),
        points=scale * POINTS @ turn.T + shift,
        seen_view=np.repeat(np.arange(views), points),
        seen_point=np.tile(np.arange(points), views),
        seen_pixel=np.zeros((views * points, 2)),
        error=0.3,
        other_models=0,
    )


def chosen(given: Model, **options) -> np.ndarray:
    """Poses [V, 4, 4] in the chosen world."""
    everything = np.ones(len(given.seen_view), bool)
    defaults = {
        "quarter_turns": [0] * len(given.views),
        "on_object": everything,
        "depths": None,
        "up_axis": "z",
    }
    return choose_world(given, **defaults | options).poses(camera_to_world(given))


def true_depths(poses: np.ndarray = POSES) -> np.ndarray:
    """z-depths [V * P] of the points, in the true world's units."""
    away = POINTS[None] - poses[:, None, :3, 3]
    return -np.einsum("vpi,vi->vp", away, poses[:, :3, 2]).reshape(-1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_frame_is_upright_centred_and_of_unit_distance(seed):
    poses = chosen(model(seed=seed))
    np.testing.assert_allclose(poses[:, 2, 1], POSES[:, 2, 1], atol=1e-9)
    assert np.median(np.linalg.norm(poses[:, :3, 3], axis=1)) == pytest.approx(1)
    assert poses[0, 0, 3] == pytest.approx(0, abs=1e-12)
    assert poses[0, 1, 3] < 0
    assert poses[0, 2, 3] == pytest.approx(np.sin(np.radians(25)), abs=0.03)


def test_depth_tells_the_unit_even_where_much_of_it_is_wrong():
    depths = true_depths()
    random = np.random.default_rng(0)
    depths[random.random(len(depths)) < 0.3] = 0
    wild = random.random(len(depths)) < 0.2
    depths[wild] *= 3
    depths.reshape(len(POSES), -1)[1::2] *= 1.02
    poses = chosen(model(), depths=depths)
    apart = np.linalg.norm(poses[3, :3, 3] - poses[9, :3, 3])
    assert apart == pytest.approx(np.linalg.norm(POSES[3, :3, 3] - POSES[9, :3, 3]), rel=0.03)


def test_too_few_depths_tell_nothing():
    depths = true_depths()
    depths[MIN_DEPTHS - 1 :] = 0
    with pytest.raises(ValueError, match="too few"):
        chosen(model(), depths=depths)


def test_y_may_be_up():
    poses = chosen(model(), up_axis="y")
    np.testing.assert_allclose(poses[:, 1, 1], POSES[:, 2, 1], atol=1e-9)
    assert poses[0, 0, 3] == pytest.approx(0, abs=1e-12)
    assert poses[0, 2, 3] > 0


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_cameras_that_were_held_sideways_are_minded(turns):
    # The picture must be turned clockwise to be upright: the camera had been turned clockwise itself.
    held = POSES.copy()
    roll = Rotation.from_euler("z", -90 * turns, degrees=True).as_matrix()
    held[::2, :3, :3] = held[::2, :3, :3] @ roll
    poses = chosen(model(held), quarter_turns=[turns if i % 2 == 0 else 0 for i in range(len(held))])
    np.testing.assert_allclose(poses[:, 2, 1], held[:, 2, 1], atol=1e-9)


def test_cameras_of_any_roll_have_a_mean_up():
    rolled = POSES.copy()
    for index, angle in enumerate(np.linspace(-60, 60, len(rolled))):
        rolled[index, :3, :3] = (
            rolled[index, :3, :3] @ Rotation.from_euler("z", angle, degrees=True).as_matrix()
        )
    ups = chosen(model(rolled))[:, :3, 1].mean(0)
    assert ups[2] / np.linalg.norm(ups) > 0.95


def test_the_origin_is_the_objects_not_the_scenes():
    given = model()
    cluttered = replace(given, points=np.concatenate([given.points, given.points + 40]))
    cluttered = replace(
        cluttered,
        seen_view=np.tile(given.seen_view, 2),
        seen_point=np.concatenate([given.seen_point, given.seen_point + len(POINTS)]),
    )
    mine = np.arange(len(cluttered.seen_view)) < len(given.seen_view)
    np.testing.assert_allclose(chosen(cluttered, on_object=mine), chosen(given), atol=1e-9)
