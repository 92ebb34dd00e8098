"""Exercises of notebook 03: what textbooks write passes, and what learners get wrong is named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from course_utils import exercises
from course_utils.checks import transformer_families


def problem(name, attempt):
    return exercises.first_problem(transformer_families.EXERCISES[name], attempt)


# ── textbook variants ───────────────────────────────────────────────────────────────────────────


def prefix_by_assignment(n_tokens, n_prefix):
    mask = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    mask[:, :n_prefix] = True
    return mask


def prefix_by_loops(n_tokens, n_prefix):
    return [[j <= i or j < n_prefix for j in range(n_tokens)] for i in range(n_tokens)]


def prefix_in_numbers(n_tokens, n_prefix):
    """As Hugging Face hands masks over: ones and zeros."""
    return prefix_by_assignment(n_tokens, n_prefix).long()


def count_by_parts(config):
    d, head = config.d_model, config.d_model // config.n_heads
    kv = config.n_kv_heads or config.n_heads
    attention = d * d + d * kv * head + d * kv * head + d * d
    return config.vocab_size * d + config.n_layers * (attention + 3 * d * config.d_ff + 2 * d) + d


def rms_norm_by_rsqrt(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def loss_by_flattening(logits, ids, mask):
    """As transformers writes it, with the padding's labels set to −100."""
    labels = ids.masked_fill(mask == 0, -100)
    shifted, wanted = logits[:, :-1].contiguous(), labels[:, 1:].contiguous()
    return F.cross_entropy(shifted.view(-1, logits.shape[-1]), wanted.view(-1))


def loss_by_gather(logits, ids, mask):
    chosen = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return -(chosen * mask[:, 1:]).sum() / mask[:, 1:].sum()


def mean_pool_of_sbert(hidden, mask):
    """As sentence-transformers writes it: at least 1e-9 in the divisor."""
    wide = mask.unsqueeze(-1).expand(hidden.size()).float()
    return torch.sum(hidden * wide, 1) / torch.clamp(wide.sum(1), min=1e-9)


def shift_by_hand(labels, start, pad):
    """As T5 in transformers: a new tensor, filled in place."""
    shifted = labels.new_zeros(labels.shape)
    shifted[..., 1:] = labels[..., :-1].clone()
    shifted[..., 0] = start
    return shifted.masked_fill_(shifted == -100, pad)


def hide_in_place(ids, chosen, fate, random, mask_id):
    """As the collator of transformers: clones, changed where a condition holds."""
    inputs, labels = ids.clone(), ids.clone()
    labels[~chosen] = -100
    inputs[chosen & (fate < 0.8)] = mask_id
    other = chosen & (fate >= 0.9)
    inputs[other] = random[other]
    return inputs, labels


VARIANTS = [
    ("prefix_mask", prefix_by_assignment),
    ("prefix_mask", prefix_in_numbers),
    ("prefix_mask", lambda n, p: torch.tensor(prefix_by_loops(n, p))),
    ("count_weights", count_by_parts),
    ("rms_norm", rms_norm_by_rsqrt),
    ("next_token_loss", loss_by_flattening),
    ("next_token_loss", loss_by_gather),
    ("mean_pool", mean_pool_of_sbert),
    ("shift_right", shift_by_hand),
    ("hide_chosen", hide_in_place),
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_variant_passes(name, variant):
    assert problem(name, variant) is None


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────

EVERY_MISTAKE = [
    (name, said, wrong)
    for name, exercise in transformer_families.EXERCISES.items()
    for said, wrong in exercise.mistakes.items()
]


@pytest.mark.parametrize(("name", "said", "wrong"), EVERY_MISTAKE)
def test_each_mistake_is_named_by_its_own_sentence(name, said, wrong):
    found = problem(name, wrong)
    assert f"This is what comes out when {said}." in found


def test_a_float_mask_of_minus_infinity_is_shown_as_it_is():
    def additive(n_tokens, n_prefix):
        return torch.zeros(n_tokens, n_tokens).masked_fill(
            ~prefix_by_assignment(n_tokens, n_prefix), -torch.inf
        )

    assert "-inf" in problem("prefix_mask", additive)


def test_the_sentences_to_judge(capsys):
    exercises.judge("03.families", "b", "d")
    assert "✗" not in capsys.readouterr().out
    exercises.judge("03.families", "a")
    assert capsys.readouterr().out.count("✗") == 3
