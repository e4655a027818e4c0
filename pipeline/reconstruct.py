"""Hand views to the chosen model, and look at what it gives back."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.base import Callback, PosedViews, Reconstruction, Reconstructor, Views
from pipeline.serving import Served
from schemas.errors import ErrorCode, ModelError
from schemas.jobs import ModelName
from schemas.options import Options

_TENSORS = ("vertices", "uvs", "base_color", "roughness_metallic", "normal_map", "environment")
"""Attributes of a mesh that hold real numbers; the last three may be None."""


def choose_reconstructor(served: Served, model: ModelName) -> Reconstructor:
    """The reconstructor of a model.

    Raises:
        ModelError: why this worker does not serve the model; MODEL_WEIGHTS_MISSING if it was not to.
    """
    if model in served.reconstructors:
        return served.reconstructors[model]
    names = sorted(served.reconstructors)
    text = f"This worker does not serve the model {model!r}. It serves {', '.join(names) or 'none'}."
    reason = served.unavailable.get(model)
    code = ErrorCode.MODEL_WEIGHTS_MISSING if reason is None else reason.code
    more = "" if reason is None else f" {reason.message}"
    raise ModelError(code, text + more, model=model, served=list(names))


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


def views_as_found(views: Views, reconstruction: Reconstruction, options: Options) -> PosedViews:
    """The views that a model saw, with the cameras for which it made the mesh.

    Where the model found the cameras, and was not to use depth maps, the unit of length is its own, and the
    views' depth maps, which cannot be compared with the mesh then, are left out.

    Raises:
        ModelError: CAMERA_ESTIMATION_FAILED: the views had no cameras, and the model found none.
    """
    if reconstruction.cameras is None:
        if views.cameras is None:
            raise ModelError(ErrorCode.CAMERA_ESTIMATION_FAILED, "The model did not find the views' cameras.")
        return views.posed()
    found = views.with_cameras(reconstruction.cameras)
    measured = views.cameras is not None or options.use_depth
    return found if measured else replace(found, depths=None)
