"""A run that was broken off goes on where it was."""

import pytest
import torch

from models.nvdiffrec.model import Nvdiffrec
from schemas.errors import JobCancelled
from schemas.options import NvdiffrecOptions
from tests.spheres import sphere_views

OPTIONS = NvdiffrecOptions(
    grid_resolution=24,
    geometry_iterations=12,
    texture_iterations=8,
    texture_resolution=64,
    batch_size=4,
    use_depth=False,
    seed=3,
)


class Kept:
    """Checkpoints in memory, one after every step."""

    def __init__(self, state=None):
        self.state = state
        self.saved = 0

    def due(self):
        return True

    def save(self, state):
        self.state = state
        self.saved += 1

    def load(self):
        return self.state


def reconstruct(checkpoints, stop_after=None):
    steps = 0

    def callback(fraction, message, metrics):
        nonlocal steps
        steps += ": step" in message
        if steps == stop_after:
            raise JobCancelled("crash")

    made = Nvdiffrec("cpu").reconstruct(sphere_views(), OPTIONS, callback, checkpoints=checkpoints)
    return made, steps


@pytest.fixture(scope="module")
def whole():
    return reconstruct(None)[0]


@pytest.mark.parametrize("stop_after", [3, 6, 9, 12, 16])
def test_a_broken_run_ends_as_if_it_had_not_been_broken(whole, stop_after):
    # 6 steps on each of two grids, then 8 of the texture; a step is kept only after it was reported.
    kept = Kept()
    with pytest.raises(JobCancelled):
        reconstruct(kept, stop_after)
    again, steps = reconstruct(Kept(kept.state))
    assert steps == 20 - (stop_after - 1)
    for name in ("vertices", "faces", "uvs", "base_color", "roughness_metallic", "environment"):
        assert torch.equal(getattr(again.mesh, name), getattr(whole.mesh, name)), name
    assert again.curves == whole.curves
    assert again.extra == whole.extra


def test_a_checkpoint_of_another_input_or_other_options_is_not_used(whole):
    kept = Kept()
    with pytest.raises(JobCancelled):
        reconstruct(kept, 5)
    views = sphere_views()
    views.images[0, 0, 0] += 0.5
    for changed, options in ((views, OPTIONS), (sphere_views(), OPTIONS.model_copy(update={"seed": 4}))):
        seen = []
        Nvdiffrec("cpu").reconstruct(
            changed, options, lambda f, m, k, seen=seen: seen.append(m), checkpoints=Kept(kept.state)
        )
        assert sum(": step" in message for message in seen) == 20


def test_checkpoints_hold_plain_tensors_only():
    kept = Kept()
    with pytest.raises(JobCancelled):
        reconstruct(kept, 15)
    assert kept.saved == 14
    assert all(isinstance(value, torch.Tensor) for value in kept.state.values())
    assert all(value.device.type == "cpu" for value in kept.state.values())


def test_snapshots_show_the_object_in_the_world_while_it_takes_shape():
    views = sphere_views()
    shown = {}

    def snapshot(step, render):
        shown[step] = render(views.cameras)

    options = OPTIONS.model_copy(update={"geometry_iterations": 40, "texture_iterations": 20})
    Nvdiffrec("cpu").reconstruct(views, options, lambda *_: None, snapshot=snapshot)
    assert list(shown)[:4] == [f"shape on a grid of {r}: step {n}" for r in (12, 24) for n in (10, 20)]
    assert list(shown)[-1] == "finished"
    for rendering in shown.values():
        overlap = ((rendering.alpha > 0.5) & (views.masks > 0.5)).sum() / (views.masks > 0.5).sum()
        assert overlap > 0.9
        both = (rendering.depth > 0) & (views.depths > 0)
        assert (rendering.depth - views.depths)[both].abs().mean() < 0.1
