"""Which vertex lies across each edge of a triangle mesh."""

import weakref
from collections import OrderedDict

import torch
from torch import Tensor

from models.raster.warp_ops.kernels.topology import enter_edges, find_seconds, look_across
from models.raster.warp_ops.launch import Launcher


def opposite_vertices(tri: Tensor, vertices: int, launcher: Launcher) -> Tensor:
    """Finds, for every edge of every face, the far vertex of the face on its other side.

    Faces are neighbours when they share two vertex indices; orientation does not matter. Where more than
    two faces meet in an edge, the first two (by face index) are neighbours and the others have none. Faces
    with an index twice or out of range have no neighbours. Never waits for the device.

    Args:
        tri: Vertex indices [F, 3], int32, contiguous.
        vertices: Number of vertices, N.
        launcher: Runs the kernels, on the device of `tri`.

    Returns:
        Vertex indices [F, 3], int32. Entry (f, k) belongs to the edge of face f opposite to its corner k;
        -1 where the edge has no other face.
    """
    count = 3 * tri.shape[0]
    bits = max(4, (2 * count - 1).bit_length())  # at most half full
    keys = torch.zeros(1 << bits, dtype=torch.int64, device=tri.device)
    marks = torch.zeros(2 << bits, dtype=torch.int32, device=tri.device)  # all firsts, then all seconds
    places = torch.empty(count, dtype=torch.int32, device=tri.device)
    opposite = torch.empty_like(tri)
    launcher.run(enter_edges, 1, count, [tri, keys, marks, places, count, vertices, bits])
    launcher.run(find_seconds, 1, count, [tri, marks, places, count, bits])
    launcher.run(look_across, 1, count, [tri, marks, places, opposite, count, bits])
    return opposite


class TopologyCache:
    """Remembers `opposite_vertices` for the triangle tensors used last.

    An entry belongs to one tensor object in one version: it is found again only while that object lives and
    has not been written to through torch. While a CUDA graph is captured nothing is looked up or remembered:
    a graph runs again with other contents of the same tensors.

    Args:
        launcher: Runs the kernels.
        size: Number of meshes to remember.
    """

    def __init__(self, launcher: Launcher, size: int = 4) -> None:
        self._launcher = launcher
        self._size = size
        self._entries: OrderedDict[tuple[int, int, int], tuple[weakref.ref[Tensor], Tensor]] = OrderedDict()

    def get(self, tri: Tensor, vertices: int) -> Tensor:
        """Looks up or computes the opposite vertices of a mesh; arguments as for `opposite_vertices`."""
        capturing = tri.is_cuda and torch.cuda.is_current_stream_capturing()
        if capturing or tri.is_inference():  # inference tensors keep no version
            return opposite_vertices(tri.contiguous(), vertices, self._launcher)
        key = (id(tri), tri._version, vertices)
        entry = self._entries.get(key)
        if entry is not None and entry[0]() is tri:
            self._entries.move_to_end(key)
            return entry[1]
        opposite = opposite_vertices(tri.contiguous(), vertices, self._launcher)
        self._entries[key] = (weakref.ref(tri), opposite)
        self._entries.move_to_end(key)
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)
        return opposite
