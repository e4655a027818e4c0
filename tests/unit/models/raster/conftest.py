"""A Warp backend for the CPU."""

import pytest

from models.raster import RasterBackend, make_backend


@pytest.fixture(scope="session")
def backend() -> RasterBackend:
    return make_backend("warp", "cpu")
