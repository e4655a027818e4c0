import importlib.util
import math

import pytest
import torch

from benchmarks.parity import standin_spconv as spconv
from benchmarks.parity import standin_xformers as xops
from benchmarks.parity.standins import UNUSED, EasyDict, StandIns


def dense(features, indices, side, batch):
    grid = features.new_zeros(batch, features.shape[1], side, side, side)
    grid[indices[:, 0].long(), :, indices[:, 1].long(), indices[:, 2].long(), indices[:, 3].long()] = features
    return grid


def test_sparse_convolution_is_a_dense_one_read_at_the_voxels():
    generator = torch.Generator().manual_seed(0)
    indices = (torch.rand(2, 5, 5, 5, generator=generator) < 0.3).nonzero().int()
    indices = indices[torch.randperm(len(indices), generator=generator)]
    features = torch.randn(len(indices), 6, generator=generator)
    layer = spconv.SubMConv3d(6, 4, 3, indice_key="a", algo=spconv.ConvAlgo.Native)
    found = layer(spconv.SparseConvTensor(features, indices, [5, 5, 5], 2))
    wanted = torch.nn.functional.conv3d(
        dense(features, indices, 5, 2), layer.weight.permute(0, 4, 1, 2, 3), layer.bias, padding=1
    )
    b, x, y, z = indices.long().unbind(1)
    torch.testing.assert_close(found.features, wanted[b, :, x, y, z])
    assert list(found.indice_dict) == ["a"]


def test_convolution_of_one_tap_reads_its_weights_as_spconv_does():
    layer = spconv.SubMConv3d(2, 3, 1, bias=False)
    layer.weight.data = torch.arange(6.0).reshape(3, 1, 1, 1, 2)
    tensor = spconv.SparseConvTensor(torch.eye(2), torch.zeros(2, 4).int(), [1, 1, 1], 1)
    assert layer(tensor).features.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_attention_stays_within_its_blocks():
    q, k, v = (torch.randn(1, 7, 2, 4, generator=torch.Generator().manual_seed(n)) for n in range(3))
    mask = xops.fmha.BlockDiagonalMask.from_seqlens([3, 4], [5, 2])
    logits = torch.einsum("blhd,bshd->bhls", q, k) / math.sqrt(4)
    blocks = torch.block_diag(torch.ones(3, 5), torch.ones(4, 2)).bool()
    wanted = torch.einsum("bhls,bshd->blhd", logits.masked_fill(~blocks, -math.inf).softmax(-1), v)
    torch.testing.assert_close(xops.memory_efficient_attention(q, k, v, mask), wanted)


def test_keys_of_a_dictionary_are_attributes():
    found = EasyDict({"a": {"b": 1}})
    found.c = 2
    assert (found.a.b, found["c"]) == (1, 2)
    assert not hasattr(found, "d")


def test_what_is_left_out_can_be_imported_within_and_not_called():
    missing = [name for name in UNUSED if importlib.util.find_spec(name) is None]
    standins = StandIns(cuda=False)
    with standins.installed():
        from xformers.ops import memory_efficient_attention

        for name in UNUSED:
            with pytest.raises(NotImplementedError):
                importlib.import_module(f"{name}.part").anything()
    assert memory_efficient_attention is xops.memory_efficient_attention
    assert [name for name in UNUSED if importlib.util.find_spec(name) is None] == missing
    assert standins.packages["xformers"] == "stand-in"
    assert all(standins.packages[name] == "not called" for name in UNUSED)
