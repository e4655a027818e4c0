"""The four operations by nvdiffrast, on CUDA. The only module that imports it."""

import importlib
import importlib.util

import torch
from torch import Tensor

from models.raster import checks
from models.raster.checks import BoundaryMode, FilterMode, Topology

INSTALL = (
    "nvdiffrast is not installed. It is on no package registry: with torch and a CUDA compiler present, run "
    "`pip install --no-build-isolation git+https://github.com/NVlabs/nvdiffrast.git@v0.4.0`, "
    "or choose the 'warp' backend"
)


def nvdiffrast_installed() -> bool:
    """Whether nvdiffrast can be found, without importing it."""
    return importlib.util.find_spec("nvdiffrast") is not None


class NvdiffrastBackend:
    """Implements `models.raster.RasterBackend` on one CUDA device.

    Args:
        device: The CUDA device of all tensors.

    Raises:
        ValueError: The device is not a CUDA device.
        RuntimeError: nvdiffrast is not installed; the message says how to.
    """

    name = "nvdiffrast"

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        if self.device.type != "cuda":
            raise ValueError(f"nvdiffrast needs a CUDA device, got {self.device}")
        try:
            self._dr = importlib.import_module("nvdiffrast.torch")
        except ImportError as error:
            raise RuntimeError(INSTALL) from error
        self._context = self._dr.RasterizeCudaContext(device=self.device)

    def rasterize(self, pos: Tensor, tri: Tensor, resolution: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """See `RasterBackend.rasterize`."""
        checks.check_rasterize(pos, tri, resolution)
        with torch.cuda.device(self.device):
            rast, rast_db = self._dr.rasterize(
                self._context, pos.contiguous(), tri.contiguous(), tuple(resolution), grad_db=False
            )
        return rast, rast_db.detach()

    def interpolate(
        self, attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See `RasterBackend.interpolate`."""
        checks.check_interpolate(attr, rast, tri, rast_db)
        attr, rast, tri = attr.contiguous(), rast.contiguous(), tri.contiguous()
        with torch.cuda.device(self.device):
            if rast_db is None:
                return self._dr.interpolate(attr, rast, tri)[0], None
            out, out_da = self._dr.interpolate(
                attr, rast, tri, rast_db=rast_db.detach().contiguous(), diff_attrs="all"
            )
        return out, out_da.detach()

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
        mipmapped = filter_mode == "linear-mipmap-linear"
        with torch.cuda.device(self.device):
            colors: Tensor = self._dr.texture(
                tex.contiguous(),
                uv.contiguous(),
                uv_da=uv_da.detach().contiguous() if mipmapped and uv_da is not None else None,
                filter_mode=filter_mode,
                boundary_mode=boundary_mode,
                max_mip_level=max_mip_level,
            )
        return colors

    def make_topology(self, tri: Tensor, vertices: int) -> Topology:
        """See `RasterBackend.make_topology`."""
        checks.check_make_topology(tri, vertices)
        with torch.cuda.device(self.device):
            return self._dr.antialias_construct_topology_hash(tri.contiguous())

    def antialias(
        self, color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor, topology: Topology | None = None
    ) -> Tensor:
        """See `RasterBackend.antialias`."""
        checks.check_antialias(color, rast, pos, tri)
        with torch.cuda.device(self.device):
            smooth: Tensor = self._dr.antialias(
                color.contiguous(),
                rast.detach().contiguous(),
                pos.contiguous(),
                tri.contiguous(),
                topology_hash=topology,
            )
        return smooth
