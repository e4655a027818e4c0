from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from benchmarks.known_object import SHARE, SIDE, KnownObject
from benchmarks.memory import MESH, RIG, published_arguments, resized, several
from benchmarks.parity.cubes import CORNERS
from benchmarks.reconstruction.datasets import read_views
from models.reconviagen.checkpoint import KINDS, Part
from models.sparse.grid import SparseGrid
from schemas.options import NvdiffrecOptions

DATA = Path(__file__).parents[3] / "examples/spot-small"
RESOLUTION = 16


@pytest.fixture(scope="module")
def known():
    return KnownObject.read(DATA / MESH, RESOLUTION, torch.device("cpu"))


def test_occupied_voxels_are_those_nearest_to_the_surface(known):
    assert len(known.coords) == int(SHARE * RESOLUTION**2)
    assert torch.equal((known.logits() > 0).nonzero().int(), known.coords)
    centres = (known.coords.numpy() + 0.5) / RESOLUTION - 0.5
    assert cKDTree(known.points).query(centres)[0].max() < 2 / RESOLUTION
    voxels = ((known.points + 0.5) * RESOLUTION).int()
    assert (known.logits()[voxels.long().unbind(1)] > 0).all()


def test_distances_are_the_surfaces_at_the_corners_of_cubes(known):
    cubes = SparseGrid(known.coords, RESOLUTION).subdivided().subdivided()
    corners = (cubes.coords[:, None] + torch.tensor(CORNERS)) / cubes.resolution - 0.5
    far = cKDTree(known.points).query(corners.reshape(-1, 3))[0]
    assert np.abs(far - known.distances.abs().flatten().numpy()).mean() < 0.1 / cubes.resolution
    outside = corners.abs().amax(-1) > SIDE / 2 + 0.01
    assert outside.any()
    assert (known.distances[outside] > 0).all()
    assert (known.distances < 0).float().mean() > 0.2


def test_views_are_repeated_and_enlarged_with_their_cameras():
    views = read_views(DATA / RIG, NvdiffrecOptions())
    many = several(resized(views, 200), 8)
    assert many.images.shape == (8, 200, 200, 3)
    assert len(set(many.names)) == 8
    assert torch.equal(many.depths[7], many.depths[1])
    point = torch.zeros(1, 3)
    assert torch.allclose(
        many.cameras.project(point)[0][:6], views.cameras.project(point)[0] * 200 / 128, atol=1e-3
    )


def test_published_networks_have_their_published_size():
    arguments = published_arguments()
    with torch.device("meta"):
        networks = [kind.network(kind.config(**arguments[part])) for part, (_, kind) in KINDS.items()]
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert set(arguments) == set(Part)
    assert 1.5e9 < sum(sizes) < 2e9
