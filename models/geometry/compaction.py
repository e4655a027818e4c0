"""From arrays back to a mesh."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.geometry.mesh import Mesh


def compacted(vertices: NDArray[np.float64], faces: NDArray[np.int64], like: Mesh) -> Mesh:
    """A mesh of the vertices in use, as float32 on the device of another.

    Args:
        vertices: [N, 3], some perhaps of no face.
        faces: [F, 3] indices into them.
        like: The mesh whose device is taken.
    """
    used, compact = np.unique(faces, return_inverse=True)
    device = like.vertices.device
    return Mesh(
        torch.tensor(vertices[used], dtype=torch.float32, device=device),
        torch.tensor(compact.reshape(-1, 3), dtype=torch.int32, device=device),
    )
