"""The four operations as NVIDIA Warp kernels: one source for the CPU and for CUDA."""

import torch
from torch import Tensor

from models.raster import checks
from models.raster.checks import BoundaryMode, FilterMode
from models.raster.warp_ops.antialias import Antialias
from models.raster.warp_ops.interpolate import Interpolate, attribute_slopes
from models.raster.warp_ops.launch import Launcher
from models.raster.warp_ops.rasterize import Rasterize
from models.raster.warp_ops.texture import Sample, mip_chain
from models.raster.warp_ops.topology import TopologyCache


class WarpBackend:
    """Implements `models.raster.RasterBackend` on one device.

    On the CPU results are the same bit for bit from run to run with the same number of threads. On CUDA
    gradients are summed in whatever order the hardware takes; forward results are repeatable except for the
    rounding of pixels that several silhouettes touch.

    Args:
        device: Device of all tensors.
        threads: CPU threads; None for torch's number at construction.
    """

    name = "warp"

    def __init__(self, device: torch.device | str, threads: int | None = None) -> None:
        self.device = torch.device(device)
        self._launcher = Launcher(self.device, threads)
        self._topology = TopologyCache()

    def rasterize(self, pos: Tensor, tri: Tensor, resolution: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """See `RasterBackend.rasterize`."""
        checks.check_rasterize(pos, tri, resolution)
        rast, rast_db = Rasterize.apply(
            pos.contiguous(), tri.contiguous(), self._launcher, (int(resolution[0]), int(resolution[1]))
        )
        return rast, rast_db

    def interpolate(
        self, attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See `RasterBackend.interpolate`."""
        checks.check_interpolate(attr, rast, tri, rast_db)
        attr, rast, tri = attr.contiguous(), rast.contiguous(), tri.contiguous()
        out = Interpolate.apply(attr, rast, tri, self._launcher)
        if rast_db is None:
            return out, None
        return out, attribute_slopes(attr, rast, rast_db.contiguous(), tri, self._launcher)

    def texture(
        self,
        tex: Tensor,
        uv: Tensor,
        uv_da: Tensor | None = None,
        filter_mode: FilterMode = "linear",
        boundary_mode: BoundaryMode = "wrap",
        max_mip_level: int | None = None,
    ) -> Tensor:
        """See `RasterBackend.texture`."""
        checks.check_texture(tex, uv, uv_da, filter_mode, boundary_mode, max_mip_level)
        levels = 0
        if filter_mode == "linear-mipmap-linear":
            levels = checks.mip_levels(tex.shape[1], tex.shape[2], max_mip_level)
        colors: Tensor = Sample.apply(
            mip_chain(tex.contiguous(), levels),
            uv.contiguous(),
            uv_da.detach().contiguous() if levels and uv_da is not None else None,
            self._launcher,
            (tex.shape[1], tex.shape[2]),
            filter_mode != "nearest",
            levels,
            boundary_mode == "wrap",
        )
        return colors

    def antialias(self, color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor) -> Tensor:
        """See `RasterBackend.antialias`."""
        checks.check_antialias(color, rast, pos, tri)
        opposite = self._topology.get(tri, pos.shape[1])
        smooth: Tensor = Antialias.apply(
            color.contiguous(),
            rast.detach().contiguous(),
            pos.contiguous(),
            tri.contiguous(),
            opposite,
            self._launcher,
        )
        return smooth
