"""Write a textured mesh as GLB, OBJ and PLY.

Vertex data keep the input's world frame in every file. Only the GLB, whose format says y is up, turns the
model upright, and does so in its root node: undo that rotation and the input's frame is back.

The same mesh gives the same bytes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.ply import export_ply

from models.geometry.mesh import TexturedMesh
from pipeline.surface import SplitSurface, Surface, clean_surface, split_at_seams, vertex_colors
from pipeline.versions import WORKER, worker_version

UpAxis = Literal["y", "z"]

MODEL_STEM = "model"
TEXTURE_PATH = "textures/base_color.png"

# Quaternion (x, y, z, w) of -90 degrees about x: z up becomes y up, and a front on -y becomes glTF's on +z.
_Z_UP_TO_Y_UP = (-(0.5**0.5), 0.0, 0.0, 0.5**0.5)

# glTF's enumerations (those of OpenGL).
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071


def export_mesh(mesh: TexturedMesh, folder: Path, *, up_axis: UpAxis, name: str) -> None:
    """Write `model.glb`, `model.obj`, `model.mtl`, `textures/base_color.png` and `model.ply`.

    Args:
        mesh: The mesh, on any device.
        folder: An existing folder.
        up_axis: The world's up axis; the GLB's root node turns it to y.
        name: Name of the object inside the files; reduced to ASCII letters, digits, `-`, `_` and `.`.

    Raises:
        ValueError: The mesh has no faces, or a coordinate is not finite.
    """
    surface = clean_surface(mesh)
    image = texture_image(mesh)
    safe_name = sanitize_name(name)
    (folder / TEXTURE_PATH).parent.mkdir(exist_ok=True)
    image.save(folder / TEXTURE_PATH)
    split = split_at_seams(surface)
    (folder / f"{MODEL_STEM}.glb").write_bytes(_glb(split, image, up_axis, safe_name, mesh.unlit))
    (folder / f"{MODEL_STEM}.obj").write_text(_obj(surface, safe_name), "ascii", newline="\n")
    (folder / f"{MODEL_STEM}.mtl").write_text(_mtl(safe_name, mesh.unlit), "ascii", newline="\n")
    (folder / f"{MODEL_STEM}.ply").write_bytes(_ply(surface, vertex_colors(surface, mesh.base_color)))


def sanitize_name(name: str) -> str:
    """A name that no exporter or importer stumbles over: MTL, for one, ends a name at a space."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_.")[:100] or MODEL_STEM


def texture_image(mesh: TexturedMesh) -> Image.Image:
    """The base colour as an 8-bit RGB image; its row 0 is at the top, as in the mesh."""
    texels = (mesh.base_color.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(texels.numpy())


def _glb(split: SplitSurface, image: Image.Image, up_axis: UpAxis, name: str, unlit: bool) -> bytes:
    material = trimesh.visual.material.PBRMaterial(  # type: ignore[no-untyped-call]
        name=name, baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0, alphaMode="OPAQUE"
    )
    # In trimesh v = 0 is the bottom row; its exporter flips v back to glTF's.
    u, v = split.uvs.T.astype(np.float64)
    visual = trimesh.visual.TextureVisuals(  # type: ignore[no-untyped-call]
        uv=np.stack([u, 1 - v], 1), material=material
    )
    mesh = trimesh.Trimesh(
        split.vertices,
        split.faces,
        vertex_normals=split.normals,
        visual=visual,
        process=False,
    )
    scene = trimesh.Scene()
    scene.add_geometry(mesh, node_name=name, geom_name=name)

    def finish(tree: dict[str, Any]) -> None:
        _finish_gltf(tree, up_axis, name, unlit)

    glb: bytes = export_glb(  # type: ignore[no-untyped-call]
        scene, include_normals=True, tree_postprocessor=finish
    )
    return glb


def _finish_gltf(tree: dict[str, Any], up_axis: UpAxis, name: str, unlit: bool) -> None:
    """What trimesh cannot write: one root node with the rotation, the sampler, unlit, buffer targets."""
    tree["asset"]["generator"] = f"{WORKER} {worker_version()}"
    node = {"name": name, "mesh": 0}
    tree["nodes"] = [node if up_axis == "y" else node | {"rotation": list(_Z_UP_TO_Y_UP)}]
    tree["scenes"] = [{"nodes": [0]}]
    tree["samplers"] = [
        {
            "magFilter": _LINEAR,
            "minFilter": _LINEAR_MIPMAP_LINEAR,
            "wrapS": _CLAMP_TO_EDGE,
            "wrapT": _CLAMP_TO_EDGE,
        }
    ]
    tree["textures"][0]["sampler"] = 0
    tree["meshes"][0].pop("extras", None)
    if unlit:
        tree["materials"][0]["extensions"] = {"KHR_materials_unlit": {}}
        tree["extensionsUsed"] = ["KHR_materials_unlit"]
    primitive = tree["meshes"][0]["primitives"][0]
    indices = tree["accessors"][primitive["indices"]]
    tree["bufferViews"][indices["bufferView"]]["target"] = _ELEMENT_ARRAY_BUFFER
    for accessor in primitive["attributes"].values():
        tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] = _ARRAY_BUFFER


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


def _mtl(name: str, unlit: bool) -> str:
    """A matte material; illumination model 0 is MTL's word for unlit."""
    lines = [
        f"newmtl {name}",
        "Ka 0 0 0",
        "Kd 1 1 1",
        "Ks 0 0 0",
        "d 1",
        f"illum {0 if unlit else 1}",
        f"map_Kd {TEXTURE_PATH}",
    ]
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
