"""The recurrent encoder–decoder against torch's layers, and g2p_en's weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from recurrent_inputs import KINDS, SOURCE, TARGET, TOLERANCE, TORCH, run_torch, seq2seq
from writing import greedy_ids

from course_utils.inference.next_logits import CachedNextLogits
from course_utils.inference.search import beam_search


@pytest.mark.parametrize("kind", KINDS)
def test_other_devices(kind):
    """On torch's "meta" device, which computes nothing but refuses a tensor made elsewhere."""
    model = seq2seq(kind=kind, n_layers=2, bidirectional=True, attention=True).to("meta")
    logits = model(SOURCE.to("meta"), TARGET.to("meta"), SOURCE_LENGTHS)
    logits.sum().backward()
    assert logits.device.type == model.out.weight.grad.device.type == "meta"


SOURCE_LENGTHS = torch.tensor([4, 2, 1])


def rebuilt_in_torch(model, source, lengths, target):
    """The same network from torch's own layers, with its own attention kernel."""
    options = {"num_layers": model.encoder.n_layers, "batch_first": True}
    encoder = TORCH[model.kind](
        6, model.encoder.d_hidden, bidirectional=model.directions == 2, **options
    )
    decoder = TORCH[model.kind](6, model.decoder.d_hidden, **options)
    encoder.load_state_dict(model.encoder.state_dict())
    decoder.load_state_dict(model.decoder.state_dict())
    memory, state = run_torch(encoder, model.source_embedding(source), lengths, None)
    if model.directions == 2:  # (L·2, B, H/2): the two directions of one layer stand side by side
        parts = state if isinstance(state, tuple) else (state,)
        parts = [
            torch.stack([torch.cat([p[2 * i], p[2 * i + 1]], -1) for i in range(len(p) // 2)])
            for p in parts
        ]
        state = tuple(parts) if isinstance(state, tuple) else parts[0]
    h, _ = decoder(model.target_embedding(target), state)
    if model.score is not None:
        real = (torch.arange(source.shape[1]) < lengths.unsqueeze(1)).unsqueeze(1)
        query = F.linear(h, model.score.weight)
        context = F.scaled_dot_product_attention(query, memory, memory, attn_mask=real, scale=1.0)
        h = torch.tanh(F.linear(torch.cat([context, h], -1), model.combine.weight))
    return F.linear(h, model.out.weight, model.out.bias)


@pytest.mark.parametrize("attention", [False, True], ids=["plain", "attention"])
@pytest.mark.parametrize(
    ("kind", "n_layers", "bidirectional"), [("gru", 1, False), ("lstm", 2, True), ("rnn", 2, False)]
)
def test_seq2seq_is_torchs(kind, n_layers, bidirectional, attention):
    """Logits, and the gradients of everything outside torch's own recurrent layers."""
    model = seq2seq(kind=kind, n_layers=n_layers, bidirectional=bidirectional, attention=attention)
    leaves = [p for n, p in model.named_parameters() if not n.startswith(("encoder", "decoder"))]
    results = []
    for logits in (
        model(SOURCE, TARGET, SOURCE_LENGTHS),
        rebuilt_in_torch(model, SOURCE, SOURCE_LENGTHS, TARGET),
    ):
        results.append([logits, *torch.autograd.grad(logits.square().sum(), leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, **TOLERANCE)


@pytest.mark.parametrize("attention", [False, True])
def test_seq2seq_batch_equals_one_by_one(attention):
    model = seq2seq(kind="lstm", bidirectional=True, attention=attention)
    together = model(SOURCE, TARGET, SOURCE_LENGTHS)
    for row, length in enumerate(SOURCE_LENGTHS.tolist()):
        alone = model(SOURCE[row : row + 1, :length], TARGET[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_the_argmax_of_whole_prefixes(kind):
    """Carrying the state gives what recomputing every prefix gives."""
    model = seq2seq(kind=kind, attention=True)
    with torch.no_grad():
        model.out.weight.mul_(20)  # decided logits, so that the ids vary
    start = torch.ones(3, 1, dtype=torch.long)
    written = greedy_ids(model.read_and_reorder(SOURCE, SOURCE_LENGTHS), start, 6, stop=[2])
    for row, length in enumerate(SOURCE_LENGTHS.tolist()):
        read, _ = model.read_and_reorder(SOURCE[row : row + 1, :length])
        ids = [1]
        while len(ids) <= 6 and ids[-1] != 2:
            ids.append(read(torch.tensor([ids]), None)[0].argmax().item())
        assert written[row] == [i for i in ids[1:] if i != 2]


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_beams_carry_their_states(kind):
    """Beams change places; with the state carried, the same texts as with every prefix read."""
    model = seq2seq(kind=kind, n_layers=2, attention=True)
    with torch.no_grad():
        model.out.weight.mul_(20)
    read, reorder = model.read_and_reorder(SOURCE[:1])
    cached = CachedNextLogits(read, reorder)
    found = [beam_search(f, [1], 6, num_beams=3) for f in (cached, lambda ids: read(ids, None)[0])]
    assert [c.tokens for c in found[0]] == [c.tokens for c in found[1]]
    several = CachedNextLogits(*model.read_and_reorder(SOURCE))
    several(TARGET[:, :2])
    with pytest.raises(ValueError, match="3 prompts cannot change places"):
        several(TARGET[[1, 0, 2], :3])


def test_seq2seq_bad_input():
    model = seq2seq()
    with pytest.raises(ValueError, match="source ids go from 1 to 9"):
        model(torch.tensor([[1, 9]]), TARGET[:1])
    with pytest.raises(TypeError, match=r"target ids are torch\.float32"):
        model(SOURCE, TARGET.float())
    with pytest.raises(ValueError, match="source ids have shape"):
        model(torch.zeros(3, 0, dtype=torch.long), TARGET)
    with pytest.raises(ValueError, match="make it even"):
        seq2seq(d_hidden=7, bidirectional=True)
