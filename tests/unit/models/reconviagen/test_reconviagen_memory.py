import pytest
import torch
from torch import nn

from models.reconviagen.memory import GIB, WORKING_SET, Networks, Plan

CPU = torch.device("cpu")


def networks(capacity: int | None, device: torch.device = CPU) -> Networks:
    modules = {"first": nn.Linear(256, 256), "second": nn.BatchNorm1d(8)}
    return Networks(modules, device, capacity=capacity)


def test_modules_are_made_ready_for_inference():
    with networks(None).use("second") as module:
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_networks_that_fit_beside_the_working_set_stay():
    size = networks(None).bytes

    assert networks(size + WORKING_SET).plan is Plan.RESIDENT
    assert networks(size + WORKING_SET - 1).plan is Plan.SEQUENTIAL


def test_size_counts_parameters_and_buffers():
    expected = sum(
        tensor.numel() * tensor.element_size()
        for module in (nn.Linear(256, 256), nn.BatchNorm1d(8))
        for tensor in module.state_dict().values()
    )

    assert networks(None).bytes == expected


def test_economizing_is_for_one_job():
    held = networks(None)
    held.economize()

    with held.use("first") as module:
        assert torch.isfinite(module(torch.ones(1, 256))).all()
    assert held.plan is Plan.SEQUENTIAL
    held.rest()
    assert held.plan is Plan.RESIDENT


def test_an_unknown_name_is_a_mistake_of_the_caller():
    with pytest.raises(KeyError), networks(None).use("third"):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("plan", Plan)
def test_where_weights_are_between_uses(plan):
    device = torch.empty(0, device="cuda").device
    held = networks(64 * GIB if plan is Plan.RESIDENT else 1, device)
    before = torch.cuda.memory_allocated(device)
    with held.use("first") as module:
        inside = module(torch.ones(2, 256, device=device)).cpu()
        assert torch.cuda.memory_allocated(device) > before
        place = module.weight.data_ptr()
    stays = torch.cuda.memory_allocated(device) > before
    with held.use("first") as module:
        again = module(torch.ones(2, 256, device=device)).cpu()
        moved = module.weight.data_ptr() != place

    assert stays == (plan is Plan.RESIDENT)
    assert not (moved and stays)
    assert torch.equal(inside, again)
