"""Image files from outside: told by their content, bounded by their header, then decoded to arrays.

Colour is taken as sRGB; embedded profiles are ignored. Of an animation the first picture counts. Pixels are
used as they are stored: an EXIF orientation is ignored, because masks, depth maps and the cameras that COLMAP
and nerfstudio write refer to stored pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.settings import Limits
from schemas.errors import ErrorCode, InvalidJob

Format = Literal["PNG", "JPEG", "WEBP"]
Floats = NDArray[np.float32]

_MODES_16 = frozenset({"I;16", "I;16B", "I;16L", "I"})  # older versions of Pillow call 16-bit PNG "I"
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
        mode: Pillow's name of the pixel format.
    """

    format: Format
    width: int
    height: int
    mode: str


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
        return Header(_format(path, name), image.width, image.height, image.mode)


def read_color(path: Path, name: str, limits: Limits) -> tuple[Floats, Floats | None]:
    """Decode a view, its pixels as stored.

    16-bit colour is read to 8 bits, 16-bit grey to its full depth.

    Returns:
        Colour [H, W, 3] in [0, 1], not premultiplied, and alpha [H, W] in [0, 1], None if the file has none.

    Raises:
        InvalidJob: as `read_header`.
    """
    with _opened(path, name, limits) as image:
        if image.mode in _MODES_16:
            grey = np.asarray(image, np.float32) / 65535.0
            return np.repeat(grey[..., None], 3, axis=2), None
        has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
        pixels = np.asarray(image.convert("RGBA" if has_alpha else "RGB"), np.float32) / 255.0
    return pixels[..., :3], pixels[..., 3] if has_alpha else None


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
