"""Our networks against torch's and transformers' on the CPU, with equal weights and equal answers.

`PYTHONPATH=tests/support python tests/benchmarks/bench_architectures.py [--json FILE] [--clock]`
exits with 1 when a floor is missed. Ratios in processor time on one thread; above one, ours is
faster. Each row is printed as soon as it is measured, and ends whatever the load.

Every net has two rows: with torch's own products, and after `use_onednn(net)`, for which the floors
hold (`course_utils.architectures.onednn` says what that changes). The recurrent layers, whose
backward pass is written out, take oneDNN's products wherever they can; torch's are switched on for
their second row. What limits them: `nn.LSTM` runs all steps inside one oneDNN primitive, ours calls
about 15 kernels a step from Python, which weighs less the larger the batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from side_by_side import Row, compare, hold, main
from torch import Tensor, nn
from transformers import DynamicCache, T5Config, T5ForConditionalGeneration

from course_utils import models
from course_utils.architectures.decoder import Decoder
from course_utils.architectures.encoder import Encoder, embed_sentences, mean_pool
from course_utils.architectures.encoder_decoder import EncoderDecoder
from course_utils.architectures.objectives import label_loss, next_token_loss, shift_right
from course_utils.architectures.onednn import use_onednn
from course_utils.architectures.pretrained import (
    bert_config,
    llama_config,
    load_bert_weights,
    load_llama_weights,
    load_t5_weights,
    t5_config,
)
from course_utils.architectures.recurrent import Recurrent
from course_utils.inference.decoding import greedy
from course_utils.inference.next_logits import CachedNextLogits

Compare = Callable[..., Row]

STEPS, D_HIDDEN = 64, 256
TORCH = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
TITLE = "Architectures against torch and transformers"


def without_onednn(call: Callable[[], object]) -> None:
    """Our recurrent layers with torch's own matrix product."""
    torch.backends.mkldnn.enabled = False
    try:
        call()
    finally:
        torch.backends.mkldnn.enabled = True


def both_rows(
    compare: Compare,
    name: str,
    net: nn.Module,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    floor: float | None,
    repeats: int,
) -> list[Row]:
    """A net with torch's own products, and then, in place, with oneDNN's."""
    plain = compare(f"{name}, torch's products", ours, theirs, repeats=repeats)
    assert use_onednn(net), f"{name}: no nn.Linear was found, so both rows would be one"
    return [plain, compare(f"{name}, use_onednn", ours, theirs, floor=floor, repeats=repeats)]


def same(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Both sides must do the same work: fp32 differs by rounding alone."""
    apart = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert apart <= tolerance, f"the two sides differ by {apart:.1e} of the largest number"


# ── recurrent nets ────────────────────────────────────────────────────────────────────────────────


def training_step(layer: nn.Module, x: Tensor) -> Tensor:
    """Forward, backward to inputs and weights; the gradient of the inputs."""
    layer.zero_grad()
    x.grad = None
    layer(x)[0].square().mean().backward()
    return x.grad


def recurrent_row(
    compare: Compare, kind: str, batch: int, floor: float | None, products: str = ""
) -> Row:
    theirs = TORCH[kind](D_HIDDEN, D_HIDDEN, batch_first=True)
    ours = Recurrent(kind, D_HIDDEN, D_HIDDEN)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(batch, STEPS, D_HIDDEN, requires_grad=True)
    same(training_step(ours, x), training_step(theirs, x), 1e-5)
    our_step, their_step = partial(training_step, ours, x), partial(training_step, theirs, x)
    if products:
        our_step = partial(without_onednn, our_step)
    name = f"{kind.upper()} training step, T={STEPS}, H={D_HIDDEN}, B={batch}{products}"
    return compare(name, our_step, their_step, floor=floor, repeats=7)


def recurrent_rows(compare: Compare) -> list[Row]:
    rows = [recurrent_row(compare, "lstm", 64, None, ", torch's products")]
    for kind, floor in (("lstm", 0.7), ("gru", 0.7), ("rnn", None)):
        rows.append(recurrent_row(compare, kind, 64, floor))
    return [*rows, *(recurrent_row(compare, "lstm", batch, None) for batch in (16, 32))]


# ── decoder ───────────────────────────────────────────────────────────────────────────────────────


def zero_grad_backward(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    model.zero_grad()
    value = loss()
    value.backward()
    return value.detach()


def decoder_training(
    compare: Compare, ours: nn.Module, theirs: nn.Module, ids: Tensor
) -> list[Row]:
    our_step = partial(zero_grad_backward, ours, lambda: next_token_loss(ours(ids), ids))
    their_step = partial(
        zero_grad_backward, theirs, lambda: theirs(ids, labels=ids, use_cache=False).loss
    )
    same(our_step(), their_step(), 1e-5)
    name = f"SmolLM2-size training step, {ids.shape[0]}×{ids.shape[1]} tokens"
    return both_rows(compare, name, ours, our_step, their_step, 1.0, repeats=3)


@torch.no_grad()
def our_tokens(model: nn.Module, ids: Tensor, n: int) -> list[int]:
    reader = CachedNextLogits(*model.read_and_reorder())
    return list(greedy(reader, ids, n)[0].tokens)


@torch.no_grad()
def their_tokens(model: nn.Module, ids: Tensor, n: int) -> list[int]:
    """Their forward pass in the leanest loop; `generate` adds its own bookkeeping."""
    cache, tokens = DynamicCache(config=model.config), []
    while len(tokens) < n:
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        ids = logits[:, -1:].argmax(-1)
        tokens.append(ids.item())
    return tokens


@torch.no_grad()
def generated(model: nn.Module, ids: Tensor, n: int) -> list[int]:
    mask = torch.ones_like(ids)
    options = {"do_sample": False, "max_new_tokens": n, "min_new_tokens": n}
    return model.generate(ids, attention_mask=mask, **options)[0, ids.shape[1] :].tolist()


def decoding_rows(
    compare: Compare, ours: nn.Module, theirs: nn.Module, ids: Tensor, n: int = 16
) -> list[Row]:
    our_side, their_side = partial(our_tokens, ours, ids, n), partial(their_tokens, theirs, ids, n)
    assert our_side() == their_side(), "the two greedy loops disagree"
    name = f"SmolLM2 cached greedy, {n} tokens after {ids.shape[1]}"
    rows = both_rows(compare, name, ours, our_side, their_side, 1.0, repeats=3)
    against = partial(generated, theirs, ids, n)
    return [*rows, compare(f"{name}, use_onednn, `generate`", our_side, against, repeats=2)]


def decoder_rows(compare: Compare) -> list[Row]:
    theirs, tokenizer = models.load_decoder("smollm2")
    prompt = tokenizer("The history of the steam engine begins", return_tensors="pt").input_ids
    rows = decoding_rows(compare, our_decoder(theirs), theirs, prompt)
    ids = torch.randint(tokenizer.vocab_size, (1, 128))
    theirs.requires_grad_(True)
    return [*rows, *decoder_training(compare, our_decoder(theirs), theirs, ids)]


def our_decoder(theirs: nn.Module) -> Decoder:
    ours = Decoder(llama_config(theirs.config.to_dict()))
    load_llama_weights(ours, theirs.state_dict())
    return ours


# ── encoder and encoder–decoder ───────────────────────────────────────────────────────────────────


def encoder_rows(compare: Compare) -> list[Row]:
    """64 sentences of 4 to 40 words in one padded batch, pooled and normalised."""
    theirs, tokenizer = models.load_encoder("minilm")
    ours = Encoder(bert_config(theirs.config.to_dict())).eval()
    load_bert_weights(ours, theirs.state_dict())
    texts = [" ".join(["alpha beta gamma delta"] * (1 + i % 10)) for i in range(64)]
    batch = tokenizer(texts, return_tensors="pt", padding=True)

    @torch.no_grad()
    def our_vectors() -> Tensor:
        return embed_sentences(ours, batch.input_ids, batch.attention_mask)

    @torch.no_grad()
    def their_vectors() -> Tensor:
        hidden = theirs(**batch).last_hidden_state
        pooled = mean_pool(hidden, batch.attention_mask)
        return nn.functional.normalize(pooled, dim=-1)

    same(our_vectors(), their_vectors(), 1e-4)
    name = f"MiniLM embeddings, {len(texts)} sentences"
    return both_rows(compare, name, ours, our_vectors, their_vectors, 1.0, repeats=5)


def seq2seq_rows(compare: Compare) -> list[Row]:
    """A T5 of the size that learns pronunciation: 3 + 3 layers of 256."""
    config = T5Config(vocab_size=128, d_model=256, d_kv=64, d_ff=1024, num_layers=3, num_heads=4,
                      dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0)  # fmt: skip
    theirs = T5ForConditionalGeneration(config)
    ours = EncoderDecoder(t5_config(config.to_dict()))
    load_t5_weights(ours, theirs.state_dict())
    source, labels = torch.randint(2, 128, (64, 12)), torch.randint(2, 128, (64, 10))
    target = shift_right(labels, start=0, pad=0)
    our_step = partial(zero_grad_backward, ours, lambda: label_loss(ours(source, target), labels))
    their_step = partial(
        zero_grad_backward, theirs, lambda: theirs(input_ids=source, labels=labels).loss
    )
    same(our_step(), their_step(), 1e-5)
    name = "T5-size training step, 64 words, 3 + 3 layers of 256"
    return both_rows(compare, name, ours, our_step, their_step, None, repeats=7)


# ── report ────────────────────────────────────────────────────────────────────────────────────────


def measure(compare: Compare) -> list[Row]:
    torch.manual_seed(0)
    parts = (recurrent_rows, decoder_rows, encoder_rows, seq2seq_rows)
    return [row for part in parts for row in part(compare)]


def test_architectures_meet_their_floors():
    hold(TITLE, measure(compare))


if __name__ == "__main__":
    sys.exit(main(TITLE, measure, __doc__))
