"""Phase 1: a signed-distance grid whose isosurface is rendered and compared with the views."""

from __future__ import annotations

import torch
from torch import Tensor

from models.base import Callback
from models.geometry.flexicubes import WEIGHTS_PER_CUBE, FlexiCubes, Isosurface
from models.geometry.mesh import Mesh, unique_edges
from models.nvdiffrec.color_field import ColorField
from models.nvdiffrec.config import GeometryConfig
from models.nvdiffrec.descent import descend
from models.nvdiffrec.losses import compare
from models.nvdiffrec.regularizers import laplacian_loss, sign_loss
from models.nvdiffrec.targets import Targets, batches
from models.raster import RasterBackend
from models.render import clip_positions
from schemas.errors import ErrorCode, ModelError

_BORDER_DISTANCE = 1e-3  # the surface must not touch the grid's border: border vertices stay outside by this


class SdfGrid:
    """The free parameters of phase 1: signed distances, small moves of the grid, FlexiCubes weights.

    Args:
        flexicubes: The extractor; fixes the grid's size.
        sdf: Initial signed distance [(R + 1)^3], normalised frame, negative inside.
    """

    def __init__(self, flexicubes: FlexiCubes, sdf: Tensor) -> None:
        device = sdf.device
        self._flexicubes = flexicubes
        self._positions = flexicubes.grid_positions()
        self._border = flexicubes.border()
        self._half_cell = 1.0 / flexicubes.resolution
        self.sdf = sdf.clone().requires_grad_()
        self.deform = torch.zeros(flexicubes.vertex_count, 3, device=device, requires_grad=True)
        self.weights = torch.zeros(flexicubes.cube_count, WEIGHTS_PER_CUBE, device=device, requires_grad=True)
        self._edges = _grid_edges(flexicubes.resolution, device)

    @property
    def distance(self) -> Tensor:
        """Signed distances with a border that is always outside, [(R + 1)^3]."""
        return torch.where(self._border, self.sdf.clamp(min=_BORDER_DISTANCE), self.sdf)

    def surface(self, *, training: bool) -> Isosurface:
        """The surface as it stands."""
        moved = self._positions + torch.tanh(self.deform) * (0.99 * self._half_cell)
        return self._flexicubes.extract(moved, self.distance, self.weights, training=training)

    def sign_loss(self) -> Tensor:
        """See `regularizers.sign_loss`; distances are in cells."""
        return sign_loss(self.distance / (2 * self._half_cell), self._edges)


def _grid_edges(resolution: int, device: torch.device) -> Tensor:
    """All edges of the grid, [3 R (R + 1)^2, 2]."""
    side = resolution + 1
    index = torch.arange(side**3, device=device).reshape(side, side, side)
    pairs = [(index[1:], index[:-1]), (index[:, 1:], index[:, :-1]), (index[:, :, 1:], index[:, :, :-1])]
    return torch.cat([torch.stack([a.reshape(-1), b.reshape(-1)], 1) for a, b in pairs])


def optimize_geometry(
    raster: RasterBackend,
    targets: Targets,
    sdf: Tensor,
    config: GeometryConfig,
    generator: torch.Generator,
    callback: Callback,
) -> tuple[Mesh, ColorField, list[float]]:
    """Fit a surface and a colour field to the views.

    Args:
        raster: The rasterizer; `targets` and `sdf` are on its device.
        targets: The views in the normalised frame.
        sdf: Initial signed distance [(R + 1)^3].
        config: Hyper-parameters.
        generator: CPU generator of every random number.
        callback: Told the fraction of this phase; may raise `JobCancelled`.

    Returns:
        The extracted mesh (normalised frame), the colour field, and the curve of the training PSNR in dB.

    Raises:
        ModelError: MODEL_DIVERGED, where the surface vanishes or the loss is not finite.
    """
    grid = SdfGrid(FlexiCubes(config.resolution, sdf.device), sdf)
    field = ColorField(generator=generator).to(sdf.device)
    optimizer = torch.optim.Adam(
        [
            {"params": [grid.sdf], "lr": config.sdf_rate},
            {"params": [grid.deform], "lr": config.deform_rate},
            {"params": [grid.weights], "lr": config.weight_rate},
            {"params": list(field.parameters()), "lr": config.color_rate},
        ],
        fused=True,
    )
    source = batches(targets, config.batch_size, generator)

    def step() -> tuple[Tensor, Tensor]:
        surface = _nonempty(grid.surface(training=True))
        loss, error = _render_loss(raster, surface, field, next(source), config)
        loss = loss + config.deviation_weight * surface.deviation
        loss = loss + config.smooth_weight * laplacian_loss(surface.vertices, unique_edges(surface.faces))
        return loss + config.sign_weight * grid.sign_loss(), error

    curve = descend(
        optimizer,
        step,
        iterations=config.iterations,
        final_rate=config.final_rate,
        name="shape",
        callback=callback,
    )
    with torch.no_grad():
        surface = _nonempty(grid.surface(training=False))
    return Mesh(surface.vertices, surface.faces), field, curve


def _nonempty(surface: Isosurface) -> Isosurface:
    if surface.faces.shape[0] == 0:
        raise ModelError(ErrorCode.MODEL_DIVERGED, "The surface vanished during the optimisation.")
    return surface


def _render_loss(
    raster: RasterBackend, surface: Isosurface, field: ColorField, targets: Targets, config: GeometryConfig
) -> tuple[Tensor, Tensor]:
    """Loss of one batch and the mean squared error of its premultiplied colours."""
    position = clip_positions(surface.vertices, targets.clip_from_world).contiguous()  # [B, N, 4]
    rast, _ = raster.rasterize(position, surface.faces, targets.sample_size)
    world = surface.vertices.expand(len(targets), -1, -1)
    attributes = torch.cat([world, position[..., 3:]], -1).contiguous()  # point, z-depth
    found, _ = raster.interpolate(attributes, rast, surface.faces)
    covered = rast[..., 3] > 0
    color = field(found[..., :3][covered])
    image = color.new_zeros(*rast.shape[:3], 4)
    image[covered] = torch.cat([color, torch.ones_like(color[:, :1])], -1)
    image = raster.antialias(image, rast, position, surface.faces)
    return compare(image, found[..., 3:], covered[..., None], targets, config.images)
