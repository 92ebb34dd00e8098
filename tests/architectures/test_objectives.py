"""Hidden tokens, labels and losses against transformers', and by hand."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from transformer_inputs import llama, t5

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.encoder import Encoder, EncoderConfig, MaskedLM
from course_utils.architectures.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from course_utils.architectures.kv_cache import KVCache
from course_utils.architectures.objectives import (
    IGNORED,
    counted_nats,
    hide_chosen,
    hide_tokens,
    label_loss,
    next_token_loss,
    shift_right,
)


def test_hidden_tokens_follow_their_shares():
    """15 % chosen; of these 80 % masked, 10 % drawn, 10 % kept; none where `keep` says so."""
    ids = torch.randint(5, 1000, (200, 500))
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[:, 0] = True
    generator = torch.Generator().manual_seed(0)
    inputs, labels = hide_tokens(ids, 3, 1000, keep=keep, generator=generator)
    chosen = labels != IGNORED
    assert not chosen[:, 0].any()
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(inputs[~chosen], ids[~chosen])
    assert chosen[:, 1:].float().mean().item() == pytest.approx(0.15, abs=0.005)
    masked = (inputs[chosen] == 3).float().mean().item()
    kept = (inputs[chosen] == ids[chosen]).float().mean().item()
    assert masked == pytest.approx(0.8, abs=0.01)  # 15,000 draws: ±0.007 at two deviations
    assert kept == pytest.approx(0.1, abs=0.01)
    with pytest.raises(ValueError, match="rate is 0"):
        hide_tokens(ids, 3, 1000, rate=0)


def test_hide_chosen_by_hand():
    """One token of each fate, and one that was not chosen."""
    ids, random = torch.tensor([[7, 8, 9, 6]]), torch.tensor([[1, 2, 3, 4]])
    chosen, fate = torch.tensor([[True, True, True, False]]), torch.tensor([[0.79, 0.85, 0.95, 0]])
    inputs, labels = hide_chosen(ids, chosen, fate, random, mask_id=0)
    assert inputs.tolist() == [[0, 8, 3, 6]]
    assert labels.tolist() == [[7, 8, 9, IGNORED]]


def test_losses_by_hand():
    """Two tokens of a vocabulary of 4, uniform logits: ln 4; a certain right answer: 0."""
    ids = torch.tensor([[1, 2]])
    assert next_token_loss(torch.zeros(1, 2, 4), ids).item() == pytest.approx(math.log(4))
    sure = torch.full((1, 2, 4), -100.0)
    sure[0, 0, 2] = 100.0
    assert next_token_loss(sure, ids).item() == pytest.approx(0)
    labels = torch.tensor([[IGNORED, 2]])
    sure[0, 1, 2] = 100.0
    assert label_loss(sure, labels).item() == pytest.approx(0)


def test_next_token_loss_is_transformers():
    ours, theirs = llama()
    ids = torch.randint(40, (2, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    labels = ids.masked_fill(mask == 0, -100)
    expected = theirs(ids, mask, labels=labels).loss  # computed in fp32 there
    got = next_token_loss(ours(ids, mask), ids, mask)
    torch.testing.assert_close(got.double(), expected.double(), atol=1e-5, rtol=0)


def test_shift_right_is_t5s():
    _, theirs = t5()
    labels = torch.tensor([[5, 6, 1, -100], [7, 1, -100, -100]])
    expected = theirs._shift_right(labels)
    assert torch.equal(shift_right(labels, start=0, pad=0), expected)


@pytest.mark.parametrize("family", ["masked", "causal", "seq2seq"])
def test_every_family_learns(family):
    """40 steps on one batch take the loss from about ln V to below a tenth of it."""
    ids = torch.randint(2, 30, (4, 10))
    shared = {"vocab_size": 30, "d_model": 32, "n_heads": 4, "n_layers": 2, "d_ff": 64}
    if family == "masked":
        model = MaskedLM(Encoder(EncoderConfig(**shared)))
        generator = torch.Generator().manual_seed(0)
        inputs, labels = hide_tokens(ids, 1, 30, rate=0.3, generator=generator)
        loss_of = lambda: label_loss(model(inputs), labels)  # noqa: E731
    elif family == "causal":
        model = Decoder(DecoderConfig(**shared, n_kv_heads=2))
        loss_of = lambda: next_token_loss(model(ids), ids)  # noqa: E731
    else:
        model = EncoderDecoder(EncoderDecoderConfig(**shared))
        target = shift_right(ids.flip(1), start=0, pad=0)
        loss_of = lambda: label_loss(model(ids, target), ids.flip(1))  # noqa: E731
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    first = loss_of().item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(math.log(30), abs=1.5)
    assert loss_of().item() < first / 10


def test_other_devices():
    """On torch's "meta" device, which computes nothing but refuses a tensor made elsewhere."""
    shared = {"vocab_size": 30, "d_model": 32, "n_heads": 4, "n_layers": 2, "d_ff": 64}
    scaled = {"scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_positions": 4}
    masked = MaskedLM(Encoder(EncoderConfig(**shared)))
    causal = Decoder(DecoderConfig(**shared, **scaled))
    pair = EncoderDecoder(EncoderDecoderConfig(**shared))
    ids = torch.zeros(2, 8, dtype=torch.long, device="meta")
    mask, cache = torch.ones_like(ids), KVCache(2)
    inputs, labels = hide_tokens(ids, 1, 30, keep=mask)
    label_loss(masked.to("meta")(inputs, mask), labels).backward()
    next_token_loss(causal.to("meta")(ids, mask), ids, mask).backward()
    pair.to("meta")(ids, shift_right(ids, 0, 0), mask, mask).sum().backward()
    with torch.no_grad():
        causal(ids, cache=cache)
        assert causal(ids[:, :1], cache=cache).device.type == "meta"


# ── counting ────────────────────────────────────────────────────────────────────────────────────


def _counted_plainly(seen, row, order, vocab_size):
    """`counted_nats` of one row, token by token, with dictionaries."""
    followers: dict[tuple, Counter] = {}
    for known in seen.tolist():
        for n in range(order + 1):
            for i in range(n, len(known)):
                followers.setdefault(tuple(known[i - n : i]), Counter())[known[i]] += 1
    row, found = row.tolist(), []
    for i in range(order, len(row)):
        p = 1 / vocab_size
        for n in range(order + 1):
            counts = followers.get(tuple(row[i - n : i]))
            if counts:
                p = (counts[row[i]] + len(counts) * p) / (counts.total() + len(counts))
        found.append(-math.log(p))
    return found


@pytest.mark.parametrize("order", [0, 1, 2, 4])
def test_counted_nats_are_witten_and_bells(order):
    torch.manual_seed(order)
    seen, unseen = torch.randint(5, (4, 9)), torch.randint(6, (2, 7))  # token 5 was never seen
    got = counted_nats(seen, unseen, order, vocab_size=6)
    plain = torch.tensor([_counted_plainly(seen, row, order, 6) for row in unseen])
    torch.testing.assert_close(got, plain, rtol=0, atol=1e-5)  # fp32 of float64


@pytest.mark.parametrize("order", [0, 1, 2])
def test_counted_nats_are_a_distribution(order):
    torch.manual_seed(order)
    seen, start = torch.randint(4, (3, 8)), torch.randint(4, (1, order))
    ends = torch.cat([start.expand(4, -1), torch.arange(4)[:, None]], dim=1)
    p = (-counted_nats(seen, ends, order, vocab_size=4)).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("order", [-1, 9])
def test_counted_nats_refuse_contexts_without_a_number(order):
    with pytest.raises(ValueError, match="at most 2\\^62"):
        counted_nats(torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 8), order, 84)
