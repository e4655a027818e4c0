"""The textures of a mesh as 8-bit images, and its light as a Radiance file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from models.geometry.mesh import TexturedMesh

FOLDER = "textures"
BASE_COLOR_PATH = f"{FOLDER}/base_color.png"
ROUGHNESS_PATH = f"{FOLDER}/roughness.png"
METALLIC_PATH = f"{FOLDER}/metallic.png"
NORMAL_PATH = f"{FOLDER}/normal.png"
ENVIRONMENT_PATH = f"{FOLDER}/environment.hdr"


@dataclass(frozen=True)
class TextureImages:
    """The textures of a mesh, of one size, row 0 at the top.

    Attributes:
        base_color: RGB, sRGB.
        roughness, metallic: One channel, linear; None when unlit.
        normal: RGB, tangent-space normals as glTF has them, [-1, 1] mapped to [0, 255]; None for the plain
            surface.
    """

    base_color: Image.Image
    roughness: Image.Image | None
    metallic: Image.Image | None
    normal: Image.Image | None

    def packed(self) -> Image.Image | None:
        """Roughness in green and metallic in blue, as in glTF; red, elsewhere occlusion, is full."""
        if self.roughness is None or self.metallic is None:
            return None
        full = Image.new("L", self.roughness.size, 255)
        return Image.merge("RGB", (full, self.roughness, self.metallic))

    def files(self) -> dict[str, Image.Image]:
        """The images by the paths they have in a result."""
        images = {
            BASE_COLOR_PATH: self.base_color,
            ROUGHNESS_PATH: self.roughness,
            METALLIC_PATH: self.metallic,
            NORMAL_PATH: self.normal,
        }
        return {path: image for path, image in images.items() if image is not None}


def texture_images(mesh: TexturedMesh) -> TextureImages:
    """The textures of a mesh, rounded to 8 bits; what lies outside their range is clamped."""
    lit, normal = mesh.roughness_metallic, mesh.normal_map
    return TextureImages(
        base_color=_image(mesh.base_color),
        roughness=None if lit is None else _image(lit[..., 0]),
        metallic=None if lit is None else _image(lit[..., 1]),
        normal=None if normal is None else _image(normal * 0.5 + 0.5),
    )


def write_environment(radiance: torch.Tensor, path: Path) -> None:
    """Write an environment map in Radiance's RGBE format, of about 1% precision.

    Args:
        radiance: [He, We, 3] linear, row 0 at the top; negative values become 0.
        path: The file, its name ending in `.hdr`.
    """
    pixels = np.ascontiguousarray(radiance.detach().cpu().float().clamp(min=0).numpy()[..., ::-1])  # BGR
    _, data = cv2.imencode(".hdr", pixels)
    path.write_bytes(data.tobytes())


def _image(values: torch.Tensor) -> Image.Image:
    """An 8-bit image of values [H, W] or [H, W, 3] in [0, 1]."""
    texels = (values.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(texels.numpy())
