"""The encoder–decoder against transformers' T5: values, caches, padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformer_inputs import (
    EXACT,
    NORMS_ROUNDED,
    SOME,
    close,
    same_gradients,
    seq2seq_batch,
    t5,
)
from writing import greedy_ids

from course_utils.architectures.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from course_utils.architectures.kv_cache import KVCache
from course_utils.architectures.positions import sinusoidal_positions
from course_utils.architectures.pretrained import (
    load_t5_weights,
    t5_config,
)
from course_utils.inference.next_logits import CachedNextLogits
from course_utils.inference.search import beam_search


def test_sinusoidal_positions_are_added_to_both_sides_and_shift_with_the_cache():
    torch.manual_seed(0)
    shared = {"vocab_size": 20, "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 16}
    plain = EncoderDecoder(EncoderDecoderConfig(**shared))
    config = EncoderDecoderConfig(**shared, sinusoidal=True)
    model = EncoderDecoder(config)
    model.load_state_dict(plain.state_dict())
    ids = torch.randint(20, (3, 7))
    added = model.embed(ids) - plain.embed(ids)
    torch.testing.assert_close(added[1], sinusoidal_positions(7, 16))
    assert torch.equal(model.embed(ids[:, 4:], past=4), model.embed(ids)[:, 4:])
    assert not torch.allclose(model.encode(ids), plain.encode(ids))
    start = torch.full((3, 1), 1)
    written = [
        greedy_ids(model.read_and_reorder(ids), start, 9, stop=[2], use_cache=cached)
        for cached in (True, False)
    ]
    assert written[0] == written[1]


@pytest.mark.parametrize("form", ["relu", "gated-gelu"])
@pytest.mark.parametrize("target_padding", [False, True])
def test_encoder_decoder_is_t5s(form, target_padding):
    """Logits and every gradient; distances beyond the last bucket; heads not d_model/n_heads."""
    ours, theirs = t5(feed_forward_proj=form)
    source, mask, target = seq2seq_batch()
    target_mask = (
        (torch.arange(12) < torch.tensor([[12], [5], [2]])).long() if target_padding else None
    )
    got = ours(source, target, mask, target_mask)
    expected = theirs(
        input_ids=source,
        attention_mask=mask,
        decoder_input_ids=target,
        decoder_attention_mask=target_mask,
        use_cache=False,
    ).logits
    real = torch.ones(3, 12, dtype=torch.bool) if target_mask is None else target_mask.bool()
    close(got[real], expected[real], NORMS_ROUNDED)
    grad = torch.randn_like(got[real])
    got[real].backward(grad)
    expected[real].backward(grad)
    same_gradients(ours, theirs, load_t5_weights, NORMS_ROUNDED)


def test_untied_encoder_decoder_is_t5s():
    """T5 v1.1: a table of its own for the output, and no scaling before it."""
    _, theirs = t5(feed_forward_proj="gated-gelu")
    theirs.config.scale_decoder_outputs = False
    theirs.lm_head.weight = nn.Parameter(torch.randn(40, 24).double())
    untied = EncoderDecoder(t5_config(theirs.config.to_dict())).double().eval()
    assert not untied.config.tied
    load_t5_weights(untied, theirs.state_dict())
    source, mask, target = seq2seq_batch()
    expected = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
    close(untied(source, target, mask), expected, NORMS_ROUNDED)


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_encoder_decoder_writes_what_t5_writes(use_cache):
    ours, theirs = t5(mean=0.0, feed_forward_proj="relu")
    source, mask, _ = seq2seq_batch()
    start = torch.zeros(3, 1, dtype=torch.long)
    pair = ours.read_and_reorder(source, mask)
    got = greedy_ids(pair, start, 20, stop=[1], use_cache=use_cache)
    written = theirs.generate(
        input_ids=source, attention_mask=mask, max_new_tokens=20, do_sample=False, num_beams=1
    )[:, 1:].tolist()
    for row, expected in zip(got, written, strict=True):
        assert row == (expected[: expected.index(1)] if 1 in expected else expected)
    assert len({tuple(row) for row in got}) == 3  # the source matters
    assert min(map(len, got)) < 20 == max(map(len, got))  # one row stops, others do not


def test_bad_ids_of_the_encoder_decoder():
    with pytest.raises(TypeError, match="source ids are"):
        seq2seq_on(SOME.float(), SOME)
    with pytest.raises(ValueError, match="target ids have shape"):
        seq2seq_on(SOME, SOME[:, :0])
    with pytest.raises(ValueError, match="mask has shape"):
        seq2seq_on(SOME, SOME, SOME[:, :2])


def test_only_sinusoidal_cross_attention_can_tell_equal_sources_apart():
    """A relative bias only weighs values: where all are equal, it changes nothing."""
    shared = {"vocab_size": 20, "d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 16}
    source = torch.full((1, 5), 7)
    for sinusoidal in (False, True):
        torch.manual_seed(0)
        config = EncoderDecoderConfig(**shared, sinusoidal=sinusoidal)
        model = EncoderDecoder(config)
        memory = model.encode(source)[0]
        alike = torch.allclose(memory, memory[:1].expand_as(memory), atol=1e-5)
        assert alike is not sinusoidal


@torch.no_grad()
def test_cached_decoding_of_targets():
    ours, _ = t5()
    source, mask, target = seq2seq_batch()
    cross, cache = ours.cross_keys_values(ours.encode(source, mask)), KVCache(3)
    expected = ours.decode(target, cross, mask)
    parts = [
        ours.decode(target[:, a:b], cross, mask, cache=cache)
        for a, b in ((0, 4), (4, 5), (5, 7), (7, 12))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), expected, **EXACT)


@torch.no_grad()
def test_one_source_serves_any_number_of_targets():
    ours, _ = t5()
    source, mask, target = seq2seq_batch()
    read, _ = ours.read_and_reorder(source[1:2], mask[1:2])
    expected = ours(source[[1, 1, 1]], target[:, :4], mask[[1, 1, 1]])[:, -1]
    torch.testing.assert_close(read(target[:, :4], None)[0], expected, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_beam_search_writes_what_t5_writes(use_cache):
    """Beams change places, are dropped and doubled; the source stays theirs."""
    ours, theirs = t5(mean=0.0, feed_forward_proj="relu")
    source, mask, _ = seq2seq_batch()
    read, reorder = ours.read_and_reorder(source[1:2], mask[1:2])
    next_logits = CachedNextLogits(read, reorder) if use_cache else lambda ids: read(ids, None)[0]
    best, *_ = beam_search(next_logits, [0], 8, num_beams=3, stop=[1])
    written = theirs.generate(
        input_ids=source[1:2], attention_mask=mask[1:2], max_new_tokens=8, num_beams=3
    )
    assert best.tokens == tuple(written[0, 1 : 1 + len(best.tokens)].tolist())


@torch.no_grad()
def test_targets_of_several_sources_keep_their_places():
    """Two targets that are alike so far follow different sources: each must go on with its own."""
    ours, _ = t5()
    source, mask, target = seq2seq_batch()
    next_logits = CachedNextLogits(*ours.read_and_reorder(source, mask))
    ids = target[:1, :3].expand(3, 3)
    next_logits(ids[:, :2])
    torch.testing.assert_close(next_logits(ids), ours(source, ids, mask)[:, -1], **EXACT)
    assert next_logits.tokens_read == 9
    with pytest.raises(ValueError, match="3 prompts cannot change places"):
        next_logits(torch.cat([ids, target[:, 3:4]], 1)[[1, 0]])
    with pytest.raises(ValueError, match="2 rows of ids, 3 sources"):
        next_logits(target[:2, :2])


def test_who_sees_what():
    """Target step i: the whole real source, the target up to i, nothing else."""
    ours, _ = t5()
    source, target = torch.arange(2, 8).unsqueeze(0), torch.arange(10, 15).unsqueeze(0)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    embedded = ours.token_embedding.weight.detach().clone().requires_grad_()
    ours.token_embedding.forward = lambda ids: F.embedding(ids, embedded)
    logits = ours(source, target, mask)
    for i in range(5):
        (grad,) = torch.autograd.grad(logits[0, i].square().sum(), embedded, retain_graph=True)
        seen = grad.abs().sum(-1) > 0
        assert seen[2:6].all()
        assert not seen[6:8].any()
        assert seen[10 : 11 + i].all()
        assert not seen[11 + i : 15].any()


@torch.no_grad()
def test_a_source_of_padding_alone():
    """Defined: nothing is read from it; the target is written without."""
    ours, _ = t5()
    source, mask, target = seq2seq_batch()
    mask = mask.clone()
    mask[1] = 0
    logits = ours(source, target, mask)
    assert logits.isfinite().all()
    other = source.clone()
    other[1] = 7
    torch.testing.assert_close(ours(other, target, mask), logits, **EXACT)


def seq2seq_on(source, target, mask=None):
    config = EncoderDecoderConfig(20, d_model=8, n_heads=2, n_layers=1, d_ff=8)
    return EncoderDecoder(config)(source, target, mask)
