"""The four operations as NVIDIA Warp kernels: one source for the CPU and for CUDA."""

import torch
from torch import Tensor

from models.raster import checks
from models.raster.checks import BoundaryMode, FilterMode, Topology
from models.raster.warp_ops.antialias import Antialias
from models.raster.warp_ops.interpolate import Interpolate
from models.raster.warp_ops.launch import Launcher, packed
from models.raster.warp_ops.rasterize import Rasterize
from models.raster.warp_ops.texture import Sample
from models.raster.warp_ops.topology import TopologyCache, opposite_vertices


class WarpBackend:
    """Implements `models.raster.RasterBackend` on one device.

    On the CPU results are the same bit for bit from run to run with the same number of threads. On CUDA
    forward results are repeatable, and gradients are summed in whatever order the hardware takes. Nothing
    here waits for the device, and every operation can be captured in a CUDA graph, forward and backward, once
    it has run before.

    Args:
        device: Device of all tensors.
        threads: CPU threads; None for torch's number at construction.
    """

    name = "warp"

    def __init__(self, device: torch.device | str, threads: int | None = None) -> None:
        self.device = torch.device(device)
        self._launcher = Launcher(self.device, threads)
        self._topology = TopologyCache(self._launcher)

    def rasterize(self, pos: Tensor, tri: Tensor, resolution: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """See `RasterBackend.rasterize`."""
        checks.check_rasterize(pos, tri, resolution)
        rast, rast_db = Rasterize.apply(
            packed(pos), tri.contiguous(), self._launcher, (int(resolution[0]), int(resolution[1]))
        )
        return rast, rast_db

    def interpolate(
        self, attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See `RasterBackend.interpolate`."""
        checks.check_interpolate(attr, rast, tri, rast_db)
        out, slopes = Interpolate.apply(
            attr.contiguous(),
            packed(rast),
            tri.contiguous(),
            None if rast_db is None else packed(rast_db.detach()),
            self._launcher,
        )
        return out, slopes

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
            tex.contiguous(),
            uv.contiguous(),
            packed(uv_da.detach()) if levels and uv_da is not None else None,
            self._launcher,
            filter_mode != "nearest",
            levels,
            boundary_mode == "wrap",
        )
        return colors

    def make_topology(self, tri: Tensor, vertices: int) -> Topology:
        """See `RasterBackend.make_topology`."""
        checks.check_make_topology(tri, vertices)
        return opposite_vertices(tri.contiguous(), vertices, self._launcher)

    def antialias(
        self, color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor, topology: Topology | None = None
    ) -> Tensor:
        """See `RasterBackend.antialias`."""
        checks.check_antialias(color, rast, pos, tri)
        smooth: Tensor = Antialias.apply(
            color.contiguous(),
            packed(rast.detach()),
            packed(pos),
            tri.contiguous(),
            self._topology.get(tri, pos.shape[1]) if topology is None else topology,
            self._launcher,
        )
        return smooth
