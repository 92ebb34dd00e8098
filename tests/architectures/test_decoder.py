"""The decoder against transformers' Llama: values, gradients, cache, padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformer_inputs import (
    EXACT,
    LLAMAS,
    NORMS_ROUNDED,
    SOME,
    WORDS,
    close,
    decoder_on,
    llama,
    same_gradients,
)

from course_utils.architectures.attention import probed
from course_utils.architectures.kv_cache import KVCache
from course_utils.architectures.pretrained import (
    load_llama_weights,
)


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


def test_a_cache_counts_towards_the_limit():
    cache = KVCache(1)
    decoder_on(SOME, cache=cache)
    with pytest.raises(ValueError, match="8 tokens, the model 6 positions"):
        decoder_on(SOME, cache=cache)
    with pytest.raises(ValueError, match=r"these ids need \(2, 5\)"):
        decoder_on(SOME[:, :1], torch.ones(2, 1), cache)


@torch.no_grad()
def test_smollm2_speaks_token_for_token(smollm2, our_smollm2):
    """Cached greedy text is transformers', one by one and as a batch padded on the left."""
    theirs, tokenizer = smollm2
    alone = []
    for text in WORDS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        expected = theirs.generate(ids, max_new_tokens=16, do_sample=False, eos_token_id=None)
        alone.append(our_smollm2.greedy(ids, max_new=16)[0])
        assert alone[-1] == expected[0, ids.shape[1] :].tolist(), text
    batch = tokenizer(WORDS, return_tensors="pt", padding=True, padding_side="left")
    assert our_smollm2.greedy(batch.input_ids, batch.attention_mask, max_new=16) == alone


@torch.no_grad()
def test_left_padding_changes_nothing():
    """Padding takes no position, with and without a cache."""
    ours, _ = llama("grouped")
    ids = torch.randint(40, (1, 6))
    padded, mask = F.pad(ids, (4, 0)), F.pad(torch.ones_like(ids), (4, 0))
    torch.testing.assert_close(ours(padded, mask)[:, 4:], ours(ids), **EXACT)
    for use_cache in (True, False):
        written = ours.greedy(padded, mask, max_new=8, use_cache=use_cache)
        assert written == ours.greedy(ids, max_new=8)


def test_the_future_is_invisible():
    """∂logits_i/∂embedding_j is exactly 0 for j > i, and not 0 for j ≤ i."""
    ours, _ = llama()
    ids = torch.arange(6).unsqueeze(0)
    embedded = ours.tokens(ids).detach().requires_grad_()
    ours.tokens.forward = lambda _: embedded
    logits = ours(ids)
    for i in range(6):
        (grad,) = torch.autograd.grad(logits[0, i].square().sum(), embedded, retain_graph=True)
        assert (grad[0, i + 1 :] == 0).all()
        assert (grad[0, : i + 1].abs().sum(-1) > 0).all()


def test_without_the_triangle_every_token_sees_every_other():
    """The same weights, not `causal`: future tokens have a gradient too, padding still has none."""
    ours, _ = llama()
    ours.sizes = replace(ours.sizes, causal=False)
    ids, mask = torch.arange(6).unsqueeze(0), torch.tensor([[1, 1, 1, 1, 1, 0]])
    embedded = ours.tokens(ids).detach().requires_grad_()
    ours.tokens.forward = lambda _: embedded
    logits = ours(ids, mask)
    for i in range(5):
        (grad,) = torch.autograd.grad(logits[0, i].square().sum(), embedded, retain_graph=True)
        assert (grad[0, :5].abs().sum(-1) > 0).all()
        assert (grad[0, 5] == 0).all()
    with pytest.raises(ValueError, match="a cache needs causal sizes"):
        ours(ids, cache=KVCache(2))
