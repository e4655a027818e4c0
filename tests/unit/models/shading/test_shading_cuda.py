"""The same light and looks on CUDA as on the CPU, and no waiting for the device."""

import pytest
import torch
import torch.nn.functional as F

from models.shading.deferred import ROW, _Picked
from models.shading.light import EnvironmentLight, filter_light
from models.shading.shade import shade

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def points(count):
    normal, eye = F.normalize(torch.randn(2, count, 3), dim=-1)
    eye = F.normalize(eye + 1.5 * normal, dim=-1)
    return normal, eye, torch.rand(count, 3), torch.rand(count, 1), torch.rand(count, 1)


def test_shading_and_its_gradients_agree_with_the_cpu():
    radiance, arguments = torch.rand(16, 32, 3), points(20000)

    def run(device):
        texels = radiance.clone().to(device).requires_grad_()
        given = [x.clone().to(device).requires_grad_() for x in arguments]
        color = shade(*given, filter_light(texels))
        color.square().mean().backward()
        return [x.cpu() for x in (color.detach(), texels.grad, *(x.grad for x in given[2:]))]

    for one, other in zip(run("cpu"), run("cuda"), strict=True):
        torch.testing.assert_close(other, one, atol=2e-4 * one.abs().max().item(), rtol=1e-3)


def test_a_step_does_not_wait_for_the_device():
    light = EnvironmentLight(torch.ones(16, 32, 3, device="cuda"))
    arguments = [x.cuda().requires_grad_() for x in points(8 * ROW)]
    covered = (torch.rand(1, 8, ROW, 1) < 0.4).cuda()

    def step():
        picked = _Picked(covered, 4 * ROW)
        given = [picked(x.reshape(1, 8, ROW, -1)) for x in arguments]
        picked.back(shade(*given, light())).square().mean().backward()

    step()  # tables are computed once, and that may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(light.log_radiance.grad).all()
