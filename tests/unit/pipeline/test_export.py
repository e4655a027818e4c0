from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from textured_meshes import spherical_mesh, with_atlas

from models.geometry.mesh import TexturedMesh
from pipeline.export import export_mesh, sanitize_name
from pipeline.surface import clean_surface, mesh_statistics, split_at_seams, vertex_colors
from pipeline.textures import texture_images


@pytest.fixture(scope="module")
def mesh() -> TexturedMesh:
    return spherical_mesh()


@pytest.fixture(scope="module")
def folder(mesh: TexturedMesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    export_mesh(mesh, folder, up_axis="z", name="a sphere")
    return folder


def gltf(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    assert data[:4] == b"glTF"
    return json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])


def sorted_triangles(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The corners of all triangles [F, 9], in an order that does not depend on indices."""
    flat = np.asarray(vertices, np.float32)[np.asarray(faces)].reshape(-1, 9)
    return flat[np.lexsort(flat.T)]


def test_every_file_is_written_and_nothing_else(folder: Path) -> None:
    written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert written == {"model.glb", "model.obj", "model.mtl", "model.ply", "textures/base_color.png"}


def test_the_same_mesh_gives_the_same_bytes(mesh: TexturedMesh, folder: Path, tmp_path: Path) -> None:
    export_mesh(mesh, tmp_path, up_axis="z", name="a sphere")
    for path in filter(Path.is_file, folder.rglob("*")):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


def test_glb_material_is_matte_opaque_and_unlit(folder: Path) -> None:
    tree = gltf(folder / "model.glb")
    (material,) = tree["materials"]
    pbr = material["pbrMetallicRoughness"]
    assert (pbr["metallicFactor"], pbr["roughnessFactor"]) == (0.0, 1.0)
    assert material["alphaMode"] == "OPAQUE"
    assert material["extensions"] == {"KHR_materials_unlit": {}}
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    assert "extensionsRequired" not in tree
    assert tree["textures"] == [{"source": 0, "sampler": 0}]
    assert tree["images"][0]["mimeType"] == "image/png"
    assert tree["asset"]["generator"].startswith("recon-worker ")


def test_glb_of_a_lit_mesh_names_no_extension(tmp_path: Path) -> None:
    export_mesh(spherical_mesh(unlit=False), tmp_path, up_axis="z", name="lit")
    tree = gltf(tmp_path / "model.glb")
    assert "extensions" not in tree["materials"][0]
    assert "extensionsUsed" not in tree
    assert "illum 1" in (tmp_path / "model.mtl").read_text()


@pytest.mark.parametrize(
    ("up_axis", "up", "front"), [("z", [0, 0, 1], [0, -1, 0]), ("y", [0, 1, 0], [0, 0, 1])]
)
def test_root_node_turns_the_model_upright(
    mesh: TexturedMesh, tmp_path: Path, up_axis: Any, up: list[float], front: list[float]
) -> None:
    export_mesh(mesh, tmp_path, up_axis=up_axis, name="upright")
    scene = trimesh.load_scene(tmp_path / "model.glb", process=False)
    (node,) = scene.graph.nodes_geometry
    transform, _ = scene.graph[node]
    np.testing.assert_allclose(transform[:3, :3] @ up, [0, 1, 0], atol=1e-7)
    np.testing.assert_allclose(transform[:3, :3] @ front, [0, 0, 1], atol=1e-7)
    np.testing.assert_array_equal(transform[:3, 3], 0)


def test_glb_keeps_triangles_texture_and_uvs(mesh: TexturedMesh, folder: Path) -> None:
    scene = trimesh.load_scene(folder / "model.glb", process=False)
    (loaded,) = scene.geometry.values()
    np.testing.assert_array_equal(
        sorted_triangles(loaded.vertices, loaded.faces), sorted_triangles(mesh.vertices, mesh.faces)
    )
    expected = mesh.uvs[mesh.uv_faces.long()].numpy()
    flipped = np.asarray(loaded.visual.uv)[loaded.faces] * [1, -1] + [0, 1]
    np.testing.assert_allclose(flipped, expected, atol=1e-6)
    embedded = np.asarray(loaded.visual.material.baseColorTexture)
    np.testing.assert_array_equal(embedded, np.asarray(texture_images(mesh).base_color))


def test_obj_keeps_triangles_texture_and_uvs(mesh: TexturedMesh, folder: Path) -> None:
    loaded = trimesh.load_mesh(folder / "model.obj", process=False)
    np.testing.assert_array_equal(
        sorted_triangles(loaded.vertices, loaded.faces), sorted_triangles(mesh.vertices, mesh.faces)
    )
    flipped = np.asarray(loaded.visual.uv)[loaded.faces] * [1, -1] + [0, 1]
    np.testing.assert_allclose(flipped, mesh.uvs[mesh.uv_faces.long()].numpy(), atol=1e-6)
    np.testing.assert_array_equal(
        np.asarray(loaded.visual.material.image), np.asarray(texture_images(mesh).base_color)
    )


def test_obj_has_no_cracks_at_seams_and_only_relative_names(mesh: TexturedMesh, folder: Path) -> None:
    text = (folder / "model.obj").read_text()
    assert len(re.findall(r"^v ", text, re.M)) == len(mesh.vertices)
    assert len(re.findall(r"^vt ", text, re.M)) == len(mesh.uvs)
    assert "mtllib model.mtl\n" in text
    assert "o a_sphere\n" in text
    assert "usemtl a_sphere\n" in text
    material = (folder / "model.mtl").read_text()
    assert material.startswith("newmtl a_sphere\n")
    assert "map_Kd textures/base_color.png\n" in material
    assert "illum 0\n" in material


def test_ply_is_binary_with_the_surface_its_normals_and_colours(mesh: TexturedMesh, folder: Path) -> None:
    header = (folder / "model.ply").read_bytes()[:400]
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\n")
    for item in (b"property uchar red", b"property float nx"):
        assert item in header
    loaded = trimesh.load_mesh(folder / "model.ply", process=False)
    np.testing.assert_array_equal(loaded.vertices.astype(np.float32), mesh.vertices.numpy())
    np.testing.assert_array_equal(loaded.faces, mesh.faces.numpy())
    expected = vertex_colors(clean_surface(mesh), mesh.base_color)
    np.testing.assert_array_equal(loaded.visual.vertex_colors[:, :3], expected)
    np.testing.assert_allclose(loaded.vertex_normals, mesh.vertices.numpy(), atol=0.02)  # a unit sphere


def test_vertex_colours_equal_a_naive_loop(mesh: TexturedMesh) -> None:
    surface, texture = clean_surface(mesh), mesh.base_color.numpy()
    colors = vertex_colors(surface, mesh.base_color)
    for vertex in range(0, len(surface.vertices), 37):
        corners = surface.uvs[surface.uv_faces[surface.faces == vertex]]
        mean = np.mean([bilinear(texture, uv) for uv in corners], axis=0)
        np.testing.assert_allclose(colors[vertex], mean * 255, atol=0.51)


def bilinear(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    height, width, _ = texture.shape
    x, y = uv[0] * width - 0.5, uv[1] * height - 0.5
    total = np.zeros(3)
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            total += weight * texture[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    return total


def test_seams_split_vertices_but_not_normals(mesh: TexturedMesh) -> None:
    surface = clean_surface(mesh)
    split = split_at_seams(surface)
    corners = {(int(v), int(t)) for v, t in zip(surface.faces.flat, surface.uv_faces.flat, strict=True)}
    assert len(split.vertices) == len(corners) > len(surface.vertices)
    np.testing.assert_array_equal(split.vertices[split.faces], surface.vertices[surface.faces])
    np.testing.assert_array_equal(split.normals[split.faces], surface.normals[surface.faces])
    np.testing.assert_array_equal(split.uvs[split.faces], surface.uvs[surface.uv_faces])


def test_degenerate_faces_and_unused_vertices_are_left_out(mesh: TexturedMesh) -> None:
    broken = dataclasses.replace(
        mesh,
        vertices=torch.cat([torch.full((1, 3), 9.0), mesh.vertices]),
        faces=torch.cat([mesh.faces + 1, torch.tensor([[5, 5, 7]], dtype=torch.int32)]),
        uv_faces=torch.cat([mesh.uv_faces, torch.tensor([[0, 1, 2]], dtype=torch.int32)]),
    )
    surface = clean_surface(broken)
    np.testing.assert_array_equal(surface.vertices, mesh.vertices.numpy())
    np.testing.assert_array_equal(surface.faces, mesh.faces.numpy())


def test_normals_have_unit_length_whatever_the_scale_and_even_without_area(mesh: TexturedMesh) -> None:
    tiny = clean_surface(dataclasses.replace(mesh, vertices=mesh.vertices * 1e-8))
    np.testing.assert_allclose(tiny.normals, clean_surface(mesh).normals, atol=1e-5)
    flat = clean_surface(dataclasses.replace(mesh, vertices=mesh.vertices * torch.tensor([1.0, 0.0, 0.0])))
    np.testing.assert_allclose(np.linalg.norm(flat.normals, axis=1), 1, atol=1e-6)


def test_a_mesh_without_faces_is_refused(mesh: TexturedMesh, tmp_path: Path) -> None:
    empty = dataclasses.replace(mesh, faces=mesh.faces[:0], uv_faces=mesh.uv_faces[:0])
    with pytest.raises(ValueError, match="without faces"):
        export_mesh(empty, tmp_path, up_axis="z", name="empty")


def test_a_mesh_with_nan_is_refused(mesh: TexturedMesh, tmp_path: Path) -> None:
    vertices = mesh.vertices.clone()
    vertices[3, 1] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        export_mesh(dataclasses.replace(mesh, vertices=vertices), tmp_path, up_axis="z", name="nan")


def test_texture_rows_keep_their_order_and_out_of_range_colours_are_clamped(mesh: TexturedMesh) -> None:
    color = torch.zeros(4, 2, 3)
    color[0] = torch.tensor([2.0, 0.5, -1.0])
    image = texture_images(dataclasses.replace(mesh, base_color=color)).base_color
    assert image.size == (2, 4)
    assert image.getpixel((0, 0)) == (255, 128, 0)
    assert isinstance(image, Image.Image)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("spot", "spot"),
        ("a b/c", "a_b_c"),
        ("../..", "model"),
        ("", "model"),
        ("Kuh ü\n", "Kuh"),
        ("x" * 200, "x" * 100),
    ],
)
def test_names_are_sanitized(name: str, expected: str) -> None:
    assert sanitize_name(name) == expected


def test_statistics_of_a_closed_sphere_and_of_two(mesh: TexturedMesh) -> None:
    one = mesh_statistics(mesh)
    assert (one.vertices, one.faces) == (len(mesh.vertices), len(mesh.faces))
    assert one.watertight
    assert one.components == 1
    assert (one.manifold, one.genus) == (True, 0)
    np.testing.assert_allclose(one.bounds, [[-1] * 3, [1] * 3], atol=0.02)
    two = dataclasses.replace(
        mesh,
        vertices=torch.cat([mesh.vertices, mesh.vertices + 3]),
        faces=torch.cat([mesh.faces, (mesh.faces + len(mesh.vertices))[1:]]),
        uv_faces=torch.cat([mesh.uv_faces, mesh.uv_faces[1:]]),
    )
    statistics = mesh_statistics(two)
    assert statistics.components == 2
    assert not statistics.watertight
    assert statistics.manifold  # with a boundary
    assert statistics.genus is None


def test_statistics_tell_a_ring_from_a_ball_and_see_where_sheets_touch(mesh: TexturedMesh) -> None:
    ring = mesh_statistics(with_atlas(trimesh.creation.torus(1.0, 0.4), 16))
    assert (ring.watertight, ring.manifold, ring.genus) == (True, True, 1)
    faces = mesh.faces + len(mesh.vertices)
    faces[faces == len(mesh.vertices) + 1] = 0  # the other ball hangs on the first one's vertex 0
    pinched = dataclasses.replace(
        mesh,
        vertices=torch.cat([mesh.vertices, mesh.vertices + 5]),
        faces=torch.cat([mesh.faces, faces]),
        uv_faces=torch.cat([mesh.uv_faces, mesh.uv_faces]),
    )
    statistics = mesh_statistics(pinched)
    assert (statistics.watertight, statistics.manifold, statistics.genus) == (True, False, None)
    assert statistics.components == 1
