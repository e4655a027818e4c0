import itertools

import pytest
import torch

from models.sparse.grid import SparseGrid


def random_grid(resolution: int = 7, share: float = 0.3) -> SparseGrid:
    """Voxels of a random occupancy, in random order."""
    coords = torch.nonzero(torch.rand(resolution, resolution, resolution) < share)
    return SparseGrid(coords[torch.randperm(coords.shape[0])], resolution)


def test_neighbors_are_those_that_a_search_finds():
    grid = random_grid()
    number = {tuple(place): row for row, place in enumerate(grid.coords.tolist())}
    table = grid.neighbors()
    for (x, y, z), row in number.items():
        for column, (dx, dy, dz) in enumerate(itertools.product((-1, 0, 1), repeat=3)):
            assert table[row, column] == number.get((x + dx, y + dy, z + dz), len(grid))


def test_tables_are_computed_once():
    grid = random_grid()
    assert grid.neighbors() is grid.neighbors()
    assert grid.windows(2, 1) is grid.windows(2, 1)
    assert grid.windows(2, 1) is not grid.windows(2, 0)
    assert grid.coarsened().grid.neighbors() is grid.coarsened().grid.neighbors()


def test_coarsening_covers_every_voxel_in_lexicographic_order():
    grid = random_grid()
    coarse = grid.coarsened()
    assert coarse.grid.resolution == 4
    assert coarse.grid.coords.tolist() == sorted(map(list, {tuple(c) for c in (grid.coords // 2).tolist()}))
    torch.testing.assert_close(coarse.grid.coords[coarse.parent], grid.coords // 2)
    features = torch.randn(2, len(coarse.grid), 3)
    torch.testing.assert_close(coarse.unpool(features), features[:, coarse.parent])


def test_pooling_counts_one_zero_more_than_there_are_children():
    grid = random_grid()
    coarse = grid.coarsened()
    features = torch.randn(2, len(grid), 3)
    pooled = coarse.pool(features)
    for row in range(len(coarse.grid)):
        own = features[:, coarse.parent == row]
        torch.testing.assert_close(pooled[:, row], own.sum(1) / (own.shape[1] + 1))


def test_children_of_a_voxel_follow_each_other_lexicographically():
    grid = SparseGrid(torch.tensor([[3, 0, 1], [0, 2, 2]]), 4)
    fine = grid.subdivided()
    assert fine.resolution == 8
    first = [[6 + x, y, 2 + z] for x, y, z in itertools.product((0, 1), repeat=3)]
    second = [[x, 4 + y, 4 + z] for x, y, z in itertools.product((0, 1), repeat=3)]
    assert fine.coords.tolist() == first + second


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_hold_voxels_of_the_same_cube(shift):
    grid = random_grid(11)
    windows = grid.windows(4, shift)
    assert windows.lengths.total == len(grid)
    torch.testing.assert_close(windows.order[windows.inverse], torch.arange(len(grid)))
    cubes = [
        set(map(tuple, part.tolist()))
        for part in ((grid.coords[windows.order] + shift) // 4).split(list(windows.lengths.sizes))
    ]
    assert all(len(cube) == 1 for cube in cubes)
    assert len(set.union(*cubes)) == len(cubes)  # and no cube is split


def test_voxels_outside_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"in \[0, 4\)"):
        SparseGrid(torch.tensor([[0, 4, 0]]), 4)
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        SparseGrid(torch.tensor([0, 1, 0]), 4)
    with pytest.raises(ValueError, match="N > 0"):
        SparseGrid(torch.zeros(0, 3), 4)
