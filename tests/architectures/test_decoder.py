"""The decoder against transformers' Llama: values, gradients, cache, padding."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformer_inputs import (
    EXACT,
    LLAMAS,
    SOME,
    WORDS,
    close,
    decoder_on,
    llama,
    same_gradients,
    seq2seq_batch,
    t5,
)

from course_utils.architectures.attention import probed
from course_utils.architectures.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from course_utils.architectures.kv_cache import KVCache
from course_utils.architectures.pretrained import load_llama_weights, load_t5_weights, t5_config

# transformers' RMSNorm computes in 32 bits (6e-8 of a number) even where the rest has 64.
NORMS_ROUNDED = 2e-6


@torch.no_grad()
def test_smollm2_in_our_decoder(smollm2, our_smollm2):
    """Every layer's hidden states and the logits, a padded batch."""
    theirs, tokenizer = smollm2
    batch = tokenizer(WORDS, return_tensors="pt", padding=True, padding_side="right")
    ids, mask = batch.input_ids, batch.attention_mask
    real = mask.bool()
    expected = theirs(ids, mask, output_hidden_states=True)
    hidden = our_smollm2.hidden(ids, mask, all_layers=True)
    assert len(hidden) == len(expected.hidden_states) == 31
    for ours, reference in zip(hidden, expected.hidden_states, strict=True):
        # fp32: 1e-7 a sum, through 30 layers; the small models below leave rounding no room
        close(ours[real], reference[real], 5e-5)
    close(our_smollm2(ids, mask)[real], expected.logits[real], 5e-5)


@pytest.mark.parametrize("name", LLAMAS)
def test_decoder_is_llamas(name):
    """Logits and every gradient, 20 tokens, a padded batch; "dynamic" goes beyond its length."""
    ours, theirs = llama(name, longest=12 if name == "dynamic" else 32)
    ids = torch.randint(40, (3, 20))
    mask = (torch.arange(20) < torch.tensor([[20], [7], [1]])).long()
    real = mask.bool()
    got, expected = ours(ids, mask), theirs(ids, mask, use_cache=False).logits
    close(got[real], expected[real], NORMS_ROUNDED)
    grad = torch.randn_like(got[real])
    got[real].backward(grad)
    expected[real].backward(grad)
    same_gradients(ours, theirs, load_llama_weights, NORMS_ROUNDED)


@pytest.mark.parametrize("name", ["plain", "grouped", "yarn"])
@torch.no_grad()
def test_cached_decoder_is_uncached(name):
    """A prompt, one token, two tokens, one token: the same logits as all at once."""
    ours, _ = llama(name)
    ids = torch.randint(40, (2, 9))
    expected = ours(ids)
    cache = KVCache(2)
    parts = [ours(ids[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 8), (8, 9))]
    torch.testing.assert_close(torch.cat(parts, 1), expected, **EXACT)
    assert cache.length == 9
    torch.testing.assert_close(ours(ids, last_only=True), expected[:, -1:], **EXACT)


@torch.no_grad()
def test_attention_maps_of_the_decoder():
    ours, theirs = llama("grouped")
    theirs.set_attn_implementation("eager")
    ids, maps = torch.randint(40, (2, 6)), []
    with probed(ours, maps.append):
        ours(ids)
    for got, expected in zip(maps, theirs(ids, output_attentions=True).attentions, strict=True):
        # transformers computes this softmax in fp32
        torch.testing.assert_close(got, expected.double(), atol=1e-6, rtol=0)


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
    assert not untied.sizes.tied
    load_t5_weights(untied, theirs.state_dict())
    source, mask, target = seq2seq_batch()
    expected = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
    close(untied(source, target, mask), expected, NORMS_ROUNDED)


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_encoder_decoder_writes_what_t5_writes(use_cache):
    ours, theirs = t5(mean=0.0, feed_forward_proj="relu")
    source, mask, _ = seq2seq_batch()
    got = ours.greedy(source, mask, start=0, stop=1, max_new=20, use_cache=use_cache)
    written = theirs.generate(
        input_ids=source, attention_mask=mask, max_new_tokens=20, do_sample=False, num_beams=1
    )[:, 1:].tolist()
    for row, expected in zip(got, written, strict=True):
        assert row == (expected[: expected.index(1)] if 1 in expected else expected)
    assert len({tuple(row) for row in got}) == 3  # the source matters
    assert min(map(len, got)) < 20 == max(map(len, got))  # one row stops, others do not


def seq2seq_on(source, target, mask=None):
    sizes = EncoderDecoderConfig(20, d_model=8, n_heads=2, n_layers=1, d_ff=8)
    return EncoderDecoder(sizes)(source, target, mask)


def test_bad_ids_of_the_encoder_decoder():
    with pytest.raises(TypeError, match="source ids are"):
        seq2seq_on(SOME.float(), SOME)
    with pytest.raises(ValueError, match="target ids have shape"):
        seq2seq_on(SOME, SOME[:, :0])
    with pytest.raises(ValueError, match="mask has shape"):
        seq2seq_on(SOME, SOME, SOME[:, :2])


def test_a_cache_counts_towards_the_limit():
    cache = KVCache(1)
    decoder_on(SOME, cache=cache)
    with pytest.raises(ValueError, match="8 tokens, the model 6 positions"):
        decoder_on(SOME, cache=cache)
    with pytest.raises(ValueError, match=r"these ids need \(2, 5\)"):
        decoder_on(SOME[:, :1], torch.ones(2, 1), cache)
