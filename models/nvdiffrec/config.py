"""Hyper-parameters. Lengths are in the normalised frame, in which the grid spans [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.options import NvdiffrecOptions


@dataclass(frozen=True)
class ImageWeights:
    """How much each difference between rendering and view counts."""

    color: float = 1.0
    mask: float = 2.0
    depth: float = 12.0
    depth_cutoff: float = 0.1  # depth errors beyond this are a wrong match, not a gradient


@dataclass(frozen=True)
class GeometryConfig:
    """Phase 1: free topology."""

    resolution: int = 48  # cubes along each axis
    iterations: int = 150
    batch_size: int = 6  # views a step
    sdf_rate: float = 1e-3  # Adam's learning rates; a step moves the surface by about this much
    deform_rate: float = 1e-3
    weight_rate: float = 1e-2
    color_rate: float = 1e-2
    final_rate: float = 0.1  # share of the rates that is left at the last step (exponential decay)
    images: ImageWeights = ImageWeights()
    sign_weight: float = 0.02  # discourages surface that the images do not ask for
    deviation_weight: float = 0.25  # the FlexiCubes paper's L_dev
    smooth_weight: float = 2.0  # Laplacian of the vertices


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
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    texture: TextureConfig = field(default_factory=TextureConfig)


def texture_resolution(width: int, height: int, wanted: int | None = None) -> int:
    """Side of the atlas: what is wanted, or about as many texels as six views have pixels on the object.

    More texels than the views can determine only hold noise. Always rounded up to a power of two, so that mip
    levels halve evenly.
    """
    if wanted is None:
        wanted = min(max(2 * max(width, height), 256), 2048)
    return 1 << (wanted - 1).bit_length()


def grid_resolution(width: int, height: int) -> int:
    """Cubes along an axis, so that a cube spans two or three pixels of such views; within bounds."""
    return min(max(3 * max(width, height) // 8, 32), 64)


def make_config(options: NvdiffrecOptions, width: int, height: int) -> NvdiffrecConfig:
    """The configuration for a job whose views are compared at `width` x `height` pixels."""
    return NvdiffrecConfig(
        seed=options.seed,
        use_depth=options.use_depth,
        geometry=GeometryConfig(
            resolution=options.grid_resolution or grid_resolution(width, height),
            iterations=options.geometry_iterations or 150,
            batch_size=options.batch_size or 6,
        ),
        texture=TextureConfig(
            iterations=options.texture_iterations or 100,
            batch_size=options.batch_size or 6,
            resolution=texture_resolution(width, height, options.texture_resolution),
        ),
    )
