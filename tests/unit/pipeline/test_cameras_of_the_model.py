"""Inputs without cameras, for a model that finds them itself."""

import functools
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from input_folders import copy_spot, make_opaque, remove_depth, rewrite_depth
from PIL import ExifTags, Image
from textured_meshes import spot_mesh, spot_views
from workplace import LENIENT, Workplace

from models.base import PosedViews, Reconstruction, Views
from models.geometry.mesh import TexturedMesh
from models.nvdiffrec.model import Nvdiffrec
from pipeline.ingest import plan_input
from pipeline.settings import Limits
from pipeline.storage_file import FolderStore
from pipeline.validate import load_checked, validate_folder
from schemas.errors import ErrorCode, InvalidJob, ModelError
from schemas.locations import Location
from schemas.options import NvdiffrecOptions, ReconviagenOptions

PARTS = {"vggt": "owner/vggt@0123abc"}


@functools.cache
def true_mesh() -> TexturedMesh:
    return spot_mesh(64)


def found(cameras=None) -> Reconstruction:
    return Reconstruction(true_mesh(), "warp", cameras=cameras, parts=PARTS)


@pytest.fixture
def place(tmp_path, caplog) -> Workplace:
    """The six views of the sample lie too far apart for structure from motion: it would refuse them."""
    caplog.set_level(logging.INFO)
    truth = spot_views().cameras
    smaller = truth.resized(truth.width // 2, truth.height // 2)
    place = Workplace(tmp_path, lambda: found(smaller), "reconviagen")
    scale = json.loads((place.input / "transforms.json").read_text())["depth_unit_scale_factor"]
    (place.input / "transforms.json").unlink()
    for path in (place.input / "depth").iterdir():
        rewrite_depth(path, lambda counts: counts * scale / 0.001)
    return place


def test_views_reach_the_model_without_cameras_and_are_judged_by_those_it_found(place):
    quality = place.run(place.job(quality=LENIENT)).quality
    (views,) = place.model.seen
    assert type(views) is Views
    assert views.cameras is None
    assert views.depths is not None
    assert len(views) == 6
    assert quality.camera_source == "model:vggt"
    assert quality.parts == PARTS
    assert quality.input_views.mask_iou > 0.95
    assert quality.dropped_views == []


@pytest.mark.parametrize("use_depth", [True, False])
def test_depth_is_judged_where_the_model_took_its_unit_of_length_from_it(place, use_depth):
    quality = place.run(place.job(quality=LENIENT, use_depth=use_depth)).quality
    error = quality.input_views.depth_error
    assert (error is not None) == use_depth
    assert error is None or error < 0.01


def test_wrong_cameras_of_the_model_show_in_the_quality(place):
    truth = spot_views().cameras
    place.model.make = lambda: found(truth[[1, 2, 3, 4, 5, 0]])
    error = place.fails(place.job(quality={**LENIENT, "mask_iou_normal": 0.9, "mask_iou_warning": 0.9}))
    assert [check["metric"] for check in error.details["checks"]] == ["mask_iou"]


def test_a_model_that_finds_no_cameras_fails_before_anything_is_made_of_its_mesh(place):
    place.model.make = lambda: found(None)
    job = place.job()
    assert place.fails(job).code is ErrorCode.CAMERA_ESTIMATION_FAILED
    assert [p.name for p in place.result(job).rglob("*") if p.is_file()] == ["job.log"]


def test_views_cannot_be_held_out_where_nobody_would_find_their_cameras(place):
    error = place.fails(place.job(quality={**LENIENT, "holdout": 1}))
    assert error.code is ErrorCode.INVALID_OPTIONS
    assert error.details["fields"] == ["options.quality.holdout"]
    assert "transforms.json" in error.message
    assert place.model.seen == []
    assert {(report.stage, report.fraction) for report in place.reports} == {("download", 0)}
    with pytest.raises(InvalidJob) as caught:
        validate_folder(place.input, ReconviagenOptions(quality={"holdout": 1}), Limits())
    assert caught.value.message == error.message


@pytest.mark.parametrize("given", ["transforms.json", "rig:axis6"])
def test_given_cameras_are_the_models_too_and_views_can_be_held_out(tmp_path, given):
    place = Workplace(tmp_path, lambda: replace(found(None), parts={}), "reconviagen")
    options = {}
    if given != "transforms.json":
        (place.input / "transforms.json").unlink()
        remove_depth(place.input)  # its unit was in transforms.json
        options = {"cameras": {"rig": "axis6"}}
    quality = place.run(place.job(quality={**LENIENT, "holdout": 2}, **options)).quality
    (views,) = place.model.seen
    assert isinstance(views, PosedViews)
    assert quality.camera_source == given
    assert quality.heldout_views.views == 2


def test_corrected_cameras_keep_the_depth_of_given_ones(tmp_path):
    place = Workplace(tmp_path, lambda: found(spot_views().cameras), "reconviagen")
    assert place.run(place.job(quality=LENIENT)).quality.input_views.depth_error < 0.05


def test_depth_cannot_contradict_cameras_that_are_not_known(tmp_path):
    folder = copy_spot(tmp_path)
    for path in (folder / "depth").iterdir():
        rewrite_depth(path, lambda counts: np.where(counts > 0, 60000, 0))
    with pytest.raises(InvalidJob) as caught:
        validate_folder(folder, ReconviagenOptions(), Limits())
    assert caught.value.code is ErrorCode.INVALID_DEPTH
    (folder / "transforms.json").unlink()
    summary = validate_folder(folder, ReconviagenOptions(), Limits())
    assert (summary.camera_source, summary.depth_views, summary.mask_source) == ("model:vggt", 6, "alpha")
    assert validate_folder(folder, NvdiffrecOptions(), Limits()).camera_source == "sfm:pycolmap"


def test_masks_are_wanted_as_ever(tmp_path):
    folder = copy_spot(tmp_path)
    (folder / "transforms.json").unlink()
    make_opaque(folder)
    assert validate_folder(folder, ReconviagenOptions(), Limits()).mask_source == "depth"
    remove_depth(folder)
    with pytest.raises(InvalidJob) as caught:
        validate_folder(folder, ReconviagenOptions(), Limits())
    assert caught.value.code is ErrorCode.MASK_MISSING


def test_a_model_that_needs_cameras_says_so():
    views = spot_views()
    unposed = Views(views.names, views.images, views.masks, views.depths, None)
    with pytest.raises(ModelError) as caught:
        Nvdiffrec("cpu").reconstruct(unposed, NvdiffrecOptions(raster="warp"), lambda *_: None)
    assert caught.value.code is ErrorCode.INVALID_CAMERAS


def test_views_keep_what_they_are_when_some_are_taken():
    views = spot_views()
    unposed = Views(views.names, views.images, views.masks, views.depths, None)
    assert unposed.subset([1, 3]).cameras is None
    assert unposed.to("cpu").cameras is None
    some = views.posed().subset([1, 3])
    assert type(some) is PosedViews
    assert torch.equal(some.cameras.camera_to_world, views.cameras.camera_to_world[[1, 3]])


def crop_to_portrait(folder) -> None:
    for path in [*(folder / "images").iterdir(), *(folder / "depth").iterdir()]:
        with Image.open(path) as image:
            image.crop((16, 0, 112, 128)).save(path)


def load(folder, options) -> Views:
    plan = plan_input(FolderStore(Location("file", "", str(folder))), options, Limits())
    return load_checked(folder, plan, options, Limits(), lambda *_: None, scratch=folder.parent).views


def turn_files(folder, *, quarter_turns: int) -> None:
    """Store images as a camera does that was held sideways, their masks and depth maps likewise."""
    orientation = {1: 6, 2: 3, 3: 8}[quarter_turns]
    for path in [*(folder / "images").iterdir(), *(folder / "depth").iterdir()]:
        with Image.open(path) as image:
            stored = Image.fromarray(np.rot90(np.asarray(image), quarter_turns).copy())
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        stored.save(path, exif=exif)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_pictures_are_turned_upright_with_their_masks_and_depth(tmp_path, quarter_turns):
    upright = copy_spot(tmp_path / "upright")
    sideways = copy_spot(tmp_path / "sideways")
    for folder in (upright, sideways):
        (folder / "transforms.json").unlink()
        crop_to_portrait(folder)
    turn_files(sideways, quarter_turns=quarter_turns)
    expected, turned = (load(folder, ReconviagenOptions()) for folder in (upright, sideways))
    assert expected.images.shape[1:] == (128, 96, 3)
    assert torch.equal(turned.images, expected.images)
    assert torch.equal(turned.masks, expected.masks)
    assert torch.equal(turned.depths, expected.depths)
    summary = validate_folder(sideways, ReconviagenOptions(), Limits())
    assert (summary.width, summary.height) == (96, 128)


def test_pictures_stay_as_they_are_stored_where_cameras_say_how_they_stand(tmp_path):
    folder = copy_spot(tmp_path)
    expected = load(folder, ReconviagenOptions())
    for path in (folder / "images").iterdir():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        with Image.open(path) as image:
            image.copy().save(path, exif=exif)
    assert torch.equal(load(folder, ReconviagenOptions()).images, expected.images)
