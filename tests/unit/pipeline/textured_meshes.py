"""Textured meshes for the tests of export, quality and previews."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
import trimesh
import xatlas
from PIL import Image

from models.base import Views
from models.geometry.camera import Cameras
from models.geometry.mesh import TexturedMesh

SPOT = Path(__file__).resolve().parents[3] / "examples" / "spot-small"


def spherical_mesh(texture_size: int = 64, subdivisions: int = 3, *, unlit: bool = True) -> TexturedMesh:
    """A closed unit sphere, its texture a smooth pattern."""
    return with_atlas(trimesh.creation.icosphere(subdivisions), texture_size, unlit=unlit)


def lit_sphere(texture_size: int = 64) -> TexturedMesh:
    """A unit sphere with a material that differs everywhere, a normal map and a light."""
    mesh = spherical_mesh(texture_size, unlit=False)
    row, column = torch.meshgrid(
        torch.linspace(0, 1, texture_size), torch.linspace(0, 1, texture_size), indexing="ij"
    )
    slope = torch.stack([torch.sin(30 * column), torch.cos(20 * row), torch.full_like(row, 3.0)], -1)
    light = torch.rand(16, 32, 3, generator=torch.Generator().manual_seed(0)) * 10
    light[0, 0] = torch.tensor([4000.0, 2.0, 0.0])
    return dataclasses.replace(
        mesh,
        roughness_metallic=torch.stack([0.2 + 0.8 * row, column], -1),
        normal_map=torch.nn.functional.normalize(slope, dim=-1),
        environment=light,
    )


def spot_mesh(texture_size: int = 256) -> TexturedMesh:
    """The true shape of `examples/spot-small`, with a made-up texture."""
    return with_atlas(trimesh.load_mesh(SPOT / "mesh.ply", process=False), texture_size)


def with_atlas(shape: trimesh.Trimesh, texture_size: int, *, unlit: bool = True) -> TexturedMesh:
    """Give a shape a UV atlas and a texture that differs in every direction."""
    _, uv_faces, uvs = xatlas.parametrize(shape.vertices.astype(np.float32), shape.faces.astype(np.uint32))
    row, column = np.mgrid[:texture_size, :texture_size] / texture_size
    texture = np.stack([column, row, 0.5 + 0.5 * np.sin(20 * (row + column))], -1)
    return TexturedMesh(
        torch.tensor(np.asarray(shape.vertices), dtype=torch.float32),
        torch.tensor(np.asarray(shape.faces), dtype=torch.int32),
        torch.tensor(uvs, dtype=torch.float32),
        torch.tensor(uv_faces.astype(np.int32)),
        torch.tensor(texture, dtype=torch.float32),
        None if unlit else torch.tensor([0.8, 0.1]).expand(texture_size, texture_size, 2),
    )


def spot_views(folder: str = "views") -> Views:
    """The views of the example, read in the plainest way."""
    meta = json.loads((SPOT / folder / "transforms.json").read_text())
    frames = meta["frames"]
    rgba = np.stack([_read(SPOT / folder / f["file_path"]) for f in frames]) / 255
    depth = np.stack([_read(SPOT / folder / f["depth_file_path"]) for f in frames])
    matrix = torch.tensor([[meta["fl_x"], 0, meta["cx"]], [0, meta["fl_y"], meta["cy"]], [0, 0, 1]])
    cameras = Cameras(
        torch.tensor([f["transform_matrix"] for f in frames], dtype=torch.float32),
        matrix.expand(len(frames), 3, 3).clone(),
        meta["w"],
        meta["h"],
    )
    return Views(
        tuple(f["file_path"] for f in frames),
        torch.tensor(rgba[..., :3], dtype=torch.float32),
        torch.tensor(rgba[..., 3], dtype=torch.float32),
        torch.tensor(depth * meta["depth_unit_scale_factor"], dtype=torch.float32),
        cameras,
    )


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.float64)


SIDE_COLORS = {
    "+x": (1.0, 0.0, 0.0),
    "-x": (0.0, 1.0, 1.0),
    "+y": (0.0, 1.0, 0.0),
    "-y": (1.0, 0.0, 1.0),
    "+z": (0.0, 0.0, 1.0),
    "-z": (1.0, 1.0, 0.0),
}


def colored_cube() -> TexturedMesh:
    """A cube with a plain colour on each side, `SIDE_COLORS`."""
    box = trimesh.creation.box()
    axis = np.abs(box.face_normals).argmax(1)
    positive = box.face_normals[np.arange(12), axis] > 0
    texel = 2 * axis + ~positive  # in the order of SIDE_COLORS
    uvs = np.stack([(np.arange(6) + 0.5) / 8, np.full(6, 0.5)], 1)
    colors = [*SIDE_COLORS.values(), (0, 0, 0), (0, 0, 0)]
    return TexturedMesh(
        torch.tensor(np.asarray(box.vertices), dtype=torch.float32),
        torch.tensor(np.asarray(box.faces), dtype=torch.int32),
        torch.tensor(uvs, dtype=torch.float32),
        torch.tensor(np.repeat(texel[:, None], 3, 1), dtype=torch.int32),
        torch.tensor([colors], dtype=torch.float32),
    )
