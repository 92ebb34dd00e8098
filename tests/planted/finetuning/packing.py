"""Plausible wrong versions of course_utils.finetuning.packing."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("finetuning.packing")


def pack_with_first_labels(examples, room, pad_id=0):
    """The last token of one text learns to say the first of the next."""
    packed = right["pack"](examples, room, pad_id)
    starts = torch.ones_like(packed.segments, dtype=torch.bool)
    starts[:, 1:] = packed.segments[:, 1:] != packed.segments[:, :-1]
    starts &= packed.segments > 0
    return packed._replace(labels=torch.where(starts, packed.ids, packed.labels))


def pack_as_one(examples, room, pad_id=0):
    packed = right["pack"](examples, room, pad_id)
    return packed._replace(segments=packed.segments.clamp(max=1))


def pack_the_first_row(examples, room, pad_id=0):
    packed = right["pack"](examples, room, pad_id)
    return right["Packed"](*(part[:1] for part in packed))


def positions_that_go_on(segments):
    return torch.arange(segments.shape[1]).expand_as(segments)


def positions_from_one(segments):
    return right["restarted_positions"](segments) + (segments > 1)


def mask_without_blocks(segments):
    n = segments.shape[1]
    return torch.ones(len(segments), 1, n, n, dtype=torch.bool).tril()


def mask_without_triangle(segments):
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    return (same & (segments > 0).unsqueeze(2)).unsqueeze(1)


def mask_upside_down(segments):
    return right["block_diagonal_mask"](segments).transpose(2, 3)


def mask_without_itself(segments):
    return right["block_diagonal_mask"](segments).tril(-1)


def next_fit(lengths, room):
    """Only the last row is looked at."""
    right["first_fit"](lengths, room)
    rows, left = [], 0
    for i, length in enumerate(lengths):
        if length > left:
            rows.append([])
            left = room
        rows[-1].append(i)
        left -= length
    return rows


def fit_one_too_many(lengths, room):
    right["first_fit"](lengths, room)
    return right["first_fit"](lengths, room + 1)


def logits_of_the_text_as_one(decoder, ids, segments):
    """The decoder as it is: every text sees those before it."""
    right["packed_logits"](decoder, ids, segments)
    return decoder(ids, (segments > 0).long())


BUGS = [
    Bug("pack", "learns across texts", pack_with_first_labels),
    Bug("pack", "makes one text of all", pack_as_one),
    Bug("pack", "loses rows", pack_the_first_row),
    Bug("restarted_positions", "goes on", positions_that_go_on, "positions or packed_logits"),
    Bug("restarted_positions", "starts later texts at 1", positions_from_one, "positions"),
    Bug("block_diagonal_mask", "has no blocks", mask_without_blocks, "mask or packed_logits"),
    Bug("block_diagonal_mask", "shows the future", mask_without_triangle, "mask or packed_logits"),
    Bug("block_diagonal_mask", "is upside down", mask_upside_down, "mask or packed_logits"),
    Bug("block_diagonal_mask", "hides the token itself", mask_without_itself, "mask or packed"),
    Bug("first_fit", "looks at the last row alone", next_fit),
    Bug("first_fit", "takes a token too many", fit_one_too_many),
    Bug("packed_logits", "reads one text", logits_of_the_text_as_one),
]
