"""Images of painted meshes."""

import pytest
import torch
import trimesh

from models.geometry.camera import Cameras
from models.geometry.rigs import cameras_around
from models.painted import PaintedMesh, render_painted
from models.raster import make_backend

RASTER = make_backend("warp", "cpu")


def white_ball() -> PaintedMesh:
    shape = trimesh.creation.icosphere(2)
    points = torch.tensor(shape.vertices, dtype=torch.float32)
    return PaintedMesh(points, torch.tensor(shape.faces, dtype=torch.int32), torch.ones_like(points))


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_camera_placed_wrongly_does_not_blind_the_others(factor: float) -> None:
    ahead = torch.tensor([[0.0, -1, 0], [1, 0, 0]], dtype=torch.float64).numpy()
    good = cameras_around(ahead, torch.zeros(3), 1.0, size=32)
    pose = good.camera_to_world.clone()
    pose[1, :3, 3] *= factor
    both = Cameras(pose, good.intrinsics, good.width, good.height)
    alone = render_painted(RASTER, white_ball(), good[[0]])
    assert alone.alpha.sum() > 300
    torch.testing.assert_close(render_painted(RASTER, white_ball(), both).color[:1], alone.color)
