"""The whole chain, from images to a mesh, on shared random weights and noise."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from benchmarks.parity.compare import LIMITS, Row, build_both, relative_error
from benchmarks.parity.configurations import SCENES, Size, load_configurations
from benchmarks.parity.pipelines import PARTS, UpstreamPipeline, build_generator
from benchmarks.parity.samplers import sampler_config
from benchmarks.parity.upstream import Upstream
from benchmarks.parity.weights import randomize, renamed
from models.reconviagen.checkpoint import Part
from models.reconviagen.sampler import seeded
from models.sparse.grid import SparseGrid

SEED = 5
OCCUPIED = 0.1  # share of the voxels
CLOSE = 1e-4  # of two vertices, in model units
APART = 1e-3  # share of vertices that may have no partner so close: those of cells whose sign is rounding


@torch.no_grad()
def compare_chain(upstream: Upstream, size: Size) -> list[Row]:
    """Runs upstream's pipeline and ours in float32 from images to mesh and Gaussians.

    Both sample the latent on upstream's voxels, so that a voxel that rounding decides shows as one voxel, and
    not as other noise.
    """
    configurations = load_configurations(size)
    theirs, ours = _networks(upstream, size)
    with upstream.running():
        pipeline = UpstreamPipeline(upstream, theirs, configurations, half=False)
    generator = build_generator(upstream, ours, configurations)
    side = configurations["dinov2"]["args"]["img_size"]
    images = torch.rand(SCENES[size].views, 3, side, side, generator=seeded(SEED)).to(upstream.device)
    with upstream.running():
        _calibrate(pipeline, images, ours)
        decoded, voxels = pipeline.run(images, SEED)
    noise = seeded(SEED)
    samplers = [sampler_config(configurations[name]) for name in ("structure_sampler", "latent_sampler")]
    seen = generator.see(images)
    grid = generator.structure(seen, samplers[0], noise, _quiet)
    shared = SparseGrid(voxels, grid.resolution)
    latent = generator.latent(seen, shared, samplers[1], noise, _quiet)
    generated = generator.decode(latent, shared)
    mesh, gaussians = decoded["mesh"][0], decoded["gaussian"][0]
    limit = LIMITS["float32"]
    errors = {
        "voxels that differ": (_differing(grid.coords, voxels, grid.resolution), limit),
        "latent": (relative_error(latent, decoded["slat"].feats), limit),
        "Gaussians' centres": (relative_error(generated.gaussians.means, gaussians.get_xyz), limit),
        "vertices apart": (_apart(generated.mesh.vertices, mesh.vertices), APART),
        "number of faces": (abs(len(generated.mesh.faces) / len(mesh.faces) - 1), APART),
    }
    return [Row("chain", name, "float32", error, None, most) for name, (error, most) in errors.items()]


def _networks(upstream: Upstream, size: Size) -> tuple[dict[Part, nn.Module], dict[Part, nn.Module]]:
    theirs, ours = {}, {}
    for part, kind in PARTS.items():
        pair = kind(upstream, size)
        with upstream.device:
            theirs[part], ours[part] = build_both(pair)
        randomize(theirs[part])
        if part is Part.VGGT:
            _open_cameras(theirs[part])
        ours[part].load_state_dict(renamed(theirs[part].state_dict(), pair.renaming))
    return theirs, ours


def _open_cameras(vggt: nn.Module) -> None:
    """Random weights give negative fields of view: make them about 50 degrees."""
    last = vggt.get_submodule("camera_head.pose_branch.fc2")
    assert isinstance(last, nn.Linear)
    last.weight[7:] *= 0.01
    last.bias[7:] = 0.2


def _calibrate(pipeline: UpstreamPipeline, images: Tensor, ours: dict[Part, nn.Module]) -> None:
    """Shifts the structure decoder's last bias so that a part of the voxels is occupied, not half of them."""
    decoders = [networks[Part.STRUCTURE_DECODER] for networks in (pipeline.networks, ours)]
    flow = pipeline.networks[Part.STRUCTURE_FLOW]
    conditions = pipeline.conditions(pipeline.geometry(images), pipeline.appearance(images))
    shape = (1, flow.in_channels, *[flow.resolution] * 3)
    noise = torch.randn(shape, generator=seeded(SEED)).to(images.device)
    logits = decoders[0](pipeline.structure_latent(conditions, noise))
    place = np.quantile(logits.cpu().numpy(), 1 - OCCUPIED)
    for decoder in decoders:
        bias = decoder.get_parameter("out_layer.2.bias")
        bias -= float(place)


def _differing(ours: Tensor, theirs: Tensor, resolution: int) -> float:
    """Voxels that only one has, over the number of upstream's."""
    grids = torch.zeros(2, *[resolution] * 3, dtype=torch.bool)
    for grid, voxels in zip(grids, (ours, theirs), strict=True):
        grid[tuple(voxels.long().cpu().T)] = True
    return float((grids[0] != grids[1]).sum() / grids[1].sum())


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """Share of the vertices of either mesh that have no vertex of the other close by."""
    first, second = ours.cpu().numpy(), theirs.cpu().numpy()
    distances = [cKDTree(a).query(b, workers=-1)[0] for a, b in ((first, second), (second, first))]
    return float(np.mean(np.concatenate(distances) > CLOSE))


def _quiet(*_: object) -> None:
    pass
