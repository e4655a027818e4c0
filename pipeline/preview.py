"""Pictures for people: six stills and a turntable of the finished model, in its own colours and light.

An unlit model has the light of the photographs in its texture already, and none is added. A lit one is shown
in the light that was found with it, or in a studio.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from models.base import Callback
from models.geometry.camera import Cameras, intrinsics_from_fov, look_at
from models.geometry.mesh import TexturedMesh
from models.raster import RasterBackend
from models.shading.light import studio_light
from pipeline.export import UpAxis
from pipeline.rendering import render_view
from pipeline.surface import bounding_sphere

PREVIEW_FOLDER = "previews"
TURNTABLE_NAME = "turntable.webp"
STILLS = ("front", "right", "back", "left", "top", "bottom")

BACKGROUND = 0.85  # a light neutral grey: neither white nor black objects vanish in it
FIELD_OF_VIEW = math.radians(30)
MARGIN = 1.04  # the bounding sphere fills the picture but for this

TURNTABLE_FRAMES = 36
TURNTABLE_FRAME_MS = 67  # 15 frames a second
TURNTABLE_ELEVATION = math.radians(18)
TURNTABLE_MAX_SIDE = 512  # pixels; keeps the file below a few hundred kilobytes
TURNTABLE_QUALITY = 85

STILL_SAMPLES = 2  # along each side of a pixel
FRAME_SAMPLES = 1  # nobody looks long at a frame, and there are many

Vector = NDArray[np.float64]


def render_previews(
    raster: RasterBackend, mesh: TexturedMesh, folder: Path, *, size: int, up_axis: UpAxis, callback: Callback
) -> None:
    """Write `previews/{front,right,back,left,top,bottom}.png` and `previews/turntable.webp`.

    The front is what a camera on -y sees if z is up, and a camera on +z if y is up.

    Args:
        raster: The rasterizer; the mesh is moved to its device.
        mesh: The mesh.
        folder: The result's folder; `previews` is made in it.
        size: Side of the stills, pixels; the turntable is at most `TURNTABLE_MAX_SIDE`.
        up_axis: The world's up axis.
        callback: Called after every picture.
    """
    target = folder / PREVIEW_FOLDER
    target.mkdir(exist_ok=True)
    mesh = _with_light(_with_reduced_textures(mesh.to(raster.device), 4 * size), up_axis)
    center, radius = bounding_sphere(mesh.vertices)
    distance = MARGIN * max(radius, 1e-6) / math.sin(FIELD_OF_VIEW / 2)
    total = len(STILLS) + TURNTABLE_FRAMES

    def picture(direction: Vector, up: Vector, side: int, samples: int) -> Image.Image:
        origin = center.double().cpu().numpy()
        pose = look_at(origin + distance * direction, origin, up)
        return _picture(raster, mesh, pose, side, samples)

    for index, name in enumerate(STILLS):
        picture(*still_direction(name, up_axis), size, STILL_SAMPLES).save(target / f"{name}.png")
        callback((index + 1) / total, f"rendered {name}.png", {})
    frames = []
    for index in range(TURNTABLE_FRAMES):
        direction, up = turntable_direction(index / TURNTABLE_FRAMES, up_axis)
        frames.append(picture(direction, up, min(size, TURNTABLE_MAX_SIDE), FRAME_SAMPLES))
        callback((len(STILLS) + index + 1) / total, f"rendered turntable frame {index + 1}", {})
    _save_animation(frames, target / TURNTABLE_NAME)


def still_direction(name: str, up_axis: UpAxis) -> tuple[Vector, Vector]:
    """Where the camera of a still stands, as a unit vector from the object, and its up vector.

    Seen from the top, the front is below; seen from the bottom, above: the object is tipped from its front.
    """
    up, front, right = _axes(up_axis)
    return {
        "front": (front, up),
        "right": (right, up),
        "back": (-front, up),
        "left": (-right, up),
        "top": (up, -front),
        "bottom": (-up, front),
    }[name]


def turntable_direction(turn: float, up_axis: UpAxis) -> tuple[Vector, Vector]:
    """The same for the turntable; `turn` 0 is the front, and it goes on to the right, full circle at 1."""
    up, front, right = _axes(up_axis)
    angle = 2 * math.pi * turn
    level = math.cos(angle) * front + math.sin(angle) * right
    return math.cos(TURNTABLE_ELEVATION) * level + math.sin(TURNTABLE_ELEVATION) * up, up


def _axes(up_axis: UpAxis) -> tuple[Vector, Vector, Vector]:
    """Unit vectors up, to the front, and to the right of somebody who looks at the front."""
    up = np.array([0.0, 0.0, 1.0] if up_axis == "z" else [0.0, 1.0, 0.0])
    front = np.array([0.0, -1.0, 0.0] if up_axis == "z" else [0.0, 0.0, 1.0])
    return up, front, np.cross(up, front)


def _with_reduced_textures(mesh: TexturedMesh, limit: int) -> TexturedMesh:
    """Halve the textures while their shorter side exceeds `limit`: finer texels would only cost time."""

    def reduced(texture: torch.Tensor) -> torch.Tensor:
        image = texture.permute(2, 0, 1)[None]  # [1, C, Ht, Wt]
        while min(image.shape[2:]) > limit:
            image = F.avg_pool2d(image, 2)
        return image[0].permute(1, 2, 0).contiguous()

    return replace(
        mesh,
        base_color=reduced(mesh.base_color),
        roughness_metallic=None if mesh.roughness_metallic is None else reduced(mesh.roughness_metallic),
        normal_map=None if mesh.normal_map is None else reduced(mesh.normal_map),
    )


def _with_light(mesh: TexturedMesh, up_axis: UpAxis) -> TexturedMesh:
    """A lit mesh whose light is unknown in a studio whose lamps hang above."""
    if mesh.unlit or mesh.environment is not None:
        return mesh
    up, _, _ = _axes(up_axis)
    return replace(mesh, environment=studio_light(torch.tensor(up, dtype=torch.float32)).to(mesh.vertices))


def _picture(raster: RasterBackend, mesh: TexturedMesh, pose: Vector, side: int, samples: int) -> Image.Image:
    """A square picture over the background."""
    camera = Cameras(
        torch.tensor(pose[None], dtype=torch.float32),
        torch.tensor(intrinsics_from_fov(FIELD_OF_VIEW, side, side)[None], dtype=torch.float32),
        side,
        side,
    )
    rendering = render_view(raster, mesh, camera.to(raster.device), samples=samples)
    color = rendering.over(BACKGROUND)[0].clamp(0, 1)
    return Image.fromarray((color * 255).round().to(torch.uint8).cpu().numpy())


def _save_animation(frames: list[Image.Image], path: Path) -> None:
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=TURNTABLE_FRAME_MS,
        loop=0,
        quality=TURNTABLE_QUALITY,
        method=4,
    )
