from __future__ import annotations

import pytest
import torch
from textured_meshes import spot_mesh, spot_views

from models.raster import RasterBackend, make_backend
from pipeline.rendering import render_view


@pytest.fixture(scope="module")
def raster() -> RasterBackend:
    return make_backend("warp", "cpu")


def test_tiles_join_to_the_whole_image(raster: RasterBackend) -> None:
    mesh, camera = spot_mesh(64), spot_views().cameras[[1]]
    whole, tiled = render_view(raster, mesh, camera), render_view(raster, mesh, camera, max_side=100)
    border = torch.zeros(128, 128, dtype=torch.bool)
    for edge in (50, 100):
        border[edge - 1 : edge + 1] = True
        border[:, edge - 1 : edge + 1] = True
    torch.testing.assert_close(tiled.depth, whole.depth, atol=1e-4, rtol=0)
    torch.testing.assert_close(tiled.alpha[0][~border], whole.alpha[0][~border], atol=1e-3, rtol=0)
    torch.testing.assert_close(tiled.color[0][~border], whole.color[0][~border], atol=5e-3, rtol=0)
