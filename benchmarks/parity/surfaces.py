"""The meshes of upstream's FlexiCubes and of ours, from the same features of the same cubes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from benchmarks.parity.compare import LIMITS, Row, build_both
from benchmarks.parity.configurations import Size
from benchmarks.parity.cubes import forced_output
from benchmarks.parity.decoders import MeshDecoderPair
from benchmarks.parity.upstream import Upstream
from models.reconviagen.mesh_decoder import MeshDecoder


@torch.no_grad()
def compare_extraction(upstream: Upstream, size: Size) -> list[Row]:
    """Both extract a surface, which has the same vertices, colours and faces up to their order."""
    pair = MeshDecoderPair(upstream, size)
    with upstream.device:
        theirs, ours = build_both(pair)
    assert isinstance(ours, MeshDecoder)
    inputs = pair.inputs()
    features = pair.cubes(inputs)
    with forced_output(theirs.get_submodule("out_layer"), features), upstream.running():
        (wanted,) = theirs(upstream.sparse_tensor(inputs["latent"], inputs["coords"]))
    with forced_output(ours.get_submodule("out_layer"), features):
        found = ours.surface(inputs["latent"], pair.grid(inputs))
    apart, partner = partners(found.vertices, wanted.vertices)
    limit = LIMITS["float32"]
    errors = {
        "vertices": max(apart, float(len(found.vertices) != len(wanted.vertices))),
        "colours and normals": float((found.attributes[partner] - wanted.vertex_attrs).abs().max()),
        "faces that differ": differing(found.faces.long(), partner[wanted.faces]),
    }
    return [Row("mesh extraction", name, "float32", error, None, limit) for name, error in errors.items()]


def partners(ours: Tensor, theirs: Tensor) -> tuple[float, Tensor]:
    """How far upstream's vertices [N, 3] are at most from the nearest of ours, and which these are, [N]."""
    distance, index = cKDTree(ours.cpu().numpy()).query(theirs.cpu().numpy(), workers=-1)
    return float(distance.max()), torch.from_numpy(index).to(ours.device)


def differing(ours: Tensor, theirs: Tensor) -> float:
    """Share of triangles that only one has; turned triangles differ, rotated rows do not."""
    first, second = (_rows(faces) for faces in (ours, theirs))
    common = len(np.intersect1d(first, second))
    return 1 - 2 * common / (len(first) + len(second))


def _rows(faces: Tensor) -> NDArray[np.void]:
    """One value for each triangle [F, 3], the same for all rotations of its corners."""
    rows = faces.cpu().numpy()
    first = rows.argmin(axis=1)[:, None]
    turned = np.take_along_axis(rows, (first + np.arange(3)) % 3, axis=1)
    return np.unique(np.ascontiguousarray(turned).view([("", turned.dtype)] * 3)[:, 0])
