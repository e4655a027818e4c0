"""Tidy an extracted surface."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from models.geometry.mesh import Mesh, face_normals

_SMALLEST_SHARE = 0.02  # of the largest component's area


def remove_floaters(mesh: Mesh, smallest_share: float = _SMALLEST_SHARE) -> Mesh:
    """Drop connected components whose area is a small share of the largest one's, and unused vertices.

    Args:
        mesh: Any triangle mesh with at least one face.
        smallest_share: Components below this share of the largest one's area go.
    """
    faces = mesh.faces.cpu().numpy().astype(np.int64)
    count = mesh.vertices.shape[0]
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    area = torch.linalg.vector_norm(face_normals(mesh.vertices, mesh.faces), dim=1).cpu().numpy()
    total = np.bincount(label[faces[:, 0]], weights=area, minlength=label.max() + 1)
    keep = total[label[faces[:, 0]]] >= smallest_share * total.max()
    used, compact = np.unique(faces[keep], return_inverse=True)
    device = mesh.vertices.device
    return Mesh(
        mesh.vertices[torch.tensor(used, device=device)],
        torch.tensor(compact.reshape(-1, 3).astype(np.int32), device=device),
    )
