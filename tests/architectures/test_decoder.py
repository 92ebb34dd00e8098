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
from writing import greedy_ids

from course_utils.architectures.attention import probed
from course_utils.architectures.decoder import Decoder, DecoderConfig, count_weights
from course_utils.architectures.kv_cache import KVCache
from course_utils.architectures.pretrained import (
    load_llama_weights,
)
from course_utils.inference.decoding import greedy
from course_utils.inference.next_logits import CachedNextLogits
from course_utils.inference.search import beam_search


@torch.no_grad()
def test_smollm2_in_our_decoder(smollm2, our_smollm2):
    """Every layer's hidden states and the logits, a padded batch."""
    theirs, tokenizer = smollm2
    batch = tokenizer(WORDS, return_tensors="pt", padding=True, padding_side="right")
    ids, mask = batch.input_ids, batch.attention_mask
    real = mask.bool()
    expected = theirs(ids, mask, output_hidden_states=True)
    hidden = our_smollm2.hidden_states(ids, mask)
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
        alone += greedy_ids(our_smollm2.read_and_reorder(), ids, 16)
        assert alone[-1] == expected[0, ids.shape[1] :].tolist(), text
    batch = tokenizer(WORDS, return_tensors="pt", padding=True, padding_side="left")
    pair = our_smollm2.read_and_reorder(batch.attention_mask)
    assert greedy_ids(pair, batch.input_ids, 16) == alone


@torch.no_grad()
def test_left_padding_changes_nothing():
    """Padding takes no position, with and without a cache."""
    ours, _ = llama("grouped")
    ids = torch.randint(40, (1, 6))
    padded, mask = F.pad(ids, (4, 0)), F.pad(torch.ones_like(ids), (4, 0))
    torch.testing.assert_close(ours(padded, mask)[:, 4:], ours(ids), **EXACT)
    for use_cache in (True, False):
        written = greedy_ids(ours.read_and_reorder(mask), padded, 8, use_cache=use_cache)
        assert written == greedy_ids(ours.read_and_reorder(), ids, 8)


@torch.no_grad()
def test_a_batch_of_different_lengths_is_each_alone():
    """Masks of their own, extended by what is written; a stop ends one row, not the others."""
    ours, _ = llama("grouped")
    rows = [torch.randint(40, (1, n)) for n in (6, 3, 1)]
    padded = torch.cat([F.pad(row, (6 - row.shape[1], 0), value=7) for row in rows])
    mask = torch.cat([F.pad(torch.ones_like(row), (6 - row.shape[1], 0)) for row in rows])
    free = [greedy_ids(ours.read_and_reorder(), row, 12)[0] for row in rows]
    assert [len(row) for row in free] == [12, 12, 12]
    stop = free[0][2]
    cut = [row[: row.index(stop)] if stop in row else row for row in free]
    assert cut != free
    for use_cache in (True, False):
        pair = ours.read_and_reorder(mask)
        assert greedy_ids(pair, padded, 12, stop=[stop], use_cache=use_cache) == cut


@torch.no_grad()
def test_beams_take_the_prompts_mask_along():
    ours, theirs = llama("grouped")
    ids = torch.randint(40, (1, 6))
    padded, mask = F.pad(ids, (4, 0)), F.pad(torch.ones_like(ids), (4, 0))
    expected = theirs.generate(ids, max_new_tokens=8, num_beams=3, eos_token_id=None)
    next_logits = CachedNextLogits(*ours.read_and_reorder(mask))
    best, *_ = beam_search(next_logits, padded, 8, num_beams=3)
    assert list(best.tokens) == expected[0, 6:].tolist()
    longer = torch.cat([padded, padded[:, :1]], dim=1)
    torch.testing.assert_close(
        next_logits(longer), ours(longer, F.pad(mask, (0, 1), value=1))[:, -1], **EXACT
    )


def test_masks_that_do_not_fit_the_prompts():
    ours, _ = llama()
    ids, mask = torch.randint(40, (3, 4)), torch.ones(2, 4)
    with pytest.raises(ValueError, match="3 rows of ids, 2 masks; give one, or one for each"):
        CachedNextLogits(*ours.read_and_reorder(mask))(ids)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4\); these ids need \(2, 3\)"):
        CachedNextLogits(*ours.read_and_reorder(mask))(ids[:2, :3])
    next_logits = CachedNextLogits(*ours.read_and_reorder(mask))
    next_logits(ids[:2])
    with pytest.raises(ValueError, match="2 prompts cannot change places"):
        next_logits(torch.cat([ids[:2], ids[:2, :1]], 1)[[1, 0]])


@torch.no_grad()
def test_a_cache_goes_on_after_a_loop():
    """Loops run in inference mode; what they leave is of use outside, as ordinary tensors."""
    ours, _ = llama()
    next_logits, ids = CachedNextLogits(*ours.read_and_reorder()), torch.randint(40, (1, 4))
    (written,) = greedy(next_logits, ids, 5)
    ids = torch.cat([ids, torch.tensor([written.tokens])], 1)
    read = next_logits.tokens_read
    got = next_logits(ids)
    torch.testing.assert_close(got, ours(ids)[:, -1], **EXACT)
    assert (next_logits.tokens_read - read, got.is_inference()) == (1, False)


def test_the_future_is_invisible():
    """∂logits_i/∂embedding_j is exactly 0 for j > i, and not 0 for j ≤ i."""
    ours, _ = llama()
    ids = torch.arange(6).unsqueeze(0)
    embedded = ours.token_embedding(ids).detach().requires_grad_()
    ours.token_embedding.forward = lambda _: embedded
    logits = ours(ids)
    for i in range(6):
        (grad,) = torch.autograd.grad(logits[0, i].square().sum(), embedded, retain_graph=True)
        assert (grad[0, i + 1 :] == 0).all()
        assert (grad[0, : i + 1].abs().sum(-1) > 0).all()


def test_without_the_triangle_every_token_sees_every_other():
    """The same weights, not `causal`: future tokens have a gradient too, padding still has none."""
    ours, _ = llama()
    ours.config = replace(ours.config, causal=False)
    ids, mask = torch.arange(6).unsqueeze(0), torch.tensor([[1, 1, 1, 1, 1, 0]])
    embedded = ours.token_embedding(ids).detach().requires_grad_()
    ours.token_embedding.forward = lambda _: embedded
    logits = ours(ids, mask)
    for i in range(5):
        (grad,) = torch.autograd.grad(logits[0, i].square().sum(), embedded, retain_graph=True)
        assert (grad[0, :5].abs().sum(-1) > 0).all()
        assert (grad[0, 5] == 0).all()
    with pytest.raises(ValueError, match="a cache needs a causal configuration"):
        ours(ids, cache=KVCache(2))


@pytest.mark.parametrize(
    "sizes", [{}, {"n_kv_heads": 1}, {"d_head": 12, "n_kv_heads": 1}, {"n_layers": 1}]
)
def test_weights_are_counted_to_the_unit(sizes):
    config = DecoderConfig(**{"vocab_size": 20, "d_model": 16, "n_heads": 2, "n_layers": 3,
                              "d_ff": 24, **sizes})  # fmt: skip
    assert count_weights(config) == sum(p.numel() for p in Decoder(config).parameters())
