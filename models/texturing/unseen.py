"""Paint for the parts of a surface that no view sees."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import spsolve
from torch import Tensor

from models.geometry.adjacency import components
from models.geometry.mesh import Mesh, face_edges
from models.geometry.visibility import seen_faces
from models.raster import RasterBackend


@torch.no_grad()
def seen_vertices(raster: RasterBackend, mesh: Mesh, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """Which vertices belong to a triangle that some view sees, [N] bool.

    Args:
        raster: The rasterizer.
        mesh: The surface.
        matrices: [V, 4, 4] of the views, to clip space.
        size: Height and width, samples.
    """
    seen = seen_faces(raster, mesh, matrices, size)
    found = torch.zeros(mesh.vertices.shape[0], dtype=torch.bool, device=mesh.faces.device)
    found[mesh.faces[seen].long().reshape(-1)] = True
    return found


def continued(mesh: Mesh, values: Tensor, known: Tensor) -> Tensor:
    """Values whose unknown part continues the known one most smoothly.

    Each unknown value is the mean of its neighbours: the Dirichlet problem of the graph Laplacian. Components
    without any known vertex keep their values.

    Args:
        mesh: The surface.
        values: [N, C] at its vertices.
        known: [N] bool.
    """
    count = mesh.vertices.shape[0]
    ends = face_edges(mesh.faces).cpu().numpy()
    rows, columns = np.concatenate([ends, ends[:, ::-1]]).T
    neighbours = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count)).tocsr()
    given_there, label = known.cpu().numpy(), components(ends[:, 0], ends[:, 1], count)
    fixed = given_there | ~np.isin(label, label[given_there])
    free = ~fixed
    given = values.detach().cpu().double().numpy()
    if not free.any():
        return values
    laplacian = diags(np.asarray(neighbours.sum(1)).ravel()) - neighbours
    right = -laplacian[free][:, fixed] @ given[fixed]
    given[free] = spsolve(laplacian[free][:, free].tocsc(), right).reshape(free.sum(), -1)
    return torch.tensor(given, dtype=values.dtype, device=values.device)
