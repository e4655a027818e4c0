"""Which image, depth map, mask and frame belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.rig import AXIS6
from pipeline.settings import Limits
from pipeline.transforms import TRANSFORMS_NAME, Frame, Transforms, invalid_cameras, too_many_views
from schemas.errors import AccessError, ErrorCode, InvalidJob
from schemas.options import Options

IMAGES, DEPTH, MASKS = "images", "depth", "masks"

_SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".webp")
_CLUTTER = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class ViewFiles:
    """The files of one view, as keys below the prefix, and its frame in transforms.json."""

    image: str
    depth: str | None
    mask: str | None
    frame: Frame | None


def match_views(
    keys: Iterable[str], transforms: Transforms | None, options: Options, limits: Limits, place: str
) -> tuple[ViewFiles, ...]:
    """Put the files of an input together.

    Args:
        keys: Every file below the prefix.
        transforms: The cameras, if the input has them.
        options: The job's.
        limits: The worker's.
        place: The input's location, for errors.

    Raises:
        InvalidJob: INPUT_TOO_LARGE, TOO_FEW_VIEWS, VIEW_MISSING, VIEW_MISMATCH, INVALID_CAMERAS,
            INVALID_DEPTH or MASK_MISSING.
        AccessError: INPUT_NOT_FOUND.
    """
    listed = frozenset(keys)
    images = _folder(listed, IMAGES)
    frames = () if transforms is None else transforms.frames
    found = [_find_image(frame.image, listed) for frame in frames]
    _check_count(set(images) | {key for key in found if key is not None}, options, limits, place)
    if transforms is None:
        _check_rig(images, options)
        views = [ViewFiles(image, None, None, None) for image in images]
    else:
        views = _framed(frames, found, images, listed)
    views = _with_side_files(views, listed)
    _check_side_files(views, options)
    return tuple(views)


def _folder(keys: Iterable[str], folder: str) -> list[str]:
    """Files of a folder in order of their names, without what desktops leave behind."""
    below = [key for key in keys if key.startswith(folder + "/")]
    return sorted(key for key in below if not _is_clutter(PurePosixPath(key).name))


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def _find_image(path: str, listed: frozenset[str]) -> str | None:
    return next((path + suffix for suffix in _SUFFIXES if path + suffix in listed), None)


def _check_count(images: set[str], options: Options, limits: Limits, place: str) -> None:
    if not images:
        rule = "an input has its images in images/, or names them in transforms.json"
        raise AccessError(
            ErrorCode.INPUT_NOT_FOUND,
            f"There are no images at {place!r}: {rule}.",
            file=f"{IMAGES}/",
            rule=rule,
            location=place,
        )
    required = options.input.min_views
    if len(images) < required:
        rule = f"the job requires at least {required} views"
        raise InvalidJob(
            ErrorCode.TOO_FEW_VIEWS,
            f"The input has {len(images)} views: {rule}.",
            file=f"{IMAGES}/",
            rule=rule,
            limit=required,
            actual=len(images),
        )
    if len(images) > limits.max_views:
        raise too_many_views(len(images), limits)


def _check_rig(images: list[str], options: Options) -> None:
    if options.cameras.rig is not None and len(images) != len(AXIS6):
        raise invalid_cameras(
            f"there are {len(images)} images",
            f"the rig 'axis6' takes exactly six, in this order: {', '.join(AXIS6)}",
            file=f"{IMAGES}/",
        )


def _framed(
    frames: tuple[Frame, ...], found: list[str | None], images: list[str], listed: frozenset[str]
) -> list[ViewFiles]:
    views: list[ViewFiles] = []
    for frame, image in zip(frames, found, strict=True):
        if image is None:
            raise _missing(frame.image, f"{TRANSFORMS_NAME} names it as a view")
        for path in (frame.depth, frame.mask):
            if path is not None and path not in listed:
                raise _missing(path, f"{TRANSFORMS_NAME} names it for {image!r}")
        views.append(ViewFiles(image, frame.depth, frame.mask, frame))
    used = [view.image for view in views]
    twice = next((image for i, image in enumerate(used) if image in used[:i]), None)
    if twice is not None:
        raise invalid_cameras(f"two frames name {twice!r}", "every frame has an image of its own")
    stray = next((image for image in images if image not in set(used)), None)
    if stray is not None:
        rule = f"every file in {IMAGES}/ has a frame in {TRANSFORMS_NAME}"
        raise InvalidJob(ErrorCode.VIEW_MISSING, f"{stray!r} has no frame: {rule}.", file=stray, rule=rule)
    return views


def _missing(path: str, why: str) -> InvalidJob:
    rule = "every file that is named exists"
    return InvalidJob(
        ErrorCode.VIEW_MISSING, f"{path!r} is missing, but {why}: {rule}.", file=path, rule=rule
    )


def _with_side_files(views: list[ViewFiles], listed: frozenset[str]) -> list[ViewFiles]:
    """Depth maps and masks that no frame names are found by their stems."""
    depths = {} if any(view.depth for view in views) else _by_stem(views, _folder(listed, DEPTH), DEPTH)
    masks = {} if any(view.mask for view in views) else _by_stem(views, _folder(listed, MASKS), MASKS)
    return [
        ViewFiles(
            view.image,
            view.depth or depths.get(_stem(view.image)),
            view.mask or masks.get(_stem(view.image)),
            view.frame,
        )
        for view in views
    ]


def _stem(key: str) -> str:
    """`images/left/000.png` and `depth/left/000.png` have the stem `left/000`."""
    path = PurePosixPath(*PurePosixPath(key).parts[1:]) if "/" in key else PurePosixPath(key)
    return str(path.with_suffix(""))


def _by_stem(views: list[ViewFiles], keys: list[str], folder: str) -> Mapping[str, str]:
    if not keys:
        return {}
    owners: dict[str, str] = {}
    for view in views:
        stem = _stem(view.image)
        if stem in owners:
            rule = f"images need distinct names where {folder}/ is matched by name"
            raise InvalidJob(
                ErrorCode.VIEW_MISMATCH,
                f"{view.image!r} and {owners[stem]!r} share the name {stem!r}: {rule}.",
                file=view.image,
                rule=rule,
            )
        owners[stem] = view.image
    found: dict[str, str] = {}
    for key in keys:
        stem = _stem(key)
        if stem not in owners or stem in found:
            rule = f"every file in {folder}/ is named like the one image it belongs to"
            raise InvalidJob(
                ErrorCode.VIEW_MISSING, f"{key!r} belongs to no image: {rule}.", file=key, rule=rule
            )
        found[stem] = key
    return found


def _check_side_files(views: list[ViewFiles], options: Options) -> None:
    without_mask = [view.image for view in views if view.mask is None]
    if without_mask and len(without_mask) < len(views):
        rule = "either every view has a mask, or none has"
        raise InvalidJob(
            ErrorCode.MASK_MISSING,
            f"{without_mask[0]!r} has no mask, other views have: {rule}.",
            file=without_mask[0],
            rule=rule,
        )
    without_depth = next((view.image for view in views if view.depth is None), None)
    if options.input.require_depth and without_depth is not None:
        rule = "the job requires a depth map for every view (options.input.require_depth)"
        raise InvalidJob(
            ErrorCode.INVALID_DEPTH,
            f"{without_depth!r} has no depth map: {rule}.",
            file=without_depth,
            rule=rule,
        )
