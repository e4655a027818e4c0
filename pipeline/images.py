"""Image files from outside: told by their content, bounded by their header, then decoded to arrays.

Colour is taken as sRGB; embedded profiles are ignored. Of an animation the first picture counts. Pixels are
used as they are stored: an EXIF orientation is ignored, because masks, depth maps and the cameras that COLMAP
and nerfstudio write refer to stored pixels.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.settings import Limits
from schemas.errors import ErrorCode, InvalidJob

Format = Literal["PNG", "JPEG", "WEBP"]
Floats = NDArray[np.float32]

_MODES_16 = frozenset({"I;16", "I;16B", "I;16L", "I"})  # older versions of Pillow call 16-bit PNG "I"
_DIAGONAL_35MM = 43.27
_QUARTER_TURNS = {6: 1, 3: 2, 8: 3}  # mirrored pictures are not made by cameras
_DECODER_ERRORS = (
    OSError,
    SyntaxError,  # Pillow's "broken PNG file"
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    AssertionError,  # Pillow's word for a palette picture without its palette
)


@dataclass(frozen=True)
class Header:
    """What an image says of itself before it is decoded.

    Attributes:
        format: Told by the content.
        width, height: Pixels, as stored.
        has_alpha: Whether `read_color` gives alpha: the file has an alpha channel, or a colour that stands
            for transparent (one of 16-bit grey is ignored).
    """

    format: Format
    width: int
    height: int
    has_alpha: bool


def sniff(start: bytes) -> Format | None:
    """The image format that a file's first 12 bytes announce; None for anything else."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    return None


def read_header(path: Path, name: str, limits: Limits) -> Header:
    """Look at an image without decoding it.

    Args:
        path: The file.
        name: How to call it in errors.
        limits: Bounds on width, height and their product.

    Raises:
        InvalidJob: UNSUPPORTED_IMAGE_FORMAT, INVALID_IMAGE or IMAGE_TOO_LARGE.
    """
    with _opened(path, name, limits) as image:
        return Header(_format(path, name), image.width, image.height, _has_alpha(image))


@dataclass(frozen=True)
class Exif:
    """What a camera wrote beside the pixels.

    Attributes:
        focal_share: Focal length as a share of the image's diagonal; None if it is not known.
        quarter_turns: By how many times 90 degrees the picture is to be turned clockwise to be upright.
    """

    focal_share: float | None = None
    quarter_turns: int = 0


def read_exif(path: Path, name: str, limits: Limits) -> Exif:
    """What EXIF says of an image; what it says wrongly is left out.

    The focal length is that of the 35 mm format, whose diagonal is 43.27 mm: the zoom is in it, and no table
    of sensors is needed.

    Raises:
        InvalidJob: as `read_header`.
    """
    with _opened(path, name, limits) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is damaged; nothing here depends on it
        try:
            tags = image.getexif()
            orientation = tags.get(ExifTags.Base.Orientation, 1)
            focal = tags.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm, 0)
            share = float(focal) / _DIAGONAL_35MM
        except (*_DECODER_ERRORS, ZeroDivisionError, AttributeError):
            return Exif()
    known = math.isfinite(share) and 0.1 < share < 30
    return Exif(share if known else None, _QUARTER_TURNS.get(orientation, 0))


def read_color(path: Path, name: str, limits: Limits) -> tuple[Floats, Floats | None]:
    """Decode a view, its pixels as stored.

    Returns:
        Colour [H, W, 3] in [0, 1], not premultiplied, and alpha [H, W] in [0, 1], None if the file has none.

    Raises:
        InvalidJob: as `read_header`.
    """
    with _opened(path, name, limits) as image:
        if image.mode in _MODES_16:
            grey = np.asarray(image, np.float32) / 65535.0
            return np.repeat(grey[..., None], 3, axis=2), None
        has_alpha = _has_alpha(image)
        if _is_16_bit_color(path):
            image.load()  # Pillow refuses what is damaged; OpenCV would fill it up
            pixels = _read_16_bit(path, name, (image.height, image.width, 4 if has_alpha else 3))
        else:
            pixels = np.asarray(image.convert("RGBA" if has_alpha else "RGB"), np.float32) / 255.0
    return pixels[..., :3], pixels[..., 3] if has_alpha else None


def _has_alpha(image: Image.Image) -> bool:
    if image.mode in _MODES_16:
        return False  # Pillow reads no alpha with 16-bit grey, and drops a grey that stands for transparent
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _is_16_bit_color(path: Path) -> bool:
    """Whether a file is a PNG of several channels of 16 bits each, which Pillow reads to 8 bits."""
    with path.open("rb") as file:
        start = file.read(26)
    return sniff(start) == "PNG" and start[24:25] == b"\x10" and start[25:26] in (b"\x02", b"\x04", b"\x06")


def _read_16_bit(path: Path, name: str, shape: tuple[int, int, int]) -> Floats:
    """The pixels of a PNG that has been found good, [H, W, 3] or, with alpha, [H, W, 4] in [0, 1]."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape != shape:
        raise _damaged(name)
    order = [2, 1, 0, 3][: shape[2]]
    return np.asarray(pixels[..., order], np.float32) / 65535.0


def read_mask(path: Path, name: str, limits: Limits) -> Floats:
    """Decode a mask, [H, W] in [0, 1].

    Raises:
        InvalidJob: as `read_header`.
    """
    with _opened(path, name, limits) as image:
        if image.mode in _MODES_16:
            return np.asarray(image, np.float32) / 65535.0
        return np.asarray(image.convert("L"), np.float32) / 255.0


def read_depth(path: Path, name: str, limits: Limits, scale: float) -> Floats:
    """Decode a depth map, [H, W] z-depth in world units, 0 where nothing was measured.

    Args:
        path: The file.
        name: How to call it in errors.
        limits: Bounds on width, height and their product.
        scale: World units per count.

    Raises:
        InvalidJob: as `read_header`; INVALID_DEPTH where it is not a 16-bit PNG of one channel, is empty, or
            holds measurements that `scale` turns to 0 or infinity.
    """
    with _opened(path, name, limits) as image:
        if _format(path, name) != "PNG" or image.mode not in _MODES_16:
            raise _bad_depth(name, "a depth map is a 16-bit PNG with one channel", f"mode is {image.mode}")
        counts = np.asarray(image, np.float32)
    if not counts.any():
        raise _bad_depth(name, "a depth map must hold at least one measurement", "all values are 0")
    with np.errstate(all="ignore"):
        depth: Floats = counts * np.float32(scale)
    if not np.isfinite(depth).all() or (depth[counts > 0] <= 0).any():
        raise _bad_depth(
            name, "every measurement is a finite depth above 0", f"one count is {scale:.4g} world units"
        )
    return depth


def _bad_depth(name: str, rule: str, found: str) -> InvalidJob:
    return InvalidJob(
        ErrorCode.INVALID_DEPTH, f"{name!r} cannot be used: {rule}, but {found}.", file=name, rule=rule
    )


def _format(path: Path, name: str) -> Format:
    with path.open("rb") as file:
        found = sniff(file.read(12))
    if found is None:
        rule = "views are PNG, JPEG or WebP, told by their content"
        raise InvalidJob(
            ErrorCode.UNSUPPORTED_IMAGE_FORMAT,
            f"{name!r} is not an image this worker reads: {rule}.",
            file=name,
            rule=rule,
        )
    return found


@contextmanager
def _opened(path: Path, name: str, limits: Limits) -> Iterator[Image.Image]:
    """An image whose header is within bounds; everything its decoder raises becomes a refusal."""
    form = _format(path, name)
    try:
        with Image.open(path, formats=(form,)) as image:
            _check_size(name, image.width, image.height, limits)
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own bound is global state that is not ours to set; it lies above our default.
        raise _too_many_pixels(name, "its header's", limits) from error
    except UnidentifiedImageError as error:
        raise _damaged(name) from error
    except _DECODER_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the picture
        raise _damaged(name) from error


def _check_size(name: str, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_image_pixels:
        raise _too_many_pixels(name, f"{width}x{height}", limits)
    if max(width, height) > limits.max_image_side:
        rule = f"a side of an image may have at most {limits.max_image_side} pixels"
        raise _too_large(name, f"{width}x{height}", rule, limits.max_image_side)


def _too_many_pixels(name: str, size: str, limits: Limits) -> InvalidJob:
    rule = f"an image may have at most {limits.max_image_pixels} pixels"
    return _too_large(name, size, rule, limits.max_image_pixels)


def _too_large(name: str, size: str, rule: str, limit: int) -> InvalidJob:
    return InvalidJob(
        ErrorCode.IMAGE_TOO_LARGE,
        f"{name!r} is refused for {size} pixels: {rule}.",
        file=name,
        rule=rule,
        limit=limit,
    )


def _damaged(name: str) -> InvalidJob:
    rule = "an image must decode completely"
    return InvalidJob(
        ErrorCode.INVALID_IMAGE,
        f"{name!r} is damaged or truncated: {rule}.",
        file=name,
        rule=rule,
    )
