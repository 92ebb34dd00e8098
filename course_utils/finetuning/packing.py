"""Several examples in one row, none of which sees another. Notebook 06.

Padding spends a product on every empty place. Packed, a row holds example after example; attention
stays within each (a block-diagonal mask), and positions start anew, so that every logit is what it
would be unpacked (Krell et al. 2021). Shapes: B rows of T tokens; `segments` (B, T) number a row's
examples from 1, and are 0 where nothing stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from course_utils.architectures.decoder import Decoder
from course_utils.architectures.layers import check_ids, check_positive
from course_utils.architectures.objectives import IGNORED
from course_utils.finetuning.transfer import Example


class Packed(NamedTuple):
    """ids, labels and segments, each (B, T)."""

    ids: Tensor
    labels: Tensor
    segments: Tensor


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which examples share a row of `room` tokens: the longest first, each where it first fits.

    Johnson 1973: never more than 11/9 of the fewest possible rows, and one.

    >>> first_fit([3, 5, 2, 4], room=7)
    [[1, 2], [3, 0]]
    """
    check_positive(room=room)
    if not lengths:
        raise ValueError("there is no example to pack; the training set is empty")
    if max(lengths) > room:
        raise ValueError(f"an example has {max(lengths)} tokens, a row {room}; give longer rows")
    rows: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = next((r for r, free in enumerate(left) if free >= lengths[i]), len(rows))
        if at == len(rows):
            rows.append([])
            left.append(room)
        rows[at].append(i)
        left[at] -= lengths[i]
    return rows


def pack(examples: Sequence[Example], room: int, pad_id: int = 0) -> Packed:
    """Examples in rows of `room` tokens.

    An example's first token is nobody's label: what stands before it is another text.

    >>> packed = pack([Example([5, 6], [5, 6]), Example([7, 8, 9], [7, 8, 9])], room=6)
    >>> packed.ids.tolist(), packed.segments.tolist()
    ([[7, 8, 9, 5, 6, 0]], [[1, 1, 1, 2, 2, 0]])
    >>> packed.labels.tolist()
    [[-100, 8, 9, -100, 6, -100]]
    """
    rows = first_fit([len(example.ids) for example in examples], room)
    shape = len(rows), room
    ids, labels = torch.full(shape, pad_id), torch.full(shape, IGNORED)
    segments = torch.zeros(shape, dtype=torch.long)
    for r, row in enumerate(rows):
        start = 0
        for number, i in enumerate(row, start=1):
            end = start + len(examples[i].ids)
            ids[r, start:end] = torch.tensor(examples[i].ids)
            labels[r, start:end] = torch.tensor(examples[i].labels)
            labels[r, start] = IGNORED
            segments[r, start:end] = number
            start = end
    return Packed(ids, labels, segments)


def restarted_positions(segments: Tensor) -> Tensor:
    """(B, T): each token's place in its own example; 0 where nothing stands.

    >>> restarted_positions(torch.tensor([[1, 1, 1, 2, 2, 0]]))
    tensor([[0, 1, 2, 0, 1, 0]])
    """
    steps = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return (steps - (steps * starts).cummax(dim=1).values) * (segments > 0)


def block_diagonal_mask(segments: Tensor) -> Tensor:
    """(B, 1, T, T): True where a token may look, at those before it in its own example.

    >>> block_diagonal_mask(torch.tensor([[1, 1, 2, 0]]))[0, 0].int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 0, 1, 0],
            [0, 0, 0, 0]], dtype=torch.int32)
    """
    same = segments.unsqueeze(2) == segments.unsqueeze(1)  # (B, T, T)
    return (same & (segments > 0).unsqueeze(2)).tril().unsqueeze(1)


def packed_logits(decoder: Decoder, ids: Tensor, segments: Tensor) -> Tensor:
    """Logits (B, T, V) of packed rows: those that each example has alone.

    The decoder's own forward pass, with another mask and other positions. The limit of positions
    holds for an example, not for a row.
    """
    check_ids(ids, decoder.config.vocab_size)
    if ids.shape != segments.shape:
        raise ValueError(f"ids are {tuple(ids.shape)}, segments {tuple(segments.shape)}")
    positions, visible = restarted_positions(segments), block_diagonal_mask(segments)
    rotary = decoder.rotary(positions, int(positions.max()) + 1)
    x = decoder.token_embedding(ids)
    for block in decoder.blocks:
        x = block(x, mask=visible, causal=False, rotary=rotary)  # the mask has the triangle
    return decoder.out(decoder.norm(x))
