"""What structure from motion gets to see of an input."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from input_folders import SPOT, make_opaque
from PIL import ExifTags, Image

from pipeline.decode import read_headers
from pipeline.ingest import plan_input
from pipeline.photographs import Prepared, prepare_photographs
from pipeline.settings import Limits
from pipeline.storage_file import FolderStore
from schemas.errors import ErrorCode, InvalidJob
from schemas.locations import Location
from schemas.options import NvdiffrecOptions


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "input").mkdir()
    for part in ("images", "depth"):
        shutil.copytree(SPOT / part, tmp_path / "input" / part)
    return tmp_path / "input"


def prepare(folder: Path, *, object_only: bool = True) -> Prepared:
    plan = plan_input(FolderStore(Location("file", "", str(folder))), NvdiffrecOptions(), Limits())
    headers = read_headers(folder, plan, Limits())
    return prepare_photographs(
        folder,
        plan,
        headers,
        Limits(),
        folder.parent / "scratch",
        object_only=object_only,
        tick=lambda fraction, message: None,
    )


def written(folder: Path, part: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted((folder.parent / "scratch" / part).iterdir())]


def test_the_object_stands_before_its_own_grey(folder):
    prepared = prepare(folder)
    alpha = np.asarray(Image.open(folder / "images" / "000.png").getchannel("A"))
    np.testing.assert_array_equal(prepared.inside[0].array(), alpha > 127)
    grey, mask = written(folder, "images")[0], written(folder, "masks")[0]
    outside = np.unique(grey[alpha <= 127])
    assert len(outside) == 1
    assert abs(int(outside[0]) - grey[alpha > 127].mean()) < 1
    assert set(np.unique(mask)) == {0, 255}
    assert ((mask > 0) & (alpha <= 127)).sum() == 0
    assert 0.8 < (mask > 0).sum() / (alpha > 127).sum() < 1  # without the rim


def test_where_all_features_count_the_background_stays(folder):
    for path in (folder / "images").iterdir():
        image = Image.new("RGBA", (128, 128), (10, 200, 30, 255))
        image.paste((90, 90, 90, 255), (40, 40, 90, 90))
        image.putpixel((0, 0), (0, 0, 0, 0))
        image.save(path)
    prepare(folder, object_only=False)
    assert written(folder, "masks") == []
    assert set(np.unique(written(folder, "images")[0])) >= {90, 124}


def test_masks_come_first_then_alpha_then_depth(folder):
    make_opaque(folder)
    depth = np.asarray(Image.open(folder / "depth" / "000.png"))
    np.testing.assert_array_equal(prepare(folder).inside[0].array(), depth > 0)
    (folder / "masks").mkdir()
    for path in (folder / "images").iterdir():
        mask = Image.new("L", (64, 64))
        mask.paste(255, (20, 20, 40, 40))
        mask.save(folder / "masks" / path.name)
    assert prepare(folder).inside[0].array().sum() == pytest.approx(40 * 40, abs=200)


def test_without_any_mask_nothing_is_decoded(folder):
    shutil.rmtree(folder / "depth")
    make_opaque(folder)
    whole = (folder / "images" / "003.png").read_bytes()
    (folder / "images" / "003.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidJob) as caught:
        prepare(folder)
    assert caught.value.code is ErrorCode.MASK_MISSING


def test_an_empty_mask_is_refused(folder):
    image = Image.open(folder / "images" / "003.png")
    image.putalpha(0)
    image.save(folder / "images" / "003.png")
    with pytest.raises(InvalidJob, match=r"003\.png.*empty"):
        prepare(folder)


def test_photographs_of_one_size_and_focal_length_share_a_camera(folder):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 50
    for index in (2, 3):
        path = folder / "images" / f"00{index}.png"
        Image.open(path).save(path, exif=exif)
    path = folder / "images" / "005.png"
    Image.open(path).resize((3200, 3200)).save(path)
    photographs = prepare(folder).photographs
    assert [one.camera for one in photographs] == [0, 0, 1, 1, 0, 2]
    assert photographs[0].focal is None
    assert photographs[2].focal == pytest.approx(50 / 43.27 * np.hypot(128, 128))
    assert (photographs[5].width, photographs[5].height) == (1600, 1600)
