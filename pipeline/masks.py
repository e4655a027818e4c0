"""The object's mask: from mask files, the alpha channel, or measured depth, in this order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.images import Floats
from schemas.errors import ErrorCode, InvalidJob

FOREGROUND = 0.5
"""Coverage from which a pixel counts as the object's."""


def choose_masks(
    names: Sequence[str],
    given: Floats | None,
    alphas: Floats | None,
    depths: Floats | None,
    *,
    transparent: Sequence[bool],
    measured: Sequence[bool],
) -> tuple[Floats, str]:
    """Masks of all views from one source.

    Args:
        names: Names of the views, for errors.
        given: Mask files [V, H, W] in [0, 1]; None without.
        alphas: Alpha channels [V, H, W] in [0, 1], if every view has one; used if any is not opaque.
        depths: Depth maps [V, H, W], 0 where nothing was measured; used if every view has one.
        transparent: Which views have an alpha channel that is not opaque.
        measured: Which views have a depth map.

    Returns:
        Masks [V, H, W] in [0, 1], and their source: `mask_path`, `alpha` or `depth`.

    Raises:
        InvalidJob: MASK_MISSING: no source, or the object is in no pixel of a view.
    """
    source = choose_source(
        names,
        has_masks=given is not None,
        transparent=transparent if alphas is not None else [False] * len(names),
        measured=measured,
    )
    candidates = {"mask_path": given, "alpha": alphas, "depth": depths}
    masks = candidates[source]
    assert masks is not None
    if source == "depth":
        masks = (masks > 0).astype(np.float32)
    for name, mask in zip(names, masks, strict=True):
        refuse_empty(name, mask, source)
    return masks, source


def choose_source(
    names: Sequence[str], *, has_masks: bool, transparent: Sequence[bool], measured: Sequence[bool]
) -> str:
    """Where the masks come from: `mask_path`, `alpha` or `depth`; arguments as of `choose_masks`.

    Raises:
        InvalidJob: MASK_MISSING: there is no source.
    """
    if has_masks:
        return "mask_path"
    if any(transparent):
        return "alpha"
    if all(measured):
        return "depth"
    without = next((name for name, clear in zip(names, transparent, strict=True) if not clear), names[0])
    rule = "give masks/, images with an alpha channel, or a depth map for every view"
    raise InvalidJob(
        ErrorCode.MASK_MISSING, f"{without!r} has no mask of the object: {rule}.", file=without, rule=rule
    )


def refuse_empty(name: str, mask: Floats, source: str) -> None:
    """Refuse a mask [H, W] in which the object is not to be seen.

    Raises:
        InvalidJob: MASK_MISSING.
    """
    if not (mask > FOREGROUND).any():
        rule = "the object is visible in every view"
        raise InvalidJob(
            ErrorCode.MASK_MISSING,
            f"The mask of {name!r} (from {source}) is empty: {rule}.",
            file=name,
            rule=rule,
        )
