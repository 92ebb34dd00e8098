"""Sinusoids, rotations and buckets against transformers', and by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from attention_inputs import EXACT, TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from course_utils.architectures import attention
from course_utils.architectures.kv_cache import LayerCache
from course_utils.architectures.positions import (
    dynamic_scaling,
    linear_scaling,
    llama3_scaling,
    pair_halves,
    relative_buckets,
    rotary_angles,
    rotary_frequencies,
    rotate,
    rotate_plain,
    scaled_frequencies,
    sinusoidal_positions,
)


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_cached_heads_are_uncached(n_kv_heads):
    """Three steps at once, then one by one, rotary positions included."""
    ours = attention.MultiHeadAttention(8, 4, n_kv_heads=n_kv_heads, d_head=6).double()
    x = torch.randn(2, 7, 8, dtype=torch.double)
    frequencies = rotary_frequencies(6)
    whole = rotary_angles(torch.arange(7).unsqueeze(0), frequencies)
    expected = ours(x, causal=True, rotary=whole)
    cache, outputs = LayerCache(), []
    with torch.no_grad():
        for start, stop in ((0, 3), (3, 4), (4, 6), (6, 7)):
            rotary = tuple(part[:, :, start:stop] for part in whole)
            step = ours(x[:, start:stop], causal=True, rotary=rotary, cache=cache)
            outputs.append(step)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, **EXACT)


def test_sinusoidal_by_hand():
    table = sinusoidal_positions(50, 6)
    for position, i in itertools.product((0, 1, 49), range(3)):
        angle = position / 10_000 ** (2 * i / 6)
        assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)
    with pytest.raises(ValueError, match="d_model is 5"):
        sinusoidal_positions(3, 5)


def test_rotation_by_hand():
    """Position 1, first pair: a turn by one radian."""
    x = torch.tensor([1.0, 0.0, 0.0, 2.0])
    turned = rotate_plain(x, 1)
    slow = 1 / 100  # 10000^(−2/4)
    expected = [math.cos(1), math.sin(1), -2 * math.sin(slow), 2 * math.cos(slow)]
    torch.testing.assert_close(turned, torch.tensor(expected))


def test_fast_rotation_is_the_papers():
    """Half-a-head pairs equal neighbouring pairs once the numbers are reordered."""
    x = torch.randn(1, 1, 6, 8)
    rotary = rotary_angles(torch.arange(6).unsqueeze(0), rotary_frequencies(8))
    order = pair_halves(torch.arange(8), 1)
    fast = rotate(x[..., order], *rotary)
    for position in range(6):
        plain = rotate_plain(x[0, 0, position], position)
        torch.testing.assert_close(fast[0, 0, position], plain[order], **TOLERANCE)


def test_pair_halves():
    assert pair_halves(torch.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert pair_halves(torch.randn(8, 5), 2).shape == (8, 5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_scores_depend_on_the_distance_alone(m, n, shift):
    generator = torch.Generator().manual_seed(m)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator).double() for _ in range(2))
    frequencies = rotary_frequencies(8).double()

    def score(i, j):
        turned = [
            rotate(x, *rotary_angles(torch.tensor([[p]]), frequencies)) for x, p in ((q, i), (k, j))
        ]
        assert turned[0].norm().item() == pytest.approx(q.norm().item())
        return (turned[0] * turned[1]).sum().item()

    assert score(m, n) == pytest.approx(score(m + shift, n + shift), abs=1e-9)


SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 2048,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "attention_factor": 1.3,
    },
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: f"{s['rope_type']}{len(s)}")
@pytest.mark.parametrize("length", [40, 300])
@pytest.mark.parametrize("d_head", [16, 64])
def test_scaled_positions_are_transformers(scaling, length, d_head):
    """Cosines and sines of every rule, inside and beyond the trained length of 128."""
    theta, trained = 500_000.0, scaling.get("original_max_position_embeddings", 0)
    limit = max(128, int(trained * scaling.get("factor", 1)))
    config = LlamaConfig(
        hidden_size=d_head * 2,
        num_attention_heads=2,
        max_position_embeddings=limit,
        rope_parameters={**scaling, "rope_theta": theta},
    )
    positions = torch.arange(length).unsqueeze(0)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    frequencies, scale = scaled_frequencies(
        d_head, theta, scaling, length=length, max_positions=limit
    )
    got_cos, got_sin = rotary_angles(positions, frequencies, scale)
    # the last bit of a frequency (6e-8 of it), times a position of up to 300 radians
    torch.testing.assert_close(got_cos[0, 0], cos[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(got_sin[0, 0].abs(), sin[0].abs(), atol=2e-5, rtol=0)
    assert torch.equal(got_sin[0, 0, :, : d_head // 2], -got_sin[0, 0, :, d_head // 2 :])


def test_scaling_moves_what_it_should():
    """By hand: linear divides all; llama3 keeps fast pairs and divides slow ones."""
    plain = rotary_frequencies(64, 500_000.0)
    torch.testing.assert_close(linear_scaling(plain, 4.0), plain / 4)
    scaled = llama3_scaling(plain, 8.0, 1.0, 4.0, 8192)
    assert torch.equal(scaled[:14], plain[:14])  # more than 4 turns in 8192 steps
    torch.testing.assert_close(scaled[-2:], plain[-2:] / 8)  # less than 1 turn
    assert torch.equal(dynamic_scaling(64, 1e4, 2.0, 100, 128), rotary_frequencies(64))


def test_scaling_that_is_not_here():
    with pytest.raises(ValueError, match="rope_type is 'longrope'"):
        scaled_frequencies(8, scaling={"rope_type": "longrope"})
    with pytest.raises(ValueError, match="mscale, which no rule here uses"):
        scaled_frequencies(8, scaling={"rope_type": "yarn", "mscale": 1.0})
    with pytest.raises(ValueError, match="d_head is 7"):
        rotary_frequencies(7)


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 20)])
@pytest.mark.parametrize("n_queries", [150, 1, 3])
def test_buckets_are_t5s(both_ways, n_buckets, max_distance, n_queries):
    keys = torch.arange(150)
    distance = keys - keys[150 - n_queries :].unsqueeze(1)
    expected = T5Attention._relative_position_bucket(
        distance, bidirectional=both_ways, num_buckets=n_buckets, max_distance=max_distance
    )
    got = relative_buckets(
        n_queries, 150, n_buckets=n_buckets, max_distance=max_distance, both_ways=both_ways
    )
    assert torch.equal(got, expected)
