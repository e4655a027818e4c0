"""Lit meshes in every file that we write, read by other libraries or by the formats' definitions."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from textured_meshes import lit_sphere, spherical_mesh

from models.geometry.mesh import TexturedMesh, vertex_normals
from models.geometry.tangents import vertex_tangents
from pipeline.export import export_mesh
from pipeline.textures import texture_images, write_environment


@pytest.fixture(scope="module")
def mesh() -> TexturedMesh:
    return lit_sphere()


@pytest.fixture(scope="module")
def folder(mesh: TexturedMesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lit")
    export_mesh(mesh, folder, up_axis="z", name="lit")
    return folder


_COMPONENT = {5126: np.float32, 5125: np.uint32, 5123: np.uint16}
_WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


class Glb:
    """A GLB file read by the letter of the specification."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        length = int.from_bytes(data[12:16], "little")
        self.tree: dict[str, Any] = json.loads(data[20 : 20 + length])
        self._binary = data[20 + length + 8 :]

    def _view(self, index: int) -> bytes:
        view = self.tree["bufferViews"][index]
        start = view.get("byteOffset", 0)
        return self._binary[start : start + view["byteLength"]]

    def accessor(self, index: int) -> np.ndarray:
        accessor = self.tree["accessors"][index]
        width = _WIDTH[accessor["type"]]
        flat = np.frombuffer(
            self._view(accessor["bufferView"]),
            _COMPONENT[accessor["componentType"]],
            accessor["count"] * width,
            accessor.get("byteOffset", 0),
        )
        return flat.reshape(-1, width)

    def attribute(self, name: str) -> np.ndarray:
        return self.accessor(self.tree["meshes"][0]["primitives"][0]["attributes"][name])

    def triangles(self) -> np.ndarray:
        return self.accessor(self.tree["meshes"][0]["primitives"][0]["indices"]).reshape(-1, 3).astype(int)

    def image(self, texture: dict[str, Any]) -> np.ndarray:
        source = self.tree["images"][self.tree["textures"][texture["index"]]["source"]]
        with Image.open(io.BytesIO(self._view(source["bufferView"]))) as image:
            return np.asarray(image)


def test_every_file_of_a_lit_mesh_is_written(folder: Path) -> None:
    written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    names = ("base_color.png", "roughness.png", "metallic.png", "normal.png", "environment.hdr")
    models = {"model.glb", "model.obj", "model.mtl", "model.ply"}
    assert written == models | {f"textures/{name}" for name in names}


def test_the_same_lit_mesh_gives_the_same_bytes(mesh: TexturedMesh, folder: Path, tmp_path: Path) -> None:
    export_mesh(mesh, tmp_path, up_axis="z", name="lit")
    for path in filter(Path.is_file, folder.rglob("*")):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


def test_glb_holds_a_metallic_roughness_material(mesh: TexturedMesh, folder: Path) -> None:
    file = Glb(folder / "model.glb")
    (material,) = file.tree["materials"]
    pbr = material["pbrMetallicRoughness"]
    assert pbr.get("metallicFactor", 1.0) == 1.0
    assert pbr.get("roughnessFactor", 1.0) == 1.0
    assert "extensions" not in material
    packed = file.image(pbr["metallicRoughnessTexture"]) / 255
    expected = mesh.roughness_metallic
    assert expected is not None
    np.testing.assert_allclose(packed[..., 1], expected[..., 0], atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(packed[..., 2], expected[..., 1], atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(packed[..., 0], 1)
    np.testing.assert_allclose(
        file.image(pbr["baseColorTexture"]) / 255, mesh.base_color, atol=0.5 / 255 + 1e-6
    )
    assert {texture["sampler"] for texture in file.tree["textures"]} == {0}
    assert len(file.tree["samplers"]) == 1
    assert {image["mimeType"] for image in file.tree["images"]} == {"image/png"}


def test_normals_read_from_the_glb_are_those_of_the_renderer(mesh: TexturedMesh, folder: Path) -> None:
    """Shaded as glTF says, from the file alone, and as the renderer does, from the mesh."""
    file = Glb(folder / "model.glb")
    decoded = file.image(file.tree["materials"][0]["normalTexture"]) / 255 * 2 - 1
    assert mesh.normal_map is not None
    np.testing.assert_allclose(decoded, mesh.normal_map, atol=1 / 255 + 1e-6)

    faces = file.triangles()
    normal, tangent = file.attribute("NORMAL"), file.attribute("TANGENT")
    bitangent = np.cross(normal, tangent[:, :3]) * tangent[:, 3:]
    uv = file.attribute("TEXCOORD_0")[faces].mean(1)
    column, row = np.minimum(uv * 64, 63).astype(int).T
    x, y, z = decoded[row, column].T[:, :, None]
    shaded = sum(w * v[faces].mean(1) for w, v in ((x, tangent[:, :3]), (y, bitangent), (z, normal)))

    smooth = vertex_normals(mesh.vertices, mesh.faces)
    frame = vertex_tangents(mesh.vertices, mesh.faces, mesh.uvs, mesh.uv_faces, smooth)[mesh.uv_faces.long()]
    n, t = smooth[mesh.faces.long()], frame[..., :3]
    b = torch.cross(n, t, dim=-1) * frame[..., 3:]
    own = mesh.normal_map[torch.tensor(row), torch.tensor(column)]
    expected = own[:, :1] * t.mean(1) + own[:, 1:2] * b.mean(1) + own[:, 2:] * n.mean(1)
    np.testing.assert_allclose(shaded, expected.numpy(), atol=0.02)


def test_a_bump_in_the_normal_map_leans_the_way_it_does_on_the_surface(tmp_path: Path) -> None:
    """A normal map that leans towards the texture's top, +y, leans against growing v in space."""
    plain = lit_sphere()
    up = torch.nn.functional.normalize(torch.tensor([0.0, 1.0, 1.0]), dim=0).expand_as(plain.base_color)
    export_mesh(TexturedMesh(**{**vars(plain), "normal_map": up}), tmp_path, up_axis="z", name="up")
    file = Glb(tmp_path / "model.glb")
    faces = file.triangles()
    position, uv = file.attribute("POSITION")[faces], file.attribute("TEXCOORD_0")[faces]
    edges = np.stack([position[:, 1] - position[:, 0], position[:, 2] - position[:, 0]], 1)
    steps = np.stack([uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]], 1)
    along_v = np.linalg.solve(steps, edges)[:, 1]  # dP/dv
    normal, tangent = file.attribute("NORMAL")[faces[:, 0]], file.attribute("TANGENT")[faces[:, 0]]
    lean = np.cross(normal, tangent[:, :3]) * tangent[:, 3:] + normal
    assert ((lean * along_v).sum(1) < 0).all()


def test_without_a_normal_map_there_are_no_tangents(tmp_path: Path) -> None:
    export_mesh(spherical_mesh(unlit=False), tmp_path, up_axis="z", name="plain")
    attributes = Glb(tmp_path / "model.glb").tree["meshes"][0]["primitives"][0]["attributes"]
    assert set(attributes) == {"POSITION", "NORMAL", "TEXCOORD_0"}
    assert not (tmp_path / "textures" / "normal.png").exists()


def test_mtl_names_every_map_and_every_map_is_there(mesh: TexturedMesh, folder: Path) -> None:
    lines = dict(line.split(" ", 1) for line in (folder / "model.mtl").read_text().splitlines())
    assert lines["illum"] == "1"
    assert (lines["Pr"], lines["Pm"]) == ("1", "1")
    images = texture_images(mesh)
    maps = {
        "map_Kd": images.base_color,
        "map_Pr": images.roughness,
        "map_Pm": images.metallic,
        "norm": images.normal,
    }
    assert "map_Bump" not in lines  # a map of heights
    for key, expected in maps.items():
        with Image.open(folder / lines[key]) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    loaded = trimesh.load_mesh(folder / "model.obj", process=False)
    np.testing.assert_array_equal(np.asarray(loaded.visual.material.image), np.asarray(images.base_color))


def test_the_light_is_kept_within_the_precision_of_its_format(mesh: TexturedMesh, folder: Path) -> None:
    data = (folder / "textures" / "environment.hdr").read_bytes()
    assert data.startswith(b"#?RADIANCE")
    radiance = cv2.imread(str(folder / "textures" / "environment.hdr"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert mesh.environment is not None
    brightest = mesh.environment.amax(-1, keepdim=True).numpy()
    assert (np.abs(radiance - mesh.environment.numpy()) <= brightest / 100).all()


def test_negative_light_is_written_as_none(tmp_path: Path) -> None:
    write_environment(torch.tensor([[[-1.0, 0.5, 2.0]] * 8] * 4), tmp_path / "light.hdr")
    radiance = cv2.imread(str(tmp_path / "light.hdr"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    np.testing.assert_allclose(radiance[0, 0], [0, 0.5, 2], atol=0.02)


def test_textures_on_another_scale_are_clamped(mesh: TexturedMesh) -> None:
    wild = TexturedMesh(**{**vars(mesh), "roughness_metallic": torch.tensor([2.0, -1.0]).expand(8, 8, 2)})
    images = texture_images(wild)
    assert images.roughness is not None
    assert images.metallic is not None
    assert (images.roughness.getpixel((3, 3)), images.metallic.getpixel((3, 3))) == (255, 0)
