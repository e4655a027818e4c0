"""Photographs of a textured object from known cameras, made with the project's own renderer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import trimesh
import xatlas
from PIL import Image

from models.geometry.camera import Cameras, intrinsics_from_fov, look_at
from models.geometry.mesh import TexturedMesh
from models.raster import make_backend
from models.render import render_textured

SPOT = Path(__file__).resolve().parents[1] / "examples" / "spot-small" / "mesh.ply"


def speckled_spot(texture_size: int = 1024, *, contrast: float = 1.0) -> TexturedMesh:
    """Spot with random speckles of several sizes, which features find; none of them with `contrast` 0."""
    return _speckled(trimesh.load_mesh(SPOT, process=False), texture_size, contrast)


def speckled_ball(texture_size: int = 512) -> TexturedMesh:
    """A ball with bumps, and the same kind of texture."""
    ball = trimesh.creation.icosphere(4)
    bumps = 1 + 0.12 * np.sin(4 * ball.vertices).prod(1) + 0.05 * np.sin(7 * ball.vertices[:, 0])
    return _speckled(trimesh.Trimesh(ball.vertices * bumps[:, None], ball.faces, process=False), texture_size)


def _speckled(shape: trimesh.Trimesh, size: int, contrast: float = 1.0) -> TexturedMesh:
    _, uv_faces, uvs = xatlas.parametrize(shape.vertices.astype(np.float32), shape.faces.astype(np.uint32))
    generator = torch.Generator().manual_seed(1)
    texture = torch.zeros(1, 3, size, size)
    for cells in (16, 48, 128):
        coarse = torch.rand(1, 3, cells, cells, generator=generator) - 0.5
        texture += F.interpolate(coarse, size=(size, size), mode="bicubic")
    texture = (0.5 + contrast * 0.6 * texture).clamp(0.02, 0.98)
    return TexturedMesh(
        torch.tensor(np.asarray(shape.vertices), dtype=torch.float32),
        torch.tensor(np.asarray(shape.faces), dtype=torch.int32),
        torch.tensor(uvs, dtype=torch.float32),
        torch.tensor(uv_faces.astype(np.int32)),
        texture[0].permute(1, 2, 0).contiguous(),
    )


def around(count: int, distance: float = 3.2, *, rings: tuple[float, ...] = (10.0, 40.0)) -> np.ndarray:
    """Poses [V, 4, 4] that walk around the origin, z up, once for each elevation (degrees)."""
    poses = []
    for index in range(count):
        ring, step = divmod(index, math.ceil(count / len(rings)))
        azimuth = 2 * math.pi * step / math.ceil(count / len(rings)) + 0.1 * ring
        elevation = math.radians(rings[ring])
        around_z = np.array([math.sin(azimuth), -math.cos(azimuth), 0]) * math.cos(elevation)
        position = distance * (around_z + np.array([0, 0, math.sin(elevation)]))
        poses.append(look_at(position, np.zeros(3), np.array([0.0, 0.0, 1.0])))
    return np.stack(poses)


@dataclass(frozen=True)
class Shots:
    """Rendered views: colours premultiplied [V, H, W, 3], coverage and z-depth [V, H, W]."""

    color: np.ndarray
    alpha: np.ndarray
    depth: np.ndarray

    def rgba(self, index: int) -> np.ndarray:
        """One view, 8 bits, not premultiplied, [H, W, 4]."""
        alpha = self.alpha[index][..., None]
        color = self.color[index] / np.maximum(alpha, 1e-3)
        return (np.concatenate([color, alpha], -1).clip(0, 1) * 255).round().astype(np.uint8)


def take(mesh: TexturedMesh, poses: np.ndarray, intrinsics: np.ndarray, width: int, height: int) -> Shots:
    """Render a mesh from poses [V, 4, 4] with one intrinsic matrix."""
    raster = make_backend("warp", torch.device("cpu"))
    shots = []
    for pose in poses:
        camera = Cameras(
            torch.tensor(pose[None], dtype=torch.float32),
            torch.tensor(intrinsics[None], dtype=torch.float32),
            width,
            height,
        )
        with torch.no_grad():
            shots.append(render_textured(raster, mesh, camera))
    arrays = [torch.cat([getattr(s, name) for s in shots]).numpy() for name in ("color", "alpha", "depth")]
    return Shots(*arrays)


def photograph(
    folder: Path,
    mesh: TexturedMesh,
    poses: np.ndarray,
    *,
    size: tuple[int, int] = (480, 480),
    fov_degrees: float = 40.0,
    depth_scale: float | None = None,
) -> np.ndarray:
    """Write `images/*.png` with an alpha channel, and `depth/*.png` where `depth_scale` is given, world units
    per count; returns the intrinsic matrix."""
    intrinsics = intrinsics_from_fov(math.radians(fov_degrees), *size)
    shots = take(mesh, poses, intrinsics, *size)
    (folder / "images").mkdir(parents=True)
    for index in range(len(poses)):
        Image.fromarray(shots.rgba(index)).save(folder / "images" / f"{index:03}.png")
    if depth_scale is not None:
        (folder / "depth").mkdir()
        for index, depth in enumerate(shots.depth):
            counts = (depth / depth_scale).round().astype(np.uint16)
            Image.fromarray(counts).save(folder / "depth" / f"{index:03}.png")
    return intrinsics


def plain_ball_on_speckled_ground() -> tuple[TexturedMesh, TexturedMesh]:
    """A scene whose object has no texture while its surroundings have, and the object alone."""
    ball = trimesh.creation.icosphere(3, radius=0.6)
    grid = np.stack(np.meshgrid(*[np.linspace(-2.0, 2.0, 33)] * 2), -1).reshape(-1, 2)
    cells = np.arange(33 * 32).reshape(32, 33)[:, :-1].reshape(-1)
    quads = cells[:, None] + np.array([[0, 1, 34], [0, 34, 33]]).reshape(1, 6)
    height = 0.25 * np.sin(3 * grid[:, 0]) * np.sin(4 * grid[:, 1]) - 0.75  # a plane tells no focal length
    ground = np.concatenate([grid, height[:, None]], 1)
    speckles = _speckled(ball, 512).base_color.clone()
    speckles[:8, :8] = 0.5
    uvs = np.concatenate([np.full((len(ball.vertices), 2), 4 / 512), (grid + 2) / 4])
    faces = np.concatenate([ball.faces, quads.reshape(-1, 3) + len(ball.vertices)])

    def mesh(of: np.ndarray) -> TexturedMesh:
        return TexturedMesh(
            torch.tensor(np.concatenate([ball.vertices, ground]), dtype=torch.float32),
            torch.tensor(of, dtype=torch.int32),
            torch.tensor(uvs, dtype=torch.float32),
            torch.tensor(of, dtype=torch.int32),
            speckles,
        )

    return mesh(faces), mesh(np.asarray(ball.faces))


@dataclass(frozen=True)
class Lens:
    """A camera as transforms.json describes it: pixels, OpenCV's coefficients, which of its two models."""

    width: int
    height: int
    focal: tuple[float, float]
    centre: tuple[float, float]
    coefficients: dict[str, float] = field(default_factory=dict)
    fisheye: bool = False

    def frame(self) -> dict[str, Any]:
        """Its keys of a frame."""
        keys = dict(zip(("w", "h", "fl_x", "fl_y", "cx", "cy"), self._numbers(), strict=True))
        return keys | {"camera_model": "OPENCV_FISHEYE" if self.fisheye else "OPENCV"} | self.coefficients

    def _numbers(self) -> tuple[float, ...]:
        return (self.width, self.height, *self.focal, *self.centre)

    def ideal_points(self) -> np.ndarray:
        """Where a pinhole would see what the lens shows at its pixels: [H, W, 2] on the plane z = 1."""
        v, u = np.mgrid[: self.height, : self.width] + 0.5
        points = (np.stack([u, v], -1) - self.centre) / self.focal
        k1, k2, k3, k4, p1, p2 = (self.coefficients.get(k, 0.0) for k in ("k1", "k2", "k3", "k4", "p1", "p2"))
        flat = points.reshape(-1, 1, 2)
        if self.fisheye:
            return cv2.fisheye.undistortPoints(flat, np.eye(3), np.array([k1, k2, k3, k4])).reshape(
                points.shape
            )
        stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-10)
        found = cv2.undistortPoints(flat, np.eye(3), np.array([k1, k2, p1, p2, k3]), criteria=stop)
        return found.reshape(points.shape)


def take_through(mesh: TexturedMesh, pose: np.ndarray, lens: Lens) -> Shots:
    """One view [1, H, W] through a lens: a larger view of a pinhole, sampled where the lens looks."""
    points = lens.ideal_points()
    low, high = points.min((0, 1)) - 0.02, points.max((0, 1)) + 0.02
    focal = 2 * np.array(lens.focal)
    width, height = np.ceil((high - low) * focal).astype(int)
    intrinsics = np.array([[focal[0], 0, -low[0] * focal[0]], [0, focal[1], -low[1] * focal[1]], [0, 0, 1]])
    wide = take(mesh, pose[None], intrinsics, int(width), int(height))
    x, y = np.moveaxis(((points - low) * focal - 0.5).astype(np.float32), -1, 0)
    color, alpha = (cv2.remap(array[0], x, y, cv2.INTER_LINEAR) for array in (wide.color, wide.alpha))
    depth = cv2.remap(wide.depth[0], x, y, cv2.INTER_NEAREST)
    return Shots(color[None], alpha[None], depth[None])


def write_view(
    folder: Path, index: int, shots: Shots, *, depth_scale: float, depth_size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Write image and depth map of a single view, the latter at a size of its own; returns their keys."""
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(shots.rgba(0)).save(folder / "images" / f"{index:03}.png")
    counts = Image.fromarray((shots.depth[0] / depth_scale).round().astype(np.uint16))
    if depth_size is not None:
        counts = counts.resize(depth_size, Image.Resampling.NEAREST)
    counts.save(folder / "depth" / f"{index:03}.png")
    return {"file_path": f"images/{index:03}.png", "depth_file_path": f"depth/{index:03}.png"}
