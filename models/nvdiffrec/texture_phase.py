"""Phase 2: fixed topology; the looks of the surface, and small moves of its vertices, fitted to the views."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models.base import Callback
from models.geometry.mesh import Mesh, TexturedMesh, unique_edges
from models.nvdiffrec.config import TextureConfig
from models.nvdiffrec.descent import descend
from models.nvdiffrec.losses import compare
from models.nvdiffrec.materials import BakedPaint, MaterialPaint, Paint
from models.nvdiffrec.regularizers import umbrella
from models.nvdiffrec.targets import Targets, batches
from models.raster import RasterBackend
from models.render import draw, shading_limit


def optimize_appearance(
    raster: RasterBackend,
    targets: Targets,
    mesh: Mesh,
    uvs: Tensor,
    uv_faces: Tensor,
    texture: Tensor,
    config: TextureConfig,
    generator: torch.Generator,
    callback: Callback,
    *,
    materials: Literal["unlit", "pbr"] = "unlit",
    normal_map: bool = False,
) -> tuple[TexturedMesh, list[float]]:
    """Fit the looks of a surface and its vertices to the views.

    Args:
        raster: The rasterizer; everything is on its device.
        targets: The views in the normalised frame.
        mesh: The surface, normalised frame.
        uvs, uv_faces: Its atlas.
        texture: Initial colours [S, S, 3], sRGB, with the light of the views in them.
        config: Hyper-parameters.
        generator: CPU generator of the order of views.
        callback: Told the fraction of this phase; may raise `JobCancelled`.
        materials: "unlit": one colour, light baked in. "pbr": albedo, roughness, metallic and the light.
        normal_map: Whether to optimise a normal map too; "pbr" only.

    Returns:
        The mesh in the normalised frame, textures in their ranges; with "pbr" its environment is in the
        world's frame, as the normalised one is not turned. And the curve of the training PSNR in dB.

    Raises:
        ModelError: MODEL_DIVERGED, where the loss is not a number.
    """
    start = TexturedMesh(mesh.vertices, mesh.faces, uvs, uv_faces, texture)
    paint: Paint = BakedPaint(start, config)
    if materials == "pbr":
        paint = MaterialPaint(raster, start, config, normal_map=normal_map)
    offset = torch.zeros_like(mesh.vertices).requires_grad_()
    edges = unique_edges(mesh.faces)
    bends = umbrella(mesh.vertices, edges)
    optimizer = torch.optim.Adam(
        [*paint.parameters(), {"params": [offset], "lr": config.vertex_rate}], fused=True
    )
    limit = _limit(raster, start, paint, targets, config)
    source = batches(targets, config.batch_size, generator)

    def step() -> tuple[Tensor, Tensor]:
        paint.project()
        vertices = mesh.vertices + offset
        loss, error = _render_loss(raster, paint, vertices, next(source), config, limit)
        # Vertices may move, but neighbours together: the change of the umbrella vector is what costs.
        roughness = (umbrella(vertices, edges) - bends).square().sum(-1).mean()
        loss = loss + config.smooth_weight * roughness
        return loss + paint.regularizer(), error

    curve = descend(
        optimizer,
        step,
        iterations=config.iterations,
        final_rate=config.final_rate,
        name="texture",
        callback=callback,
    )
    return paint.finished((mesh.vertices + offset).detach()), curve


def _limit(
    raster: RasterBackend, start: TexturedMesh, paint: Paint, targets: Targets, config: TextureConfig
) -> int | None:
    """How many samples of a batch are shaded; None where that can be counted without waiting for a device."""
    if paint.light() is None or raster.device.type == "cpu":
        return None
    batch = min(config.batch_size, len(targets))
    return shading_limit(raster, start, targets.clip_from_world, targets.sample_size, batch)


def _render_loss(
    raster: RasterBackend,
    paint: Paint,
    vertices: Tensor,
    targets: Targets,
    config: TextureConfig,
    limit: int | None,
) -> tuple[Tensor, Tensor]:
    """Loss of one batch and the mean squared error of its premultiplied colours."""
    image, depth, covered = draw(
        raster,
        paint.on(vertices),
        targets.clip_from_world,
        targets.sample_size,
        paint.light(),
        paint.tangents,
        limit,
    )
    return compare(image, depth, covered, targets, config.images)


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
    """`optimize_appearance` of an unlit surface: its vertices, its texture and the curve."""
    made, curve = optimize_appearance(
        raster, targets, mesh, uvs, uv_faces, texture, config, generator, callback
    )
    return made.vertices, made.base_color, curve
