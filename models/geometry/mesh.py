"""Triangle meshes as tensors, and what is computed from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: [N, 3] float32, world units.
        faces: [F, 3] int32, counter-clockwise seen from outside.
    """

    vertices: Tensor
    faces: Tensor


@dataclass(frozen=True)
class TexturedMesh:
    """A triangle mesh with one UV atlas and a base-colour texture.

    Attributes:
        vertices: [N, 3] float32, world units; positions of the surface, not split at seams.
        faces: [F, 3] int32, counter-clockwise seen from outside.
        uvs: [M, 2] float32 in [0, 1]; v = 0 is the texture's row 0, its top row.
        uv_faces: [F, 3] int32, indices into `uvs`.
        base_color: [Ht, Wt, 3] float32, sRGB in [0, 1].
        unlit: The light of the photographs is baked into `base_color`.
    """

    vertices: Tensor
    faces: Tensor
    uvs: Tensor
    uv_faces: Tensor
    base_color: Tensor
    unlit: bool = True

    def to(self, device: torch.device | str) -> TexturedMesh:
        """The same mesh on another device."""
        return TexturedMesh(
            self.vertices.to(device),
            self.faces.to(device),
            self.uvs.to(device),
            self.uv_faces.to(device),
            self.base_color.to(device),
            self.unlit,
        )


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Normals of the faces, [F, 3], their length twice the area."""
    a, b, c = vertices[faces.long()].unbind(1)
    return torch.cross(b - a, c - a, dim=-1)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals of the vertices, [N, 3]: the mean of the faces around, weighted by area."""
    weighted = face_normals(vertices, faces)
    normals = torch.zeros_like(vertices)
    for corner in range(3):
        normals = normals.index_add(0, faces[:, corner].long(), weighted)
    return F.normalize(normals, dim=-1, eps=1e-12)


def unique_edges(faces: Tensor) -> Tensor:
    """Undirected edges, [E, 2] int64, sorted, each once."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).long()
    low, high = torch.minimum(*edges.unbind(1)), torch.maximum(*edges.unbind(1))
    # One key an edge: `unique` on single numbers is far faster than on rows.
    count = int(high.max()) + 1 if high.numel() else 1
    key = torch.unique(low * count + high)
    return torch.stack([key // count, key % count], 1)
