"""The cache behind `next_logits`, and scores of given texts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from decoding_inputs import INF, chain, close, prompts

from course_utils.inference import decoding
from course_utils.inference.next_logits import (
    CachedNextLogits,
    cached_next_logits_of,
    next_logits_of,
    sequence_logprob,
    token_logprobs,
)
from course_utils.inference.search import beam_search, exact_search


def test_sequence_logprob_worked_case():
    got = sequence_logprob(chain, [0, 2, 3, 0], 1)
    assert got == pytest.approx(math.log(0.4 * 0.9 * 1.0), abs=1e-6)  # fp32
    assert sequence_logprob(chain, [0, 2, 3, 0], 3) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("prompt_len", [0, 2, 1.0])
def test_scoring_refuses_a_bad_prompt_len(prompt_len):
    for score in (lambda: sequence_logprob(chain, [0, 1], prompt_len),
                  lambda: token_logprobs(None, [0, 1], prompt_len)):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"prompt_len is .*; it must be an integer from 1 to 1"
        ):
            score()


def test_cachednextlogits_equals_next_logits_of(tiny):
    cached, plain = cached_next_logits_of(tiny), next_logits_of(tiny)
    ids = prompts(1, length=9)[0]
    for length in (4, 5, 6, 9):  # one token at a time, then three
        close(cached(ids[:, :length]), plain(ids[:, :length]))
    assert cached.tokens_read == 9


def test_cachednextlogits_follows_its_rows(tiny):
    """Rows swapped, repeated, dropped and multiplied, as beam search does."""
    cached, plain = cached_next_logits_of(tiny), next_logits_of(tiny)
    ids = prompts(3)[:, 0]
    close(cached(ids), plain(ids))
    for order in ([2, 0, 1], [1, 1, 0], [0, 2], [1, 0, 0, 1]):
        ids = ids[order]
        ids = torch.cat([ids, torch.arange(10, 10 + len(ids))[:, None]], dim=1)
        close(cached(ids), plain(ids))
    assert cached.tokens_read == 15 + 3 + 3 + 2 + 4


def test_cachednextlogits_keeps_rows_that_are_alike_apart():
    """Ids alone do not tell what a row follows: here its number, on which its logits depend."""

    def read(ids, cache):
        numbers = torch.arange(len(ids)) if cache is None else cache
        return F.one_hot(numbers, 4).float(), numbers

    cached = CachedNextLogits(read, lambda numbers, rows: numbers[rows])
    ids = torch.zeros(3, 2, dtype=torch.long)
    for length in (1, 2):
        assert cached(ids[:, :length]).argmax(-1).tolist() == [0, 1, 2]
    assert cached.tokens_read == 6


def test_cachednextlogits_starts_over_for_another_text(tiny):
    cached, plain = cached_next_logits_of(tiny), next_logits_of(tiny)
    one, other = prompts(2, length=6)
    for ids in (one[:, :4], other[:, :5], other[:, :5], one, one[:, :3], torch.cat([one, other])):
        close(cached(ids), plain(ids))


def test_cachednextlogits_ignores_later_changes_of_the_callers_ids(tiny):
    cached, plain = cached_next_logits_of(tiny), next_logits_of(tiny)
    ids = prompts(1, length=6)[0]
    cached(ids[:, :5])
    ids[0, 2] = 3  # in place
    close(cached(ids), plain(ids))


def test_cachednextlogits_survives_an_interrupted_call(tiny):
    class Interrupted:
        forward = tiny.forward
        fail = False

        def __call__(self, **arguments):
            output = tiny(**arguments)  # the cache has grown …
            if self.fail:
                raise KeyboardInterrupt  # … but its owner never heard of it
            return output

    model = Interrupted()
    cached, ids = cached_next_logits_of(model), prompts(1, length=6)[0]
    cached(ids[:, :4])
    model.fail = True
    with pytest.raises(KeyboardInterrupt):
        cached(ids[:, :5])
    model.fail = False
    close(cached(ids), next_logits_of(tiny)(ids))


def test_cachednextlogits_gives_ordinary_tensors(tiny):
    logits = cached_next_logits_of(tiny)(prompts(1)[0])
    logits[0, 0] = -INF  # an inference tensor would refuse this
    assert not logits.is_inference()


def test_cachednextlogits_goes_on_after_a_loop(tiny):
    """The loops run in inference mode; what they left in the cache must be of use outside it."""
    cached, plain = cached_next_logits_of(tiny), next_logits_of(tiny)
    beams = beam_search(cached, prompts(1)[0], 4)
    ids = cached.ids[[1, 0, 1]]
    ids = torch.cat([ids, torch.tensor([[5], [6], [7]])], dim=1)
    read = cached.tokens_read
    close(cached(ids), plain(ids))
    assert (cached.tokens_read - read, len(beams)) == (3, 4)


def test_cachednextlogits_works_for_a_model_without_logits_to_keep(tiny):
    class Wrapped(torch.nn.Module):
        def forward(self, **arguments):
            assert "logits_to_keep" not in arguments
            return tiny(**arguments)

    ids = prompts(1)[0]
    close(cached_next_logits_of(Wrapped())(ids), next_logits_of(tiny)(ids))
    close(next_logits_of(Wrapped())(ids), next_logits_of(tiny)(ids))


@pytest.mark.parametrize("loop", [decoding.greedy, beam_search, exact_search])
def test_loops_cannot_tell_cachednextlogits_from_next_logits_of(tiny, loop):
    for prompt in prompts(3):
        cached = cached_next_logits_of(tiny)
        with_cache, without = (loop(f, prompt, 4) for f in (cached, next_logits_of(tiny)))
        if loop is exact_search:
            with_cache, without = [with_cache], [without]
        assert [c.tokens for c in with_cache] == [c.tokens for c in without]


def test_token_logprobs_equals_sequence_logprob(tiny):
    ids = prompts(2, length=8)[:, 0]
    for prompt_len in (1, 3, 7):
        got = token_logprobs(tiny, ids, prompt_len)
        assert got.shape == (2, 8 - prompt_len)
        next_logits = next_logits_of(tiny)
        expected = [sequence_logprob(next_logits, row, prompt_len) for row in ids]
        close(got.sum(-1), torch.tensor(expected))


def test_greedy_logprob_equals_token_logprobs(tiny):
    prompt = prompts(1)[0]
    (got,) = decoding.greedy(cached_next_logits_of(tiny), prompt, 6)
    ids = torch.cat([prompt, torch.tensor([got.tokens])], dim=1)
    close(torch.tensor(got.logprob), token_logprobs(tiny, ids, 5).sum())
    beams = beam_search(cached_next_logits_of(tiny), prompt, 6)
    ids = torch.cat([prompt, torch.tensor([beams[-1].tokens])], dim=1)
    close(torch.tensor(beams[-1].logprob), token_logprobs(tiny, ids, 5).sum())
