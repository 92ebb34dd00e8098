"""The exercises of notebook 03, with the mistakes that learners make in them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from course_utils.architectures.attention import causal_mask, prefix_mask
from course_utils.architectures.blocks import rms_norm
from course_utils.architectures.decoder import DecoderConfig, count_weights
from course_utils.architectures.encoder import mean_pool
from course_utils.architectures.objectives import (
    IGNORED,
    hide_chosen,
    hide_tokens,
    label_loss,
    next_token_loss,
    shift_right,
)
from course_utils.exercises import Case, Exercise, Statement


def _draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _draw_ids(seed: int, *shape: int, size: int = 6) -> Tensor:
    return torch.randint(size, shape, generator=torch.Generator().manual_seed(seed))


# ── the prefix LM's mask ─────────────────────────────────────────────────────────────────────────


def _prefix_inputs() -> Iterator[tuple]:
    yield from ((5, 0), (5, 5), (6, 2), (1, 0), (3, 1))


def _prefix_forgotten(n_tokens: int, n_prefix: int) -> Tensor:
    return causal_mask(n_tokens)


def _prefix_of_rows(n_tokens: int, n_prefix: int) -> Tensor:
    """The first rows see everything, instead of being seen by all."""
    return causal_mask(n_tokens) | (torch.arange(n_tokens) < n_prefix).unsqueeze(1)


def _prefix_alone(n_tokens: int, n_prefix: int) -> Tensor:
    return (torch.arange(n_tokens) < n_prefix).expand(n_tokens, n_tokens)


def _prefix_one_more(n_tokens: int, n_prefix: int) -> Tensor:
    return causal_mask(n_tokens) | (torch.arange(n_tokens) <= n_prefix)


def _prefix_hidden(n_tokens: int, n_prefix: int) -> Tensor:
    """nn.MultiheadAttention's convention: True is what must not be seen."""
    return ~prefix_mask(n_tokens, n_prefix)


# ── a decoder's weights, counted ─────────────────────────────────────────────────────────────────


SMALL = DecoderConfig(vocab_size=10, d_model=4, n_heads=2, n_kv_heads=1, n_layers=1, d_ff=5)


def _count_inputs() -> Iterator[tuple]:
    yield (DecoderConfig(7, d_model=6, n_heads=2, n_kv_heads=2, n_layers=3, d_ff=5),)
    yield (DecoderConfig(9, d_model=8, n_heads=4, n_kv_heads=2, n_layers=2, d_ff=11),)
    yield (DecoderConfig(5, d_model=12, n_heads=3, n_kv_heads=1, n_layers=1, d_ff=7),)


def _kv(config: DecoderConfig) -> int:
    return config.n_heads if config.n_kv_heads is None else config.n_kv_heads


def _without_norms(config: DecoderConfig) -> int:
    return count_weights(config) - (2 * config.n_layers + 1) * config.d_model


def _without_last_norm(config: DecoderConfig) -> int:
    return count_weights(config) - config.d_model


def _output_too(config: DecoderConfig) -> int:
    return count_weights(config) + config.vocab_size * config.d_model


def _two_matrices(config: DecoderConfig) -> int:
    return count_weights(config) - config.n_layers * config.d_model * config.d_ff


def _full_heads(config: DecoderConfig) -> int:
    """Keys and values for every head, as if none were shared."""
    missing = 1 - _kv(config) / config.n_heads
    return count_weights(config) + round(config.n_layers * 2 * missing * config.d_model**2)


# ── RMSNorm ──────────────────────────────────────────────────────────────────────────────────────


def _rms_norm_inputs() -> Iterator[tuple]:
    for seed, eps in enumerate((1e-6, 1e-2, 0.5)):
        yield _draw(seed, 2, 5) + 1, _draw(seed + 10, 5), eps


def _centred(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(x - x.mean(-1, keepdim=True), weight, eps)


def _eps_outside(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True).sqrt() + eps)


def _sum_of_squares(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


def _over_everything(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean() + eps).sqrt()


# ── mean pooling ─────────────────────────────────────────────────────────────────────────────────


def _mean_pool_inputs() -> Iterator[tuple]:
    yield _draw(0, 2, 4, 3), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    yield _draw(1, 2, 3, 2), torch.tensor([[1, 0, 0], [0, 0, 0]])
    yield _draw(2, 1, 5, 4), torch.tensor([[0, 0, 1, 1, 1]])


def _pool_padding_too(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    return hidden.mean(1)


def _divide_by_all(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    return (hidden if mask is None else hidden * mask.unsqueeze(-1)).mean(1)


def _divide_by_nothing(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    mask = torch.ones(hidden.shape[:2]) if mask is None else mask
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1)


# ── what the decoder is given ────────────────────────────────────────────────────────────────────


def _shift_inputs() -> Iterator[tuple]:
    yield _draw_ids(0, 3, 5) + 3, 1, 0
    yield torch.tensor([[4, IGNORED, IGNORED], [5, 6, 7]]), 2, 0
    yield torch.tensor([[9, 8, IGNORED, IGNORED]]), 1, 3


def _keep_ignored(labels: Tensor, start: int, pad: int) -> Tensor:
    return torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], 1)


def _not_shifted(labels: Tensor, start: int, pad: int) -> Tensor:
    return labels.masked_fill(labels == IGNORED, pad)


def _shifted_left(labels: Tensor, start: int, pad: int) -> Tensor:
    moved = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], start)], 1)
    return moved.masked_fill(moved == IGNORED, pad)


def _one_longer(labels: Tensor, start: int, pad: int) -> Tensor:
    moved = torch.cat([torch.full_like(labels[:, :1], start), labels], 1)
    return moved.masked_fill(moved == IGNORED, pad)


# ── the causal loss ──────────────────────────────────────────────────────────────────────────────


def _loss_inputs() -> Iterator[tuple]:
    yield _draw(0, 2, 4, 6), _draw_ids(1, 2, 4), torch.ones(2, 4)
    yield _draw(2, 2, 4, 6), _draw_ids(3, 2, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    yield _draw(4, 1, 6, 8), _draw_ids(5, 1, 6), torch.tensor([[1, 1, 1, 1, 1, 0]])


def _labels(ids: Tensor, mask: Tensor | None) -> Tensor:
    return ids if mask is None else ids.masked_fill(mask == 0, IGNORED)


def _own_token(logits: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    return label_loss(logits, _labels(ids, mask))


def _previous_token(logits: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    return label_loss(logits[:, 1:], _labels(ids, mask)[:, :-1])


def _padding_counts(logits: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    return next_token_loss(logits, ids)


def _summed(logits: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    counted = (_labels(ids, mask)[:, 1:] != IGNORED).sum()
    return next_token_loss(logits, ids, mask) * counted


# ── BERT's hidden tokens ─────────────────────────────────────────────────────────────────────────

# One token for each fate, and one that was not chosen.
HIDING = (
    torch.tensor([[7, 8, 9, 6]]),
    torch.tensor([[True, True, True, False]]),
    torch.tensor([[0.79, 0.85, 0.95, 0.1]]),
    torch.tensor([[1, 2, 3, 4]]),
    0,
)


def _hiding_inputs() -> Iterator[tuple]:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        chosen, fate = (torch.rand(2, 12, generator=generator) for _ in range(2))
        yield _draw_ids(seed, 2, 12) + 3, chosen < 0.7, fate, _draw_ids(seed + 9, 2, 12) + 3, 1


def _ask_for_all(ids: Tensor, chosen: Tensor, fate: Tensor, random: Tensor, mask_id: int) -> tuple:
    return hide_chosen(ids, chosen, fate, random, mask_id)[0], ids


def _ask_for_inputs(
    ids: Tensor, chosen: Tensor, fate: Tensor, random: Tensor, mask_id: int
) -> tuple:
    inputs, _ = hide_chosen(ids, chosen, fate, random, mask_id)
    return inputs, torch.where(chosen, inputs, IGNORED)


def _mask_all_chosen(
    ids: Tensor, chosen: Tensor, fate: Tensor, random: Tensor, mask_id: int
) -> tuple:
    return torch.where(chosen, mask_id, ids), torch.where(chosen, ids, IGNORED)


def _hide_unchosen(
    ids: Tensor, chosen: Tensor, fate: Tensor, random: Tensor, mask_id: int
) -> tuple:
    everything = torch.ones_like(chosen)
    inputs, _ = hide_chosen(ids, everything, fate, random, mask_id)
    return inputs, torch.where(chosen, ids, IGNORED)


EXERCISES = {
    "prefix_mask": Exercise(
        reference=prefix_mask,
        hint="Begin with the triangle, torch.ones(n, n, dtype=torch.bool).tril(). Then let every "
        "row see the first n_prefix columns too: mask[:, :n_prefix] = True.",
        cases=(
            Case(
                (4, 2),
                torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]),
                why="The first two see each other, also forwards; after them each sees what "
                "stands before it.",
            ),
            Case((3, 0), torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]]), why="No prefix: causal."),
        ),
        inputs=_prefix_inputs,
        mistakes={
            "the prefix is forgotten": _prefix_forgotten,
            "the prefix' rows see everything, where its columns should be seen": _prefix_of_rows,
            "the triangle is forgotten": _prefix_alone,
            "the prefix is one token too long": _prefix_one_more,
            "True says what is hidden, as in nn.MultiheadAttention": _prefix_hidden,
        },
    ),
    "count_weights": Exercise(
        reference=count_weights,
        hint="The embedding serves as the output too. A block has queries and an output of d × d, "
        "keys and values of d × (n_kv_heads · d/n_heads), three matrices of d × d_ff, and two "
        "norms of d. One norm more stands at the end.",
        cases=(
            Case(
                (SMALL,),
                160,
                why="Embedding 10 · 4; queries and output 2 · 4 · 4; keys and values 2 · 4 · 2; "
                "feed-forward 3 · 4 · 5; norms 3 · 4: 40 + 32 + 16 + 60 + 12.",
            ),
        ),
        inputs=_count_inputs,
        mistakes={
            "the norms are left out": _without_norms,
            "the last norm is left out": _without_last_norm,
            "the output has a matrix of its own": _output_too,
            "the feed-forward layer has two matrices instead of three": _two_matrices,
            "every head has keys and values of its own": _full_heads,
        },
    ),
    "rms_norm": Exercise(
        reference=rms_norm,
        hint="Square, take the mean over the last dimension (keepdim=True), add eps, take the "
        "root, divide x by it, multiply by the weight.",
        cases=(
            Case(
                (torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0),
                torch.tensor([3 / math.sqrt(12.5), 8 / math.sqrt(12.5)]),
                why="The mean of 9 and 16 is 12.5; 3/√12.5 = 0.8485 and 2 · 4/√12.5 = 2.2627.",
            ),
            Case(
                (torch.zeros(2), torch.ones(2), 0.01),
                torch.zeros(2),
                why="eps is there so that zeros stay zeros.",
            ),
        ),
        inputs=_rms_norm_inputs,
        mistakes={
            "the mean is subtracted first, as LayerNorm does": _centred,
            "eps is added outside the root": _eps_outside,
            "the squares are added up, but not divided by how many there are": _sum_of_squares,
            "the mean is taken over all tokens at once": _over_everything,
        },
    ),
    "mean_pool": Exercise(
        reference=mean_pool,
        hint="Give the mask a last dimension, multiply, sum over the tokens, and divide by the "
        "number of real tokens, but by 1 where there is none.",
        cases=(
            Case(
                (
                    torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]]),
                    torch.tensor([[1, 1, 0]]),
                ),
                torch.tensor([[2.0, 4.0]]),
                why="The third token is padding: (1 + 3)/2 and (2 + 6)/2.",
            ),
            Case(
                (torch.ones(1, 2, 2), torch.tensor([[0, 0]])),
                torch.zeros(1, 2),
                why="A row without a real token is 0, not 0/0.",
            ),
        ),
        inputs=_mean_pool_inputs,
        mistakes={
            "padding is averaged in": _pool_padding_too,
            "the sum of the real tokens is divided by the number of all tokens": _divide_by_all,
            "a row of padding alone is divided by 0": _divide_by_nothing,
        },
    ),
    "shift_right": Exercise(
        reference=shift_right,
        hint="Put a column of `start` in front, drop the last column, and then replace every −100 "
        "by `pad`: −100 is no token, and an embedding table has no such row.",
        cases=(
            Case(
                (torch.tensor([[5, 6, 2], [7, 2, IGNORED]]), 1, 0),
                torch.tensor([[1, 5, 6], [1, 7, 2]]),
                why="At each place the decoder is given what the place before had to say.",
            ),
            Case(
                (torch.tensor([[5, 2, IGNORED, IGNORED]]), 1, 0),
                torch.tensor([[1, 5, 2, 0]]),
                why="−100 marks a label that no loss counts; the input there is padding.",
            ),
        ),
        inputs=_shift_inputs,
        mistakes={
            "−100 stays in the input": _keep_ignored,
            "nothing is shifted, so that the decoder is given the answer": _not_shifted,
            "the labels are shifted to the left": _shifted_left,
            "the last column is not dropped": _one_longer,
        },
    ),
    "next_token_loss": Exercise(
        reference=next_token_loss,
        hint="The logits at place i speak about the token at place i + 1. Compare logits[:, :-1] "
        "with ids[:, 1:], and leave out the pairs whose answer is padding.",
        cases=(
            Case(
                (torch.zeros(1, 3, 4), torch.tensor([[1, 2, 3]]), torch.ones(1, 3)),
                math.log(4),
                why="Equal logits give each of 4 tokens 1/4, and −ln 1/4 = ln 4.",
            ),
            Case(
                (
                    torch.tensor([[[0.0, 50.0], [50.0, 0.0], [0.0, 0.0]]]),
                    torch.tensor([[0, 1, 0]]),
                    torch.ones(1, 3),
                ),
                0.0,
                why="After token 0 the model is sure of 1, after 1 of 0, and both are right.",
            ),
        ),
        inputs=_loss_inputs,
        mistakes={
            "each place is compared with its own token": _own_token,
            "each place is compared with the token before it": _previous_token,
            "padding is counted": _padding_counts,
            "the losses are summed instead of averaged": _summed,
        },
    ),
    "hide_chosen": Exercise(
        reference=hide_chosen,
        solution=(hide_chosen, hide_tokens),
        hint="torch.where(condition, a, b) takes from a where the condition is true. Three of them "
        "do it: mask_id into the inputs, then the random tokens, then the labels.",
        cases=(
            Case(
                HIDING,
                (
                    torch.tensor([[0, 8, 3, 6]]),
                    torch.tensor([[7, 8, 9, IGNORED]]),
                ),
                why="0.79 is hidden, 0.85 stays, 0.95 becomes random token 3; the last was not "
                "chosen. All three chosen ones are asked for.",
            ),
        ),
        inputs=_hiding_inputs,
        mistakes={
            "the labels ask for every token": _ask_for_all,
            "the labels hold what the model is given, not what was there": _ask_for_inputs,
            "all chosen tokens become the mask": _mask_all_chosen,
            "tokens are changed that were not chosen": _hide_unchosen,
        },
    ),
}

# Sentences about section 8 for the reader to judge.
STATEMENTS = {
    "families": {
        "a": Statement(
            "Encoder–decoders are worse than decoders.",
            False,
            "One small task and one short training of one size; even here the order may be "
            "another with more steps.",
        ),
        "b": Statement(
            "Without positions the encoder–decoder cannot tell “listen” from “silent”.",
            True,
            "Its letters all see one another, so it reads a bag of them: A1h.",
        ),
        "c": Statement(
            "Where the decoder is ahead of the encoder, the triangle is the cause.",
            False,
            "The encoder also answers in another way, all at once. The arm that changes the "
            "letters' mask alone is the prefix LM.",
        ),
        "d": Statement(
            "All four started from the same numbers and saw the same words in the same order.",
            True,
            "One seed draws them, and the shapes are the same.",
        ),
    }
}
