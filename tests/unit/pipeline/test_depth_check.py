import dataclasses

import pytest
import torch

from models.base import Views
from models.geometry.camera import Cameras
from pipeline import depth_check
from pipeline.depth_check import check_depths
from schemas.errors import InvalidJob
from tests.spheres import sphere_views


@pytest.mark.parametrize("side", [512, 20])  # as it is, and with masks reduced from 64 pixels
def test_true_depth_passes_and_a_wrong_unit_does_not(monkeypatch, side):
    monkeypatch.setattr(depth_check, "MAX_SIDE", side)
    views = sphere_views()
    check_depths(views)
    for factor in (0.1, 0.5, 2.0, 10.0):
        with pytest.raises(InvalidJob, match="contradicts the cameras") as error:
            check_depths(dataclasses.replace(views, depths=views.depths * factor))
        assert error.value.code == "INVALID_DEPTH"
        assert error.value.details["file"] == "images/0.png"


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.0, 1.12, 1.25])
def test_a_scale_that_is_off_in_one_view_is_left_for_the_model_to_find(factor):
    views = sphere_views()
    depths = views.depths.clone()
    depths[1] *= factor
    depths *= torch.rand(depths.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    check_depths(dataclasses.replace(views, depths=depths))


def test_a_thin_long_image_costs_no_more_than_its_pixels():
    # Dilating by a share of the longer side once took minutes for a few kilobytes of input.
    length = 16_000
    small = sphere_views().subset([0, 1, 2])
    views = Views(
        small.names,
        torch.zeros(3, 1, length, 3),
        torch.ones(3, 1, length),
        torch.ones(3, 1, length),
        Cameras(small.cameras.camera_to_world, small.cameras.intrinsics, length, 1),
    )
    assert depth_check._widened(views.masks).shape == (3, 1, 500)
    check_depths(views)
