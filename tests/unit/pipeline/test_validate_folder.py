"""Every refusal of an input: its code, the file and the rule it names."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from input_folders import (
    SPOT,
    copy_spot,
    edit_frame,
    edit_matrices,
    edit_transforms,
    make_opaque,
    png_bytes,
    remove_depth,
    rewrite_depth,
)
from PIL import Image

from pipeline.holdout import holdout_indices
from pipeline.settings import Limits
from pipeline.validate import validate_folder
from schemas.errors import ErrorCode, ReconError
from schemas.options import NvdiffrecOptions

RIG = {"cameras": {"rig": "axis6", "rig_distance": 3.212366569340827}}


@pytest.fixture
def folder(tmp_path) -> Path:
    return copy_spot(tmp_path)


def to_default_unit(folder: Path) -> None:
    """The sample counts tenths of the default unit."""
    for path in (folder / "depth").iterdir():
        rewrite_depth(path, lambda counts: counts * 0.1)


def check(folder: Path, limits: Limits | None = None, **options):
    return validate_folder(folder, NvdiffrecOptions(**options), limits or Limits())


def refused(
    code: ErrorCode, folder: Path, limits: Limits | None = None, *, file: str | None, **options
) -> str:
    with pytest.raises(ReconError) as caught:
        check(folder, limits, **options)
    error = caught.value
    assert error.code is code, error
    assert error.details["rule"]
    assert error.details["file"] == file if file is not None else "file" in error.details
    assert str(folder) not in error.message.replace(f"file://{folder}", ""), (
        "local paths are nobody's business"
    )
    return error.message


def test_the_sample_passes(folder):
    summary = check(folder)
    assert (summary.views, summary.width, summary.height, summary.depth_views) == (6, 128, 128, 6)
    assert (summary.mask_source, summary.camera_source) == ("alpha", "transforms.json")
    assert summary.files == 12
    assert summary.total_bytes == sum(
        p.stat().st_size for d in ("images", "depth") for p in (SPOT / d).iterdir()
    )


def test_validation_changes_nothing(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    check(folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# --- which files there are


def test_no_folder_and_no_images(folder, tmp_path):
    refused(ErrorCode.INPUT_NOT_FOUND, tmp_path / "nowhere", file=None)
    shutil.rmtree(folder / "images")
    refused(ErrorCode.INPUT_NOT_FOUND, folder, file="images/")
    (folder / "transforms.json").unlink()
    refused(ErrorCode.INPUT_NOT_FOUND, folder, file="images/")


@pytest.mark.parametrize("transforms", [True, False])
def test_two_images_are_too_few(folder, transforms):
    for index in range(2, 6):
        (folder / "images" / f"00{index}.png").unlink()
    if transforms:
        edit_transforms(folder, lambda data: data["frames"].__delitem__(slice(2, None)))
    else:
        (folder / "transforms.json").unlink()
    message = refused(ErrorCode.TOO_FEW_VIEWS, folder, file="images/")
    assert "2 views" in message
    assert "3" in message


def test_the_job_may_ask_for_more_views(folder):
    refused(ErrorCode.TOO_FEW_VIEWS, folder, file="images/", input={"min_views": 7})


def test_a_frame_whose_file_is_missing(folder):
    (folder / "images" / "003.png").unlink()
    refused(ErrorCode.VIEW_MISSING, folder, file="images/003.png")


def test_a_depth_map_or_mask_that_is_named_and_missing(folder):
    (folder / "depth" / "003.png").unlink()
    refused(ErrorCode.VIEW_MISSING, folder, file="depth/003.png")
    remove_depth(folder)
    edit_frame(folder, 0, mask_path="masks/000.png")
    refused(ErrorCode.VIEW_MISSING, folder, file="masks/000.png")


def test_an_image_without_a_frame(folder):
    edit_transforms(folder, lambda data: data["frames"].pop())
    refused(ErrorCode.VIEW_MISSING, folder, file="images/005.png")


def test_a_missing_frame_names_the_image_it_lost(folder):
    edit_transforms(folder, lambda data: data["frames"].pop(2))
    refused(ErrorCode.VIEW_MISSING, folder, file="images/002.png")


def test_two_frames_of_one_image(folder):
    edit_frame(folder, 1, file_path="images/000.png")
    refused(ErrorCode.INVALID_CAMERAS, folder, file="transforms.json")


def test_files_that_are_not_part_of_an_input_are_ignored(folder):
    (folder / "notes").mkdir()
    (folder / "notes" / "huge.bin").write_bytes(b"0" * 100_000)
    (folder / "images" / ".DS_Store").write_bytes(b"x")
    (folder / "images" / "Thumbs.db").write_bytes(b"x")
    assert check(folder, Limits(max_input_bytes=90_000)).files == 12


def test_bounds_on_files_bytes_and_views(folder):
    refused(ErrorCode.INPUT_TOO_LARGE, folder, Limits(max_files=12), file=None)
    refused(ErrorCode.INPUT_TOO_LARGE, folder, Limits(max_input_bytes=50_000), file=None)
    largest = max((folder / "images").iterdir(), key=lambda path: path.stat().st_size)
    limits = Limits(max_file_bytes=largest.stat().st_size - 1)
    assert largest.name in refused(ErrorCode.INPUT_TOO_LARGE, folder, limits, file=None)
    refused(ErrorCode.INPUT_TOO_LARGE, folder, Limits(max_views=5), file=None)
    exact = Limits(
        max_files=13, max_views=6, max_decoded_pixels=12 * 128 * 128, max_total_pixels=6 * 128 * 128
    )
    assert check(folder, exact).width == 128


def test_bounds_on_pixels_count_images_depth_maps_and_masks(folder):
    pixels = 128 * 128
    last_depth = Limits(max_decoded_pixels=12 * pixels - 1)
    assert "depth/005.png" in refused(ErrorCode.INPUT_TOO_LARGE, folder, last_depth, file="depth/005.png")
    last_image = Limits(max_decoded_pixels=11 * pixels - 1)
    refused(ErrorCode.INPUT_TOO_LARGE, folder, last_image, file="images/005.png")
    (folder / "masks").mkdir()
    for path in (folder / "images").iterdir():
        Image.open(path).getchannel("A").save(folder / "masks" / path.name)
    refused(
        ErrorCode.INPUT_TOO_LARGE, folder, Limits(max_decoded_pixels=18 * pixels - 1), file="masks/005.png"
    )
    assert check(folder, Limits(max_decoded_pixels=18 * pixels)).mask_source == "mask_path"


def test_a_grey_that_stands_for_transparent_in_16_bits_is_no_mask(folder):
    remove_depth(folder)
    row = b"\0" + np.full(128, 1000, ">u2").tobytes()
    for path in (folder / "images").iterdir():
        data = png_bytes(128, 128, bits=16, color_type=0, rows=128 * row, transparent=b"\0\1")
        path.write_bytes(data)
    refused(ErrorCode.MASK_MISSING, folder, file=None)


def test_views_that_are_too_large_together_are_scaled_down(folder):
    summary = check(folder, Limits(max_total_pixels=6 * 80 * 80 + 10))
    assert (summary.width, summary.height) == (80, 80)


def test_names_that_collide(folder):
    shutil.copy(folder / "images" / "000.png", folder / "images" / "A.png")
    shutil.copy(folder / "images" / "000.png", folder / "images" / "a.png")
    (folder / "transforms.json").unlink()
    remove_depth(folder)
    for index in (0, 1):
        (folder / "images" / f"00{index}.png").unlink()
    refused(ErrorCode.PATH_NOT_ALLOWED, folder, file=None, **RIG)


def test_names_with_control_characters(folder):
    (folder / "images" / "a\nb.png").write_bytes(b"")
    message = refused(ErrorCode.PATH_NOT_ALLOWED, folder, file="images/a\\nb.png")
    assert "\n" not in message


def test_a_link_out_of_the_folder(folder, tmp_path):
    (folder / "images" / "000.png").unlink()
    (folder / "images" / "000.png").symlink_to("/etc/passwd")
    refused(ErrorCode.PATH_NOT_ALLOWED, folder, file="images/000.png")


# --- images


def test_a_truncated_image(folder):
    path = folder / "images" / "002.png"
    path.write_bytes(path.read_bytes()[:2000])
    refused(ErrorCode.INVALID_IMAGE, folder, file="images/002.png")


def test_a_text_file_named_png(folder):
    (folder / "images" / "002.png").write_text("this is no picture\n" * 100)
    refused(ErrorCode.UNSUPPORTED_IMAGE_FORMAT, folder, file="images/002.png")


def test_a_header_of_20000_by_20000(folder):
    (folder / "images" / "002.png").write_bytes(png_bytes(20_000, 20_000, bits=8, color_type=6, rows=b""))
    refused(ErrorCode.IMAGE_TOO_LARGE, folder, file="images/002.png")


@pytest.mark.parametrize("name", ["images/002.png", "depth/002.png"])
def test_an_endless_side(folder, name):
    (folder / name).write_bytes(png_bytes(1, 50_000, bits=16, color_type=0, rows=b""))
    assert "16384" in refused(ErrorCode.IMAGE_TOO_LARGE, folder, file=name)


@pytest.mark.parametrize("name", ["images/004.png", "depth/004.png"])
def test_files_of_differing_size_pass(folder, name):
    path = folder / name
    Image.open(path).resize((64, 64), Image.Resampling.NEAREST).save(path)
    assert check(folder).width == 128


@pytest.mark.parametrize("name", ["images/004.png", "depth/004.png"])
def test_files_of_another_aspect_ratio_than_they_should_have(folder, name):
    path = folder / name
    Image.open(path).resize((64, 80), Image.Resampling.NEAREST).save(path)
    assert "aspect ratio" in refused(ErrorCode.VIEW_MISMATCH, folder, file=name)


def test_transforms_of_another_aspect(folder):
    edit_transforms(folder, lambda data: data.update(w=200))
    refused(ErrorCode.VIEW_MISMATCH, folder, file="images/000.png")


def test_jpeg_and_webp_are_views_too(folder):
    (folder / "transforms.json").unlink()
    for index, suffix in enumerate(["jpg", "webp", "JPEG"]):
        path = folder / "images" / f"00{index}.png"
        Image.open(path).convert("RGB").save(path.with_suffix(f".{suffix}"))
        path.unlink()
    to_default_unit(folder)
    summary = check(folder, **RIG)
    assert (summary.views, summary.mask_source) == (6, "depth")


# --- cameras


def test_without_transforms_and_rig_the_cameras_are_left_to_be_estimated(folder):
    (folder / "transforms.json").unlink()
    to_default_unit(folder)
    summary = check(folder)
    assert (summary.camera_source, summary.mask_source, summary.depth_views) == ("sfm:pycolmap", "alpha", 6)
    assert (summary.views, summary.width, summary.height) == (6, 128, 128)


def test_photographs_without_masks_are_refused_before_cameras_are_estimated(folder):
    (folder / "transforms.json").unlink()
    make_opaque(folder)
    remove_depth(folder)
    refused(ErrorCode.MASK_MISSING, folder, file="images/000.png")


def test_the_rig_gives_the_cameras_of_the_sample(folder):
    (folder / "transforms.json").unlink()
    to_default_unit(folder)
    summary = check(folder, **RIG)
    assert (summary.camera_source, summary.depth_views, summary.files) == ("rig:axis6", 6, 12)


def test_the_rig_takes_exactly_six_images(folder):
    (folder / "transforms.json").unlink()
    remove_depth(folder)
    (folder / "images" / "005.png").unlink()
    refused(ErrorCode.INVALID_CAMERAS, folder, file="images/", **RIG)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite(folder, value):
    edit_matrices(folder, lambda matrix: np.where(matrix == 1, value, matrix), 1)
    refused(ErrorCode.INVALID_CAMERAS, folder, file="transforms.json")


def test_malformed_and_oversized_transforms(folder):
    refused(ErrorCode.INVALID_CAMERAS, folder, Limits(max_json_bytes=100), file="transforms.json")
    (folder / "transforms.json").write_text('{"frames": [')
    refused(ErrorCode.INVALID_CAMERAS, folder, file="transforms.json")
    (folder / "transforms.json").write_text("[" * 10_000)
    refused(ErrorCode.INVALID_CAMERAS, folder, file="transforms.json")


def test_a_path_out_of_the_prefix(folder):
    edit_frame(folder, 0, file_path="../../etc/passwd")
    refused(ErrorCode.PATH_NOT_ALLOWED, folder, file="../../etc/passwd")


def test_lens_distortion(folder):
    edit_transforms(folder, lambda data: data.update(k1=0.02))
    assert check(folder).views == 6
    edit_frame(folder, 3, k1=-5.0)
    assert "images/003.png" in refused(ErrorCode.INVALID_CAMERAS, folder, file="transforms.json")


def test_blender_style_input(folder):
    (folder / "images").rename(folder / "train")
    remove_depth(folder)

    def edit(data):
        angle = 2 * np.arctan(data["w"] / 2 / data["fl_x"])
        frames = [
            {"file_path": f"./train/{i:03}", "transform_matrix": f["transform_matrix"]}
            for i, f in enumerate(data["frames"])
        ]
        data.clear()
        data.update(camera_angle_x=angle, frames=frames)

    edit_transforms(folder, edit)
    summary = check(folder)
    assert (summary.views, summary.depth_views, summary.mask_source) == (6, 0, "alpha")


# --- depth


def test_depth_of_8_bits(folder):
    path = folder / "depth" / "001.png"
    Image.open(path).point(lambda v: v / 256).convert("L").save(path)
    refused(ErrorCode.INVALID_DEPTH, folder, file="depth/001.png")


def test_depth_without_a_measurement(folder):
    rewrite_depth(folder / "depth" / "001.png", lambda counts: counts * 0)
    refused(ErrorCode.INVALID_DEPTH, folder, file="depth/001.png")


def test_depth_only_beside_the_object(folder):
    rewrite_depth(
        folder / "depth" / "001.png", lambda counts: 30_000.0 * (np.indices(counts.shape).sum(0) == 0)
    )
    refused(ErrorCode.INVALID_DEPTH, folder, file="images/001.png")


@pytest.mark.parametrize("factor", [0.001, 0.0003, 0.00002, 1.0])
def test_depth_in_the_wrong_unit(folder, factor):
    edit_transforms(folder, lambda data: data.update(depth_unit_scale_factor=factor))
    message = refused(ErrorCode.INVALID_DEPTH, folder, file="images/000.png")
    assert "depth_unit_scale_factor" in message
    assert "OpenGL" in message


@pytest.mark.parametrize(
    "turn",
    [lambda m: m @ np.diag([1, -1, -1, 1]), np.linalg.inv],
    ids=["OpenCV axes", "world to camera"],
)
def test_cameras_in_another_convention(folder, turn):
    edit_matrices(folder, turn)
    refused(ErrorCode.INVALID_DEPTH, folder, file=None)


def test_one_depth_map_of_another_unit(folder):
    rewrite_depth(folder / "depth" / "002.png", lambda counts: counts * 0.1)
    refused(ErrorCode.INVALID_DEPTH, folder, file="images/002.png")


def test_noise_in_depth_is_no_reason_to_refuse(folder):
    random = np.random.default_rng(0)
    for path in (folder / "depth").iterdir():
        rewrite_depth(path, lambda counts: counts * random.normal(1, 0.02, counts.shape))
    assert check(folder).depth_views == 6


def test_depth_may_be_missing_unless_the_job_requires_it(folder):
    edit_frame(folder, 0, depth_file_path=None)
    assert check(folder).depth_views == 5
    refused(ErrorCode.INVALID_DEPTH, folder, file="images/000.png", input={"require_depth": True})


def test_depth_and_masks_are_found_by_stem(folder):
    edit_transforms(folder, lambda data: [f.pop("depth_file_path") for f in data["frames"]])
    assert check(folder).depth_views == 6
    (folder / "depth" / "000.png").rename(folder / "depth" / "depth_000.png")
    refused(ErrorCode.VIEW_MISSING, folder, file="depth/depth_000.png")


def test_two_images_of_one_stem_cannot_share_a_depth_map(folder):
    (folder / "transforms.json").unlink()
    (folder / "images" / "001.png").rename(folder / "images" / "000.jpg")
    refused(ErrorCode.VIEW_MISMATCH, folder, file=None, **RIG)


# --- masks


def write_masks(folder: Path, count: int = 6) -> None:
    (folder / "masks").mkdir()
    for path in sorted((folder / "images").iterdir())[:count]:
        Image.open(path).getchannel("A").save(folder / "masks" / path.name)


def test_mask_files_come_before_alpha(folder):
    write_masks(folder)
    assert check(folder).mask_source == "mask_path"


def test_masks_for_some_views_only(folder):
    write_masks(folder, 5)
    refused(ErrorCode.MASK_MISSING, folder, file="images/005.png")


def test_depth_stands_in_for_a_mask(folder):
    make_opaque(folder)
    assert check(folder).mask_source == "depth"


def test_an_alpha_channel_that_is_opaque_everywhere_is_no_mask(folder):
    for path in (folder / "images").iterdir():
        Image.open(path).convert("RGB").convert("RGBA").save(path)
    assert check(folder).mask_source == "depth"


def test_no_mask_can_be_derived(folder):
    make_opaque(folder)
    remove_depth(folder)
    refused(ErrorCode.MASK_MISSING, folder, file="images/000.png")


def test_an_empty_mask(folder):
    path = folder / "images" / "003.png"
    image = Image.open(path)
    image.putalpha(0)
    image.save(path)
    assert "visible in every view" in refused(ErrorCode.MASK_MISSING, folder, file="images/003.png")


# --- views held out


def test_held_out_views_are_evenly_spaced(folder):
    def held(views: int, count: int) -> list[int]:
        return holdout_indices(views, NvdiffrecOptions(quality={"holdout": count}))

    assert held(6, 0) == []
    assert held(6, 2) == [1, 4]
    assert held(100, 4) == [12, 37, 62, 87]
    assert len(set(held(7, 4))) == 4


def test_too_many_held_out_views(folder):
    assert check(folder, quality={"holdout": 3}).views == 6
    refused(ErrorCode.INVALID_OPTIONS, folder, file=None, quality={"holdout": 4})


def test_refusals_can_be_sent(folder):
    edit_frame(folder, 0, file_path="\ud800../x")
    (folder / "transforms.json").write_text(json.dumps(json.loads((folder / "transforms.json").read_text())))
    refused(ErrorCode.INVALID_CAMERAS, folder, file="transforms.json")
