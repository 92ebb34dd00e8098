"""The three families against transformers: real weights, values, gradients, caches, padding."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from course_utils import transformer
from course_utils.attention import KVCache, probed, sinusoidal_positions

# Double precision: two implementations of one formula differ by rounding alone.
EXACT = {"atol": 1e-10, "rtol": 1e-10}
# transformers' RMSNorm computes in 32 bits (6e-8 of a number) even where the rest has 64.
NORMS_ROUNDED = 2e-6

WORDS = [
    "The capital of France is",
    "Once upon a time there was a",
    "def add(a, b):\n    return",
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def close(ours, theirs, share):
    """Largest difference as a share of the largest number: fp32 rounding grows with both."""
    difference = (ours - theirs).abs().max().item()
    largest = theirs.abs().max().item()
    assert difference <= share * largest + 1e-12, (
        f"largest difference {difference:.2e} of {largest:.2e}"
    )


def same_gradients(ours, theirs, load, share):
    """Gradients of every weight: theirs, renamed by the loader itself, against ours."""
    grads = {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in theirs.named_parameters()
    }
    renamed = copy.deepcopy(ours)
    load(renamed, {n: grads.get(n, p) for n, p in theirs.state_dict().items()})
    expected = dict(renamed.named_parameters())
    for name, parameter in ours.named_parameters():
        assert name.endswith("key.bias") or parameter.grad.abs().max() > 1e-6, (
            name
        )  # softmax drops it
        close(parameter.grad, expected[name].data, share)


def randomised(model, mean=0.1):
    """Every weight drawn, norms and biases too: at 1 and 0 a swapped pair would go unnoticed."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=mean, std=0.3)
    return model.double().eval()


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────


def test_rms_norm_by_hand():
    """√((9 + 16)/2) = 3.5355: 3 and 4 become 0.8485 and 1.1314, times the weight."""
    got = transformer.rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(got, torch.tensor([3 / math.sqrt(12.5), 8 / math.sqrt(12.5)]))
    inside = transformer.rms_norm(torch.zeros(2), torch.ones(2), 1e-6)  # eps under the root
    assert inside.isfinite().all()


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm_is_torchs(eps):
    x, weight = torch.randn(3, 8), torch.randn(8)
    torch.testing.assert_close(
        transformer.rms_norm(x, weight, eps), F.rms_norm(x, (8,), weight, eps)
    )


def test_rms_norm_of_half_precision_is_computed_wide():
    x = torch.full((4,), 300.0, dtype=torch.float16)  # 300² overflows 16 bits
    got = transformer.rms_norm(x, torch.ones(4, dtype=torch.float16), 1e-6)
    torch.testing.assert_close(got, torch.ones(4, dtype=torch.float16))


# ── encoder ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def our_minilm(minilm):
    theirs, _ = minilm
    ours = transformer.Encoder(transformer.bert_sizes(theirs.config.to_dict())).eval()
    transformer.load_bert_weights(ours, theirs.state_dict())
    return ours


def sentences(tokenizer):
    texts = ["A cat sat.", "The weather today is rather pleasant, isn't it?", "Yes"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    return batch.input_ids, batch.attention_mask


@torch.no_grad()
def test_minilm_in_our_encoder(minilm, our_minilm):
    """Every layer's hidden states in fp32, padding included."""
    theirs, tokenizer = minilm
    ids, mask = sentences(tokenizer)
    expected = theirs(ids, mask, output_hidden_states=True).hidden_states
    got = our_minilm(ids, mask, all_layers=True)
    assert len(got) == len(expected) == 7
    for ours, reference in zip(got, expected, strict=True):
        # fp32: 1e-7 a sum, through 6 layers; the next test shows that nothing else is in it
        close(ours[mask.bool()], reference[mask.bool()], 5e-5)


@torch.no_grad()
def test_minilm_in_double_precision(minilm, our_minilm):
    """The same in 64 bits, where 5e-5 becomes 1e-10: the difference in fp32 is rounding."""
    theirs, tokenizer = minilm
    ids, mask = sentences(tokenizer)
    wide, wide_ours = copy.deepcopy(theirs).double(), copy.deepcopy(our_minilm).double()
    expected = wide(ids, mask).last_hidden_state
    torch.testing.assert_close(wide_ours(ids, mask)[mask.bool()], expected[mask.bool()], **EXACT)


@torch.no_grad()
def test_sentence_vectors(minilm, our_minilm):
    """Unit length; padding changes nothing; related sentences are nearer than unrelated ones."""
    tokenizer = minilm[1]
    texts = ["A man is eating food.", "A man eats something.", "The new movie is awesome."]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    vectors = transformer.embed_sentences(our_minilm, batch.input_ids, batch.attention_mask)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    alone = transformer.embed_sentences(
        our_minilm, tokenizer(texts[1:2], return_tensors="pt").input_ids
    )
    close(vectors[1:2], alone, 1e-5)
    assert vectors[0] @ vectors[1] > 0.6 > 0.3 > vectors[0] @ vectors[2]


def bert(**options):
    config = BertConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=50,
        max_position_embeddings=16,
        type_vocab_size=2,
        layer_norm_eps=1e-3,
        **options,
    )
    theirs = randomised(BertForMaskedLM(config))
    ours = transformer.MaskedLM(transformer.Encoder(transformer.bert_sizes(config.to_dict())))
    ours = ours.double().eval()
    transformer.load_bert_weights(ours, theirs.state_dict())
    return ours, theirs


def test_masked_lm_is_berts():
    """Logits and every gradient: segments, padding, the head, the tied table."""
    ours, theirs = bert()
    ids, segments = torch.randint(1, 40, (3, 9)), torch.randint(2, (3, 9))  # 0: no gradient there
    mask = (torch.arange(9) < torch.tensor([[9], [4], [1]])).long()
    got, expected = ours(ids, mask, segments), theirs(ids, mask, segments).logits
    real = mask.bool()
    torch.testing.assert_close(got[real], expected[real], **EXACT)
    grad = torch.randn_like(got[real])
    got[real].backward(grad)
    expected[real].backward(grad)
    # in transformers the head's bias is held twice; the copy that is used is decoder.bias
    theirs.cls.predictions.bias.grad = theirs.cls.predictions.decoder.bias.grad
    same_gradients(ours, theirs, transformer.load_bert_weights, 1e-10)


def test_every_token_sees_every_other():
    encoder = bert()[0].encoder
    encoder.tokens.weight.requires_grad_()
    ids = torch.arange(6).unsqueeze(0)
    for position in range(6):
        (grad,) = torch.autograd.grad(encoder(ids)[0, position].sum(), encoder.tokens.weight)
        assert (grad[:6].abs().sum(dim=1) > 0).all()


def test_padding_is_neither_seen_nor_pooled():
    encoder = bert()[0].encoder
    ids, mask = torch.randint(40, (2, 7)), torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
    other = ids.clone()
    other[1, 3:] = 0
    pooled = [transformer.mean_pool(encoder(i, mask), mask) for i in (ids, other)]
    torch.testing.assert_close(pooled[0], pooled[1], **EXACT)
    torch.testing.assert_close(pooled[0][1], encoder(ids[1:, :3])[0].mean(0), **EXACT)


def test_a_row_of_padding_alone():
    """Defined: finite, pooled to exactly 0, and no influence on the other row."""
    encoder = bert()[0].encoder
    ids, mask = torch.randint(40, (2, 5)), torch.tensor([[1] * 5, [0] * 5])
    hidden = encoder(ids, mask)
    assert hidden.isfinite().all()
    assert (transformer.mean_pool(hidden, mask)[1] == 0).all()
    torch.testing.assert_close(hidden[:1], encoder(ids[:1]), **EXACT)
    hidden.sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_mean_pool_by_hand():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]])
    assert transformer.mean_pool(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[2, 4]]
    torch.testing.assert_close(transformer.mean_pool(hidden), hidden.mean(1))


# ── decoder ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def our_smollm2(smollm2):
    theirs, _ = smollm2
    ours = transformer.Decoder(transformer.llama_sizes(theirs.config.to_dict())).eval()
    transformer.load_llama_weights(ours, theirs.state_dict())
    return ours


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


LLAMAS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "multi-query": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 10, "num_key_value_heads": 2},
    "untied": {"tie_word_embeddings": False},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 8,
        }
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 4.0,
            "rope_theta": 1e4,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        }
    },
}


def llama(name="plain", longest=32):
    options = {"num_key_value_heads": 4, "tie_word_embeddings": True} | LLAMAS[name]
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=50,
        max_position_embeddings=longest,
        rms_norm_eps=1e-3,
        **options,
    )
    theirs = randomised(LlamaForCausalLM(config))
    ours = transformer.Decoder(transformer.llama_sizes(config.to_dict())).double().eval()
    transformer.load_llama_weights(ours, theirs.state_dict())
    # rotary angles stay 32 bits in transformers: give both the same
    ours.frequencies = ours.frequencies.float()
    return ours, theirs


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
    same_gradients(ours, theirs, transformer.load_llama_weights, NORMS_ROUNDED)


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


@torch.no_grad()
def test_greedy_stops():
    ours, _ = llama()
    ids = torch.randint(40, (3, 4))
    free = ours.greedy(ids, max_new=12)
    assert all(len(row) == 12 for row in free)
    stop = free[0][2]
    for use_cache in (True, False):
        for row, whole in zip(
            ours.greedy(ids, max_new=12, stop=stop, use_cache=use_cache), free, strict=True
        ):
            assert row == (whole[: whole.index(stop)] if stop in whole else whole)
    assert ours.greedy(ids, max_new=0) == [[], [], []]


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


# ── encoder–decoder ───────────────────────────────────────────────────────────────────────────────


def t5(mean=0.1, **options):
    config = T5Config(
        vocab_size=40,
        d_model=24,
        d_kv=5,
        d_ff=50,
        num_layers=3,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=10,
        layer_norm_epsilon=1e-3,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        **options,
    )
    theirs = randomised(T5ForConditionalGeneration(config), mean)
    ours = transformer.EncoderDecoder(transformer.t5_sizes(config.to_dict())).double().eval()
    transformer.load_t5_weights(ours, theirs.state_dict())
    return ours, theirs


def seq2seq_batch():
    source, target = torch.randint(2, 40, (3, 14)), torch.randint(2, 40, (3, 12))
    mask = (torch.arange(14) < torch.tensor([[14], [6], [1]])).long()
    return source, mask, target


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
    same_gradients(ours, theirs, transformer.load_t5_weights, NORMS_ROUNDED)


def test_untied_encoder_decoder_is_t5s():
    """T5 v1.1: a table of its own for the output, and no scaling before it."""
    _, theirs = t5(feed_forward_proj="gated-gelu")
    theirs.config.scale_decoder_outputs = False
    theirs.lm_head.weight = nn.Parameter(torch.randn(40, 24).double())
    untied = (
        transformer.EncoderDecoder(transformer.t5_sizes(theirs.config.to_dict())).double().eval()
    )
    assert not untied.sizes.tied
    transformer.load_t5_weights(untied, theirs.state_dict())
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


def test_sinusoidal_positions_are_added_to_both_sides_and_shift_with_the_cache():
    torch.manual_seed(0)
    shared = {"vocab_size": 20, "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 16}
    plain = transformer.EncoderDecoder(transformer.EncoderDecoderSizes(**shared))
    sizes = transformer.EncoderDecoderSizes(**shared, sinusoidal=True)
    model = transformer.EncoderDecoder(sizes)
    model.load_state_dict(plain.state_dict())
    ids = torch.randint(20, (3, 7))
    added = model.embed(ids) - plain.embed(ids)
    torch.testing.assert_close(added[1], sinusoidal_positions(7, 16))
    assert torch.equal(model.embed(ids[:, 4:], past=4), model.embed(ids)[:, 4:])
    assert not torch.allclose(model.encode(ids), plain.encode(ids))
    written = [
        model.greedy(ids, start=1, stop=2, max_new=9, use_cache=cached) for cached in (True, False)
    ]
    assert written[0] == written[1]


def test_only_sinusoidal_cross_attention_can_tell_equal_sources_apart():
    """A relative bias only weighs values: where all are equal, it changes nothing."""
    shared = {"vocab_size": 20, "d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 16}
    source = torch.full((1, 5), 7)
    for sinusoidal in (False, True):
        torch.manual_seed(0)
        sizes = transformer.EncoderDecoderSizes(**shared, sinusoidal=sinusoidal)
        model = transformer.EncoderDecoder(sizes)
        memory = model.encode(source)[0]
        alike = torch.allclose(memory, memory[:1].expand_as(memory), atol=1e-5)
        assert alike is not sinusoidal


@torch.no_grad()
def test_cached_decoding_of_targets():
    ours, _ = t5()
    source, mask, target = seq2seq_batch()
    memory = ours.encode(source, mask)
    expected = ours.decode(target, memory, mask)
    cache, finished = KVCache(3), ours.remember(memory)
    parts = [
        ours.decode(target[:, a:b], finished, mask, cache=cache)
        for a, b in ((0, 4), (4, 5), (5, 7), (7, 12))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), expected, **EXACT)


@torch.no_grad()
def test_next_logits_for_search():
    ours, _ = t5()
    source, mask, target = seq2seq_batch()
    logits_after = ours.next_logits(source[1:2], mask[1:2])
    expected = ours(source[[1, 1, 1]], target[:, :4], mask[[1, 1, 1]])[:, -1]
    torch.testing.assert_close(logits_after(target[:, :4]), expected, **EXACT)


def test_who_sees_what():
    """Target step i: the whole real source, the target up to i, nothing else."""
    ours, _ = t5()
    source, target = torch.arange(2, 8).unsqueeze(0), torch.arange(10, 15).unsqueeze(0)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    embedded = ours.tokens.weight.detach().clone().requires_grad_()
    ours.tokens.forward = lambda ids: F.embedding(ids, embedded)
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


# ── objectives ────────────────────────────────────────────────────────────────────────────────────


def test_hidden_tokens_follow_their_shares():
    """15 % chosen; of these 80 % masked, 10 % drawn, 10 % kept; none where `keep` says so."""
    ids = torch.randint(5, 1000, (200, 500))
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[:, 0] = True
    generator = torch.Generator().manual_seed(0)
    inputs, labels = transformer.hide_tokens(ids, 3, 1000, keep=keep, generator=generator)
    chosen = labels != transformer.IGNORED
    assert not chosen[:, 0].any()
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(inputs[~chosen], ids[~chosen])
    assert chosen[:, 1:].float().mean().item() == pytest.approx(0.15, abs=0.005)
    masked = (inputs[chosen] == 3).float().mean().item()
    kept = (inputs[chosen] == ids[chosen]).float().mean().item()
    assert masked == pytest.approx(0.8, abs=0.01)  # 15,000 draws: ±0.007 at two deviations
    assert kept == pytest.approx(0.1, abs=0.01)
    with pytest.raises(ValueError, match="rate is 0"):
        transformer.hide_tokens(ids, 3, 1000, rate=0)


def test_hide_chosen_by_hand():
    """One token of each fate, and one that was not chosen."""
    ids, random = torch.tensor([[7, 8, 9, 6]]), torch.tensor([[1, 2, 3, 4]])
    chosen, fate = torch.tensor([[True, True, True, False]]), torch.tensor([[0.79, 0.85, 0.95, 0]])
    inputs, labels = transformer.hide_chosen(ids, chosen, fate, random, mask_id=0)
    assert inputs.tolist() == [[0, 8, 3, 6]]
    assert labels.tolist() == [[7, 8, 9, transformer.IGNORED]]


def test_losses_by_hand():
    """Two tokens of a vocabulary of 4, uniform logits: ln 4; a certain right answer: 0."""
    ids = torch.tensor([[1, 2]])
    assert transformer.next_token_loss(torch.zeros(1, 2, 4), ids).item() == pytest.approx(
        math.log(4)
    )
    sure = torch.full((1, 2, 4), -100.0)
    sure[0, 0, 2] = 100.0
    assert transformer.next_token_loss(sure, ids).item() == pytest.approx(0)
    labels = torch.tensor([[transformer.IGNORED, 2]])
    sure[0, 1, 2] = 100.0
    assert transformer.label_loss(sure, labels).item() == pytest.approx(0)


def test_next_token_loss_is_transformers():
    ours, theirs = llama()
    ids = torch.randint(40, (2, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    labels = ids.masked_fill(mask == 0, -100)
    expected = theirs(ids, mask, labels=labels).loss  # computed in fp32 there
    got = transformer.next_token_loss(ours(ids, mask), ids, mask)
    torch.testing.assert_close(got.double(), expected.double(), atol=1e-5, rtol=0)


def test_shift_right_is_t5s():
    _, theirs = t5()
    labels = torch.tensor([[5, 6, 1, -100], [7, 1, -100, -100]])
    expected = theirs._shift_right(labels)
    assert torch.equal(transformer.shift_right(labels, start=0, pad=0), expected)


@pytest.mark.parametrize("family", ["masked", "causal", "seq2seq"])
def test_every_family_learns(family):
    """40 steps on one batch take the loss from about ln V to below a tenth of it."""
    ids = torch.randint(2, 30, (4, 10))
    shared = {"vocab_size": 30, "d_model": 32, "n_heads": 4, "n_layers": 2, "d_ff": 64}
    if family == "masked":
        model = transformer.MaskedLM(transformer.Encoder(transformer.EncoderSizes(**shared)))
        generator = torch.Generator().manual_seed(0)
        inputs, labels = transformer.hide_tokens(ids, 1, 30, rate=0.3, generator=generator)
        loss_of = lambda: transformer.label_loss(model(inputs), labels)  # noqa: E731
    elif family == "causal":
        model = transformer.Decoder(transformer.DecoderSizes(**shared, n_kv_heads=2))
        loss_of = lambda: transformer.next_token_loss(model(ids), ids)  # noqa: E731
    else:
        model = transformer.EncoderDecoder(transformer.EncoderDecoderSizes(**shared))
        target = transformer.shift_right(ids.flip(1), start=0, pad=0)
        loss_of = lambda: transformer.label_loss(model(ids, target), ids.flip(1))  # noqa: E731
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    first = loss_of().item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(math.log(30), abs=1.5)
    assert loss_of().item() < first / 10


@pytest.mark.parametrize("family", ["masked", "causal", "seq2seq"])
def test_autocast(family):
    """bf16 products, what must be wide stays wide: within bf16's 3 digits of the fp32 logits."""
    ids = torch.randint(2, 30, (2, 10))
    shared = {"vocab_size": 30, "d_model": 32, "n_heads": 4, "n_layers": 2, "d_ff": 64}
    if family == "masked":
        model = transformer.MaskedLM(transformer.Encoder(transformer.EncoderSizes(**shared)))
    elif family == "causal":
        model = transformer.Decoder(transformer.DecoderSizes(**shared, n_kv_heads=2))
    else:
        model = transformer.EncoderDecoder(transformer.EncoderDecoderSizes(**shared))
    arguments = (ids, ids) if family == "seq2seq" else (ids,)
    exact = model(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(*arguments)
        loss = transformer.label_loss(logits, ids)
    assert logits.dtype == torch.bfloat16
    close(logits.float(), exact, 0.03)  # 2⁻⁸ a product, a dozen products deep
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_other_devices():
    """On torch's "meta" device, which computes nothing but refuses a tensor made elsewhere."""
    shared = {"vocab_size": 30, "d_model": 32, "n_heads": 4, "n_layers": 2, "d_ff": 64}
    scaled = {"scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_positions": 4}
    masked = transformer.MaskedLM(transformer.Encoder(transformer.EncoderSizes(**shared)))
    causal = transformer.Decoder(transformer.DecoderSizes(**shared, **scaled))
    pair = transformer.EncoderDecoder(transformer.EncoderDecoderSizes(**shared))
    ids = torch.zeros(2, 8, dtype=torch.long, device="meta")
    mask, cache = torch.ones_like(ids), KVCache(2)
    inputs, labels = transformer.hide_tokens(ids, 1, 30, keep=mask)
    transformer.label_loss(masked.to("meta")(inputs, mask), labels).backward()
    transformer.next_token_loss(causal.to("meta")(ids, mask), ids, mask).backward()
    pair.to("meta")(ids, transformer.shift_right(ids, 0, 0), mask, mask).sum().backward()
    with torch.no_grad():
        causal(ids, cache=cache)
        assert causal(ids[:, :1], cache=cache).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("family", [bert, llama, t5])
def test_gpu_computes_what_the_cpu_does(family):
    """Double precision, so that only the kernels differ; the loss is of every logit."""
    ours, _ = family()
    ids, mask = torch.randint(1, 40, (2, 9)), torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    results = []
    for device in ("cpu", "cuda"):
        ours, on_device = ours.to(device), (ids.to(device), mask.to(device))
        arguments = (on_device[0], *on_device) if family is t5 else on_device
        logits = ours(*arguments)[mask.bool().to(device)]
        grads = torch.autograd.grad(logits.square().mean(), list(ours.parameters()))
        results.append([tensor.cpu() for tensor in (logits, *grads)])
    for got, expected in zip(*results, strict=True):
        close(got, expected, 1e-5)  # rotary angles have 32 bits


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def decoder_on(ids, mask=None, cache=None):
    sizes = transformer.DecoderSizes(20, d_model=8, n_heads=2, n_layers=1, d_ff=8, max_positions=6)
    with torch.no_grad():
        return transformer.Decoder(sizes)(ids, mask, cache)


def encoder_on(ids, mask=None):
    sizes = transformer.EncoderSizes(20, d_model=8, n_heads=2, n_layers=1, d_ff=8, max_positions=6)
    return transformer.Encoder(sizes)(ids, mask)


def seq2seq_on(source, target, mask=None):
    sizes = transformer.EncoderDecoderSizes(20, d_model=8, n_heads=2, n_layers=1, d_ff=8)
    return transformer.EncoderDecoder(sizes)(source, target, mask)


SOME = torch.ones(2, 4, dtype=torch.long)


@pytest.mark.parametrize("model_on", [decoder_on, encoder_on])
@pytest.mark.parametrize(
    ("ids", "mask", "error", "message"),
    [
        (SOME.float(), None, TypeError, "token ids are integers"),
        (SOME[:, :0], None, ValueError, "at least one step"),
        (SOME[0], None, ValueError, r"shape \(4,\)"),
        (SOME * 20, None, ValueError, "the vocabulary is 0 … 19"),
        (SOME.repeat(1, 2), None, ValueError, "8 tokens, the model 6 positions"),
        (SOME, SOME[:, :3], ValueError, r"mask has shape \(2, 3\); these ids need \(2, 4\)"),
    ],
)
def test_bad_ids(model_on, ids, mask, error, message):
    with pytest.raises(error, match=message):
        model_on(ids, mask)


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


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (transformer.EncoderSizes, {"n_heads": 3}, "d_model 8 is no multiple of n_heads 3"),
        (transformer.DecoderSizes, {"n_kv_heads": 4}, "n_heads 2 is no multiple of n_kv_heads 4"),
        (transformer.EncoderDecoderSizes, {"n_layers": 0}, "n_layers is 0"),
    ],
)
def test_sizes_that_do_not_fit(make, options, message):
    models = {
        transformer.EncoderSizes: transformer.Encoder,
        transformer.DecoderSizes: transformer.Decoder,
        transformer.EncoderDecoderSizes: transformer.EncoderDecoder,
    }
    sizes = {"vocab_size": 20, "d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8} | options
    with pytest.raises(ValueError, match=message):
        models[make](make(**sizes))


def test_a_configuration_we_do_not_build():
    with pytest.raises(ValueError, match="hidden_act is 'relu'; this module does 'gelu'"):
        transformer.bert_sizes(BertConfig(hidden_act="relu").to_dict())
    with pytest.raises(ValueError, match="attention_bias is True"):
        transformer.llama_sizes(LlamaConfig(attention_bias=True).to_dict())
    with pytest.raises(ValueError, match="feed_forward_proj is 'gated-silu'"):
        transformer.t5_sizes(T5Config(feed_forward_proj="gated-silu").to_dict())


def test_weights_of_another_model():
    ours, theirs = llama()
    state = theirs.state_dict()
    with pytest.raises(ValueError, match=r"no layers\.1\.mlp\.up_proj\.weight"):
        transformer.load_llama_weights(
            ours, {n: p for n, p in state.items() if "1.mlp.up" not in n}
        )
    with pytest.raises(ValueError, match=r"no place for layers\.2\.x"):
        transformer.load_llama_weights(ours, state | {"model.layers.2.x": torch.zeros(1)})
    wrong = {"model.norm.weight": torch.zeros(25)}
    with pytest.raises(ValueError, match=r"norm\.weight is \(25,\), our norm\.weight is \(24,\)"):
        transformer.load_llama_weights(ours, state | wrong)
    with pytest.raises(ValueError, match=r"and \d+ more"):
        transformer.load_t5_weights(t5()[0], state)
