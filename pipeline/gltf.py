"""Write a textured surface as one binary glTF 2.0 file."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import trimesh
from trimesh.exchange.gltf import export_glb

from pipeline.surface import SplitSurface, split_tangents
from pipeline.textures import TextureImages
from pipeline.versions import WORKER, worker_version

UpAxis = Literal["y", "z"]

# Quaternion (x, y, z, w) of -90 degrees about x: z up becomes y up, and a front on -y becomes glTF's on +z.
_Z_UP_TO_Y_UP = (-(0.5**0.5), 0.0, 0.0, 0.5**0.5)

# glTF's enumerations (those of OpenGL).
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071

_TANGENT = "_TANGENT"  # trimesh writes attributes that it does not know under names with an underscore


def glb(split: SplitSurface, images: TextureImages, up_axis: UpAxis, name: str) -> bytes:
    """The bytes of a GLB file with its textures embedded as PNG.

    A surface with roughness and metallic gets a metallic-roughness material, one without is marked unlit
    (KHR_materials_unlit). With a normal map come the tangents that it is read with.

    Args:
        split: The surface.
        images: Its textures.
        up_axis: The up axis of the surface's frame; the root node turns it to y, vertex data stay.
        name: Name of mesh, node and material; ASCII without spaces.
    """
    packed = images.packed()
    unlit = packed is None
    material = trimesh.visual.material.PBRMaterial(  # type: ignore[no-untyped-call]
        name=name,
        baseColorTexture=images.base_color,
        metallicRoughnessTexture=packed,
        normalTexture=images.normal,
        metallicFactor=0.0 if unlit else 1.0,
        roughnessFactor=1.0,
        alphaMode="OPAQUE",
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
        vertex_attributes=None if images.normal is None else {_TANGENT: split_tangents(split)},
        visual=visual,
        process=False,
    )
    scene = trimesh.Scene()
    scene.add_geometry(mesh, node_name=name, geom_name=name)

    def finish(tree: dict[str, Any]) -> None:
        _finish(tree, up_axis, name, unlit)

    data: bytes = export_glb(  # type: ignore[no-untyped-call]
        scene, include_normals=True, tree_postprocessor=finish
    )
    return data


def _finish(tree: dict[str, Any], up_axis: UpAxis, name: str, unlit: bool) -> None:
    """What trimesh cannot write: one root node with the rotation, the sampler, unlit, tangents, targets."""
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
    for texture in tree["textures"]:
        texture["sampler"] = 0
    tree["meshes"][0].pop("extras", None)
    if unlit:
        tree["materials"][0]["extensions"] = {"KHR_materials_unlit": {}}
        tree["extensionsUsed"] = ["KHR_materials_unlit"]
    primitive = tree["meshes"][0]["primitives"][0]
    attributes = primitive["attributes"]
    if _TANGENT in attributes:
        attributes["TANGENT"] = attributes.pop(_TANGENT)
    indices = tree["accessors"][primitive["indices"]]
    tree["bufferViews"][indices["bufferView"]]["target"] = _ELEMENT_ARRAY_BUFFER
    for accessor in attributes.values():
        tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] = _ARRAY_BUFFER
