# mypy: ignore-errors
"""Device functions that several operations share."""

import warp as wp


@wp.func
def corners(tri: wp.array(dtype=wp.vec3i), face_plus_one: float, faces: int, vertices: int) -> wp.vec3i:
    """Vertex indices of the face seen by a pixel; x is -1 where there is none or the indices are invalid."""
    face = int(face_plus_one) - 1
    if face < 0 or face >= faces:
        return wp.vec3i(-1, -1, -1)
    v = tri[face]
    if v[0] < 0 or v[1] < 0 or v[2] < 0 or v[0] >= vertices or v[1] >= vertices or v[2] >= vertices:
        return wp.vec3i(-1, -1, -1)
    return v


@wp.func
def cross2(a: wp.vec2, b: wp.vec2) -> float:
    """The z component of the cross product of two vectors in the plane."""
    return a[0] * b[1] - a[1] * b[0]
