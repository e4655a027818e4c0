import numpy as np
import pytest
import torch
import trimesh
from skimage import measure

from models.geometry.mesh import Mesh
from models.geometry.topology import describe
from models.raster import make_backend
from models.reconviagen.tidying import tidied
from tests.spheres import sphere_views


@pytest.fixture(scope="module")
def raster():
    return make_backend("warp", "cpu")


def quiet(fraction, message, metrics):
    pass


def as_mesh(shape) -> Mesh:
    return Mesh(
        torch.tensor(np.asarray(shape.vertices), dtype=torch.float32),
        torch.tensor(np.asarray(shape.faces), dtype=torch.int32),
    )


def test_an_inner_shell_goes_and_the_outer_stays_closed(raster):
    outer, inner = trimesh.creation.icosphere(4, 0.45), trimesh.creation.icosphere(3, 0.3)
    both = as_mesh(trimesh.util.concatenate([outer, inner]))

    found = tidied(raster, both, sphere_views().cameras, 1000, quiet)

    assert len(found.faces) <= 1050
    assert found.vertices.norm(dim=1).min() > 0.4
    assert describe(found.faces.numpy()).closed


def test_a_wide_hole_is_closed(raster):
    ball = trimesh.creation.icosphere(4, 0.45)
    ball.update_faces(ball.triangles_center[:, 2] < 0.35)  # a rim of some ninety edges

    found = tidied(raster, as_mesh(ball), sphere_views().cameras, 2000, quiet)

    assert describe(found.faces.numpy()).closed


def test_even_a_tangle_gets_about_as_few_triangles_as_asked_for(raster):
    """The level set of noise: of so many handles that none of them can be kept."""
    noise = np.random.default_rng(0).normal(size=(30, 30, 30))
    noise[[0, -1]] = noise[:, [0, -1]] = noise[:, :, [0, -1]] = 1
    vertices, faces, _, _ = measure.marching_cubes(noise, 0.0)
    tangle = Mesh(
        torch.tensor(vertices / 30 - 0.5, dtype=torch.float32), torch.tensor(faces.copy(), dtype=torch.int32)
    )

    found = tidied(raster, tangle, sphere_views().cameras, 3000, quiet)

    assert 500 < len(found.faces) <= 4500 < len(tangle.faces)
