"""The encoder against transformers' BERT: values, gradients, padding."""

from __future__ import annotations

import pytest
import torch
from transformer_inputs import (
    EXACT,
    SOME,
    bert,
    close,
    decoder_on,
    same_gradients,
    sentences,
)

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.encoder import (
    Encoder,
    EncoderConfig,
    MaskedLM,
    embed_sentences,
    mean_pool,
)
from course_utils.architectures.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from course_utils.architectures.objectives import label_loss
from course_utils.architectures.pretrained import (
    load_bert_weights,
)


@torch.no_grad()
def test_minilm_in_our_encoder(minilm, our_minilm):
    """Every layer's hidden states in fp32, padding included."""
    theirs, tokenizer = minilm
    ids, mask = sentences(tokenizer)
    expected = theirs(ids, mask, output_hidden_states=True).hidden_states
    got = our_minilm.hidden_states(ids, mask)
    assert len(got) == len(expected) == 7
    for ours, reference in zip(got, expected, strict=True):
        # fp32: 1e-7 a sum, through 6 layers; the next test shows that nothing else is in it
        close(ours[mask.bool()], reference[mask.bool()], 5e-5)


@torch.no_grad()
def test_sentence_vectors(minilm, our_minilm):
    """Unit length; padding changes nothing; related sentences are nearer than unrelated ones."""
    tokenizer = minilm[1]
    texts = ["A man is eating food.", "A man eats something.", "The new movie is awesome."]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    vectors = embed_sentences(our_minilm, batch.input_ids, batch.attention_mask)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    alone = embed_sentences(our_minilm, tokenizer(texts[1:2], return_tensors="pt").input_ids)
    close(vectors[1:2], alone, 1e-5)
    assert vectors[0] @ vectors[1] > 0.6 > 0.3 > vectors[0] @ vectors[2]


def test_every_token_sees_every_other():
    encoder = bert()[0].encoder
    table = encoder.token_embedding.weight.requires_grad_()
    ids = torch.arange(6).unsqueeze(0)
    for position in range(6):
        (grad,) = torch.autograd.grad(encoder(ids)[0, position].sum(), table)
        assert (grad[:6].abs().sum(dim=1) > 0).all()


def test_padding_is_neither_seen_nor_pooled():
    encoder = bert()[0].encoder
    ids, mask = torch.randint(40, (2, 7)), torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
    other = ids.clone()
    other[1, 3:] = 0
    pooled = [mean_pool(encoder(i, mask), mask) for i in (ids, other)]
    torch.testing.assert_close(pooled[0], pooled[1], **EXACT)
    torch.testing.assert_close(pooled[0][1], encoder(ids[1:, :3])[0].mean(0), **EXACT)


def test_a_row_of_padding_alone():
    """Defined: finite, pooled to exactly 0, and no influence on the other row."""
    encoder = bert()[0].encoder
    ids, mask = torch.randint(40, (2, 5)), torch.tensor([[1] * 5, [0] * 5])
    hidden = encoder(ids, mask)
    assert hidden.isfinite().all()
    assert (mean_pool(hidden, mask)[1] == 0).all()
    torch.testing.assert_close(hidden[:1], encoder(ids[:1]), **EXACT)
    hidden.sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_mean_pool_by_hand():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]])
    assert mean_pool(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[2, 4]]
    torch.testing.assert_close(mean_pool(hidden), hidden.mean(1))


@pytest.mark.parametrize("family", ["masked", "causal", "seq2seq"])
def test_autocast(family):
    """bf16 products, what must be wide stays wide: within bf16's 3 digits of the fp32 logits."""
    ids = torch.randint(2, 30, (2, 10))
    shared = {"vocab_size": 30, "d_model": 32, "n_heads": 4, "n_layers": 2, "d_ff": 64}
    if family == "masked":
        model = MaskedLM(Encoder(EncoderConfig(**shared)))
    elif family == "causal":
        model = Decoder(DecoderConfig(**shared, n_kv_heads=2))
    else:
        model = EncoderDecoder(EncoderDecoderConfig(**shared))
    arguments = (ids, ids) if family == "seq2seq" else (ids,)
    exact = model(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(*arguments)
        loss = label_loss(logits, ids)
    assert logits.dtype == torch.bfloat16
    close(logits.float(), exact, 0.03)  # 2⁻⁸ a product, a dozen products deep
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def encoder_on(ids, mask=None):
    config = EncoderConfig(20, d_model=8, n_heads=2, n_layers=1, d_ff=8, max_positions=6)
    return Encoder(config)(ids, mask)


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


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (EncoderConfig, {"n_heads": 3}, "d_model 8 is no multiple of n_heads 3"),
        (DecoderConfig, {"n_kv_heads": 4}, "n_heads 2 is no multiple of n_kv_heads 4"),
        (EncoderDecoderConfig, {"n_layers": 0}, "n_layers is 0"),
    ],
)
def test_sizes_that_do_not_fit(make, options, message):
    models = {
        EncoderConfig: Encoder,
        DecoderConfig: Decoder,
        EncoderDecoderConfig: EncoderDecoder,
    }
    sizes = {"vocab_size": 20, "d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8} | options
    with pytest.raises(ValueError, match=message):
        models[make](make(**sizes))


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
