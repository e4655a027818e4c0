import pytest
import torch

from models.geometry.dual_tables import CORNERS
from models.geometry.flexicubes import FlexiCubes
from models.geometry.sparse_flexicubes import CubeFeatures, extract_sparse

RESOLUTION = 9


def random_features(
    share: float = 0.4, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, CubeFeatures]:
    """Occupied cubes in random order, none at the grid's border, and random features."""
    inner = torch.rand((RESOLUTION - 2,) * 3) < share
    coords = torch.nonzero(inner) + 1
    coords = coords[torch.randperm(coords.shape[0])]
    k = coords.shape[0]
    shapes = (k, 8), (k, 8, 3), (k, 8, 2), (k, 21)
    return coords, CubeFeatures(*(torch.randn(shape, dtype=dtype) for shape in shapes))


def dense_twin(coords: torch.Tensor, features: CubeFeatures):
    """The same by loops over the corners and a grid of all cubes."""
    grid = FlexiCubes(RESOLUTION)
    said: dict[int, list[torch.Tensor]] = {}
    weights = torch.zeros(grid.cube_count, 21)
    stride = torch.tensor([1, RESOLUTION + 1, (RESOLUTION + 1) ** 2])
    for cube, place in enumerate(coords):
        x, y, z = place.tolist()
        weights[x + RESOLUTION * (y + RESOLUTION * z)] = features.weights[cube]
        for corner, offset in enumerate(torch.tensor(CORNERS)):
            vertex = int(((place + offset) * stride).sum())
            parts = features.sdf[cube, corner, None], features.deformation[cube, corner]
            said.setdefault(vertex, []).append(torch.cat([*parts, features.attributes[cube, corner]]))
    values = torch.zeros(grid.vertex_count, 6)
    values[:, 0] = 1
    for vertex, rows in said.items():
        values[vertex] = torch.stack(rows).mean(0)
    positions = grid.grid_positions() / 2 + 0.5 / RESOLUTION * torch.tanh(values[:, 1:4])
    surface = grid.extract(positions, values[:, 0], weights, training=False)
    painted = grid.extract(torch.sigmoid(values[:, [4, 5, 5]]), values[:, 0], weights, training=False)
    return surface, painted.vertices[:, :2]


def test_agrees_with_the_dense_grid():
    coords, features = random_features()
    sparse = extract_sparse(coords, features, RESOLUTION)
    dense, attributes = dense_twin(coords, features)
    torch.testing.assert_close(sparse.vertices, dense.vertices, atol=1e-6, rtol=0)
    torch.testing.assert_close(sparse.faces, dense.faces)
    torch.testing.assert_close(sparse.attributes, attributes, atol=1e-6, rtol=0)


def test_inside_cubes_without_a_surface_give_none():
    coords = torch.tensor([[2, 2, 2], [2, 2, 3]])
    features = CubeFeatures(torch.ones(2, 8), torch.zeros(2, 8, 3), torch.zeros(2, 8, 2), torch.zeros(2, 21))
    surface = extract_sparse(coords, features, RESOLUTION)
    assert surface.vertices.shape == (0, 3)
    assert surface.attributes.shape == (0, 2)
    assert surface.faces.shape == (0, 3)


def test_one_occupied_cube_gives_a_closed_box_of_the_cubes_that_touch_it():
    # All eight corners are inside; the surface lies in the 26 cubes around, halfway to their outer vertices.
    coords = torch.tensor([[4, 4, 4]])
    features = CubeFeatures(-torch.ones(1, 8), torch.zeros(1, 8, 3), torch.zeros(1, 8, 2), torch.zeros(1, 21))
    surface = extract_sparse(coords, features, RESOLUTION)
    assert surface.vertices.shape == (26, 3)
    edges = surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    assert (torch.unique(edges, dim=0, return_counts=True)[1] == 1).all()
    assert (torch.unique(edges.sort(1).values, dim=0, return_counts=True)[1] == 2).all()
    a, b, c = surface.vertices[surface.faces.long()].unbind(1)
    assert (a * torch.cross(b, c, dim=1)).sum() > 0  # looks outwards


def test_a_surface_that_leaves_the_grid_is_open_there():
    coords = torch.tensor([[0, 0, 0]])
    features = CubeFeatures(-torch.ones(1, 8), torch.zeros(1, 8, 3), torch.zeros(1, 8, 2), torch.zeros(1, 21))
    surface = extract_sparse(coords, features, RESOLUTION)
    edges = surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).sort(1).values
    assert len(surface.faces) > 0
    assert (torch.unique(edges, dim=0, return_counts=True)[1] == 1).any()
    assert surface.vertices.min() >= -0.5


@pytest.mark.parametrize("part", range(4))
def test_gradients_are_right(part):
    coords, features = random_features(0.02, torch.float64)
    cotangent = torch.randn(10_000, 5, dtype=torch.float64)

    def weighted(changed: torch.Tensor) -> torch.Tensor:
        surface = extract_sparse(coords, features._replace(**{features._fields[part]: changed}), RESOLUTION)
        values = torch.cat([surface.vertices, surface.attributes], 1)
        return (values * cotangent[: values.shape[0]]).sum()

    assert torch.autograd.gradcheck(weighted, features[part].clone().requires_grad_(), atol=1e-6)
