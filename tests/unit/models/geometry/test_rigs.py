import torch

from models.geometry.rigs import bounding_sphere, cameras_around, spread_directions


def test_directions_are_spread_evenly():
    directions = torch.tensor(spread_directions(100))
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(100).double())
    assert directions.mean(0).norm() < 0.01
    angles = (directions @ directions.T - 2 * torch.eye(100)).amax(1).acos()
    assert angles.min() > 0.6 * angles.max()  # of the nearest neighbours


def test_every_camera_shows_the_whole_sphere_upright():
    center = torch.tensor([1.0, -2.0, 3.0])
    directions = spread_directions(9)
    directions[0], directions[-1] = [0, 0, 1], [0, 0, -1]  # straight from above and below too
    cameras = cameras_around(directions, center, 0.7, size=100)
    surface = center + 0.7 * torch.nn.functional.normalize(torch.randn(500, 3), dim=1)
    pixel, depth = cameras.project(surface)
    assert (depth > 0).all()
    assert (pixel > 0).all()
    assert (pixel < 100).all()
    assert (pixel.amax(1) - pixel.amin(1)).min() > 75
    top, _ = cameras.project(center + torch.tensor([[0.0, 0.0, 0.5]]))
    assert (top[1:-1, 0, 1] < 50.01).all()


def test_the_bounding_sphere_holds_all_points():
    points = torch.randn(50, 3) * torch.tensor([1.0, 3.0, 0.5])
    center, radius = bounding_sphere(points)
    distance = (points - center).norm(dim=1)
    torch.testing.assert_close(float(distance.max()), radius)
