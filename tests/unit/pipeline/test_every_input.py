"""Lenses, sizes and intrinsics of every kind come to views that a rendering of the true mesh agrees with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from input_folders import edit_transforms, make_opaque
from photographs import Lens, around, speckled_spot, take_through, write_view
from PIL import Image

from models.base import Views
from models.raster import make_backend
from pipeline.ingest import plan_input
from pipeline.quality import measure_view
from pipeline.settings import Limits
from pipeline.storage_file import FolderStore
from pipeline.validate import load_checked
from pipeline.views import LoadedInput
from schemas.locations import Location
from schemas.options import NvdiffrecOptions

SCALE = 0.0001

PINHOLE = Lens(160, 160, (215.0, 215.0), (80.0, 80.0))
BARREL = replace(PINHOLE, coefficients={"k1": -0.3, "k2": 0.1, "k3": -0.02, "p1": 0.004, "p2": -0.003})
FISHEYE = Lens(150, 150, (180.0, 182.0), (77.0, 73.0), {"k1": 0.03, "k3": -0.002}, fisheye=True)
WIDE = Lens(150, 150, (95.0, 95.0), (75.0, 75.0), {"k1": 0.03, "k3": -0.002}, fisheye=True)
PORTRAIT = Lens(120, 200, (230.0, 226.0), (58.0, 103.0))
LANDSCAPE = Lens(240, 150, (190.0, 190.0), (120.0, 75.0))
SMALL = Lens(96, 96, (130.0, 130.0), (48.0, 48.0))


@pytest.fixture(scope="module")
def mesh():
    return speckled_spot(128)


def write(folder: Path, mesh, lenses: list[Lens], **depth: Any) -> Path:
    poses = around(len(lenses), rings=(15.0,))
    frames = []
    for index, (lens, pose) in enumerate(zip(lenses, poses, strict=True)):
        shots = take_through(mesh, pose, lens)
        files = write_view(folder, index, shots, depth_scale=SCALE, **depth)
        frames.append(lens.frame() | files | {"transform_matrix": pose.tolist()})
    (folder / "transforms.json").write_text(json.dumps({"depth_unit_scale_factor": SCALE, "frames": frames}))
    return folder


def load(folder: Path, limits: Limits | None = None) -> LoadedInput:
    limits, options = limits or Limits(), NvdiffrecOptions()
    plan = plan_input(FolderStore(Location("file", "", str(folder))), options, limits)
    return load_checked(folder, plan, options, limits, lambda fraction, message: None, scratch=folder.parent)


def assert_true(views: Views, mesh, *, psnr: float = 28.0, depth: float = 0.012) -> None:
    """Hold each view against the true mesh, rendered from the camera that was loaded."""
    raster = make_backend("warp", torch.device("cpu"))
    for index in range(len(views)):
        found = measure_view(raster, mesh, views.subset([index]))
        assert found.psnr_db > psnr, found
        assert found.mask_iou > 0.97, found
        assert found.depth_error is not None
        assert found.depth_error < depth, found


@pytest.mark.parametrize("lens", [PINHOLE, BARREL, FISHEYE], ids=["pinhole", "perspective", "fisheye"])
def test_lens_distortion_is_undone(tmp_path, mesh, lens):
    loaded = load(write(tmp_path, mesh, [lens] * 3))
    assert_true(loaded.views, mesh)
    assert loaded.depth_views == 3


def test_an_undistorted_image_keeps_within_the_bounds_on_images(tmp_path, mesh):
    write(tmp_path, mesh, [WIDE] * 3)
    assert load(tmp_path).views.masks.shape[2] > 150
    loaded = load(tmp_path, Limits(max_image_side=150))
    assert max(loaded.views.masks.shape[1:]) == 150
    assert_true(loaded.views, mesh, psnr=25.0)  # a smaller image; half a pixel would make it 20


def test_a_lens_taken_for_a_pinhole_is_seen_by_the_same_measure(tmp_path, mesh):
    write(tmp_path, mesh, [BARREL] * 3)
    edit_transforms(tmp_path, lambda data: [frame.update(k1=0, k2=0, k3=0) for frame in data["frames"]])
    with pytest.raises(AssertionError, match="psnr"):
        assert_true(load(tmp_path).views, mesh)


def test_half_a_pixel_is_seen_by_the_same_measure(tmp_path, mesh):
    write(tmp_path, mesh, [PINHOLE] * 3)
    edit_transforms(tmp_path, lambda data: [frame.update(cx=frame["cx"] + 0.5) for frame in data["frames"]])
    with pytest.raises(AssertionError, match="psnr"):
        assert_true(load(tmp_path).views, mesh)


def test_sizes_aspects_and_lenses_may_all_differ(tmp_path, mesh):
    loaded = load(write(tmp_path, mesh, [PORTRAIT, LANDSCAPE, SMALL, BARREL, FISHEYE]))
    views = loaded.views
    assert (views.cameras.width, views.cameras.height) == (240, 200)
    assert views.images.shape == (5, 200, 240, 3)
    assert_true(views.subset([0, 1, 3, 4]), mesh, psnr=26.0, depth=0.02)
    assert_true(views.subset([2]), mesh, psnr=22.0, depth=0.02)  # enlarged, but no sharper than it was


def test_views_that_are_scaled_down_still_fit_their_cameras(tmp_path, mesh):
    lenses = [PORTRAIT, LANDSCAPE, PINHOLE]
    loaded = load(write(tmp_path, mesh, lenses), Limits(max_total_pixels=3 * 150 * 125))
    assert (loaded.views.cameras.width, loaded.views.cameras.height) == (150, 125)
    assert_true(loaded.views, mesh, depth=0.02)


@pytest.mark.parametrize("source", ["mask_path", "depth"])
def test_masks_of_other_sources_are_undistorted_and_resampled_too(tmp_path, mesh, source):
    write(tmp_path, mesh, [BARREL, SMALL, LANDSCAPE])
    if source == "mask_path":
        (tmp_path / "masks").mkdir()
        for path in (tmp_path / "images").iterdir():
            mask = Image.open(path).getchannel("A")
            mask.resize((mask.width // 2, mask.height // 2), Image.Resampling.BOX).save(
                tmp_path / "masks" / path.name
            )
    make_opaque(tmp_path)
    loaded = load(tmp_path)
    assert loaded.mask_source == source
    raster = make_backend("warp", torch.device("cpu"))
    for index in range(3):
        assert measure_view(raster, mesh, loaded.views.subset([index])).mask_iou > 0.94


def test_depth_maps_may_be_smaller_than_their_images(tmp_path, mesh):
    loaded = load(write(tmp_path, mesh, [PINHOLE] * 3, depth_size=(80, 80)))
    assert_true(loaded.views, mesh, depth=0.03)
    measured = loaded.views.depths[loaded.views.depths > 0]
    assert measured.min() > 1.9  # nothing between the object and the holes around it


def test_depth_of_holes_noise_and_a_wrong_scale_per_view_passes(tmp_path, mesh):
    write(tmp_path, mesh, [PINHOLE] * 8)
    random = np.random.default_rng(0)
    for index, path in enumerate(sorted((tmp_path / "depth").iterdir())):
        counts = np.asarray(Image.open(path)).astype(float)
        factor = 0.8 if index % 2 else 1.25
        counts *= factor * random.normal(1, 0.01, counts.shape) * (random.random(counts.shape) > 0.3)
        Image.fromarray(counts.clip(0, 65535).round().astype(np.uint16)).save(path)
    assert load(tmp_path).depth_views == 8
