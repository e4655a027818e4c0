"""Argument checks that every backend makes, so that a mistake reads the same on all of them."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

FilterMode = Literal["nearest", "linear", "linear-mipmap-linear"]
BoundaryMode = Literal["wrap", "clamp"]

Topology = Any
"""A mesh's neighbourhoods in the form of the backend that made them."""

MAX_FACES = 2**24 - 1
"""Triangle numbers travel in float32."""

MAX_SIDE = 2048
"""Pixels per side that fit the fixed-point arithmetic of both backends."""


def _check(name: str, tensor: Tensor, layout: tuple[int | str, ...], dtype: torch.dtype) -> None:
    if isinstance(tensor, Tensor) and tensor.dtype == dtype and _fits(tensor.shape, layout):
        return
    expected = "[" + ", ".join(str(extent) for extent in layout) + "]"
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor {expected}, got {type(tensor).__name__}")
    if not _fits(tensor.shape, layout):
        raise ValueError(f"{name} must have shape {expected}, got {list(tensor.shape)}")
    raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")


def _fits(shape: torch.Size, layout: tuple[int | str, ...]) -> bool:
    if len(shape) != len(layout):
        return False
    for want, have in zip(layout, shape, strict=True):  # noqa: SIM110 (a generator costs more than the rest)
        if want != have and want.__class__ is int:
            return False
    return True


def _check_batch(name: str, tensor: Tensor, batch: int) -> None:
    if tensor.shape[0] not in (1, batch):
        raise ValueError(f"{name} must have 1 or {batch} views, got shape {list(tensor.shape)}")


def _check_devices(**tensors: Tensor | None) -> None:
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"tensors must be on one device: {listed}")


def _check_tri(tri: Tensor) -> None:
    _check("tri", tri, ("F", 3), torch.int32)
    if tri.shape[0] > MAX_FACES:
        raise ValueError(f"tri may have at most {MAX_FACES} triangles, got shape {list(tri.shape)}")


def check_rasterize(pos: Tensor, tri: Tensor, resolution: tuple[int, int]) -> None:
    """Raises ValueError unless the arguments fit `RasterBackend.rasterize`."""
    _check("pos", pos, ("B", "N", 4), torch.float32)
    _check_tri(tri)
    if len(resolution) != 2 or not all(0 < side <= MAX_SIDE for side in resolution):
        raise ValueError(f"resolution must be (height, width) within 1..{MAX_SIDE}, got {tuple(resolution)}")
    _check_devices(pos=pos, tri=tri)


def check_interpolate(attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Tensor | None) -> None:
    """Raises ValueError unless the arguments fit `RasterBackend.interpolate`."""
    _check("attr", attr, ("B", "N", "C"), torch.float32)
    _check("rast", rast, ("B", "H", "W", 4), torch.float32)
    _check_tri(tri)
    _check_batch("attr", attr, rast.shape[0])
    if rast_db is not None:
        _check("rast_db", rast_db, tuple(rast.shape), torch.float32)
    _check_devices(attr=attr, rast=rast, tri=tri, rast_db=rast_db)


def check_texture(
    tex: Tensor,
    uv: Tensor,
    uv_da: Tensor | None,
    filter_mode: FilterMode,
    boundary_mode: BoundaryMode,
    max_mip_level: int | None,
) -> None:
    """Raises ValueError unless the arguments fit `RasterBackend.texture`."""
    _check("tex", tex, ("B", "H", "W", "C"), torch.float32)
    _check("uv", uv, ("B", "H", "W", 2), torch.float32)
    _check_batch("tex", tex, uv.shape[0])
    if 0 in tex.shape:
        raise ValueError(f"tex must not be empty, got shape {list(tex.shape)}")
    if filter_mode not in get_args(FilterMode):
        raise ValueError(f"filter_mode must be one of {get_args(FilterMode)}, got {filter_mode!r}")
    if boundary_mode not in get_args(BoundaryMode):
        raise ValueError(f"boundary_mode must be one of {get_args(BoundaryMode)}, got {boundary_mode!r}")
    if filter_mode == "linear-mipmap-linear":
        if uv_da is None:
            raise ValueError("filter_mode 'linear-mipmap-linear' needs uv_da")
        _check("uv_da", uv_da, (*uv.shape[:3], 4), torch.float32)
        mip_levels(tex.shape[1], tex.shape[2], max_mip_level)
    _check_devices(tex=tex, uv=uv, uv_da=uv_da)


def check_antialias(color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor) -> None:
    """Raises ValueError unless the arguments fit `RasterBackend.antialias`."""
    _check("rast", rast, ("B", "H", "W", 4), torch.float32)
    _check("color", color, (*rast.shape[:3], "C"), torch.float32)
    _check("pos", pos, (rast.shape[0], "N", 4), torch.float32)
    _check_tri(tri)
    _check_devices(color=color, rast=rast, pos=pos, tri=tri)


def check_make_topology(tri: Tensor, vertices: int) -> None:
    """Raises ValueError unless the arguments fit `RasterBackend.make_topology`."""
    _check_tri(tri)
    if vertices < 0:
        raise ValueError(f"vertices must not be negative, got {vertices}")


def mip_levels(height: int, width: int, limit: int | None) -> int:
    """Number of times a texture is halved for its chain of levels.

    Args:
        height: Rows of texels.
        width: Columns of texels.
        limit: Most halvings wanted; None for all, down to a single texel.

    Returns:
        The number of levels beyond the texture itself.

    Raises:
        ValueError: A side would have to be halved while odd.
    """
    if limit is not None and limit < 0:
        raise ValueError(f"max_mip_level must not be negative, got {limit}")
    levels, rows, columns = 0, height, width
    while max(rows, columns) > 1 and (limit is None or levels < limit):
        if (rows > 1 and rows % 2) or (columns > 1 and columns % 2):
            raise ValueError(
                f"tex of {height} x {width} texels cannot be halved more than {levels} times; "
                "use powers of two or set max_mip_level"
            )
        rows, columns, levels = max(rows // 2, 1), max(columns // 2, 1), levels + 1
    return levels
