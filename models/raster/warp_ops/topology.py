"""Which vertex lies across each edge of a triangle mesh."""

import weakref
from collections import OrderedDict

import torch
from torch import Tensor


def opposite_vertices(tri: Tensor, vertices: int) -> Tensor:
    """Finds, for every edge of every face, the far vertex of the face on its other side.

    Faces are neighbours when they share two vertex indices; orientation does not matter. Where more than
    two faces meet in an edge, the first two (by face index) are neighbours and the others have none.

    Args:
        tri: Vertex indices [F, 3], int32.
        vertices: Number of vertices, N.

    Returns:
        Vertex indices [F, 3], int32. Entry (f, k) belongs to the edge of face f opposite to its corner k;
        -1 where the edge has no other face.
    """
    faces = tri.long()
    far = faces.reshape(-1)
    a = faces[:, [1, 2, 0]].reshape(-1)
    b = faces[:, [2, 0, 1]].reshape(-1)
    broken = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 2] == faces[:, 0])
    key = torch.minimum(a, b) * vertices + torch.maximum(a, b)
    key = torch.where(broken.repeat_interleave(3), -1, key)

    key, order = torch.sort(key, stable=True)
    far = far[order]
    place = torch.arange(len(key), device=tri.device)
    starts = torch.ones_like(key, dtype=torch.bool)
    starts[1:] = key[1:] != key[:-1]
    start = torch.cummax(torch.where(starts, place, 0), 0).values
    first = far[start]
    # The second neighbour is the first later entry of the edge with another far vertex.
    later = torch.where(far != first, place, len(key))
    later = torch.full_like(later, len(key)).scatter_reduce(0, start, later, "amin")[start]
    second = torch.cat([far, far.new_full((1,), -1)])[later]
    across = torch.where(far == first, second, torch.where(far == second, first, -1))
    across = torch.where(key < 0, -1, across)
    return torch.empty_like(across).scatter_(0, order, across).reshape(-1, 3).to(torch.int32)


class TopologyCache:
    """Remembers `opposite_vertices` for the triangle tensors used last.

    An entry belongs to one tensor object in one version: it is found again only while that object lives and
    has not been written to through torch.

    Args:
        size: Number of meshes to remember.
    """

    def __init__(self, size: int = 4) -> None:
        self._size = size
        self._entries: OrderedDict[tuple[int, int, int], tuple[weakref.ref[Tensor], Tensor]] = OrderedDict()

    def get(self, tri: Tensor, vertices: int) -> Tensor:
        """Looks up or computes the opposite vertices of a mesh; arguments as for `opposite_vertices`."""
        if tri.is_inference():  # such tensors keep no version
            return opposite_vertices(tri, vertices)
        key = (id(tri), tri._version, vertices)
        entry = self._entries.get(key)
        if entry is not None and entry[0]() is tri:
            self._entries.move_to_end(key)
            return entry[1]
        opposite = opposite_vertices(tri, vertices)
        self._entries[key] = (weakref.ref(tri), opposite)
        self._entries.move_to_end(key)
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)
        return opposite
