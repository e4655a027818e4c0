"""Hand views to the chosen model, and look at what it gives back."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from models.base import Callback, Reconstruction, Reconstructor, Views
from schemas.errors import ErrorCode, ModelError
from schemas.options import Options

_TENSORS = ("vertices", "uvs", "base_color", "roughness_metallic", "normal_map", "environment")
"""Attributes of a mesh that hold real numbers; the last three may be None."""


def choose_reconstructor(reconstructors: Mapping[str, Reconstructor], model: str) -> Reconstructor:
    """The reconstructor of a model.

    Raises:
        ModelError: MODEL_WEIGHTS_MISSING: this worker does not serve the model.
    """
    if model not in reconstructors:
        served = sorted(reconstructors)
        raise ModelError(
            ErrorCode.MODEL_WEIGHTS_MISSING,
            f"This worker does not serve the model {model!r}: its weights are not installed here. "
            f"It serves {', '.join(served) or 'none'}.",
            model=model,
            served=list(served),
        )
    return reconstructors[model]


def reconstruct_views(
    reconstructor: Reconstructor, views: Views, options: Options, callback: Callback
) -> Reconstruction:
    """Run a model on views.

    Raises:
        ModelError: as the model; MODEL_DIVERGED if what it made is no surface.
        JobCancelled: through `callback`.
    """
    reconstruction = reconstructor.reconstruct(views, options, callback)
    mesh = reconstruction.mesh
    if mesh.faces.shape[0] == 0:
        raise ModelError(ErrorCode.MODEL_DIVERGED, "The optimisation ended without a surface.")
    for name in _TENSORS:
        tensor = getattr(mesh, name)
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                ErrorCode.MODEL_DIVERGED, f"The optimisation gave {name} that are not finite.", tensor=name
            )
    return reconstruction
