"""Differentiable rasterization: one contract of four operations, two backends.

Conventions, the same for every backend (they are nvdiffrast's):

- Positions are OpenGL clip space `(x, y, z, w)`, float32: what is visible has x, y and z within [-w, w], and
  smaller z/w is nearer. Triangles are int32 and common to all views; neither side is culled.
- Images are `[B, H, W, C]`, float32, with **row 0 at the bottom**. The centre of pixel (row, column) lies at
  (column + 0.5, row + 0.5); x = -w is the left border, y = -w the lower one. Flip rows once, when an image
  leaves the renderer.
- Textures are indexed from their first texel: (u, v) = (0, 0) is the outer corner of `tex[:, 0, 0]`, u runs
  along columns and v along rows, and texel centres lie at +0.5.
- A pixel sees one triangle or none. Pixel centres are covered exactly once by triangles with a common edge.
- Coverage is decided with vertices rounded to 1/16 pixel, barycentrics with the vertices as they are.

Gradients reach `pos` (x, y and w, never z), `attr`, `tex`, `uv` and `color`. They do not flow through depth,
triangle numbers, or anything that only chooses a level of detail: `rast_db`, the slopes that `interpolate`
makes of it, and `uv_da` are constants.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor

from models.raster.checks import BoundaryMode, FilterMode, Topology

__all__ = ["BackendName", "BoundaryMode", "FilterMode", "RasterBackend", "Topology", "make_backend"]

BackendName = Literal["auto", "nvdiffrast", "warp"]


class RasterBackend(Protocol):
    """The four operations. Each raises ValueError with the offending shape, dtype or device."""

    name: str
    """Which implementation this is: "nvdiffrast" or "warp"."""

    device: torch.device
    """Where all tensors given to this backend live."""

    def rasterize(self, pos: Tensor, tri: Tensor, resolution: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Finds the nearest triangle at every pixel.

        Triangles that reach behind the camera or out of the depth range are clipped; triangles with a vertex
        index outside of [0, N) are ignored. At equal depth the lower triangle number wins (on "warp").

        Args:
            pos: Clip-space vertices [B, N, 4].
            tri: Vertex indices [F, 3], int32, F < 2^24.
            resolution: (height, width) in pixels, each at most 2048.

        Returns:
            rast: [B, H, W, 4] holding (u, v, z/w, triangle + 1); zeros where there is no triangle. u and v
                are the perspective-correct weights of the triangle's first and second vertex, which
                have (u, v) = (1, 0) and (0, 1); the third vertex has (0, 0). Gradients of u and v reach
                `pos`.
            rast_db: [B, H, W, 4] holding (du/dX, du/dY, dv/dX, dv/dY) per pixel; not differentiated.
        """
        ...

    def interpolate(
        self, attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Interpolates vertex attributes at every pixel.

        Args:
            attr: Attributes [B or 1, N, C]; one view serves all.
            rast: Output of `rasterize` [B, H, W, 4].
            tri: Vertex indices into `attr` [F, 3], int32; may differ from the rasterized ones in its
                indices (texture seams), not in its order.
            rast_db: Second output of `rasterize` [B, H, W, 4], if slopes are wanted.

        Returns:
            out: Attributes [B, H, W, C], zeros where there is no triangle. Gradients reach `attr` and the u
                and v of `rast`.
            out_da: None without `rast_db`, else [B, H, W, 2 C] holding (dA0/dX, dA0/dY, dA1/dX, ...) per
                pixel; not differentiated.
        """
        ...

    def texture(
        self,
        tex: Tensor,
        uv: Tensor,
        uv_da: Tensor | None = None,
        filter_mode: FilterMode = "linear",
        boundary_mode: BoundaryMode = "wrap",
        max_mip_level: int | None = None,
    ) -> Tensor:
        """Looks coordinates up in a texture.

        Args:
            tex: Texture [B or 1, Ht, Wt, C]; one view serves all.
            uv: Coordinates [B, H, W, 2], 0..1 over the texture.
            uv_da: Slopes of the coordinates [B, H, W, 4] as (du/dX, du/dY, dv/dX, dv/dY), per pixel: the
                second output of `interpolate`. Needed by "linear-mipmap-linear", ignored by the others.
            filter_mode: "nearest", "linear" (four texels), or "linear-mipmap-linear": between the two levels
                of a chain of 2 x 2 box averages that are nearest to log2 of the longer axis of the
                pixel's footprint.
            boundary_mode: "wrap" repeats the texture, "clamp" continues its outermost texels.
            max_mip_level: Most halvings in the chain; None for all, which takes sides that are powers of two.

        Returns:
            Colours [B, H, W, C], at every pixel, whether or not a triangle covers it. Gradients reach `tex`
            and, unless "nearest", `uv`.
        """
        ...

    def make_topology(self, tri: Tensor, vertices: int) -> Topology:
        """Finds which triangles are neighbours, for `antialias` to use more than once.

        Args:
            tri: Vertex indices [F, 3], int32.
            vertices: Number of vertices, N.

        Returns:
            What this backend's `antialias` takes as `topology`, with the same triangles only.
        """
        ...

    def antialias(
        self, color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor, topology: Topology | None = None
    ) -> Tensor:
        """Blends pixels across silhouettes by how far the silhouette edge reaches between their centres.

        An edge is a silhouette if it belongs to one triangle only, or if its two triangles lie on the same
        side of it on the screen. Triangles are neighbours by common vertex indices: weld vertices first.

        Args:
            color: Image [B, H, W, C].
            rast: Output of `rasterize` [B, H, W, 4].
            pos: The clip-space vertices that were rasterized [B, N, 4].
            tri: The triangles that were rasterized [F, 3], int32.
            topology: What `make_topology` returned for `tri`. By default neighbourhoods are found here, and
                may be remembered for the tensors seen last: do not write to one behind torch's back.

        Returns:
            The image with smooth silhouettes [B, H, W, C]. Gradients reach `color` and, through the places
            of the silhouettes, `pos`.
        """
        ...


def make_backend(name: BackendName = "auto", device: torch.device | str = "cpu") -> RasterBackend:
    """Makes a backend; its kernels are loaded, or compiled once and cached on disk, at their first use.

    Args:
        name: "nvdiffrast" (CUDA only), "warp" (CPU and CUDA), or "auto": nvdiffrast where it is installed and
            the device is a CUDA device, else Warp.
        device: Where the tensors will live.

    Returns:
        A backend for that device.

    Raises:
        ValueError: The name is unknown, or nvdiffrast was asked to work on another device than CUDA.
        RuntimeError: nvdiffrast was asked for and is not installed.
    """
    # The implementations are imported late: neither Warp nor nvdiffrast is needed to describe the contract.
    from models.raster.nvdiffrast_backend import NvdiffrastBackend, nvdiffrast_installed

    device = torch.device(device)
    if device.type == "cuda" and device.index is None:  # tensors always say which card they are on
        device = torch.device("cuda", torch.cuda.current_device())  # type: ignore[unreachable, unused-ignore]
    if name == "auto":
        name = "nvdiffrast" if device.type == "cuda" and nvdiffrast_installed() else "warp"
    if name == "nvdiffrast":
        return NvdiffrastBackend(device)
    if name == "warp":
        from models.raster.warp_backend import WarpBackend

        return WarpBackend(device)
    raise ValueError(f"unknown raster backend {name!r}; choose 'auto', 'nvdiffrast' or 'warp'")
