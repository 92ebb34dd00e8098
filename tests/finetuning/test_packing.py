"""Packed rows against unpacked ones, and against transformers: logits, losses, gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import llama_sizes
from transformers import LlamaForCausalLM

from course_utils.architectures.decoder import Decoder
from course_utils.architectures.pretrained import llama_config, load_llama_weights
from course_utils.finetuning import packing
from course_utils.finetuning.transfer import Example, answer_loss, pad

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}  # fp32: sums over other masks, in another order
EXAMPLES = [
    Example([5, 6, 7], [-100, -100, 7]),
    Example([8, 9, 1, 2, 3], [-100, -100, 1, 2, 3]),
    Example([4, 11], [4, 11]),  # its first token is a label, as in plain language modelling
    Example([12, 13, 14, 15], [-100, 13, 14, 15]),
]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("room", [5, 6, 9, 14, 20])
def test_packed_logits_are_the_unpacked(decoder, room):
    """Each example alone, and wherever it lies in a row."""
    packed = packing.pack(EXAMPLES, room)
    logits = packing.packed_logits(decoder, packed.ids, packed.segments)
    rows = packing.first_fit([len(example.ids) for example in EXAMPLES], room)
    for r, row in enumerate(rows):
        for number, i in enumerate(row, start=1):
            alone = decoder(torch.tensor([EXAMPLES[i].ids]))[0]
            torch.testing.assert_close(logits[r][packed.segments[r] == number], alone, **TOLERANCE)


@pytest.mark.parametrize("room", [5, 9, 20])
def test_pack_has_the_padded_loss_and_gradient(decoder, room):
    """packed_logits too: training on packed rows is training on padded ones."""
    packed, padded = packing.pack(EXAMPLES, room), pad(EXAMPLES)
    one = answer_loss(packing.packed_logits(decoder, packed.ids, packed.segments), packed.labels)
    two = answer_loss(decoder(padded.ids, padded.mask), padded.labels)
    torch.testing.assert_close(one, two, **TOLERANCE)
    for mine, other in zip(gradients(decoder, one), gradients(decoder, two), strict=True):
        torch.testing.assert_close(mine, other, **TOLERANCE)


def test_packed_logits_are_transformers():
    """Their Llama, told of the examples by restarted positions and a mask of four dimensions."""
    config = llama_sizes()
    theirs = LlamaForCausalLM(config).eval()
    ours = Decoder(llama_config(config.to_dict())).eval()
    load_llama_weights(ours, theirs.state_dict())
    packed = packing.pack(EXAMPLES, 14)
    positions = packing.restarted_positions(packed.segments)
    logits = packing.packed_logits(ours, packed.ids, packed.segments)
    by_positions = theirs(packed.ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(logits, by_positions, **TOLERANCE)  # no place is empty in this row
    mask = packing.block_diagonal_mask(packed.segments)
    by_mask = theirs(packed.ids, position_ids=positions, attention_mask=mask).logits
    torch.testing.assert_close(logits, by_mask, **TOLERANCE)


def test_packed_logits_count_positions_by_example(decoder):
    """A row may be longer than the model's limit, its empty end too; an example may not."""
    decoder.config.__dict__["max_positions"] = 4
    for n in (1, 3):
        packed = packing.pack([Example([1, 2, 3, 4], [1, 2, 3, 4])] * n, 12)
        assert packing.packed_logits(decoder, packed.ids, packed.segments).isfinite().all()
    packed = packing.pack([Example([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])], 12)
    with pytest.raises(ValueError, match="has 5 tokens, the model 4 positions"):
        packing.packed_logits(decoder, packed.ids, packed.segments)


def test_a_changed_example_changes_no_other(decoder):
    """packed_logits at every other example stay the same, bit for bit."""
    packed = packing.pack(EXAMPLES, 14)
    other = packed.ids.clone()
    other[packed.segments == 2] += 1
    one = packing.packed_logits(decoder, packed.ids, packed.segments)
    two = packing.packed_logits(decoder, other, packed.segments)
    assert torch.equal(one[packed.segments != 2], two[packed.segments != 2])
    assert not torch.equal(one[packed.segments == 2], two[packed.segments == 2])


def test_packed_logits_refuse_shapes(decoder):
    with pytest.raises(ValueError, match=r"ids are \(1, 3\), segments \(1, 2\)"):
        packing.packed_logits(decoder, torch.tensor([[1, 2, 3]]), torch.tensor([[1, 1]]))


# ── by hand, and properties ───────────────────────────────────────────────────────────────────────


def test_pack_by_hand():
    """5 and 4 in one row of 9; 3 and 2 in the next, and four empty places."""
    packed = packing.pack(EXAMPLES, 9, pad_id=29)
    assert packed.ids.tolist() == [
        [8, 9, 1, 2, 3, 12, 13, 14, 15],
        [5, 6, 7, 4, 11, 29, 29, 29, 29],
    ]
    assert packed.segments.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 2, 2, 0, 0, 0, 0]]
    none = -100
    assert packed.labels.tolist() == [
        [none, none, 1, 2, 3, none, 13, 14, 15],
        [none, none, 7, none, 11, none, none, none, none],
    ]


def test_restarted_positions_by_hand():
    segments = torch.tensor([[1, 1, 2, 3, 3, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    positions = packing.restarted_positions(segments)
    assert positions.tolist() == [[0, 1, 0, 0, 1, 2, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_block_diagonal_mask_by_hand():
    mask = packing.block_diagonal_mask(torch.tensor([[1, 2, 2, 0]]))
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=20), room=st.integers(12, 30))
@settings(max_examples=60, deadline=None)
def test_first_fit_places_each_once(lengths, room):
    """No row is overfull, and no two rows could be one."""
    rows = packing.first_fit(lengths, room)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in row) for row in rows]
    assert max(used) <= room
    assert sum(sorted(used)[:2]) > room or len(rows) == 1


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8), room=st.integers(6, 12))
@settings(max_examples=40, deadline=None)
def test_pack_loses_nothing(lengths, room):
    """pack, restarted_positions: ids come out again, positions are 0 … n − 1 of each example."""
    examples = [Example([i] * n, [i] * n) for i, n in enumerate(lengths, start=1)]
    packed = packing.pack(examples, room)
    positions = packing.restarted_positions(packed.segments)
    found = []
    for ids, segments, places in zip(packed.ids, packed.segments, positions, strict=True):
        for number in range(1, int(segments.max()) + 1):
            here = segments == number
            assert places[here].tolist() == list(range(int(here.sum())))
            found.append(ids[here].tolist())
    assert sorted(found) == sorted(example.ids for example in examples)
    assert (packed.labels != -100).sum() == sum(lengths) - len(lengths)


@pytest.mark.parametrize(
    ("lengths", "room", "said"),
    [
        ([], 4, "the training set is empty"),
        ([3, 5], 4, "an example has 5 tokens, a row 4; give longer rows"),
        ([1], 0, "room is 0; it must be at least 1"),
    ],
)
def test_first_fit_refuses(lengths, room, said):
    with pytest.raises(ValueError, match=said):
        packing.first_fit(lengths, room)
