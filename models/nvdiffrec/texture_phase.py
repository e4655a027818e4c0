"""Phase 2: fixed topology; the texture, and small moves of the vertices, fitted to the views."""

from __future__ import annotations

import torch
from torch import Tensor

from models.base import Callback
from models.geometry.mesh import Mesh, unique_edges
from models.nvdiffrec.config import TextureConfig
from models.nvdiffrec.descent import descend
from models.nvdiffrec.losses import compare
from models.nvdiffrec.regularizers import total_variation, umbrella
from models.nvdiffrec.targets import Targets, batches
from models.raster import RasterBackend
from models.render import clip_positions


def optimize_texture(
    raster: RasterBackend,
    targets: Targets,
    mesh: Mesh,
    uvs: Tensor,
    uv_faces: Tensor,
    texture: Tensor,
    config: TextureConfig,
    generator: torch.Generator,
    callback: Callback,
) -> tuple[Tensor, Tensor, list[float]]:
    """Fit a texture and the vertices to the views.

    Args:
        raster: The rasterizer; everything is on its device.
        targets: The views in the normalised frame.
        mesh: The surface, normalised frame.
        uvs, uv_faces: Its atlas.
        texture: Initial base colour [S, S, 3], sRGB.
        config: Hyper-parameters.
        generator: CPU generator of the order of views.
        callback: Told the fraction of this phase; may raise `JobCancelled`.

    Returns:
        Vertices [N, 3], texture [S, S, 3] in [0, 1], and the curve of the training PSNR in dB.

    Raises:
        ModelError: MODEL_DIVERGED, where the loss is not a number.
    """
    texture = texture.clone().requires_grad_()
    offset = torch.zeros_like(mesh.vertices).requires_grad_()
    edges = unique_edges(mesh.faces)
    start = umbrella(mesh.vertices, edges)
    optimizer = torch.optim.Adam(
        [{"params": [texture], "lr": config.texture_rate}, {"params": [offset], "lr": config.vertex_rate}],
        fused=True,
    )
    source = batches(targets, config.batch_size, generator)

    def step() -> tuple[Tensor, Tensor]:
        vertices = mesh.vertices + offset
        loss, error = _render_loss(raster, vertices, mesh.faces, uvs, uv_faces, texture, next(source), config)
        # Vertices may move, but neighbours together: the change of the umbrella vector is what costs.
        roughness = (umbrella(vertices, edges) - start).square().sum(-1).mean()
        loss = loss + config.smooth_weight * roughness
        return loss + config.texture_smooth_weight * total_variation(texture), error

    curve = descend(
        optimizer,
        step,
        iterations=config.iterations,
        final_rate=config.final_rate,
        name="texture",
        callback=callback,
    )
    return (mesh.vertices + offset).detach(), texture.detach().clamp(0, 1), curve


def _render_loss(
    raster: RasterBackend,
    vertices: Tensor,
    faces: Tensor,
    uvs: Tensor,
    uv_faces: Tensor,
    texture: Tensor,
    targets: Targets,
    config: TextureConfig,
) -> tuple[Tensor, Tensor]:
    """Loss of one batch and the mean squared error of its premultiplied colours."""
    position = clip_positions(vertices, targets.clip_from_world).contiguous()  # [B, N, 4]
    rast, rast_db = raster.rasterize(position, faces, targets.sample_size)
    uv, uv_da = raster.interpolate(uvs[None], rast, uv_faces, rast_db)
    color = raster.texture(
        texture[None], uv, uv_da, filter_mode="linear-mipmap-linear", boundary_mode="clamp"
    )
    depth, _ = raster.interpolate(position[..., 3:].contiguous(), rast, faces)
    covered = (rast[..., 3:] > 0).to(color.dtype)
    image = raster.antialias(torch.cat([color * covered, covered], -1), rast, position, faces)
    return compare(image, depth, covered, targets, config.images)
