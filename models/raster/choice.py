"""The rasterizer that a job asks for."""

from __future__ import annotations

import torch

from models.raster import BackendName, RasterBackend, make_backend
from schemas.errors import ErrorCode, InvalidJob


def chosen_backend(name: BackendName, device: torch.device) -> RasterBackend:
    """The rasterizer of `options.raster`.

    Raises:
        InvalidJob: INVALID_OPTIONS: this worker does not have it.
    """
    try:
        return make_backend(name, device)
    except (ValueError, RuntimeError) as error:
        raise InvalidJob(
            ErrorCode.INVALID_OPTIONS,
            f"options.raster {name!r} cannot be used on this worker: {error}",
            fields=["options.raster"],
        ) from error
