# mypy: ignore-errors
# ruff: noqa: UP018, RUF046
# Casting a literal is how a Warp kernel declares a variable that a loop or a branch may change.
"""Which faces meet in an edge, by a hash table with open addressing: three passes over the half-edges.

Half-edge 3 f + k is the edge of face f opposite to its corner k. A place of the table belongs to one edge:
its key, the first half-edge of that edge, and the first one with another far vertex. Half-edges are kept as
(count - index), so that a table of zeros is empty and "first" is a maximum. `marks` holds the firsts of all
places and behind them the seconds.
"""

import warp as wp


@wp.func
def edge_key(tri: wp.array(dtype=wp.int32), half_edge: int, vertices: int) -> wp.int64:
    """The two vertices of an edge in either order as one positive number; 0 for broken faces."""
    face = half_edge // 3
    a = tri[3 * face + (half_edge + 1) % 3]
    b = tri[3 * face + (half_edge + 2) % 3]
    far = tri[half_edge]
    if a == b or b == far or far == a:
        return wp.int64(0)
    low = wp.min(a, b)
    high = wp.max(a, b)
    if wp.min(low, far) < 0 or wp.max(high, far) >= vertices:
        return wp.int64(0)
    return wp.int64(low) * wp.int64(vertices) + wp.int64(high) + wp.int64(1)


@wp.kernel(enable_backward=False, grid_stride=False)
def enter_edges(
    first: int,
    slot: int,
    tri: wp.array(dtype=wp.int32),
    keys: wp.array(dtype=wp.int64),
    marks: wp.array(dtype=wp.int32),
    places: wp.array(dtype=wp.int32),
    count: int,
    vertices: int,
    bits: int,
) -> None:
    """One item per half-edge: finds or makes its edge's place in a table of 2^bits; -1 for broken faces."""
    i = first + wp.tid()
    key = edge_key(tri, i, vertices)
    if key == wp.int64(0):
        places[i] = -1
        return
    # Fibonacci hashing: the upper bits of a product with 2^64 over the golden ratio.
    mixed = wp.uint64(key) * wp.uint64(11400714819323198485)
    place = int(mixed >> wp.uint64(64 - bits))
    looking = int(1)
    while looking != 0:
        found = wp.atomic_cas(keys, place, wp.int64(0), key)
        if found == wp.int64(0) or found == key:
            looking = 0
        else:
            place = (place + 1) & ((1 << bits) - 1)
    places[i] = place
    wp.atomic_max(marks, place, count - i)


@wp.kernel(enable_backward=False, grid_stride=False)
def find_seconds(
    first: int,
    slot: int,
    tri: wp.array(dtype=wp.int32),
    marks: wp.array(dtype=wp.int32),
    places: wp.array(dtype=wp.int32),
    count: int,
    bits: int,
) -> None:
    """One item per half-edge: enters it as its edge's second if its far vertex is not the first's."""
    i = first + wp.tid()
    place = places[i]
    if place >= 0 and tri[i] != tri[count - marks[place]]:
        wp.atomic_max(marks, (1 << bits) + place, count - i)


@wp.kernel(enable_backward=False, grid_stride=False)
def look_across(
    first: int,
    slot: int,
    tri: wp.array(dtype=wp.int32),
    marks: wp.array(dtype=wp.int32),
    places: wp.array(dtype=wp.int32),
    opposite: wp.array(dtype=wp.int32),
    count: int,
    bits: int,
) -> None:
    """One item per half-edge: the far vertex on the edge's other side; -1 where there is none."""
    i = first + wp.tid()
    across = int(-1)
    place = places[i]
    if place >= 0 and marks[(1 << bits) + place] > 0:
        far_first = tri[count - marks[place]]
        far_second = tri[count - marks[(1 << bits) + place]]
        if tri[i] == far_first:
            across = far_second
        elif tri[i] == far_second:
            across = far_first
    opposite[i] = across
