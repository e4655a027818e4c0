"""The Khronos validator's verdict on the GLB files that we write."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
import xatlas

from models.geometry.mesh import TexturedMesh
from pipeline.export import UpAxis, export_mesh
from tests.gltf.khronos import validate


@pytest.fixture(scope="module")
def mesh() -> TexturedMesh:
    shape = trimesh.creation.icosphere(2)
    _, uv_faces, uvs = xatlas.parametrize(shape.vertices.astype(np.float32), shape.faces.astype(np.uint32))
    return TexturedMesh(
        torch.tensor(np.asarray(shape.vertices), dtype=torch.float32),
        torch.tensor(np.asarray(shape.faces), dtype=torch.int32),
        torch.tensor(uvs, dtype=torch.float32),
        torch.tensor(uv_faces.astype(np.int32)),
        torch.rand(32, 32, 3),
    )


def with_material(mesh: TexturedMesh, material: str) -> TexturedMesh:
    """The mesh unlit, lit (`pbr`), or lit and with a normal map."""
    if material == "unlit":
        return mesh
    size = mesh.base_color.shape[:2]
    lit = dataclasses.replace(
        mesh, roughness_metallic=torch.rand(*size, 2), environment=torch.rand(16, 32, 3)
    )
    if material == "pbr":
        return lit
    normals = torch.nn.functional.normalize(torch.rand(*size, 3) + torch.tensor([-0.5, -0.5, 1.0]), dim=-1)
    return dataclasses.replace(lit, normal_map=normals)


@pytest.mark.parametrize("material", ["unlit", "pbr", "pbr and normal map"])
@pytest.mark.parametrize("up_axis", ["y", "z"])
def test_validator_has_nothing_to_say(
    validator: Path, mesh: TexturedMesh, tmp_path: Path, up_axis: UpAxis, material: str
) -> None:
    export_mesh(with_material(mesh, material), tmp_path, up_axis=up_axis, name="sphere")
    report = validate(validator, tmp_path / "model.glb")
    assert report["issues"]["messages"] == []
    assert report["info"]["totalTriangleCount"] == len(mesh.faces)
    assert report["info"]["hasTextures"]


@pytest.mark.parametrize("material", ["unlit", "pbr and normal map"])
def test_validator_has_nothing_to_say_about_a_mesh_with_defects(
    validator: Path, mesh: TexturedMesh, tmp_path: Path, material: str
) -> None:
    vertices = mesh.vertices.clone()
    vertices[mesh.faces[0].long()] = vertices[0].clone()  # a face without area
    defective = dataclasses.replace(
        mesh,
        vertices=torch.cat([vertices, torch.zeros(2, 3)]),  # unused vertices
        faces=torch.cat([mesh.faces, torch.tensor([[1, 1, 2]], dtype=torch.int32)]),
        uv_faces=torch.cat([mesh.uv_faces, torch.tensor([[0, 1, 2]], dtype=torch.int32)]),
    )
    export_mesh(with_material(defective, material), tmp_path, up_axis="z", name="defective")
    issues = validate(validator, tmp_path / "model.glb")["issues"]
    assert issues["messages"] == []


def test_the_validator_does_find_faults(validator: Path, mesh: TexturedMesh, tmp_path: Path) -> None:
    export_mesh(mesh, tmp_path, up_axis="z", name="sphere")
    glb = tmp_path / "model.glb"
    glb.write_bytes(glb.read_bytes().replace(b'"mode":4', b'"mode":9'))
    assert validate(validator, glb)["issues"]["numErrors"] > 0
