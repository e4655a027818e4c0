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
    """A triangle mesh with one UV atlas and its textures, of one size.

    With `roughness_metallic` the surface is lit (glTF's metallic-roughness material) and `base_color` is its
    albedo; without, the light of the photographs is baked into `base_color` and nothing may light it again.

    Attributes:
        vertices: [N, 3] float32, world units; positions of the surface, not split at seams.
        faces: [F, 3] int32, counter-clockwise seen from outside.
        uvs: [M, 2] float32 in [0, 1]; v = 0 is the texture's row 0, its top row.
        uv_faces: [F, 3] int32, indices into `uvs`.
        base_color: [Ht, Wt, 3] float32, sRGB in [0, 1].
        roughness_metallic: [Ht, Wt, 2] float32, linear in [0, 1]: roughness, metallic; None when unlit.
        normal_map: [Ht, Wt, 3] float32, unit normals in tangent space, +y along decreasing v as in glTF; None
            for the plain surface.
        environment: [He, We, 3] float32, linear radiance of the light of the photographs as an
            equirectangular image in the world frame (`models.shading.light`); None when unlit or unknown.
    """

    vertices: Tensor
    faces: Tensor
    uvs: Tensor
    uv_faces: Tensor
    base_color: Tensor
    roughness_metallic: Tensor | None = None
    normal_map: Tensor | None = None
    environment: Tensor | None = None

    @property
    def unlit(self) -> bool:
        """Whether the light is baked into `base_color`."""
        return self.roughness_metallic is None

    def to(self, device: torch.device | str) -> TexturedMesh:
        """The same mesh on another device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return TexturedMesh(
            self.vertices.to(device),
            self.faces.to(device),
            self.uvs.to(device),
            self.uv_faces.to(device),
            self.base_color.to(device),
            moved(self.roughness_metallic),
            moved(self.normal_map),
            moved(self.environment),
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


def face_edges(faces: Tensor) -> Tensor:
    """The three edges of every face, [3 F, 2] int64: of a closed surface each edge twice.

    Takes no sorting, and on CUDA no waiting for the device.
    """
    return torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).long()


def unique_edges(faces: Tensor) -> Tensor:
    """Undirected edges, [E, 2] int64, sorted, each once."""
    edges = face_edges(faces)
    low, high = torch.minimum(*edges.unbind(1)), torch.maximum(*edges.unbind(1))
    # One key an edge: `unique` on single numbers is far faster than on rows.
    count = int(high.max()) + 1 if high.numel() else 1
    key = torch.unique(low * count + high)
    return torch.stack([key // count, key % count], 1)
