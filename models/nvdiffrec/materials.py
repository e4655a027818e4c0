"""What phase 2 paints the surface with: a colour with the light baked in, or a material and its light.

The images fix only the product of light and albedo. The scale is settled by a weak pull of the light's mean
over the sphere to 1 (`TextureConfig.light_level_weight`): a white diffuse surface under that mean has colour
1, so the albedo is about as bright as the photographs, and the light can still rise where an albedo of 1 is
not enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry.atlas import bake
from models.geometry.mesh import TexturedMesh, vertex_normals
from models.geometry.tangents import vertex_tangents
from models.nvdiffrec.config import TextureConfig
from models.nvdiffrec.light_fit import fit_light
from models.nvdiffrec.regularizers import color_cast, total_variation
from models.raster import RasterBackend
from models.shading.brdf import DIELECTRIC_F0, specular_albedo
from models.shading.color import linear_to_srgb, srgb_to_linear
from models.shading.light import EnvironmentLight, FilteredLight, filter_light, mean_radiance

_MIN_ROUGHNESS = 0.08  # smoother lobes fall between the texels of so small a light and get no gradient
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear sRGB (IEC 61966-2-1)


class Paint(Protocol):
    """The free parameters of a surface's looks."""

    tangents: Tensor | None
    """See `models.shading.deferred.shade_samples`."""

    def parameters(self) -> Iterable[dict[str, Any]]:
        """Parameter groups for an optimiser, with their learning rates."""
        ...

    def project(self) -> None:
        """Bring the parameters back to where they have a meaning; before each step."""
        ...

    def on(self, vertices: Tensor) -> TexturedMesh:
        """The mesh with these vertices and the looks as they stand; gradients reach the parameters."""
        ...

    def light(self) -> FilteredLight | None:
        """The light as it stands."""
        ...

    def regularizer(self) -> Tensor:
        """Weighted sum of what is asked of the looks besides matching the images."""
        ...

    def finished(self, vertices: Tensor) -> TexturedMesh:
        """The result, without gradients, values within their ranges."""
        ...


class BakedPaint:
    """One colour for each texel, the light of the photographs in it.

    Args:
        mesh: The surface with its atlas and initial `base_color`.
        config: Hyper-parameters.
    """

    tangents: Tensor | None = None

    def __init__(self, mesh: TexturedMesh, config: TextureConfig) -> None:
        self._mesh = mesh
        self._config = config
        self._texture = mesh.base_color.clone().requires_grad_()

    def parameters(self) -> Iterable[dict[str, Any]]:
        """See `Paint`."""
        return [{"params": [self._texture], "lr": self._config.texture_rate}]

    def project(self) -> None:
        """Nothing: colours beyond [0, 1] find back, and are cut off at the end."""

    def on(self, vertices: Tensor) -> TexturedMesh:
        """See `Paint`."""
        return _painted(self._mesh, vertices, self._texture)

    def light(self) -> None:
        """The light is in the colour."""

    def regularizer(self) -> Tensor:
        """See `Paint`."""
        return self._config.texture_smooth_weight * total_variation(self._texture)

    def finished(self, vertices: Tensor) -> TexturedMesh:
        """See `Paint`."""
        return _painted(self._mesh, vertices, self._texture.detach().clamp(0, 1))


class MaterialPaint:
    """Albedo, roughness, metallic, perhaps a normal map, and the light that they are seen in.

    Starts from a surface painted with its photographs' colours: the light is what explains how their
    brightness depends on the normal (`fit_light`), the albedo is the colour divided by it, so that the first
    rendering is about the given one.

    Args:
        raster: Draws the charts.
        mesh: The surface with its atlas and initial colours, light baked in.
        config: Hyper-parameters.
        normal_map: Whether to optimise a normal map.
    """

    def __init__(
        self, raster: RasterBackend, mesh: TexturedMesh, config: TextureConfig, *, normal_map: bool
    ) -> None:
        self._mesh = mesh
        self._config = config
        normals = vertex_normals(mesh.vertices, mesh.faces)
        radiance, albedo = _separated(raster, mesh, normals, config)
        self._environment = EnvironmentLight(radiance)
        self._albedo = linear_to_srgb(albedo).requires_grad_()
        start = torch.tensor([config.initial_roughness, 0.0], device=albedo.device)
        self._surface = start.expand(*albedo.shape[:2], 2).clone().requires_grad_()
        self.tangents: Tensor | None = None
        self._slopes: Tensor | None = None
        if normal_map:
            self.tangents = vertex_tangents(mesh.vertices, mesh.faces, mesh.uvs, mesh.uv_faces, normals)
            self._slopes = torch.zeros_like(albedo[..., :2]).requires_grad_()

    def parameters(self) -> Iterable[dict[str, Any]]:
        """See `Paint`."""
        groups = [
            {"params": [self._albedo], "lr": self._config.texture_rate},
            {"params": [self._surface], "lr": self._config.material_rate},
            {"params": list(self._environment.parameters()), "lr": self._config.light_rate},
        ]
        if self._slopes is not None:
            groups.append({"params": [self._slopes], "lr": self._config.normal_rate})
        return groups

    @torch.no_grad()
    def project(self) -> None:
        """Back into [0, 1]: an albedo above 1 would hide light, and a metal above 1 has no meaning."""
        self._albedo.clamp_(0, 1)
        self._surface[..., 0].clamp_(_MIN_ROUGHNESS, 1)
        self._surface[..., 1].clamp_(0, 1)

    def on(self, vertices: Tensor) -> TexturedMesh:
        """See `Paint`."""
        return _painted(self._mesh, vertices, self._albedo, self._surface, self._normal_map())

    def light(self) -> FilteredLight:
        """See `Paint`."""
        filtered: FilteredLight = self._environment()
        return filtered

    def regularizer(self) -> Tensor:
        """See `Paint`."""
        config, radiance = self._config, self._environment.radiance
        log_level = mean_radiance(radiance).mean().log()
        loss = config.texture_smooth_weight * total_variation(self._albedo)
        loss = loss + config.material_smooth_weight * total_variation(self._surface)
        loss = loss + config.metallic_weight * self._surface[..., 1].mean()
        loss = loss + config.light_white_weight * color_cast(radiance)
        loss = loss + config.light_smooth_weight * total_variation(self._environment.log_radiance)
        loss = loss + config.light_level_weight * log_level.square()
        if self._slopes is None:
            return loss
        return loss + config.normal_flat_weight * self._slopes.square().mean()

    def finished(self, vertices: Tensor) -> TexturedMesh:
        """See `Paint`."""
        self.project()
        with torch.no_grad():
            normal_map = self._normal_map()
        return _painted(
            self._mesh,
            vertices,
            self._albedo.detach(),
            self._surface.detach(),
            normal_map,
            self._environment.radiance.detach(),
        )

    def _normal_map(self) -> Tensor | None:
        """Unit normals [S, S, 3] in tangent space."""
        if self._slopes is None:
            return None
        return F.normalize(torch.cat([self._slopes, torch.ones_like(self._slopes[..., :1])], -1), dim=-1)


def _painted(
    mesh: TexturedMesh,
    vertices: Tensor,
    base_color: Tensor,
    roughness_metallic: Tensor | None = None,
    normal_map: Tensor | None = None,
    environment: Tensor | None = None,
) -> TexturedMesh:
    return TexturedMesh(
        vertices,
        mesh.faces,
        mesh.uvs,
        mesh.uv_faces,
        base_color,
        roughness_metallic,
        normal_map,
        environment,
    )


@torch.no_grad()
def _separated(
    raster: RasterBackend, mesh: TexturedMesh, normals: Tensor, config: TextureConfig
) -> tuple[Tensor, Tensor]:
    """A light [He, We, 3] and the linear albedo [S, S, 3] that under it has the mesh's colours."""
    size = mesh.base_color.shape[0]
    texel_normals = bake(
        raster, normals, mesh.faces, mesh.uvs, mesh.uv_faces, size, lambda n: F.normalize(n, dim=-1)
    )
    color = srgb_to_linear(mesh.base_color)
    brightness = color @ color.new_tensor(_LUMINANCE)
    radiance = fit_light(texel_normals.reshape(-1, 3), brightness.reshape(-1), config.light_height)
    light = filter_light(radiance)
    typical = color.new_full((1,), 2 / 3)  # mean cosine of what a camera sees of a sphere
    scale, bias = specular_albedo(typical, torch.full_like(typical, config.initial_roughness))
    mirrored = DIELECTRIC_F0 * scale + bias
    irradiance = light.irradiance(texel_normals)
    return radiance, ((color / irradiance - mirrored) / (1 - mirrored)).clamp(0, 1)
