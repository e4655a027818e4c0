"""A job's options, typed per model. Every default is the one that the classic six-view job wants."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Received

Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class InputOptions(Received):
    """What the input must hold."""

    min_views: int = Field(3, ge=3, le=1000, description="Fewer views than this are refused.")
    require_depth: bool = Field(False, description="Refuse an input in which any view lacks a depth map.")


class CameraOptions(Received):
    """Where the cameras come from when the input has no `transforms.json`."""

    rig: Literal["axis6"] | None = Field(
        None,
        description="Named rig for an input of images only; unset: the cameras are estimated from the "
        "images. `axis6`: front, right, back, left, top, bottom in the order of the file names, all looking "
        "at the origin; z is up, the front camera on -y.",
    )
    features: Literal["object", "all"] = Field(
        "object",
        description="Estimation only: which image features count. `object`: those inside the masks, right "
        "for a turntable too. `all`: the background's too, which helps a plain object that the camera moved "
        "around while everything stood still.",
    )
    rig_distance: float = Field(
        3.2, gt=0, le=1e4, description="Rig only: distance of the cameras from the origin, world units."
    )
    rig_fov_degrees: float = Field(
        40.0, gt=1, lt=170, description="Rig only: horizontal field of view, degrees."
    )


class QualityOptions(Received):
    """Thresholds of the verdict. The job's status is the worst of its metrics."""

    holdout: int = Field(
        0, ge=0, le=100, description="Number of views kept out of the optimisation and reported apart."
    )
    psnr_normal_db: float = Field(
        25.0, ge=0, le=100, description="Mean PSNR from which a result is `normal`, dB."
    )
    psnr_warning_db: float = Field(
        20.0, ge=0, le=100, description="Mean PSNR from which a result is `warning`, dB."
    )
    ssim_normal: float = Field(0.85, ge=-1, le=1, description="Mean SSIM from which a result is `normal`.")
    ssim_warning: float = Field(0.75, ge=-1, le=1, description="Mean SSIM from which a result is `warning`.")
    mask_iou_normal: float = Field(
        0.90, ge=0, le=1, description="Mean mask IoU from which a result is `normal`."
    )
    mask_iou_warning: float = Field(
        0.75, ge=0, le=1, description="Mean mask IoU from which a result is `warning`."
    )
    depth_error_normal: float = Field(
        0.02,
        ge=0,
        description="Mean absolute depth error up to which a result is `normal`, as a share of the "
        "object's bounding radius.",
    )
    depth_error_warning: float = Field(0.05, ge=0, description="The same, up to which a result is `warning`.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        pairs = {
            "psnr": (self.psnr_normal_db, self.psnr_warning_db),
            "ssim": (self.ssim_normal, self.ssim_warning),
            "mask_iou": (self.mask_iou_normal, self.mask_iou_warning),
            "depth_error": (-self.depth_error_normal, -self.depth_error_warning),
        }
        for name, (normal, warning) in pairs.items():
            if normal < warning:
                raise ValueError(f"the {name} threshold of `normal` must be as strict as that of `warning`")
        return self


class OutputOptions(Received):
    """What is uploaded besides the mesh."""

    previews: bool = Field(True, description="Render six stills and a turntable.")
    preview_size: int = Field(384, ge=64, le=2048, description="Side of a preview image, pixels.")
    up_axis: Literal["y", "z"] = Field(
        "z",
        description="The input world's up axis. glTF is y up: the GLB's root node turns the model upright.",
    )
    zip: bool = Field(False, description="Also pack the results into `result.zip`.")


class CommonOptions(Received):
    """Options that every model has."""

    seed: Seed = Field(
        0, description="Seed of every random number; the same seed on a CPU gives the same mesh."
    )
    input: InputOptions = InputOptions()
    cameras: CameraOptions = CameraOptions()
    quality: QualityOptions = QualityOptions()
    outputs: OutputOptions = OutputOptions()


class NvdiffrecOptions(CommonOptions):
    """Options of `nvdiffrec`: optimisation by differentiable rendering; unset ones follow the preset."""

    preset: Literal["preview", "standard", "high"] = Field(
        "standard", description="Time against quality; every option below overrides its part of it."
    )
    raster: Literal["auto", "nvdiffrast", "warp"] = Field(
        "auto",
        description="Rasterizer. `auto`: nvdiffrast where it is installed and a GPU is there, else Warp.",
    )
    materials: Literal["unlit", "pbr"] | None = Field(
        None,
        description="`pbr`: base colour, roughness, metallic, and the light they were seen in; `unlit`: one "
        "colour with the light baked in.",
    )
    normal_map: bool | None = Field(None, description="Optimise a tangent-space normal map; implies `pbr`.")
    grid_resolution: int | None = Field(
        None, ge=16, le=256, description="Cells of the signed-distance grid along one axis."
    )
    geometry_iterations: int | None = Field(
        None,
        ge=1,
        le=20000,
        description="Steps of phase 1, shape and colour field, over all its grids; fewer where the images "
        "stop improving.",
    )
    texture_iterations: int | None = Field(
        None,
        ge=1,
        le=20000,
        description="Steps of phase 2, textures on a fixed topology; fewer where the images stop improving.",
    )
    batch_size: int | None = Field(None, ge=1, le=64, description="Views rendered in one step.")
    train_resolution: int | None = Field(
        None, ge=32, le=2048, description="Longer side at which views are compared, pixels; never enlarged."
    )
    texture_resolution: int | None = Field(
        None, ge=64, le=2048, description="Side of the textures, pixels, rounded up to a power of two."
    )
    target_triangles: int = Field(
        50_000, ge=500, le=1_000_000, description="Meshes with more triangles than this are simplified."
    )
    use_depth: bool = Field(True, description="Use depth maps where the input has them.")
    refine_cameras: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Correct poses and focal length: by depth and silhouettes before the shape is made, "
        "without depth also together with it. `auto`: where the views contradict each other by more than "
        "exact cameras would.",
    )

    @model_validator(mode="after")
    def _lit(self) -> Self:
        if self.normal_map and self.materials == "unlit":
            raise ValueError("a normal map needs light: normal_map and materials `unlit` exclude each other")
        return self


class ReconviagenOptions(CommonOptions):
    """Options of `reconviagen`: multi-view conditioned generation."""

    raster: Literal["auto", "nvdiffrast", "warp"] = Field(
        "auto",
        description="Rasterizer of textures and previews. `auto`: nvdiffrast where it is installed and a GPU "
        "is there, else Warp.",
    )

    structure_steps: int = Field(30, ge=1, le=200, description="Sampler steps of the sparse structure.")
    structure_guidance: float = Field(
        7.5, ge=0, le=50, description="Guidance strength of the sparse structure."
    )
    latent_steps: int = Field(12, ge=1, le=200, description="Sampler steps of the structured latent.")
    latent_guidance: float = Field(
        3.0, ge=0, le=50, description="Guidance strength of the structured latent."
    )
    refine: bool = Field(
        False,
        description="Correct the sampling by renderings held against the input views, and by depth and "
        "masks where the cameras are given; several times slower.",
    )
    texture_resolution: int = Field(
        1024, ge=64, le=2048, description="Side of the textures, pixels, rounded up to a power of two."
    )
    target_triangles: int = Field(
        50_000, ge=500, le=1_000_000, description="Meshes with more triangles than this are simplified."
    )
    use_depth: bool = Field(True, description="Use depth maps where the input has them.")


Options = NvdiffrecOptions | ReconviagenOptions
