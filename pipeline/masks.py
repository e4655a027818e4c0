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
    given: Sequence[Floats | None],
    alphas: Sequence[Floats | None],
    depths: Sequence[Floats | None],
) -> tuple[Floats, str]:
    """Masks of all views from one source.

    Args:
        names: Names of the views, for errors.
        given: Mask files [H, W] in [0, 1], for all views or none.
        alphas: Alpha channels [H, W] in [0, 1]; used if every view has one and any of them is not opaque.
        depths: Depth maps [H, W], 0 where nothing was measured; used if every view has one.

    Returns:
        Masks [V, H, W] in [0, 1], and their source: `mask_path`, `alpha` or `depth`.

    Raises:
        InvalidJob: MASK_MISSING: no source, or the object is in no pixel of a view.
    """
    masks, source = _first_source(names, given, alphas, depths)
    for name, mask in zip(names, masks, strict=True):
        if not (mask > FOREGROUND).any():
            rule = "the object is visible in every view"
            raise InvalidJob(
                ErrorCode.MASK_MISSING,
                f"The mask of {name!r} (from {source}) is empty: {rule}.",
                file=name,
                rule=rule,
            )
    return masks, source


def _first_source(
    names: Sequence[str],
    given: Sequence[Floats | None],
    alphas: Sequence[Floats | None],
    depths: Sequence[Floats | None],
) -> tuple[Floats, str]:
    if (files := _all_of(given)) is not None:
        return np.stack(files), "mask_path"
    if (channels := _all_of(alphas)) is not None and any((alpha < 1).any() for alpha in channels):
        return np.stack(channels), "alpha"
    if (maps := _all_of(depths)) is not None:
        return np.stack([(depth > 0).astype(np.float32) for depth in maps]), "depth"
    without = next(
        name for name, alpha in zip(names, alphas, strict=True) if alpha is None or alpha.min() >= 1
    )
    rule = "give masks/, images with an alpha channel, or a depth map for every view"
    raise InvalidJob(
        ErrorCode.MASK_MISSING, f"{without!r} has no mask of the object: {rule}.", file=without, rule=rule
    )


def _all_of(arrays: Sequence[Floats | None]) -> list[Floats] | None:
    present = [array for array in arrays if array is not None]
    return present if len(present) == len(arrays) else None
