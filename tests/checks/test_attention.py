"""Exercises of notebook 02: what textbooks write passes, and what learners get wrong is named."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from course_utils import exercises
from course_utils.architectures.attention import probed
from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.checks import attention


def problem(name, attempt):
    return exercises.first_problem(attention.EXERCISES[name], attempt)


# ── textbook variants ───────────────────────────────────────────────────────────────────────────


def weights_with_a_bias(q, k, mask):
    bias = torch.zeros(mask.shape).masked_fill(~mask, -1e9)
    return F.softmax(torch.einsum("id,jd->ij", q, k) / q.size(-1) ** 0.5 + bias, dim=-1)


def weights_from_torch(q, k, mask):
    """Attention over the identity as values gives the weights themselves."""
    values = torch.eye(len(k))
    return F.scaled_dot_product_attention(q[None], k[None], values[None], attn_mask=mask[None])[0]


def mask_by_comparing(n_queries, n_keys):
    queries = torch.arange(n_keys - n_queries, n_keys)
    return torch.arange(n_keys) <= queries[:, None]


def mask_of_zeros_and_ones(n_queries, n_keys):
    return torch.tril(torch.ones(n_queries, n_keys), n_keys - n_queries)


def sinusoidal_as_in_the_annotated_transformer(n_positions, d_model):
    table = torch.zeros(n_positions, d_model)
    position = torch.arange(n_positions).unsqueeze(1)
    speed = torch.exp(torch.arange(0, d_model, 2) * -(math.log(10000.0) / d_model))
    table[:, 0::2] = torch.sin(position * speed)
    table[:, 1::2] = torch.cos(position * speed)
    return table


def rotate_with_complex_numbers(x, position):
    pairs = torch.view_as_complex(x.view(-1, 2))
    angles = position * 10000 ** (-torch.arange(0, len(x), 2) / len(x))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten()


def induction_by_a_diagonal(weights, period):
    return weights.diagonal(-(period - 1))[1:].mean()


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("weights", weights_with_a_bias),
        ("weights", weights_from_torch),
        ("causal_mask", mask_by_comparing),
        ("causal_mask", mask_of_zeros_and_ones),
        ("sinusoidal", sinusoidal_as_in_the_annotated_transformer),
        ("rotate", rotate_with_complex_numbers),
        ("induction", induction_by_a_diagonal),
        ("induction", lambda weights, period: induction_by_a_diagonal(weights, period).item()),
    ],
)
def test_textbook_variants_pass(name, variant):
    assert problem(name, variant) is None


# ── what learners get wrong ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "attempt", "said"),
    [
        ("weights", lambda q, k, mask: (q @ k.T).masked_fill(~mask, -math.inf).softmax(-1),
         "not divided by"),
        ("causal_mask", lambda n, m: torch.ones(n, m, dtype=torch.bool).triu(1),
         "raised|True means hidden|at the left|expected"),
        ("cache_bytes", lambda n, h, g, d, t, b: 2 * n * h * d * t * b, "some share"),
        ("induction", lambda w, period: w.diagonal(-period).mean(), "the twin itself"),
        ("induction", lambda w, period: w.diagonal(1 - period).mean(), "first half"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(name, attempt, said):
    assert any(part in problem(name, attempt) for part in said.split("|"))


def test_sentences_to_judge_are_of_both_kinds():
    for statements in attention.STATEMENTS.values():
        assert {statement.supported for statement in statements.values()} == {True, False}


# ── the answers that are told and not checked ───────────────────────────────────────────────────


def test_a_token_evicted_from_the_next_one_on_is_a_text_without_it():
    """Exercise 7: what follows is computed as if the text began with token 1."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_heads": 2, "n_kv_heads": 1, "n_layers": 3, "d_ff": 32}
    decoder = Decoder(DecoderConfig(50, max_positions=16, eps=1e-5, **sizes)).eval()
    ids = torch.randint(50, (2, 10))

    def evict(weights):
        weights = weights.clone()
        weights[..., 1:, 0] = 0
        return weights / weights.sum(-1, keepdim=True)

    with torch.no_grad(), probed(decoder, evict):
        evicted = decoder(ids)[:, 1:]
    with torch.no_grad():
        without, as_it_was = decoder(ids[:, 1:]), decoder(ids)[:, 1:]
    # fp32, angles of other positions
    torch.testing.assert_close(evicted, without, atol=1e-5, rtol=1e-4)
    assert (as_it_was - without).abs().max() > 1e-3
