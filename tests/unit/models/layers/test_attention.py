"""Attention over dense rows and over packed sequences of unequal length."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from models.layers.attention import Lengths, _bucketed, _xformers_runs, attention

SIZES = (5, 1, 40, 7, 7, 130, 2, 33)
TOTAL = sum(SIZES)


def packed(total=TOTAL, heads=2, channels=8, dtype=torch.float32, device="cpu"):
    return [torch.randn(1, total, heads, channels, dtype=dtype, device=device) for _ in range(3)]


def one_by_one(query, key, value, sizes=SIZES):
    """Softmax written out, sequence by sequence, head by head."""
    out, begin = torch.empty_like(query), 0
    for size in sizes:
        at = slice(begin, begin + size)
        for head in range(query.shape[2]):
            q, k, v = (x[0, at, head] for x in (query, key, value))
            weights = torch.exp(q @ k.T / q.shape[-1] ** 0.5)
            out[0, at, head] = weights / weights.sum(1, keepdim=True) @ v
        begin += size
    return out


def test_dense_attention_is_the_softmax_of_each_row():
    query, key, value = torch.randn(3, 2, 9, 2, 4)
    expected = torch.cat([one_by_one(*(x[i, None] for x in (query, key, value)), (9,)) for i in range(2)])
    torch.testing.assert_close(attention(query, key, value), expected)


def test_queries_may_be_more_than_keys():
    query, key, value = torch.randn(2, 9, 2, 4), torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4)
    weights = torch.softmax(torch.einsum("blhd,bshd->bhls", query, key) / 2, -1)
    expected = torch.einsum("bhls,bshd->blhd", weights, value)
    torch.testing.assert_close(attention(query, key, value), expected)


def test_packed_sequences_attend_only_to_themselves():
    tensors = packed()
    torch.testing.assert_close(
        attention(*tensors, lengths=Lengths.of(SIZES, "cpu")), one_by_one(*tensors), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1), (64,) * 5, (1, 500), tuple(range(1, 60))])
def test_any_mixture_of_lengths_is_unpacked_in_order(sizes):
    tensors = packed(sum(sizes), 1, 4)
    torch.testing.assert_close(
        attention(*tensors, lengths=Lengths.of(torch.tensor(sizes), "cpu")),
        one_by_one(*tensors, sizes),
        atol=1e-6,
        rtol=1e-5,
    )


def test_padding_stays_below_a_quarter_beyond_short_sequences():
    lengths = Lengths.of(range(32, 513), "cpu")
    for bucket in lengths.buckets:
        assert bucket.valid.float().mean() > 0.75
    assert len(lengths.buckets) <= 4 * 4 + 1


def test_gradients_of_packed_attention_are_right():
    lengths = Lengths.of((3, 1, 5, 3), "cpu")
    tensors = [x.double().requires_grad_() for x in packed(lengths.total, 1, 3)]
    assert torch.autograd.gradcheck(lambda *x: attention(*x, lengths=lengths), tensors)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_stays_near_float32(dtype, tolerance):
    tensors, lengths = packed(), Lengths.of(SIZES, "cpu")
    half = attention(*(x.to(dtype) for x in tensors), lengths=lengths)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), one_by_one(*tensors), atol=tolerance, rtol=tolerance)


def test_tensors_that_do_not_fit_the_lengths_are_refused():
    lengths = Lengths.of((3, 4), "cpu")
    with pytest.raises(ValueError, match=r"\[1, 7\]"):
        attention(*packed(8), lengths=lengths)


@pytest.mark.parametrize("sizes", [(), (3, 0, 2)])
def test_empty_sequences_are_refused(sizes):
    with pytest.raises(ValueError, match="at least one token"):
        Lengths.of(sizes, "cpu")


def test_xformers_that_was_built_for_something_else_is_passed_over(monkeypatch):
    """It can be installed, imported, and yet have no kernel for this torch."""

    def no_operator(*tensors, attn_bias):
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`")

    ops, masks = ModuleType("xformers.ops"), ModuleType("xformers.ops.fmha.attn_bias")
    ops.memory_efficient_attention = no_operator
    masks.BlockDiagonalMask = SimpleNamespace(from_seqlens=lambda sizes, device: None)
    monkeypatch.setitem(sys.modules, ops.__name__, ops)
    monkeypatch.setitem(sys.modules, masks.__name__, masks)
    _xformers_runs.cache_clear()
    assert not _xformers_runs(torch.device("cpu"), torch.float16)
    ops.memory_efficient_attention = lambda *tensors, attn_bias: tensors[0]
    _xformers_runs.cache_clear()
    assert _xformers_runs(torch.device("cpu"), torch.float16)
    _xformers_runs.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_packed_backend_of_cuda_agrees_with_padding_and_so_do_its_gradients(dtype):
    tensors = [x.requires_grad_() for x in packed(channels=64, dtype=dtype, device="cuda")]
    lengths = Lengths.of(SIZES, "cuda")
    cotangent = torch.randn_like(tensors[0])
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    found, expected = attention(*tensors, lengths=lengths), _bucketed(*tensors, lengths)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    for one, other in zip(
        torch.autograd.grad(found, tensors, cotangent),
        torch.autograd.grad(expected, tensors, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=4 * tolerance, rtol=4 * tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_packed_call_does_not_wait_for_the_device():
    tensors, lengths = packed(channels=64, dtype=torch.float16, device="cuda"), Lengths.of(SIZES, "cuda")
    attention(*tensors, lengths=lengths)
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention(*tensors, lengths=lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")
