"""The whole method in miniature: every network with random weights, from views to a textured mesh.

The networks' object is a cube (see `tests.checkpoints.write_tame_checkpoint`), whatever the views show.
"""

from dataclasses import replace

import pytest
import torch

from models.painted import PaintedMesh
from models.raster import make_backend
from models.reconviagen.memory import Plan
from models.reconviagen.model import Reconviagen
from models.reconviagen.sampler import SamplerConfig, seeded
from models.render import render_textured
from schemas.errors import ErrorCode, JobCancelled, ModelError
from schemas.options import NvdiffrecOptions, OutputOptions, ReconviagenOptions
from tests.checkpoints import write_tame_checkpoint
from tests.spheres import CENTER, RADIUS, sphere_views

SMALL = ReconviagenOptions(
    structure_steps=2, latent_steps=2, texture_resolution=100, target_triangles=2000, raster="warp"
)
FEW = SamplerConfig(steps=2, guidance=3.0)


def quiet(fraction, message, metrics):
    pass


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    write_tame_checkpoint(root)
    return root


@pytest.fixture(scope="module")
def model(weights):
    loaded = Reconviagen("cpu", weights, {"Stable-X/trellis-vggt-v0-2": "abc"})
    loaded.load()
    return loaded


@pytest.fixture(scope="module")
def posed(model):
    """With cameras and depth; also what the callback and the snapshot were told."""
    told, shown = [], {}

    def snapshot(step, render):
        shown[step] = render(sphere_views().cameras[[0]])

    def callback(fraction, message, metrics):
        told.append((fraction, message))

    return model.reconstruct(sphere_views(), SMALL, callback, snapshot=snapshot), told, shown


@pytest.fixture(scope="module")
def unposed(model):
    """Without cameras but with depth, and corrected by the views."""
    views = replace(sphere_views(), cameras=None)
    options = SMALL.model_copy(
        update={
            "refine": True,
            "latent_steps": 4,  # the last is late enough to be corrected
            "outputs": OutputOptions(up_axis="y"),
        }
    )
    return model.reconstruct(views, options, quiet)


def test_the_object_comes_to_where_the_cameras_saw_one(posed):
    mesh = posed[0].mesh
    middle = (mesh.vertices.amax(0) + mesh.vertices.amin(0)) / 2
    assert (middle - CENTER).norm() < 0.25 * RADIUS
    assert 0.8 < (mesh.vertices - CENTER).norm(dim=1).mean() / RADIUS < 1.3
    assert posed[0].cameras is None
    assert posed[0].extra["alignment/mask_iou"] > 0.7


def test_the_texture_is_the_colour_of_the_views(posed):
    mesh = posed[0].mesh
    assert mesh.unlit
    assert mesh.base_color.shape == (128, 128, 3)  # a power of two, for whom it is drawn with mip levels
    assert (mesh.base_color.flatten(0, 1).median(0).values - 0.5).abs().max() < 0.02


def test_no_more_triangles_than_asked_for(posed):
    assert len(posed[0].mesh.faces) <= SMALL.target_triangles


def test_the_result_says_what_made_it(posed):
    parts = posed[0].parts
    assert parts["slat_flow_model"] == "Stable-X/trellis-vggt-v0-2@abc"
    assert parts["vggt"] == "Stable-X/vggt-object-v0-1@unknown"
    assert len(parts) == 9


def test_progress_never_falls_and_names_every_step(posed):
    fractions, messages = zip(*posed[1], strict=True)
    assert list(fractions) == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1
    for word in ("features", "structure: step 2 of 2", "latent: step 2 of 2", "alignment", "texture"):
        assert any(word in message for message in messages), word


def test_a_snapshot_shows_the_object_in_the_given_view(posed):
    seen = sphere_views().masks[0]
    drawn = posed[2]["object"].alpha[0]
    assert (drawn * seen).sum() / torch.maximum(drawn, seen).sum() > 0.6


def test_cameras_are_found_where_there_are_none(unposed):
    views = sphere_views()
    cameras = unposed.cameras
    assert len(cameras) == len(views)
    assert (cameras.width, cameras.height) == (views.cameras.width, views.cameras.height)
    drawn = render_textured(make_backend("warp", "cpu"), unposed.mesh, cameras, samples=1)
    overlap = (drawn.alpha * views.masks).sum((1, 2)) / torch.maximum(drawn.alpha, views.masks).sum((1, 2))
    assert overlap.min() > 0.6


def test_lengths_are_in_the_unit_of_the_depth_maps(unposed):
    views = sphere_views()
    drawn = render_textured(make_backend("warp", "cpu"), unposed.mesh, unposed.cameras, samples=1).depth
    both = (drawn > 0) & (views.depths > 0)
    assert (views.depths[both] / drawn[both]).median() == pytest.approx(1.0, abs=0.02)


def test_refinement_tells_its_losses(unposed):
    curve = unposed.curves["latent/loss"]
    assert len(curve) >= 5
    assert all(torch.isfinite(torch.tensor(curve)))


def test_a_seed_gives_one_object_and_another_seed_another(model):
    generator = model._ready().generator
    images = torch.rand(3, 3, generator.image_size, generator.image_size, generator=seeded(7))

    def generated(seed: int) -> PaintedMesh:
        noise, seen = seeded(seed), generator.see(images)
        grid = generator.structure(seen, FEW, noise, quiet)
        return generator.decode(generator.latent(seen, grid, FEW, noise, quiet), grid).mesh

    first, again, other = generated(0), generated(0), generated(1)
    assert torch.equal(first.vertices, again.vertices)
    assert torch.equal(first.colors, again.colors)
    assert first.vertices.shape != other.vertices.shape or not torch.equal(first.vertices, other.vertices)


@pytest.mark.parametrize("calls", [0, 3, 8, 40])
def test_a_cancel_stops_at_the_next_report(model, calls):
    left = calls

    def cancel(fraction, message, metrics):
        nonlocal left
        if left == 0:
            raise JobCancelled("client")
        left -= 1

    with pytest.raises(JobCancelled):
        model.reconstruct(sphere_views(), SMALL, cancel)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("Failed to allocate 1024 bytes on device 'cuda:0'"),  # Warp's
    ],
)
def test_lack_of_memory_is_answered_with_the_smaller_plan_once(model, monkeypatch, error):
    loaded, plans = model._ready(), []

    def see(images):
        plans.append(loaded.networks.plan)
        raise error

    monkeypatch.setattr(loaded.generator, "see", see)
    with pytest.raises(type(error)):
        model.reconstruct(sphere_views(), SMALL, quiet)

    assert plans == [Plan.RESIDENT, Plan.SEQUENTIAL]
    assert loaded.networks.plan is Plan.RESIDENT  # for the next job


def test_another_fault_is_no_lack_of_memory(model, monkeypatch):
    def see(images):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(model._ready().generator, "see", see)
    with pytest.raises(RuntimeError, match="a mistake"):
        model.reconstruct(sphere_views(), SMALL, quiet)
    assert model._ready().networks.plan is Plan.RESIDENT


def test_of_many_views_the_networks_are_shown_some_from_all_round(model, monkeypatch):
    shown = []

    def see(images):
        shown.append(len(images))
        raise JobCancelled("client")

    monkeypatch.setattr(model._ready().generator, "see", see)
    some = sphere_views()
    many = some.subset(list(range(len(some))) * 10)
    for views in (some, many):
        with pytest.raises(JobCancelled):
            model.reconstruct(views, SMALL, quiet)
    assert shown == [6, 24]


def test_missing_weights_name_the_command_that_gets_them(tmp_path):
    with pytest.raises(ModelError) as caught:
        Reconviagen("cpu", tmp_path / "none").load()
    assert caught.value.code is ErrorCode.MODEL_WEIGHTS_MISSING
    assert "recon weights fetch" in caught.value.message


def test_options_of_another_model_are_a_mistake_of_the_caller(model):
    with pytest.raises(TypeError):
        model.reconstruct(sphere_views(), NvdiffrecOptions(), quiet)
