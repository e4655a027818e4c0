"""Hyper-parameters. Lengths are in the normalised frame, in which the grid spans [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from models.geometry.atlas import texture_side
from schemas.options import NvdiffrecOptions

Materials = Literal["unlit", "pbr"]


@dataclass(frozen=True)
class ImageWeights:
    """How much each difference between rendering and view counts."""

    color: float = 1.0
    mask: float = 2.0
    depth: float = 12.0
    depth_cutoff: float = 0.1  # depth errors beyond this are a wrong match, not a gradient


@dataclass(frozen=True)
class GridLevel:
    """One grid of the way from coarse to fine."""

    resolution: int  # cubes along each axis
    iterations: int


@dataclass(frozen=True)
class GeometryConfig:
    """Phase 1: free topology."""

    levels: tuple[GridLevel, ...] = (GridLevel(64, 150),)
    batch_size: int = 6  # views a step
    sdf_rate: float = 1e-3  # Adam's learning rates; a step moves the surface by about this much
    deform_rate: float = 1e-3
    weight_rate: float = 1e-2
    color_rate: float = 1e-2
    camera_rate: float = 1e-3  # where cameras are corrected
    final_rate: float = 0.1  # share of the rates that is left at the last step (exponential decay)
    images: ImageWeights = ImageWeights()
    sign_weight: float = 0.02  # discourages surface that the images do not ask for
    deviation_weight: float = 0.25  # the FlexiCubes paper's L_dev
    camera_weight: float = 1e-4  # of corrections, against their expected size
    smooth_weight: float = 2.0  # Laplacian of the vertices
    crease_weight: float = 0.0  # normals of neighbours
    area_weight: float = 0.0  # of the whole surface
    albedo_weight: float = 0.05  # change of the albedo over `albedo_distance`, where a view sees the surface
    unseen_albedo_weight: float = 0.02  # the same at vertices, seen or not
    albedo_distance: float = 0.03


@dataclass(frozen=True)
class TextureConfig:
    """Phase 2: fixed topology, texture and small moves of the vertices."""

    iterations: int = 100
    batch_size: int = 6
    resolution: int = 256  # side of the atlas, texels
    texture_rate: float = 1e-2
    vertex_rate: float = 2e-4
    final_rate: float = 0.1
    images: ImageWeights = ImageWeights()
    smooth_weight: float = 10.0
    texture_smooth_weight: float = 0.1  # total variation of the atlas
    # Materials ("pbr") only:
    initial_roughness: float = 0.7
    light_height: int = 16  # rows of the environment map; twice as many columns
    material_rate: float = 2e-2
    light_rate: float = 4e-2  # of the log of the radiance
    normal_rate: float = 5e-3  # of the slopes of the normal map
    material_smooth_weight: float = 0.1  # total variation of roughness and metallic
    metallic_weight: float = 1e-3  # what nothing speaks for is not metal
    light_white_weight: float = 1e-2  # mean distance of the light from grey
    light_smooth_weight: float = 1e-4  # total variation of the log of the radiance
    light_level_weight: float = 1e-2  # squared log of the light's mean, which settles the scale of the albedo
    normal_flat_weight: float = 1e-2  # mean squared slope of the normal map


@dataclass(frozen=True)
class NvdiffrecConfig:
    """Everything that shapes a run."""

    seed: int = 0
    use_depth: bool = True
    refine_cameras: Literal["auto", "on", "off"] = "auto"
    train_resolution: int = 1024  # longer side at which views are compared at most, pixels
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    texture: TextureConfig = field(default_factory=TextureConfig)
    materials: Materials = "unlit"
    normal_map: bool = False
    target_triangles: int = 50_000


@dataclass(frozen=True)
class _Preset:
    """What a preset decides; sizes for views whose longer side is given in pixels."""

    finest_grid: int  # bounds of the grid's resolution
    pixels_per_cell: float  # of an image that the object fills
    geometry_iterations: int
    texture_iterations: int
    train_resolution: int
    texels_per_pixel: float  # side of the atlas against the longer side of the views
    materials: Materials


_PRESETS = {
    "preview": _Preset(40, 6.0, 90, 40, 256, 1.0, "unlit"),
    "standard": _Preset(64, 8 / 3, 240, 100, 1024, 2.0, "pbr"),
    "high": _Preset(96, 2.0, 400, 300, 2048, 2.0, "pbr"),
}

_COARSEST_GRID = 12
_WELL_MEASURED = 0.5  # share of the object's pixels with depth from which depth is what decides the shape
_DEPTH_SHARE = 0.625  # of the steps of phase 1: what is left to do where depth has carved the first shape


def texture_resolution(longer_side: int, texels_per_pixel: float, wanted: int | None = None) -> int:
    """Side of the atlas: what is wanted, or about as many texels as six views have pixels on the object.

    More texels than the views can determine only hold noise.
    """
    if wanted is None:
        wanted = min(max(round(texels_per_pixel * longer_side), 256), 2048)
    return texture_side(wanted)


def grid_levels(finest: int, iterations: int, *, use_depth: bool) -> tuple[GridLevel, ...]:
    """The grids of a run, coarse to fine, each about half as fine as the next; odd steps go to the last."""
    resolutions = [finest]
    while not use_depth and resolutions[0] >= 2 * _COARSEST_GRID and len(resolutions) < iterations:
        resolutions.insert(0, resolutions[0] // 2)
    share, rest = divmod(iterations, len(resolutions))
    levels = [GridLevel(resolution, share) for resolution in resolutions]
    levels[-1] = GridLevel(finest, share + rest)
    return tuple(levels)


def _geometry(finest: int, iterations: int, batch_size: int, *, use_depth: bool) -> GeometryConfig:
    """Phase 1.

    Depth says where the surface is. Without it the shape is found by smoothness, shading and silhouettes,
    which work over long distances: hence the start on a coarse grid, and stronger regularisers.
    """
    levels = grid_levels(finest, iterations, use_depth=use_depth)
    if use_depth:
        return GeometryConfig(levels, batch_size)
    return GeometryConfig(
        levels,
        batch_size,
        sdf_rate=3e-3,
        sign_weight=0.03,
        smooth_weight=30.0,
        crease_weight=0.1,
        area_weight=1e-3,
        albedo_weight=0.2,
        unseen_albedo_weight=0.05,
    )


def make_config(options: NvdiffrecOptions, longer_side: int, *, depth_share: float) -> NvdiffrecConfig:
    """The configuration for a job.

    Args:
        options: The job's.
        longer_side: Of the views, pixels.
        depth_share: Share of the object's pixels that have depth.
    """
    preset = _PRESETS[options.preset]
    use_depth = options.use_depth and depth_share > 0
    well_measured = options.use_depth and depth_share >= _WELL_MEASURED
    train = min(options.train_resolution or preset.train_resolution, longer_side)
    grid = round(min(max(train / preset.pixels_per_cell, 32), preset.finest_grid))
    finest = options.grid_resolution or grid
    share = _DEPTH_SHARE if well_measured else 1.0
    iterations = options.geometry_iterations or round(share * preset.geometry_iterations)
    batch_size = options.batch_size or 6
    return NvdiffrecConfig(
        seed=options.seed,
        use_depth=use_depth,
        refine_cameras=options.refine_cameras,
        train_resolution=train,
        geometry=_geometry(finest, iterations, batch_size, use_depth=well_measured),
        texture=TextureConfig(
            iterations=options.texture_iterations or preset.texture_iterations,
            batch_size=batch_size,
            resolution=texture_resolution(train, preset.texels_per_pixel, options.texture_resolution),
        ),
        materials=options.materials or ("pbr" if options.normal_map else preset.materials),
        normal_map=bool(options.normal_map),
        target_triangles=options.target_triangles,
    )
