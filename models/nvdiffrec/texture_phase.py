"""Phase 2: fixed topology; the texture, and small moves of the vertices, fitted to the views."""

from __future__ import annotations

import torch
from torch import Tensor

from models.base import Callback
from models.geometry.mesh import Mesh, unique_edges
from models.nvdiffrec.config import TextureConfig
from models.nvdiffrec.losses import compare, psnr
from models.nvdiffrec.regularizers import total_variation, umbrella
from models.nvdiffrec.schedule import decay, report_every
from models.nvdiffrec.targets import Targets, batches
from models.raster import RasterBackend
from models.render import clip_positions

_REPORTS = 100


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
    """
    texture = texture.clone().requires_grad_()
    offset = torch.zeros_like(mesh.vertices).requires_grad_()
    edges = unique_edges(mesh.faces)
    start = umbrella(mesh.vertices, edges)
    optimizer = torch.optim.Adam(
        [{"params": [texture], "lr": config.texture_rate}, {"params": [offset], "lr": config.vertex_rate}],
        fused=True,
    )
    schedule = decay(optimizer, config.final_rate, config.iterations)
    curve: list[float] = []
    source = batches(targets, config.batch_size, generator)
    report = report_every(config.iterations, _REPORTS)
    for step in range(config.iterations):
        batch = next(source)
        vertices = mesh.vertices + offset
        loss, error = _render_loss(raster, vertices, mesh.faces, uvs, uv_faces, texture, batch, config)
        # Vertices may move, but neighbours together: the change of the umbrella vector is what costs.
        roughness = (umbrella(vertices, edges) - start).square().sum(-1).mean()
        loss = loss + config.smooth_weight * roughness
        loss = loss + config.texture_smooth_weight * total_variation(texture)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            texture.clamp_(0, 1)
        if step % report == 0 or step == config.iterations - 1:
            curve.append(psnr(error))
            message = f"texture: step {step + 1} of {config.iterations}"
            callback((step + 1) / config.iterations, message, {"psnr_db": curve[-1]})
        else:
            callback((step + 1) / config.iterations, "", {})
    return (mesh.vertices + offset).detach(), texture.detach(), curve


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
