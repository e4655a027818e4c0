import logging

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree
from torch.nn.functional import normalize

from models.geometry.adjacency import face_pairs
from models.geometry.decimation import decimate
from models.geometry.flexicubes import FlexiCubes
from models.geometry.mesh import Mesh, face_normals
from models.geometry.topology import Topology, describe


def extracted(resolution: int, *, roughness: float = 0.0) -> Mesh:
    """A double torus on bumpy ground, as a reconstruction extracts it; roughness in cells."""
    cubes = FlexiCubes(resolution)
    x, y, z = (cubes.grid_positions() * 2.2).unbind(1)
    ring = (x * x + y * y) ** 2 - x * x + 0.6 * y * y  # a figure of eight
    sdf = 0.5 * (ring**2 + z * z) - 0.012 + 0.002 * torch.sin(9 * x + 7 * z)
    noise = torch.randn(len(sdf), generator=torch.Generator().manual_seed(0))
    slope = 0.05 / resolution  # the field's typical slope, by a cell
    field = (sdf + roughness * slope * noise).clamp(min=-1)
    field[cubes.border()] = 1.0
    weights = torch.zeros(cubes.cube_count, 21)
    surface = cubes.extract(cubes.grid_positions(), field, weights, training=False)
    return Mesh(surface.vertices, surface.faces)


def topology(mesh: Mesh) -> Topology:
    return describe(mesh.faces.long().numpy())


def chamfer(a: Mesh, b: Mesh) -> tuple[float, float]:
    """Mean distance between samples of two surfaces, and between two samplings of the first."""

    def sample(mesh: Mesh, seed: int) -> np.ndarray:
        shape = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
        return trimesh.sample.sample_surface(shape, 50_000, seed=seed)[0]

    one, again, other = sample(a, 0), sample(a, 1), sample(b, 2)
    there, back = cKDTree(one).query(other)[0].mean(), cKDTree(other).query(one)[0].mean()
    return (there + back) / 2, cKDTree(one).query(again)[0].mean()


@pytest.mark.parametrize("roughness", [0.0, 0.6])
@pytest.mark.parametrize("share", [2, 5])
def test_a_closed_manifold_keeps_its_kind_at_the_target(roughness: float, share: int) -> None:
    mesh = extracted(64, roughness=roughness)
    target = len(mesh.faces) // share
    result = decimate(mesh, target)
    assert topology(mesh).manifold
    assert topology(result).manifold
    assert topology(result).closed
    assert topology(result).genus == topology(mesh).genus
    assert topology(result).components == topology(mesh).components
    assert 0.95 * target <= len(result.faces) <= 1.06 * target
    assert len(torch.unique(result.faces)) == len(result.vertices)


def test_what_is_lost_is_less_than_sampling_can_tell() -> None:
    mesh = extracted(96)
    distance, floor = chamfer(mesh, decimate(mesh, len(mesh.faces) // 4))
    assert distance < 1.05 * floor


def test_no_face_is_flat_or_folded_over() -> None:
    mesh = extracted(64)
    result = decimate(mesh, len(mesh.faces) // 4)
    normals = face_normals(result.vertices, result.faces)
    assert normals.norm(dim=1).min() > 0
    pairs = face_pairs(result.faces.long().numpy())
    unit = normalize(normals, dim=1)
    assert (unit[pairs.first] * unit[pairs.second]).sum(1).min() > -0.8


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale_and_place_do_not_matter(scale: float) -> None:
    mesh = extracted(48)
    target = len(mesh.faces) // 3
    here, there = decimate(mesh, target), decimate(Mesh((mesh.vertices + 10) * scale, mesh.faces), target)
    assert abs(len(there.faces) - len(here.faces)) <= 0.02 * target
    back = Mesh(there.vertices / scale - 10, there.faces)
    assert chamfer(mesh, back)[0] < 1.05 * chamfer(mesh, here)[0]


def test_the_same_mesh_gives_the_same_bits() -> None:
    mesh = extracted(48)
    one, two = decimate(mesh, 1000), decimate(mesh, 1000)
    assert torch.equal(one.vertices, two.vertices)
    assert torch.equal(one.faces, two.faces)


def test_small_meshes_come_back_as_they_are_and_tiny_targets_are_refused() -> None:
    mesh = extracted(16)
    assert decimate(mesh, len(mesh.faces)) is mesh
    with pytest.raises(ValueError, match="fewer than 4"):
        decimate(mesh, 3)


def test_a_surface_that_cannot_be_had_with_so_few_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Sixty closed surfaces cannot be had with thirty triangles."""
    one = trimesh.creation.icosahedron()
    many = trimesh.util.concatenate([one.copy().apply_translation([3 * i, 0, 0]) for i in range(60)])
    mesh = Mesh(
        torch.tensor(np.asarray(many.vertices), dtype=torch.float32),
        torch.tensor(np.asarray(many.faces), dtype=torch.int32),
    )
    with caplog.at_level(logging.WARNING):
        result = decimate(mesh, 30)
    assert topology(result).components == 60
    assert topology(result).manifold
    assert (result is mesh) == ("would break its surface" in caplog.text)
    assert len(result.faces) >= 240


def test_an_open_surface_may_come_out_closed() -> None:
    """A hole of three edges at the tip of a fine mesh goes with the first collapses there."""
    ball = trimesh.creation.icosphere(4)
    pricked = Mesh(
        torch.tensor(np.asarray(ball.vertices), dtype=torch.float32),
        torch.tensor(np.asarray(ball.faces)[1:], dtype=torch.int32),
    )
    assert topology(pricked).genus is None
    result = decimate(pricked, 200)
    assert topology(result).manifold
    assert topology(result).closed
    assert topology(result).genus == 0
    assert len(result.faces) <= 210
