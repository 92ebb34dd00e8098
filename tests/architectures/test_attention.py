"""Attention in its three forms against torch's, and by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from attention_inputs import EXACT, TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_utils.architectures import attention


def heads(batch=2, n_heads=4, n_kv_heads=4, n_queries=5, n_keys=5, d=6, d_value=6):
    shapes = (n_heads, n_queries, d), (n_kv_heads, n_keys, d), (n_kv_heads, n_keys, d_value)
    return [torch.randn(batch, *shape, dtype=torch.double, requires_grad=True) for shape in shapes]


def some_mask(name, n_queries=5, n_keys=5):
    """None, a triangle, padding, both, or one with a row that sees nothing."""
    triangle = attention.causal_mask(n_queries, n_keys)
    padding = attention.padding_mask(torch.arange(n_keys) < torch.tensor([[n_keys], [2]]))
    blind = torch.rand(2, 1, n_queries, n_keys) < 0.6
    blind[1, 0, n_queries - 1] = False
    masks = {"causal": triangle, "padding": padding, "both": triangle & padding, "blind": blind}
    return masks.get(name)


def test_by_hand():
    """Scores ln 3 and 0 give weights ¾ and ¼."""
    q, k = torch.tensor([[math.log(3), 5.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    v = torch.tensor([[4.0], [8.0]])
    weights = attention.attention_weights(q, k, scale=1.0)
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(attention.attention_plain(q, k, v, scale=1.0), torch.tensor([[5.0]]))
    only_second = torch.tensor([[False, True]])
    assert attention.attention_plain(q, k, v, only_second).item() == 8


@pytest.mark.parametrize("form", ["attention", "fused_attention"])
@pytest.mark.parametrize("mask", [None, "causal", "padding", "both", "blind"])
@pytest.mark.parametrize(
    "sizes",
    [{}, {"n_kv_heads": 2}, {"n_kv_heads": 1}, {"d_value": 3}, {"n_queries": 2}],
    ids=["equal", "grouped", "multi-query", "d_v", "short"],
)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_is_torchs(form, mask, sizes, scale):
    """Values and gradients, grouped heads, values of another size, fewer queries than keys."""
    q, k, v = heads(**sizes)
    visible = some_mask(mask, n_queries=q.shape[2])
    shared = (k.repeat_interleave(4 // k.shape[1], 1), v.repeat_interleave(4 // v.shape[1], 1))
    expected = F.scaled_dot_product_attention(q, *shared, attn_mask=visible, scale=scale)
    got = getattr(attention, form)(q, k, v, visible, scale=scale)
    torch.testing.assert_close(got, expected, **EXACT)
    grad = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(y, (q, k, v), grad) for y in (got, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("mask", [None, "causal", "padding", "both", "blind"])
def test_plain_loop_is_the_batched_form(mask):
    q, k, v = (tensor.detach() for tensor in heads(d_value=3))
    visible = some_mask(mask)
    together = attention.attention(q, k, v, visible)
    spread = None if visible is None else visible.expand(2, 4, 5, 5)
    for b, h in itertools.product(range(2), range(4)):
        seen = None if spread is None else spread[b, h]
        alone = attention.attention_plain(q[b, h], k[b, h], v[b, h], seen)
        torch.testing.assert_close(together[b, h], alone, **EXACT)


@pytest.mark.parametrize("mask", [None, "padding", "blind"])
@pytest.mark.parametrize("causal", [False, True])
def test_bias_is_added_to_the_scores(mask, causal):
    q, k, v = heads()
    bias = torch.randn(1, 4, 5, 5, dtype=torch.double, requires_grad=True)
    visible = some_mask(mask)
    both = visible
    if causal:
        both = some_mask("causal") if visible is None else visible & some_mask("causal")
    textbook = attention.attention(q, k, v, both, bias=bias)
    fused = attention.fused_attention(q, k, v, visible, causal=causal, bias=bias)
    torch.testing.assert_close(fused, textbook, **EXACT)
    grad = torch.randn_like(fused)
    for a, b in zip(
        torch.autograd.grad(fused, (q, k, v, bias), grad),
        torch.autograd.grad(textbook, (q, k, v, bias), grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("form", ["attention", "fused_attention"])
def test_a_row_that_sees_nothing_is_zero(form):
    """Defined: weights and output exactly 0, gradients exactly 0, no NaN."""
    q, k, v = heads()
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    out = getattr(attention, form)(q, k, v, mask)
    assert (out[:, :, 2] == 0).all()
    assert (attention.attention_weights(q, k, mask)[:, :, 2] == 0).all()
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert (grads[0][:, :, 2] == 0).all()
    assert all(grad.isfinite().all() for grad in grads)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_weights_are_shares(n_queries, n_keys, seed):
    """At least 0, summing to 1, and 0 wherever the mask forbids."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(n, 3, generator=generator) * 10 for n in (n_queries, n_keys))
    mask = torch.rand(n_queries, n_keys, generator=generator) < 0.5
    weights = attention.attention_weights(q, k, mask)
    assert (weights >= 0).all()
    assert (weights[~mask] == 0).all()
    torch.testing.assert_close(weights.sum(-1), mask.any(-1).float())


@pytest.mark.parametrize("form", ["attention", "fused_attention"])
@pytest.mark.parametrize("n_queries", [1, 2, 5])
def test_the_future_has_exactly_no_gradient(form, n_queries):
    """Output i depends on keys and values up to its own step, on none after it."""
    q, k, v = heads(n_queries=n_queries)
    if form == "attention":
        out = attention.attention(q, k, v, attention.causal_mask(n_queries, 5))
    else:
        out = attention.fused_attention(q, k, v, causal=True)
    for i in range(n_queries):
        step = 5 - n_queries + i
        for grad in torch.autograd.grad(out[:, :, i].sum(), (k, v), retain_graph=True):
            assert (grad[:, :, step + 1 :] == 0).all()
            assert (grad[:, :, : step + 1] != 0).any(dim=-1).all() or step == 0


def test_prefix_mask_is_the_decoders_the_encoders_and_what_lies_between():
    by_hand = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert attention.prefix_mask(4, 2).int().tolist() == by_hand
    assert torch.equal(attention.prefix_mask(5, 0), attention.causal_mask(5))
    assert attention.prefix_mask(5, 5).all()
    with pytest.raises(ValueError, match="between 0 and the 3 tokens"):
        attention.prefix_mask(3, 4)


def test_causal_mask():
    expected = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    assert torch.equal(attention.causal_mask(2, 4), expected)
    assert torch.equal(attention.causal_mask(3), torch.ones(3, 3).tril().bool())
    with pytest.raises(ValueError, match="3 queries, 2 keys"):
        attention.causal_mask(3, 2)


def test_padding_mask():
    real = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert torch.equal(attention.padding_mask(real), real.bool().view(2, 1, 1, 3))
    with pytest.raises(ValueError, match=r"\(3,\); give \(batch, keys\)"):
        attention.padding_mask(torch.ones(3))


@pytest.mark.parametrize("form", ["attention", "fused_attention"])
@pytest.mark.parametrize(
    ("sizes", "mask", "error", "message"),
    [
        ({"n_kv_heads": 3}, None, ValueError, "3 key heads do not divide 4 heads"),
        ({"n_keys": 0}, None, ValueError, "above 0"),
        ({}, torch.zeros(5, 5), TypeError, "float32; it is boolean here"),
        ({}, torch.ones(5, 4).bool(), ValueError, "there are 5 keys"),
    ],
)
def test_bad_heads(form, sizes, mask, error, message):
    with pytest.raises(error, match=message):
        getattr(attention, form)(*heads(**sizes), mask)


def test_bad_shapes():
    q, k, v = heads()
    with pytest.raises(ValueError, match=r"each must be \(batch, heads, steps, size\)"):
        attention.attention(q[0], k[0], v[0])
    with pytest.raises(ValueError, match="q and k need one size"):
        attention.attention(q[..., :4], k, v)


def torchs_heads(ours, d_model, n_heads, d_memory):
    """nn.MultiheadAttention with our weights; its in-projection is one matrix or three."""
    theirs = nn.MultiheadAttention(
        d_model, n_heads, kdim=d_memory, vdim=d_memory, batch_first=True, dtype=torch.double
    )
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        if theirs.in_proj_weight is not None:
            theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        else:
            names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
            for name, part in zip(names, parts, strict=True):
                getattr(theirs, name).copy_(part.weight)
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    return theirs


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("masked", [False, True])
def test_heads_are_torchs(cross, masked):
    """Values, weights and gradients; the memory is wider and longer than what looks at it."""
    ours = attention.MultiHeadAttention(8, 4, d_memory=5 if cross else None).double()
    theirs = torchs_heads(ours, 8, 4, 5 if cross else 8)
    x = torch.randn(2, 3, 8, dtype=torch.double, requires_grad=True)
    memory = torch.randn(2, 6, 5, dtype=torch.double, requires_grad=True) if cross else x
    hidden = torch.zeros(2, memory.shape[1], dtype=torch.bool)  # True = ignore, in torch's layer
    hidden[1, 2:] = masked
    mask = attention.padding_mask(~hidden)
    maps = []
    with attention.probed(ours, maps.append):
        ours(x, ours.keys_values(memory) if cross else None, mask=mask)
    got = ours(x, ours.keys_values(memory) if cross else None, mask=mask)
    expected, weights = theirs(
        x, memory, memory, key_padding_mask=hidden, average_attn_weights=False
    )
    torch.testing.assert_close(got, expected, **EXACT)
    torch.testing.assert_close(maps[0], weights, **EXACT)
    grad = torch.randn_like(got)
    leaves = [x, memory] if cross else [x]
    for a, b in zip(
        torch.autograd.grad(got, [*leaves, ours.out.weight], grad),
        torch.autograd.grad(expected, [*leaves, theirs.out_proj.weight], grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **EXACT)


def test_causal_heads_are_torchs():
    ours = attention.MultiHeadAttention(8, 2).double()
    x = torch.randn(2, 5, 8, dtype=torch.double)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected, _ = torchs_heads(ours, 8, 2, 8)(x, x, x, attn_mask=future)
    torch.testing.assert_close(ours(x, causal=True), expected, **EXACT)


def test_sizes_that_differ():
    """d_head, d_out and grouped heads: the shapes, and equality with heads shared by hand."""
    ours = attention.MultiHeadAttention(8, 4, n_kv_heads=2, d_head=3, d_out=5, bias=False)
    assert ours.key.weight.shape == (6, 8)
    full = attention.MultiHeadAttention(8, 4, d_head=3, d_out=5, bias=False)
    full.load_state_dict(
        ours.state_dict()
        | {
            name: ours.state_dict()[name].unflatten(0, (2, 3)).repeat_interleave(2, 0).flatten(0, 1)
            for name in ("key.weight", "value.weight")
        }
    )
    x = torch.randn(2, 5, 8)
    assert ours(x).shape == (2, 5, 5)
    torch.testing.assert_close(ours(x), full(x), **TOLERANCE)


def test_keys_and_values_serve_every_query():
    """What another sequence offers is computed once; queries read it together or one by one."""
    ours = attention.MultiHeadAttention(8, 4, d_memory=5).double()
    x, memory = torch.randn(2, 3, 8).double(), torch.randn(2, 6, 5).double()
    finished = ours.keys_values(memory)
    assert finished[0].shape == finished[1].shape == (2, 4, 6, 2)
    together = ours(x, finished)
    for i in range(3):
        torch.testing.assert_close(ours(x[:, i : i + 1], finished), together[:, i : i + 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_model": 10, "n_heads": 4}, "d_model 10 is no multiple of n_heads 4"),
        ({"d_model": 8, "n_heads": 4, "n_kv_heads": 3}, "n_heads 4 is no multiple of n_kv_heads 3"),
        ({"d_model": 8, "n_heads": 0}, "n_heads is 0"),
    ],
)
def test_mismatched_heads(arguments, message):
    with pytest.raises(ValueError, match=message):
        attention.MultiHeadAttention(**arguments)


def test_probe_looks_and_replaces():
    """Uniform weights turn attention into an average of the values."""
    ours = attention.MultiHeadAttention(8, 4)
    x = torch.randn(2, 5, 8)
    with attention.probed(ours, lambda w: torch.full_like(w, 1 / w.shape[-1])):
        uniform = ours(x)
    expected = ours.out(ours.value(x).mean(dim=1, keepdim=True)).expand(2, 5, 8)
    torch.testing.assert_close(uniform, expected, **TOLERANCE)
    with pytest.raises(ZeroDivisionError), attention.probed(ours, lambda _: 1 / 0):
        ours(x)
    assert ours.probe is None
    maps = []
    with attention.probed(ours, maps.append):
        torch.testing.assert_close(ours(x, causal=True), ours(x, causal=True))
    assert maps[0].shape == (2, 4, 5, 5)
    assert (maps[0].triu(1) == 0).all()
    with (
        pytest.raises(ValueError, match="Linear has no MultiHeadAttention"),
        attention.probed(nn.Linear(1, 1), print),
    ):
        pass


def test_plain_attention_of_large_scores():
    """exp(750) is no number; softmax takes the largest score away first, and so does the loop."""
    v = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0]])
    for score in (750.0, -750.0):
        q, k = torch.tensor([[score]]), torch.tensor([[1.0], [1.0], [0.9]])
        plain = attention.attention_plain(q, k, v)
        batched = attention.attention(q[None, None], k[None, None], v[None, None])[0, 0]
        torch.testing.assert_close(plain, batched)
    torch.testing.assert_close(plain, v[2:])  # at −750, the key of 0.9 has the largest score


def test_looks_back_is_the_mean_along_a_diagonal():
    weights = torch.rand(2, 3, 6, 6)
    for steps in range(6):
        expected = weights.diagonal(-steps, dim1=-2, dim2=-1).mean(-1)
        torch.testing.assert_close(attention.looks_back(weights, steps), expected)
    late = weights[..., 4:, :].diagonal(3, dim1=-2, dim2=-1).mean(-1)
    torch.testing.assert_close(attention.looks_back(weights, 1, start=4), late)
    for steps, start in ((6, 0), (-1, 0), (0, 6)):
        with pytest.raises(ValueError, match="there are 6 tokens"):
            attention.looks_back(weights, steps, start)
