"""Score a reconstruction against views and against the true surface."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.reconstruction.alignment import Similarity
from benchmarks.reconstruction.image_metrics import depth_error, mask_iou, over_white, psnr_db, ssim
from benchmarks.reconstruction.lpips_metric import Perceptual
from benchmarks.reconstruction.surface_metrics import SurfaceSamples, compare_surfaces, sample_surface
from models.base import Views
from models.geometry.camera import Cameras
from models.geometry.mesh import TexturedMesh
from models.raster import RasterBackend
from models.raster.checks import MAX_SIDE
from models.render import SAMPLES, Rendering, render_textured
from pipeline.masks import FOREGROUND
from pipeline.rendering import render_view

Render = Callable[[Cameras], Rendering]
"""Renders V cameras, on the cameras' device."""

PIXELS_AT_ONCE = 2**21
"""Pixels scored together: 8 views of 512x512, which take about 1 GiB."""

_MADE_SEED = 1  # not the seed of the true surface


def renderer(raster: RasterBackend, mesh: TexturedMesh, *, samples: int = SAMPLES) -> Render:
    """Renders a finished mesh; one view at a time where the rasterizer needs tiles.

    Args:
        raster: The rasterizer.
        mesh: On the rasterizer's device.
        samples: Samples along each side of a pixel.
    """

    def render(cameras: Cameras) -> Rendering:
        if max(cameras.width, cameras.height) * samples <= MAX_SIDE:
            return render_textured(raster, mesh, cameras, samples=samples)
        views = [render_view(raster, mesh, cameras[[i]], samples=samples) for i in range(len(cameras))]
        return Rendering(
            torch.cat([view.color for view in views]),
            torch.cat([view.alpha for view in views]),
            torch.cat([view.depth for view in views]),
        )

    return render


def through(render: Render, similarity: Similarity) -> Render:
    """Renders cameras of the true world, and their depth, although the mesh lies in an estimated one."""

    def render_true(cameras: Cameras) -> Rendering:
        seen = render(similarity.cameras_to_estimated(cameras))
        return seen._replace(depth=seen.depth * similarity.scale)

    return render_true


@torch.no_grad()
def score_images(
    render: Render,
    views: Views,
    device: torch.device,
    *,
    depth: Render | None = None,
    perceptual: Perceptual | None = None,
) -> dict[str, float | None]:
    """Means over views of the metrics of `image_metrics`.

    Args:
        render: Renders colours.
        views: What is compared with; on any device.
        device: Where to compute.
        depth: Renders depth at the centres of pixels; without it, or without depth in `views`, none is
            compared.
        perceptual: LPIPS, over white.

    Returns:
        `psnr_db`, `ssim`, `psnr_mask_db`, `ssim_mask`, `mask_iou`; `depth_error`, world units, and `lpips`
        where they were measured. None for a metric that no view has.
    """
    scores: dict[str, list[Tensor]] = {}
    for batch in _batches(views):
        seen = views.subset(batch).to(device)
        for name, values in _score_batch(render, seen, depth, perceptual).items():
            scores.setdefault(name, []).append(values.double())
    stacked = torch.stack([torch.cat(values).nanmean() for values in scores.values()])
    means = stacked.tolist()  # the only wait for the device
    return {name: None if math.isnan(mean) else mean for name, mean in zip(scores, means, strict=True)}


@torch.no_grad()
def mean_psnr_db(render: Render, views: Views, device: torch.device) -> float:
    """Mean PSNR over white of whole images, dB: what `score_images` calls `psnr_db`, and nothing else."""
    values = []
    for batch in _batches(views):
        seen = views.subset(batch).to(device)
        values.append(psnr_db(_image(render(seen.cameras)), over_white(seen.images, seen.masks)))
    return float(torch.cat(values).mean())


def score_surface(
    mesh: TexturedMesh, truth: SurfaceSamples, similarity: Similarity | None = None
) -> dict[str, float]:
    """The metrics of `compare_surfaces`.

    Args:
        mesh: What was made.
        truth: Samples of the true surface.
        similarity: Into the true world, where the mesh lies in another.
    """
    vertices = mesh.vertices.detach().cpu().double().numpy()
    if similarity is not None:
        vertices = similarity.points_to_true(vertices)
    faces = np.asarray(mesh.faces.detach().cpu().numpy())
    return compare_surfaces(sample_surface(vertices, faces, seed=_MADE_SEED), truth)


def _score_batch(
    render: Render, views: Views, depth: Render | None, perceptual: Perceptual | None
) -> dict[str, Tensor]:
    rendered = render(views.cameras)
    image, reference = _image(rendered), over_white(views.images, views.masks)
    region = views.masks > FOREGROUND
    whole, inside = ssim(image, reference, region)
    scores = {
        "psnr_db": psnr_db(image, reference),
        "ssim": whole,
        "psnr_mask_db": psnr_db(image, reference, region),
        "ssim_mask": inside,
        "mask_iou": mask_iou(rendered.alpha, views.masks),
    }
    if depth is not None and views.depths is not None:
        scores["depth_error"] = depth_error(depth(views.cameras).depth, views.depths)
    if perceptual is not None:
        scores["lpips"] = perceptual(image, reference)
    return scores


def _image(rendered: Rendering) -> Tensor:
    return rendered.over(1.0).clamp(0, 1)


def _batches(views: Views) -> list[list[int]]:
    size = max(1, PIXELS_AT_ONCE // (views.cameras.width * views.cameras.height))
    index = list(range(len(views)))
    return [index[start : start + size] for start in range(0, len(index), size)]
