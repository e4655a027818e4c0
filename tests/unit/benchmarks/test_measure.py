import time

import pytest
import torch

from benchmarks.reconstruction.measure import Clock, Progress, Snapshot, measure_run, seconds_to
from models.base import Reconstruction
from models.render import Rendering
from schemas.options import NvdiffrecOptions
from tests.unit.pipeline.textured_meshes import colored_cube, spot_views

CPU = torch.device("cpu")
STEP = 0.05


class Slow:
    """Reconstructs nothing, in two stages of two steps; shows itself after each step if asked."""

    name = "slow"

    def load(self):
        pass

    def reconstruct(self, views, options, callback, snapshot=None):
        for step in range(4):
            callback(step / 4, f"{'shape' if step < 2 else 'texture'}: step {step}", {})
            time.sleep(STEP)
            if snapshot is not None:
                snapshot(f"step {step}", self.render)
        return Reconstruction(colored_cube(), "none")

    def render(self, cameras):
        blank = torch.zeros(len(cameras), 2, 2)
        return Rendering(blank[..., None].expand(-1, -1, -1, 3), blank, blank)


def test_stages_share_the_time_of_the_run():
    _, measured = measure_run(Slow(), spot_views(), NvdiffrecOptions(), CPU)
    assert list(measured.stages) == ["start", "shape", "texture"]
    assert measured.stages["shape"] == pytest.approx(2 * STEP, abs=0.04)
    assert sum(measured.stages.values()) == pytest.approx(measured.seconds)
    assert measured.snapshots == []
    assert 10 < measured.memory["host_mib"] < 100_000
    assert "gpu_mib" not in measured.memory


def test_looking_at_a_run_takes_none_of_its_time():
    views = spot_views()

    def score(render):
        time.sleep(4 * STEP)
        return float(len(render(views.cameras).alpha))

    _, measured = measure_run(Slow(), views, NvdiffrecOptions(), CPU, score)
    assert [one.step for one in measured.snapshots] == ["step 0", "step 1", "step 2", "step 3"]
    assert [one.psnr_db for one in measured.snapshots] == [6.0] * 4
    for done, one in enumerate(measured.snapshots, start=1):
        assert one.seconds == pytest.approx(done * STEP, abs=0.05)
    assert measured.seconds == pytest.approx(4 * STEP, abs=0.08)
    assert sum(measured.stages.values()) == pytest.approx(measured.seconds)


def test_numbers_in_a_message_do_not_make_another_stage():
    clock = Clock(CPU)
    progress = Progress(clock)
    for message in (
        "cutting 9,812 triangles",
        "",
        "cutting 10 triangles",
        "texture: step 1 of 2",
        "cutting 3 triangles",
    ):
        progress(0.5, message, {})
    assert list(progress.stages(1.0)) == ["start", "cutting N triangles", "texture"]


def test_time_to_a_psnr_is_that_of_the_first_snapshot_that_reached_it():
    snapshots = [Snapshot("a", 1.0, 20.0), Snapshot("b", 2.0, 27.0), Snapshot("c", 3.0, 26.0)]
    assert seconds_to(snapshots, 26.0) == 2.0
    assert seconds_to(snapshots, 20.0) == 1.0
    assert seconds_to(snapshots, 27.1) is None
