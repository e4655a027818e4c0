import contextlib
import io
import struct

import numpy as np
import pytest
from input_folders import png_bytes
from PIL import ExifTags, Image

from pipeline.images import Exif, read_color, read_depth, read_exif, read_header, read_mask, sniff
from pipeline.settings import Limits
from schemas.errors import ErrorCode, InvalidJob

MANY = Limits(max_image_pixels=10_000_000)


def refused(function, *arguments) -> InvalidJob:
    with pytest.raises(InvalidJob) as caught:
        function(*arguments)
    assert caught.value.details["file"] == "name.png"
    assert caught.value.details["rule"] in caught.value.message
    return caught.value


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def gradient(mode: str) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.arange(6 * 8 * channels, dtype=np.uint8).reshape(6, 8, channels)
    return Image.fromarray(values if channels > 1 else values[..., 0], mode=None).convert(mode)


@pytest.mark.parametrize(
    ("form", "found"), [("PNG", "PNG"), ("JPEG", "JPEG"), ("WEBP", "WEBP"), ("BMP", None)]
)
def test_the_content_tells_the_format(form, found):
    assert sniff(encoded(gradient("RGB"), form)[:12]) == found


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_colour_without_alpha(tmp_path, mode):
    (tmp_path / "x").write_bytes(encoded(gradient(mode), "PNG"))
    color, alpha = read_color(tmp_path / "x", "x", MANY)
    assert color.shape == (6, 8, 3)
    assert color.dtype == np.float32
    assert alpha is None
    np.testing.assert_allclose(color, np.asarray(gradient(mode).convert("RGB")) / 255, atol=1e-6)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_colour_with_alpha_is_not_premultiplied(tmp_path, form):
    image = gradient("RGBA")
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    (tmp_path / "x").write_bytes(encoded(image, form, **options))
    color, alpha = read_color(tmp_path / "x", "x", MANY)
    expected = np.asarray(image) / 255
    np.testing.assert_allclose(color, expected[..., :3], atol=1e-6)
    np.testing.assert_allclose(alpha, expected[..., 3], atol=1e-6)


def test_a_palette_with_a_transparent_colour_has_alpha(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    (tmp_path / "x").write_bytes(encoded(image, "PNG", transparency=1))
    color, alpha = read_color(tmp_path / "x", "x", MANY)
    np.testing.assert_array_equal(color[0], [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(alpha, [[1, 0]])


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_keeps_its_depth(tmp_path, color_type, channels):
    values = np.linspace(0, 65535, 3 * 2 * channels).astype(">u2").reshape(2, 3, channels)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "x").write_bytes(png_bytes(3, 2, bits=16, color_type=color_type, rows=rows))
    color, alpha = read_color(tmp_path / "x", "x", MANY)
    expected = np.repeat(values[..., :1], 3, 2) if channels == 2 else values[..., :3]
    np.testing.assert_allclose(color, expected / 65535, rtol=1e-6)
    if channels == 3:
        assert alpha is None
    else:
        np.testing.assert_allclose(alpha, values[..., -1] / 65535, rtol=1e-6)
    assert read_header(tmp_path / "x", "x", MANY).has_alpha == (channels != 3)


@pytest.mark.parametrize(
    ("bits", "color_type", "channels"), [(1, 0, 1), (8, 0, 1), (16, 0, 1), (8, 2, 3), (16, 2, 3)]
)
def test_the_header_promises_alpha_where_decoding_gives_it(tmp_path, bits, color_type, channels):
    row = bytes(8 * bits * channels // 8)
    rows = 4 * (b"\0" + row)
    data = png_bytes(8, 4, bits=bits, color_type=color_type, rows=rows, transparent=bytes(2 * channels))
    (tmp_path / "x").write_bytes(data)
    _, alpha = read_color(tmp_path / "x", "x", MANY)
    assert read_header(tmp_path / "x", "x", MANY).has_alpha is (alpha is not None)
    if alpha is not None:
        np.testing.assert_array_equal(alpha, 0)


def test_16_bit_colour_that_is_cut_off_is_damaged(tmp_path):
    random = np.random.default_rng(0)
    rows = b"".join(b"\0" + random.bytes(64 * 6) for _ in range(64))
    data = png_bytes(64, 64, bits=16, color_type=2, rows=rows)
    (tmp_path / "x").write_bytes(data[: len(data) // 2])
    assert refused(read_color, tmp_path / "x", "name.png", MANY).code is ErrorCode.INVALID_IMAGE


def test_exif_tells_focal_length_and_orientation(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 26
    (tmp_path / "x").write_bytes(encoded(gradient("RGB"), "JPEG", exif=exif))
    assert read_exif(tmp_path / "x", "x", MANY) == Exif(pytest.approx(26 / 43.27), 1)


@pytest.mark.parametrize("focal", [0, 65535])
def test_exif_that_says_nonsense_or_nothing_is_left_out(tmp_path, focal):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = focal
    for name, options in (("x", {"exif": exif}), ("y", {}), ("z", {"exif": b"Exif\0\0MM\0*garbage"})):
        (tmp_path / name).write_bytes(encoded(gradient("RGB"), "PNG", **options))
        assert read_exif(tmp_path / name, name, MANY) == Exif()


def test_16_bit_grey_keeps_its_depth(tmp_path):
    values = np.array([[0, 1, 65535]], np.uint16)
    (tmp_path / "x").write_bytes(encoded(Image.fromarray(values), "PNG"))
    color, _ = read_color(tmp_path / "x", "x", MANY)
    np.testing.assert_allclose(color[..., 1], values / 65535, rtol=1e-6)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_that_a_file_claims_moves_no_pixel(tmp_path, form):
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to view
    (tmp_path / "x").write_bytes(encoded(image, form, exif=exif, quality=95))
    color, _ = read_color(tmp_path / "x", "x", MANY)
    header = read_header(tmp_path / "x", "x", MANY)
    assert color.shape == (header.height, header.width, 3) == (20, 40, 3)
    assert color[:, :15].mean() > 0.9
    assert color[:, 25:].mean() < 0.1
    assert read_mask(tmp_path / "x", "x", MANY).shape == (20, 40)


def test_a_text_file_is_no_image_whatever_its_name(tmp_path):
    (tmp_path / "name.png").write_text("hello, I am a picture")
    error = refused(read_header, tmp_path / "name.png", "name.png", MANY)
    assert error.code is ErrorCode.UNSUPPORTED_IMAGE_FORMAT
    (tmp_path / "name.png").write_bytes(b"")
    error = refused(read_color, tmp_path / "name.png", "name.png", MANY)
    assert error.code is ErrorCode.UNSUPPORTED_IMAGE_FORMAT


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_image_is_damaged(tmp_path, form):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, form)
    for share in (0.02, 0.5, 0.9):
        (tmp_path / "x").write_bytes(data[: max(13, int(len(data) * share))])
        error = refused(read_color, tmp_path / "x", "name.png", MANY)
        assert error.code is ErrorCode.INVALID_IMAGE


def test_random_damage_is_refused_or_survived_but_never_crashes(tmp_path):
    random = np.random.default_rng(1)
    sources = [encoded(gradient("RGBA"), form) for form in ("PNG", "WEBP")] + [
        encoded(gradient("RGB"), "JPEG")
    ]
    for data in sources:
        for _ in range(100):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[random.integers(12, len(data), 4)] = random.integers(0, 256, 4)
            (tmp_path / "x").write_bytes(damaged.tobytes())
            with contextlib.suppress(InvalidJob):
                read_color(tmp_path / "x", "x", Limits(max_image_pixels=4096))


def test_a_palette_picture_whose_palette_was_lost_is_damaged(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    data = encoded(image, "PNG", transparency=0)
    start = data.index(b"PLTE") - 4
    (length,) = struct.unpack(">I", data[start : start + 4])
    (tmp_path / "x").write_bytes(data[:start] + data[start + 12 + length :])
    assert refused(read_mask, tmp_path / "x", "name.png", MANY).code is ErrorCode.INVALID_IMAGE


@pytest.mark.parametrize("side", [9000, 20_000])
def test_a_huge_header_is_refused_before_anything_is_decoded(tmp_path, side):
    (tmp_path / "x").write_bytes(png_bytes(side, side, bits=8, color_type=2, rows=b""))
    error = refused(read_header, tmp_path / "x", "name.png", Limits())
    assert error.code is ErrorCode.IMAGE_TOO_LARGE
    assert error.details["limit"] == 64_000_000


def test_an_image_at_the_bound_passes(tmp_path):
    (tmp_path / "x").write_bytes(encoded(gradient("RGB"), "PNG"))
    assert read_header(tmp_path / "x", "x", Limits(max_image_pixels=48)).width == 8
    error = refused(read_header, tmp_path / "x", "name.png", Limits(max_image_pixels=47))
    assert error.code is ErrorCode.IMAGE_TOO_LARGE


@pytest.mark.parametrize(("width", "height"), [(1, 50_000), (50_000, 1), (1, 16_385)])
def test_an_image_with_an_endless_side_is_refused_by_its_header(tmp_path, width, height):
    (tmp_path / "x").write_bytes(png_bytes(width, height, bits=8, color_type=2, rows=b""))
    error = refused(read_header, tmp_path / "x", "name.png", Limits())
    assert error.code is ErrorCode.IMAGE_TOO_LARGE
    assert error.details["limit"] == 16_384
    assert f"{width}x{height}" in error.message


def test_a_side_at_its_bound_passes(tmp_path):
    (tmp_path / "x").write_bytes(encoded(Image.new("L", (16_384, 1)), "PNG"))
    assert read_color(tmp_path / "x", "x", Limits())[0].shape == (1, 16_384, 3)


def test_masks_of_any_depth_become_coverage(tmp_path):
    for image in (
        Image.fromarray(np.array([[0, 255]], np.uint8)),
        Image.fromarray(np.array([[0, 65535]], np.uint16)),
        Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"),
    ):
        (tmp_path / "x").write_bytes(encoded(image, "PNG"))
        np.testing.assert_array_equal(read_mask(tmp_path / "x", "x", MANY), [[0, 1]])


def test_depth_counts_become_world_units(tmp_path):
    counts = np.array([[0, 1000, 65535]], np.uint16)
    (tmp_path / "x").write_bytes(encoded(Image.fromarray(counts), "PNG"))
    np.testing.assert_allclose(read_depth(tmp_path / "x", "x", MANY, 0.001), [[0, 1, 65.535]], rtol=1e-6)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("L", (2, 2), 9), "PNG"),
        encoded(Image.new("RGB", (2, 2), 9), "PNG"),
        encoded(Image.new("L", (2, 2), 9), "JPEG"),
        encoded(Image.fromarray(np.zeros((2, 2), np.uint16)), "PNG"),
        png_bytes(1, 1, bits=16, color_type=2, rows=b"\0" + struct.pack(">3H", 1, 2, 3)),
    ],
    ids=["8 bit", "colour", "jpeg", "all zero", "16 bit colour"],
)
def test_what_is_no_depth_map_is_refused(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    assert refused(read_depth, tmp_path / "x", "name.png", MANY, 0.001).code is ErrorCode.INVALID_DEPTH


@pytest.mark.parametrize("scale", [1e-60, 1e-46, 1e36, 1e60])
def test_depth_that_its_scale_turns_to_nothing_is_refused(tmp_path, scale):
    counts = np.array([[0, 1, 65535]], np.uint16)
    (tmp_path / "x").write_bytes(encoded(Image.fromarray(counts), "PNG"))
    error = refused(read_depth, tmp_path / "x", "name.png", MANY, scale)
    assert error.code is ErrorCode.INVALID_DEPTH
