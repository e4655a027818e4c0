"""Phase 2: fixed topology; the looks of the surface, and small moves of its vertices, fitted to the views."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.base import Callback
from models.geometry.mesh import TexturedMesh, unique_edges
from models.nvdiffrec.config import Materials, TextureConfig
from models.nvdiffrec.descent import SHOW_EVERY, Descent
from models.nvdiffrec.journal import Journal
from models.nvdiffrec.losses import compare
from models.nvdiffrec.materials import BakedPaint, MaterialPaint, Paint
from models.nvdiffrec.regularizers import umbrella
from models.nvdiffrec.targets import Targets, batch_of
from models.raster import RasterBackend
from models.render import draw, shading_limit

PHASE = 1
"""Number of this phase in checkpoints."""

_START = ("vertices", "faces", "uvs", "uv_faces", "base_color")  # of the mesh that the phase starts from

Show = Callable[[str, TexturedMesh], None]
"""Called with the name of a step and the mesh after it, in the normalised frame."""


def optimize_appearance(
    raster: RasterBackend,
    targets: Targets,
    start: TexturedMesh,
    config: TextureConfig,
    seed: int,
    callback: Callback,
    journal: Journal,
    show: Show | None = None,
    *,
    kept: dict[str, Tensor] | None = None,
    materials: Materials = "unlit",
    normal_map: bool = False,
) -> tuple[TexturedMesh, list[float]]:
    """Fit the looks of a surface and its vertices to the views.

    Args:
        raster: The rasterizer; everything is on its device.
        targets: The views in the normalised frame.
        start: The surface, normalised frame, with an atlas; its `base_color` holds initial colours with the
            light of the views in them.
        config: Hyper-parameters.
        seed: Of the order of views.
        callback: Told the fraction of this phase; may raise `JobCancelled`.
        journal: Keeps checkpoints and knows where to go on.
        show: Shown the mesh every few steps.
        kept: What checkpoints hold besides the state of this phase.
        materials: "unlit": one colour, light baked in. "pbr": albedo, roughness, metallic and the light.
        normal_map: Whether to optimise a normal map too; "pbr" only.

    Returns:
        The mesh in the normalised frame, textures in their ranges; with "pbr" its environment is in the
        world's frame, as the normalised one is not turned. And the curve of the training PSNR in dB.

    Raises:
        ModelError: MODEL_DIVERGED, where the loss is not finite.
    """
    paint: Paint = BakedPaint(start, config)
    if materials == "pbr":
        paint = MaterialPaint(raster, start, config, normal_map=normal_map)
    offset = torch.zeros_like(start.vertices).requires_grad_()
    optimizer = torch.optim.Adam(
        [*paint.parameters(), {"params": [offset], "lr": config.vertex_rate}], fused=True
    )
    round_steps = -(-len(targets) // config.batch_size)
    descent = Descent(optimizer, config.iterations, (1.0, config.final_rate), round_steps)
    state = journal.resumed(PHASE)
    if state is not None:
        descent.restore(state)
    limit = None
    if raster.device.type == "cuda" and paint.light() is not None:
        views = min(config.batch_size, len(targets))
        limit = shading_limit(raster, start, targets.clip_from_world, targets.sample_size, views)
    edges = unique_edges(start.faces)
    bends = umbrella(start.vertices, edges)

    def step(done: int) -> tuple[Tensor, Tensor]:
        paint.project()
        vertices = start.vertices + offset
        batch = batch_of(targets, config.batch_size, done, seed)
        loss, error = _render_loss(raster, paint, vertices, batch, config, limit)
        # Vertices may move, but neighbours together: the change of the umbrella vector is what costs.
        roughness = (umbrella(vertices, edges) - bends).square().sum(-1).mean()
        return loss + config.smooth_weight * roughness + paint.regularizer(), error

    def finished() -> TexturedMesh:
        return paint.finished((start.vertices + offset).detach())

    write = journal.writer(descent, PHASE, 0, pack(start) | (kept or {}))

    def after(done: int) -> None:
        if write is not None:
            write(done)
        if show is not None and done % SHOW_EVERY == 0:
            show(f"texture: step {done}", finished())

    curve = descent.run(step, name="texture", callback=callback, after=after)
    made = finished()
    if show is not None:
        show("finished", made)
    return made, curve


def pack(start: TexturedMesh) -> dict[str, Tensor]:
    """What a checkpoint of this phase holds besides the descent: where it started from."""
    return {name: getattr(start, name) for name in _START}


def unpack(state: dict[str, Tensor], device: torch.device) -> TexturedMesh:
    """The start that `pack` kept."""
    return TexturedMesh(**{name: state[name].to(device) for name in _START})


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
