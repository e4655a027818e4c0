"""Write a textured mesh as GLB, OBJ and PLY.

Vertex data keep the input's world frame in every file. Only the GLB, whose format says y is up, turns the
model upright, and does so in its root node: undo that rotation and the input's frame is back.

The same mesh gives the same bytes.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from trimesh.exchange.ply import export_ply

from models.geometry.mesh import TexturedMesh
from pipeline import textures
from pipeline.gltf import UpAxis as UpAxis
from pipeline.gltf import glb
from pipeline.surface import Surface, clean_surface, split_at_seams, vertex_colors
from pipeline.textures import TextureImages, texture_images, write_environment
from pipeline.versions import WORKER, worker_version

MODEL_STEM = "model"


def export_mesh(mesh: TexturedMesh, folder: Path, *, up_axis: UpAxis, name: str) -> None:
    """Write `model.glb`, `model.obj`, `model.mtl`, `model.ply` and the folder `textures`.

    `textures` holds `base_color.png`; for a lit mesh `roughness.png` and `metallic.png`; `normal.png` if
    there is a normal map; and `environment.hdr`, the light of the photographs, if it is known: an
    equirectangular image in the world frame of the OBJ and PLY (`models.shading.light` says which way it
    faces). No model file refers to it.

    Args:
        mesh: The mesh, on any device.
        folder: An existing folder.
        up_axis: The world's up axis; the GLB's root node turns it to y.
        name: Name of the object inside the files; reduced to ASCII letters, digits, `-`, `_` and `.`.

    Raises:
        ValueError: The mesh has no faces, or a coordinate is not finite.
    """
    surface = clean_surface(mesh)
    images = texture_images(mesh)
    safe_name = sanitize_name(name)
    (folder / textures.FOLDER).mkdir(exist_ok=True)
    for path, image in images.files().items():
        image.save(folder / path)
    if mesh.environment is not None:
        write_environment(mesh.environment, folder / textures.ENVIRONMENT_PATH)
    (folder / f"{MODEL_STEM}.glb").write_bytes(glb(split_at_seams(surface), images, up_axis, safe_name))
    (folder / f"{MODEL_STEM}.obj").write_text(_obj(surface, safe_name), "ascii", newline="\n")
    (folder / f"{MODEL_STEM}.mtl").write_text(_mtl(safe_name, images), "ascii", newline="\n")
    (folder / f"{MODEL_STEM}.ply").write_bytes(_ply(surface, vertex_colors(surface, mesh.base_color)))


def sanitize_name(name: str) -> str:
    """A name that no exporter or importer stumbles over: MTL, for one, ends a name at a space."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_.")[:100] or MODEL_STEM


def _obj(surface: Surface, name: str) -> str:
    """OBJ text. Ours, because trimesh's writer knows one index per corner: each seam would become a crack."""
    u, v = surface.uvs.T.astype(np.float64)
    corner = np.stack([surface.faces, surface.uv_faces, surface.faces], 2).reshape(-1, 9) + 1
    lines = [
        f"# {WORKER} {worker_version()}",
        f"mtllib {MODEL_STEM}.mtl",
        f"o {name}",
        *map("v {:.9g} {:.9g} {:.9g}".format, *surface.vertices.T.tolist()),
        *map("vt {:.9g} {:.9g}".format, u.tolist(), (1 - v).tolist()),  # OBJ's v = 0 is the bottom row
        *map("vn {:.6g} {:.6g} {:.6g}".format, *surface.normals.T.tolist()),
        f"usemtl {name}",
        *map("f {}/{}/{} {}/{}/{} {}/{}/{}".format, *corner.T.tolist()),
    ]
    return "\n".join(lines) + "\n"


def _mtl(name: str, images: TextureImages) -> str:
    """A material without highlights of MTL's own; illumination model 0 is MTL's word for unlit.

    Roughness, metallic and normal map are the PBR extension that most importers know (Pr, Pm, norm). The
    format's own map_Bump is a map of heights, which a normal map must not be given as.
    """
    unlit = images.roughness is None
    lines = [
        f"newmtl {name}",
        "Ka 0 0 0",
        "Kd 1 1 1",
        "Ks 0 0 0",
        "d 1",
        f"illum {0 if unlit else 1}",
        f"map_Kd {textures.BASE_COLOR_PATH}",
    ]
    if not unlit:
        # The factors multiply the maps, as Kd does.
        lines += ["Pr 1", "Pm 1", f"map_Pr {textures.ROUGHNESS_PATH}", f"map_Pm {textures.METALLIC_PATH}"]
    if images.normal is not None:
        lines.append(f"norm {textures.NORMAL_PATH}")
    return "\n".join(lines) + "\n"


def _ply(surface: Surface, colors: NDArray[np.uint8]) -> bytes:
    mesh = trimesh.Trimesh(
        surface.vertices,
        surface.faces,
        vertex_normals=surface.normals,
        vertex_colors=colors,
        process=False,
    )
    ply: bytes = export_ply(mesh, encoding="binary", vertex_normal=True)
    return ply
