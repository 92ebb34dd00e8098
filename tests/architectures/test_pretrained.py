"""Published weights in our modules: what loads, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformer_inputs import (
    EXACT,
    WORDS,
    bert,
    close,
    llama,
    same_gradients,
    sentences,
    seq2seq_batch,
    t5,
)
from transformers import BertConfig, LlamaConfig, T5Config

from course_utils.architectures.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from course_utils.architectures.kv_cache import KVCache
from course_utils.architectures.pretrained import (
    bert_config,
    llama_config,
    load_bert_weights,
    load_llama_weights,
    load_t5_weights,
    t5_config,
)


@torch.no_grad()
def test_minilm_in_double_precision(minilm, our_minilm):
    """The same in 64 bits, where 5e-5 becomes 1e-10: the difference in fp32 is rounding."""
    theirs, tokenizer = minilm
    ids, mask = sentences(tokenizer)
    wide, wide_ours = copy.deepcopy(theirs).double(), copy.deepcopy(our_minilm).double()
    expected = wide(ids, mask).last_hidden_state
    torch.testing.assert_close(wide_ours(ids, mask)[mask.bool()], expected[mask.bool()], **EXACT)


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
    same_gradients(ours, theirs, load_bert_weights, 1e-10)


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


def test_only_sinusoidal_cross_attention_can_tell_equal_sources_apart():
    """A relative bias only weighs values: where all are equal, it changes nothing."""
    shared = {"vocab_size": 20, "d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 16}
    source = torch.full((1, 5), 7)
    for sinusoidal in (False, True):
        torch.manual_seed(0)
        sizes = EncoderDecoderConfig(**shared, sinusoidal=sinusoidal)
        model = EncoderDecoder(sizes)
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


def test_a_configuration_we_do_not_build():
    with pytest.raises(ValueError, match="hidden_act is 'relu'; this module does 'gelu'"):
        bert_config(BertConfig(hidden_act="relu").to_dict())
    with pytest.raises(ValueError, match="attention_bias is True"):
        llama_config(LlamaConfig(attention_bias=True).to_dict())
    with pytest.raises(ValueError, match="feed_forward_proj is 'gated-silu'"):
        t5_config(T5Config(feed_forward_proj="gated-silu").to_dict())


def test_weights_of_another_model():
    ours, theirs = llama()
    state = theirs.state_dict()
    with pytest.raises(ValueError, match=r"no layers\.1\.mlp\.up_proj\.weight"):
        load_llama_weights(ours, {n: p for n, p in state.items() if "1.mlp.up" not in n})
    with pytest.raises(ValueError, match=r"no place for layers\.2\.x"):
        load_llama_weights(ours, state | {"model.layers.2.x": torch.zeros(1)})
    wrong = {"model.norm.weight": torch.zeros(25)}
    with pytest.raises(ValueError, match=r"norm\.weight is \(25,\), our norm\.weight is \(24,\)"):
        load_llama_weights(ours, state | wrong)
    with pytest.raises(ValueError, match=r"and \d+ more"):
        load_t5_weights(t5()[0], state)
