"""The encoder–decoder against transformers' T5: values, caches, padding."""

from __future__ import annotations

import torch
from transformer_inputs import llama

from course_utils.architectures.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from course_utils.architectures.positions import sinusoidal_positions


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


def test_sinusoidal_positions_are_added_to_both_sides_and_shift_with_the_cache():
    torch.manual_seed(0)
    shared = {"vocab_size": 20, "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 16}
    plain = EncoderDecoder(EncoderDecoderConfig(**shared))
    sizes = EncoderDecoderConfig(**shared, sinusoidal=True)
    model = EncoderDecoder(sizes)
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
