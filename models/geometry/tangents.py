"""Tangents of a surface along its texture coordinates: the frame that a normal map is read in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-30  # guards divisions only; far below any length that is not zero


def vertex_tangents(
    vertices: Tensor, faces: Tensor, uvs: Tensor, uv_faces: Tensor, normals: Tensor
) -> Tensor:
    """Tangents where a chart of the atlas has its vertices, as glTF's TANGENT attribute wants them.

    The frame at a vertex is `t`, `w * cross(n, t)`, `n`: u grows along the first, v falls along the second
    (v = 0 is the texture's top row), so a tangent-space normal (x, y, z) means `x t + y w cross(n, t) + z n`.

    A tangent is the mean over the faces around, each face's direction of growing u turned into the plane of
    the vertex normal and weighted by the face's angle there: MikkTSpace's rule, which glTF names. The two
    agree where the faces around a chart's vertex hang together and are all mirrored or all not; MikkTSpace
    splits a vertex elsewhere, this keeps one tangent and the handedness of the greater angle. A function of
    its tensors alone, without a question to the device, and differentiable.

    Args:
        vertices: [N, 3] float.
        faces: [F, 3] int, counter-clockwise seen from outside.
        uvs: [M, 2] float, each entry used by one vertex only.
        uv_faces: [F, 3] int, indices into `uvs`.
        normals: [N, 3] unit normals of the vertices.

    Returns:
        [M, 4]: the unit tangent, perpendicular to the normal, and the handedness `w`, 1 or -1. Where no face
        tells a direction of u, any perpendicular.

    Reference: Mikkelsen, Simulation of Wrinkled Surfaces Revisited, 2008; Khronos, glTF 2.0, section 3.7.2.1.
    """
    corner, slot = faces.long(), uv_faces.long()
    along_u, orientation = _direction_of_u(vertices[corner], uvs[slot])  # [F, 3], [F]
    normal = normals[corner]  # [F, 3, 3]
    angle = _corner_angles(vertices[corner], normal)  # [F, 3]
    tangent = _unit(_reject(along_u[:, None], normal)) * angle[..., None]
    index = slot.reshape(-1)
    total = uvs.new_zeros(len(uvs), 3).index_add(0, index, tangent.reshape(-1, 3))
    # Texture space has v downwards: a chart that is not mirrored has its corners clockwise there.
    turn = uvs.new_zeros(len(uvs)).index_add(0, index, (-orientation[:, None] * angle).reshape(-1))
    owner = index.new_zeros(len(uvs)).index_put((index,), corner.reshape(-1))
    at_owner = normals[owner]
    known = torch.linalg.vector_norm(total, dim=-1, keepdim=True) > 1e-6  # of radians
    direction = torch.where(known, total, _any_perpendicular(at_owner))
    handedness = torch.where(turn < 0, -1.0, 1.0).to(direction.dtype)
    return torch.cat([_unit(_reject(direction, at_owner)), handedness[:, None]], -1)


def _direction_of_u(points: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
    """Where u grows on each face [F, 3], not normalised, and the sign of the face's area in (u, v) [F]."""
    first, second = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
    (u1, v1), (u2, v2) = (coords[:, 1] - coords[:, 0]).unbind(-1), (coords[:, 2] - coords[:, 0]).unbind(-1)
    orientation = (u1 * v2 - u2 * v1).sign()
    return (v2[:, None] * first - v1[:, None] * second) * orientation[:, None], orientation


def _corner_angles(points: Tensor, normal: Tensor) -> Tensor:
    """Angles of the faces [F, 3] between their edges as seen along the vertex normals."""
    forward = _reject(points.roll(-1, 1) - points, normal)
    back = _reject(points.roll(1, 1) - points, normal)
    sine = torch.linalg.vector_norm(torch.cross(_unit(forward), _unit(back), dim=-1), dim=-1)
    return torch.atan2(sine, (_unit(forward) * _unit(back)).sum(-1))


def _any_perpendicular(normal: Tensor) -> Tensor:
    """A direction across each normal [M, 3]: the x axis, or the y axis where the normal is close to x."""
    x, y, _ = torch.eye(3, dtype=normal.dtype, device=normal.device)
    return _reject(torch.where(normal[:, :1].abs() < 0.7, x, y), normal)


def _reject(vector: Tensor, normal: Tensor) -> Tensor:
    """The part of a vector perpendicular to a unit normal."""
    return vector - (vector * normal).sum(-1, keepdim=True) * normal


def _unit(vector: Tensor) -> Tensor:
    return F.normalize(vector, dim=-1, eps=_TINY)
