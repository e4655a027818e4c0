import numpy as np
import pytest

from models.geometry.injectivity import overlapping_pieces


def strip(
    turn: float, *, steps: int = 60, inner: float = 1.0, outer: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """A strip of triangles that bends by `turn` radians around the origin, counter-clockwise."""
    angle = np.linspace(0, turn, steps + 1)
    along = np.stack([np.cos(angle), np.sin(angle)], 1)
    points = np.stack([inner * along, outer * along], 1).reshape(-1, 2)
    first = 2 * np.arange(steps)[:, None]
    return points, np.concatenate([first + np.array([0, 1, 3]), first + np.array([0, 3, 2])])


def overlaps(points: np.ndarray, triangles: np.ndarray) -> bool:
    (verdict,) = overlapping_pieces(points, triangles, np.zeros(len(triangles), np.int64))
    return bool(verdict)


@pytest.mark.parametrize(("turn", "expected"), [(1.0, False), (6.2, False), (6.5, True), (12.0, True)])
def test_a_strip_overlaps_once_it_has_gone_all_the_way_round(turn: float, expected: bool) -> None:
    points, triangles = strip(turn)
    assert overlaps(points, triangles) is expected


def test_a_ring_does_not_overlap_although_its_boundary_has_two_loops() -> None:
    points, triangles = strip(2 * np.pi)
    assert not overlaps(points[:-2], triangles % (len(points) - 2))


def test_a_ring_that_goes_round_twice_overlaps_although_each_loop_is_closed() -> None:
    points, triangles = strip(4 * np.pi)
    assert overlaps(points[:-2], triangles % (len(points) - 2))


def test_a_triangle_turned_over_or_without_area_counts() -> None:
    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    assert not overlaps(square, np.array([[0, 1, 2], [0, 2, 3]]))
    assert overlaps(square, np.array([[0, 1, 2], [0, 3, 2]]))
    assert overlaps(square * [1, 0], np.array([[0, 1, 2], [0, 2, 3]]))


def test_a_fan_that_winds_round_its_vertex_more_than_once_overlaps() -> None:
    for turn, expected in ((1.9 * np.pi, False), (2.4 * np.pi, True)):
        angle = np.linspace(0, turn, 13)
        points = np.concatenate([[[0.0, 0]], np.stack([np.cos(angle), np.sin(angle)], 1)])
        rim = np.arange(1, 13)
        assert overlaps(points, np.stack([0 * rim, rim, rim + 1], 1)) is expected


def test_long_edges_beside_short_ones_are_found_to_meet() -> None:
    """A fine strip that bends into a triangle whose one edge is a hundred times longer than theirs."""
    points, triangles = strip(1.5 * np.pi, steps=300)
    reaching = np.concatenate([points, [[1.5, -0.5]]])  # from the end (0, -1..-2): clear of the strip's start
    end = len(points) - 2
    beside = np.concatenate([triangles, [[end, end + 1, end + 2]]])
    assert not overlaps(reaching, beside)
    across = np.concatenate([points, [[1.5, 0.5]]])  # through it
    assert overlaps(across, beside)


def test_every_piece_is_judged_by_itself() -> None:
    fine, triangles = strip(3.0)
    wound, _ = strip(8.0)
    points = np.concatenate([fine, wound, fine])
    faces = np.concatenate([triangles + i * len(fine) for i in range(3)])
    piece = np.repeat([0, 1, 2], len(triangles))
    np.testing.assert_array_equal(overlapping_pieces(points, faces, piece), [False, True, False])
