import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.geometry.camera import look_at
from pipeline.distortion import Distortion
from pipeline.poses import check_poses, intrinsics_of
from pipeline.settings import Limits
from pipeline.transforms import Transforms, parse_transforms
from schemas.errors import AccessError, ErrorCode, InvalidJob, ReconError

GLOBAL = {"w": 64, "h": 48, "fl_x": 60.0, "fl_y": 61.0, "cx": 32.0, "cy": 24.0}


def pose(x: float = 0.0) -> list[list[float]]:
    return look_at(np.array([x, -3.0, 0.5]), np.zeros(3), np.array([0.0, 0.0, 1.0])).tolist()


def frames(count: int = 3) -> list[dict[str, Any]]:
    return [{"file_path": f"images/{i}.png", "transform_matrix": pose(i)} for i in range(count)]


def parse(data: dict[str, Any] | str | bytes, limits: Limits | None = None) -> Transforms:
    text = json.dumps(data) if isinstance(data, dict) else data
    return parse_transforms(text if isinstance(text, bytes) else text.encode(), limits or Limits())


def refused(data: dict[str, Any] | str | bytes, limits: Limits | None = None) -> InvalidJob:
    with pytest.raises(InvalidJob) as caught:
        check_poses(parse(data, limits).frames)
    assert caught.value.code is ErrorCode.INVALID_CAMERAS
    assert caught.value.details["file"] == "transforms.json"
    assert caught.value.details["rule"]
    return caught.value


def with_frame(**values: Any) -> dict[str, Any]:
    data = {**GLOBAL, "frames": frames()}
    data["frames"][1].update(values)
    return data


def test_nerfstudio_with_global_intrinsics():
    extras = {
        "applied_transform": pose()[:3],
        "applied_scale": 2.0,
        "ply_file_path": "x.ply",
        "camera_model": "OPENCV",
    }
    result = parse({**GLOBAL, **extras, "k1": 0, "p2": 0.0, "frames": frames()})
    assert [frame.image for frame in result.frames] == ["images/0.png", "images/1.png", "images/2.png"]
    assert result.depth_scale == 0.001
    k = intrinsics_of(result.frames[0], 64, 48)
    np.testing.assert_allclose(k, [[60, 0, 32], [0, 61, 24], [0, 0, 1]])


def test_blender_style_angle_and_paths():
    result = parse(
        {
            "camera_angle_x": 0.8,
            "frames": [{"file_path": "./train/r_0", "rotation": 0.1, "transform_matrix": pose()}],
        }
    )
    assert result.frames[0].image == "train/r_0"
    k = intrinsics_of(result.frames[0], 64, 48)
    focal = 32 / math.tan(0.4)
    np.testing.assert_allclose(k, [[focal, 0, 32], [0, focal, 24], [0, 0, 1]])


def test_per_frame_intrinsics_take_the_place_of_global_ones():
    own = {"fl_x": 80.0, "fl_y": 81.0, "cx": 30.0, "cy": 20.0}
    result = parse(with_frame(**own))
    assert intrinsics_of(result.frames[0], 64, 48)[0, 0] == 60
    np.testing.assert_allclose(intrinsics_of(result.frames[1], 64, 48), [[80, 0, 30], [0, 81, 20], [0, 0, 1]])


def test_intrinsics_are_scaled_to_images_of_another_size():
    frame = parse({**GLOBAL, "frames": frames()}).frames[0]
    np.testing.assert_allclose(intrinsics_of(frame, 32, 24), [[30, 0, 16], [0, 30.5, 12], [0, 0, 1]])
    assert intrinsics_of(frame, 43, 32)[0, 0] == pytest.approx(60 * 43 / 64)  # rounded to whole pixels
    with pytest.raises(InvalidJob) as caught:
        intrinsics_of(frame, 48, 48)
    assert caught.value.code is ErrorCode.VIEW_MISMATCH


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "{}",
        '{"frames": []}',
        '{"frames": {}}',
        b"\xff\xfe",
        "[" * 100,
        '{"frames": [1]}',
    ],
)
def test_what_is_no_camera_file_is_refused(text):
    refused(text)


def test_a_file_that_is_too_long_or_too_deep_is_refused():
    refused({"frames": frames()}, Limits(max_json_bytes=20))
    nested: Any = 0
    for _ in range(20):
        nested = [nested]
    refused({**GLOBAL, "extra": nested, "frames": frames()})


@pytest.mark.parametrize(
    "literal", ["NaN", "Infinity", "-Infinity", "1e999", "null", '"1"', "true", "1" + "0" * 400]
)
def test_numbers_that_are_not_finite_are_refused(literal):
    text = json.dumps(with_frame()).replace("0.5", literal, 1)
    assert literal in text
    refused(text)


ROTATED = np.array(pose(1.0))


def changed(edit) -> list[list[float]]:
    matrix = ROTATED.copy()
    edit(matrix)
    return matrix.tolist()


@pytest.mark.parametrize(
    "matrix",
    [
        pose()[:3],
        [row[:3] for row in pose()],
        [],
        np.zeros((4, 4)).tolist(),
        changed(lambda m: m[:3, :3].__imul__(2)),
        changed(lambda m: m[:3, 0].__imul__(1.1)),
        changed(lambda m: m[:3, 0].__imul__(-1)),
        changed(lambda m: m[0, :3].__iadd__(0.2)),
        changed(lambda m: m[3].__setitem__(slice(None), (0, 0, 1, 1))),
        changed(lambda m: m[:3, 3].__imul__(1e9)),
        changed(lambda m: m[:3, :3].__setitem__(slice(None), 1.0)),
    ],
    ids=[
        "3x4",
        "4x3",
        "empty",
        "zero",
        "scaled",
        "stretched",
        "mirrored",
        "sheared",
        "row",
        "far",
        "singular",
    ],
)
def test_matrices_that_are_no_rigid_motion_are_refused(matrix):
    refused(with_frame(transform_matrix=matrix))


def test_a_rotation_written_with_few_digits_is_made_exact():
    result = parse(with_frame(transform_matrix=np.round(ROTATED, 3).tolist()))
    rotation = check_poses(result.frames)[1, :3, :3]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotation, ROTATED[:3, :3], atol=2e-3)


def test_two_frames_with_one_camera_are_refused():
    assert "images/0.png" in refused(with_frame(transform_matrix=pose(0))).message
    barely = np.array(pose(0))
    barely[0, 3] += 1e-9
    refused(with_frame(transform_matrix=barely.tolist()))


def test_cameras_in_one_place_that_look_elsewhere_are_two():
    turned = np.array(pose(0))
    turned[:3, :3] = turned[:3, :3] @ np.diag([-1.0, -1.0, 1.0])
    assert len(check_poses(parse(with_frame(transform_matrix=turned.tolist())).frames)) == 3


def shifted(offset: float) -> dict[str, Any]:
    data = {**GLOBAL, "frames": frames()}
    for frame in data["frames"]:
        frame["transform_matrix"][1][3] += offset
    return data


@pytest.mark.parametrize("offset", [9e5, -9e5, 1.1e5])
def test_cameras_too_far_from_the_origin_for_their_size_are_refused(offset):
    message = refused(shifted(offset)).message
    assert "moves the scene to the origin" in message
    assert f"{abs(offset):.3g}" in message


def test_cameras_away_from_the_origin_pass_while_numbers_hold_them():
    assert len(check_poses(parse(shifted(9e4)).frames)) == 3


def test_turned_cameras_in_exactly_one_place_are_not_called_remote():
    data = {**GLOBAL, "frames": frames()}
    for frame, turn in zip(data["frames"], ([1, 1, 1], [-1, -1, 1], [1, -1, -1]), strict=True):
        matrix = np.array(pose(0))
        matrix[:3, :3] = matrix[:3, :3] @ np.diag(turn)
        matrix[:3, 3] = (0.1, 0.2, 0.7)
        frame["transform_matrix"] = matrix.tolist()
    assert len(check_poses(parse(data).frames)) == 3


@pytest.mark.parametrize(
    "values",
    [
        {"fl_x": 0},
        {"fl_x": -60.0},
        {"w": 0},
        {"camera_angle_x": 0, "fl_x": None},
        {"camera_angle_x": 4.0, "fl_x": None},
        {"depth_unit_scale_factor": 0},
        {"depth_unit_scale_factor": -0.001},
        {"camera_model": "EQUIRECTANGULAR"},
    ],
)
def test_lenses_that_do_not_exist_are_refused(values):
    refused({**GLOBAL, "frames": frames(), **values})


@pytest.mark.parametrize("factor", [1e-60, 9e-13, 1.1e6, 1e300])
def test_a_depth_unit_beyond_all_reason_is_refused(factor):
    error = refused({**GLOBAL, "frames": frames(), "depth_unit_scale_factor": factor})
    assert "depth_unit_scale_factor" in error.message
    assert "1e-12" in error.details["rule"]


@pytest.mark.parametrize("factor", [1e-12, 0.001, 1, 1e6])
def test_depth_units_within_reason_pass(factor):
    assert parse({**GLOBAL, "frames": frames(), "depth_unit_scale_factor": factor}).depth_scale == factor


@pytest.mark.parametrize(
    "values", [{"fl_x": None}, {"fl_x": 1.2}, {"fl_x": 1e9}, {"cx": 500.0}, {"cy": -1.0}]
)
def test_intrinsics_outside_of_the_image_are_refused(values):
    frame = parse({**GLOBAL, **values, "frames": frames()}).frames[0]
    with pytest.raises(InvalidJob) as caught:
        intrinsics_of(frame, 64, 48)
    assert caught.value.code is ErrorCode.INVALID_CAMERAS


def test_distortion_is_the_frames_own_or_else_the_files_key_by_key():
    own = {"k1": 0.0, "p2": -0.003}
    first, second, _ = parse({**with_frame(**own), "k1": 0.1, "k2": -0.2, "k3": 0.3, "p1": 0.004}).frames
    assert first.lens.distortion == Distortion(False, (0.1, -0.2, 0.3, 0.0), (0.004, 0.0))
    assert second.lens.distortion == Distortion(False, (0.0, -0.2, 0.3, 0.0), (0.004, -0.003))
    assert parse({**GLOBAL, "frames": frames()}).frames[0].lens.distortion.is_pinhole


@pytest.mark.parametrize("model", [{"camera_model": "OPENCV_FISHEYE"}, {"is_fisheye": True}])
def test_a_fisheye_is_distorted_even_without_coefficients(model):
    lens = parse({**GLOBAL, **model, "k4": 0.01, "frames": frames()}).frames[0].lens
    assert lens.distortion == Distortion(True, (0.0, 0.0, 0.0, 0.01))
    assert not parse({**GLOBAL, **model, "frames": frames()}).frames[0].lens.distortion.is_pinhole


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"k4": 0.01}, "k4 belongs to the fisheye model"),
        ({"camera_model": "OPENCV_FISHEYE", "p1": 0.01}, "a fisheye lens has k1, k2, k3 and k4"),
        ({"k2": -1e9}, "coefficients of lens distortion lie between"),
        ({"camera_model": "FULL_OPENCV"}, "undistort images of others first"),
    ],
)
def test_distortion_of_no_known_lens_is_refused(values, rule):
    assert rule in refused({**GLOBAL, **values, "frames": frames()}).details["rule"]
    assert rule in refused(with_frame(**values)).details["rule"]


def test_a_frame_with_half_a_set_of_intrinsics_is_refused():
    assert "fl_x" in refused(with_frame(fl_x=70.0)).message


@pytest.mark.parametrize("key", ["file_path", "depth_file_path", "mask_path"])
@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\x.png",
        "c:/x.png",
        "file:///etc/passwd",
        "images/../../x.png",
        "a\\b.png",
    ],
)
def test_paths_that_leave_the_prefix_are_refused(key, path):
    with pytest.raises(AccessError) as caught:
        parse(with_frame(**{key: path}))
    assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED


def test_more_frames_than_views_are_accepted_is_too_large():
    with pytest.raises(InvalidJob) as caught:
        parse({**GLOBAL, "frames": frames(4)}, Limits(max_views=3))
    assert caught.value.code is ErrorCode.INPUT_TOO_LARGE


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["frames", "w", "k1", "x"]), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.sampled_from([*GLOBAL, "frames", "camera_angle_x", "depth_unit_scale_factor"]), JSON)
)
def test_no_content_escapes_the_taxonomy(data):
    with contextlib.suppress(ReconError):
        check_poses(parse(data).frames)


MATRIX = st.lists(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=4, max_size=4), min_size=4, max_size=4
)


@settings(deadline=None, max_examples=60)
@given(MATRIX)
def test_no_matrix_escapes_the_taxonomy(matrix):
    try:
        poses = check_poses(parse(with_frame(transform_matrix=matrix)).frames)
    except ReconError:
        return
    np.testing.assert_allclose(np.linalg.det(poses[:, :3, :3]), 1, atol=1e-6)
