import numpy as np
import pytest
import torch

from models.geometry.dual_tables import EDGES, dual_tables
from models.geometry.flexicubes import WEIGHTS_PER_CUBE, FlexiCubes


def edge_uses(faces: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """How often each directed and each undirected edge is used."""
    f = faces.numpy()
    directed = np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]])
    _, once = np.unique(directed, axis=0, return_counts=True)
    _, twice = np.unique(np.sort(directed, axis=1), axis=0, return_counts=True)
    return once, twice


def volume(vertices: torch.Tensor, faces: torch.Tensor) -> float:
    a, b, c = vertices[faces.long()].unbind(1)
    return float((a * torch.cross(b, c, dim=1)).sum() / 6)


def extract(cubes: FlexiCubes, sdf: torch.Tensor, *, training: bool):
    sdf = torch.where(cubes.border(), sdf.abs() + 0.01, sdf)
    weights = torch.zeros(cubes.cube_count, WEIGHTS_PER_CUBE)
    return cubes.extract(cubes.grid_positions(), sdf, weights, training=training)


def test_every_cut_edge_belongs_to_one_patch_of_at_least_three_edges():
    tables = dual_tables()
    for rule in range(2):
        for case in range(256):
            patch = tables.patch[rule, case]
            cut = [(case >> a ^ case >> b) & 1 for a, b in EDGES]
            np.testing.assert_array_equal(patch >= 0, np.array(cut, bool))
            assert all((patch == p).sum() >= 3 for p in range(tables.count[rule, case]))


def test_complementary_cases_swap_the_rules():
    tables = dual_tables()
    for case in range(256):
        np.testing.assert_array_equal(tables.patch[0, case], tables.patch[1, 255 - case])


@pytest.mark.parametrize("training", [True, False])
def test_noise_gives_a_closed_oriented_manifold(training):
    # White noise runs through every case, the ones that plain dual marching cubes tears included.
    cubes = FlexiCubes(14)
    surface = extract(cubes, torch.rand(cubes.vertex_count) - 0.5, training=training)
    directed, undirected = edge_uses(surface.faces)
    assert (directed == 1).all()
    assert (undirected == 2).all()


def test_sphere_has_its_volume_and_looks_outwards():
    cubes = FlexiCubes(32)
    sdf = cubes.grid_positions().norm(dim=1) - 0.7
    for training in (True, False):
        surface = extract(cubes, sdf, training=training)
        assert volume(surface.vertices, surface.faces) == pytest.approx(4 / 3 * np.pi * 0.7**3, rel=0.01)
        radius = surface.vertices.norm(dim=1)
        assert (radius - 0.7).abs().max() < 0.25 * 2 / 32


def test_training_splits_quads_in_four_and_keeps_dual_vertices_first():
    cubes = FlexiCubes(10)
    sdf = cubes.grid_positions().norm(dim=1) - 0.6
    fine, coarse = extract(cubes, sdf, training=True), extract(cubes, sdf, training=False)
    assert fine.faces.shape[0] == 2 * coarse.faces.shape[0]
    assert fine.dual_vertices == coarse.vertices.shape[0]
    torch.testing.assert_close(fine.vertices[: fine.dual_vertices], coarse.vertices)


def test_plane_is_reproduced_exactly():
    # Linear interpolation along edges is exact for a linear function, so every vertex lies on the plane.
    cubes = FlexiCubes(8)
    normal = torch.tensor([0.3, -0.5, 0.81])
    sdf = cubes.grid_positions() @ normal - 0.05
    weights = torch.zeros(cubes.cube_count, WEIGHTS_PER_CUBE)
    sdf = torch.where(cubes.border(), sdf.abs() + 0.5, sdf)
    surface = cubes.extract(cubes.grid_positions(), sdf, weights, training=False)
    inner = (surface.vertices.abs() < 0.6).all(1)
    assert inner.sum() > 20
    torch.testing.assert_close(
        surface.vertices[inner] @ normal, torch.full((int(inner.sum()),), 0.05), atol=1e-5, rtol=0
    )


def test_gradients_of_positions_distances_and_weights_are_right():
    cubes = FlexiCubes(3)
    generator = torch.Generator().manual_seed(1)
    sdf = cubes.grid_positions().double().norm(dim=1) - 0.7
    sdf = (sdf + 0.05 * torch.rand(sdf.shape, generator=generator).double()).requires_grad_()
    weights = torch.randn(cubes.cube_count, WEIGHTS_PER_CUBE, generator=generator).double() * 0.3
    weights.requires_grad_()
    positions = cubes.grid_positions().double().requires_grad_()
    cotangent = torch.randn(1000, 3, generator=generator).double()

    def weighted(p, s, w):
        surface = cubes.extract(p, s, w, training=True)
        return (surface.vertices * cotangent[: surface.vertices.shape[0]]).sum() + surface.deviation

    assert torch.autograd.gradcheck(weighted, (positions, sdf, weights), atol=1e-6)


def test_an_empty_grid_gives_an_empty_surface():
    cubes = FlexiCubes(4)
    surface = extract(cubes, torch.ones(cubes.vertex_count), training=True)
    assert surface.faces.shape == (0, 3)
    assert float(surface.deviation) == 0


def test_wrong_shapes_are_refused_with_the_shape():
    cubes = FlexiCubes(4)
    weights = torch.zeros(cubes.cube_count, WEIGHTS_PER_CUBE)
    with pytest.raises(ValueError, match=r"sdf must be of shape \(125,\), got \(7,\)"):
        cubes.extract(cubes.grid_positions(), torch.ones(7), weights, training=True)
