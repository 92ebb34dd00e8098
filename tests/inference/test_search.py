"""Beam and exact search against transformers' `generate`, brute force, and by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from decoding_inputs import (
    CHAIN,
    MANY,
    PAD,
    TEXTS,
    chain,
    close,
    generate,
    padded,
    prompts,
)

from course_utils.inference import decoding, processors
from course_utils.inference.next_logits import cached_next_logits_of, token_logprobs
from course_utils.inference.search import beam_search, exact_search, exact_search_plain


def test_beam_search_finds_what_greedy_misses():
    best = beam_search(chain, [0], 2, num_beams=2)
    assert [c.tokens for c in best] == [(2, 3), (1, 1)]
    assert best[0].logprob == pytest.approx(math.log(0.4 * 0.9), abs=1e-6)  # fp32
    assert best[0].score == pytest.approx(best[0].logprob / 2)


def test_beam_search_with_one_beam_is_greedy():
    (beam,) = beam_search(chain, [0], 5, num_beams=1)
    (greedy,) = decoding.greedy(chain, [0], 5)
    assert (beam.tokens, beam.finish_reason) == (greedy.tokens, greedy.finish_reason)
    assert beam.logprob == pytest.approx(greedy.logprob, abs=1e-6)  # fp32


def test_beam_search_length_penalty_prefers_long_or_short():
    stop, short, long = [3], (3,), (2, 3)
    for penalty, first in ((0.0, long), (-3.0, short), (1.0, long)):
        best = beam_search(
            chain, [0], 2, num_beams=4, length_penalty=penalty, stop=stop, early_stopping="never"
        )
        assert best[0].tokens == first, f"length_penalty={penalty}"
    for c in beam_search(chain, [0], 3, num_beams=4, length_penalty=2.0, stop=stop):
        assert c.score == pytest.approx(c.logprob / len(c.tokens) ** 2.0)


def follow(table):
    return lambda ids: torch.tensor(table)[ids[:, -1]].log()


def test_beam_search_early_stopping_does_not_wait_for_better_beams():
    table = [[0, 0.7, 0.12, 0.18], [0, 0.8, 0.05, 0.15], [0, 0, 0, 1], [1, 0, 0, 0]]
    found = {
        early: [
            c.tokens
            for c in beam_search(follow(table), [0], 3, num_beams=2, stop=[3], early_stopping=early)
        ]
        for early in (True, False)
    }
    # After two steps ln 0.12 / 2 and ln 0.18 are finished; beam (1, 1), ln 0.56 / 2, is better.
    assert found == {True: [(2, 3), (3,)], False: [(1, 1, 1), (1, 1, 3)]}


def test_beam_search_early_stopping_never_waits_for_what_length_may_bring():
    table = [[0, 0.4, 0.1, 0.5], [0.1, 0, 0, 0.9], [1, 0, 0, 0], [1, 0, 0, 0]]
    found = {
        early: beam_search(follow(table), [0], 4, num_beams=1, stop=[3], early_stopping=early)[
            0
        ].tokens
        for early in (False, "never")
    }
    # Beam (1,) scores ln 0.4, less than the finished ln 0.5; with its next token it is ln 0.36 / 2.
    assert found == {False: (3,), "never": (1, 3)}


def test_beam_search_ends_when_nothing_can_improve():
    """Calls of the model: after one step the finished beam is better than what runs on."""
    table, calls = [[0, 0.4, 0.1, 0.5], [0.1, 0, 0, 0.9], [1, 0, 0, 0], [1, 0, 0, 0]], []

    def counted(ids):
        calls.append(len(ids))
        return follow(table)(ids)

    beam_search(counted, [0], 4, num_beams=1, stop=[3])
    assert len(calls) == 1


def test_beam_search_wide_enough_is_exhaustive():
    best = beam_search(chain, [0], 3, num_beams=64)
    every = {
        (a, b, c): (CHAIN[0, a] * CHAIN[a, b] * CHAIN[b, c]).item()
        for a in range(4)
        for b in range(4)
        for c in range(4)
    }
    possible = sorted((p for p in every.values() if p > 0), reverse=True)
    assert [math.exp(c.logprob) for c in best] == pytest.approx(possible, rel=1e-5)  # fp32
    assert all(every[c.tokens] == pytest.approx(math.exp(c.logprob), rel=1e-5) for c in best)


def test_beam_search_stop_token_counts_only_among_the_best_beams():
    best = beam_search(chain, [0], 3, num_beams=1, stop=[3])
    assert best[0].tokens == (1, 1, 1), "3 was third after 0: it may not end a search of one beam"


def test_beam_search_records_its_tree():
    tree = []
    best = beam_search(chain, [0], 3, num_beams=2, stop=[3], tree=tree)
    assert {c.finish_reason for c in tree} <= {"running", "pruned", "stop", "length"}
    assert all(c in tree for c in best)
    running = {c.tokens for c in tree if c.finish_reason == "running"} | {()}
    assert all(c.tokens[:-1] in running for c in tree), "a candidate without a parent"
    for length in (1, 2, 3):
        level = [c for c in tree if len(c.tokens) == length]
        assert [c.logprob for c in level] == sorted((c.logprob for c in level), reverse=True)
        assert sum(c.finish_reason == "running" for c in level) <= 2


def test_beam_search_applies_process_to_log_probabilities():
    process = processors.processor(no_repeat_ngram_size=1)
    best = beam_search(chain, [0, 1], 2, num_beams=4, process=process)
    assert best[0].tokens == (2, 3)
    assert all(len({0, 1, *c.tokens}) == 2 + len(c.tokens) for c in best)


def test_exact_search_beats_greedy():
    best = exact_search(chain, [0], 2)
    assert best.tokens == (2, 3)
    assert best.logprob > decoding.greedy(chain, [0], 2)[0].logprob


@pytest.mark.parametrize("seed", range(8))
def test_exact_search_equals_plain(seed):
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)) * 2

    def random_chain(ids):
        return table[ids[:, -1]] + table[ids[:, 0]].flip(-1)

    best = exact_search(random_chain, [seed % 5], 4)
    assert best.tokens == exact_search_plain(random_chain, [seed % 5], 4, vocab_size=5)
    assert best.finish_reason == "length"


def test_exact_search_weighs_short_and_long_endings_alike():
    best = exact_search(chain, [0], 4, stop=[3])
    assert (best.tokens, best.finish_reason) == ((2, 3), "stop")
    assert exact_search(chain, [2], 4, stop=[3]).tokens == (3,)


def test_exact_search_refuses_to_run_away():
    with pytest.raises(
        ValueError, match=r"can still win, more than max_prefixes = 3; search fewer"
    ):
        exact_search(chain, [0], 6, max_prefixes=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0; it must be an integer >= 1"),
        ({"length_penalty": math.nan}, "length_penalty is nan; it must be a finite number"),
        ({"early_stopping": "maybe"}, "early_stopping is 'maybe'; it must be True, False or"),
    ],
)
def test_beam_search_refuses_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        beam_search(chain, [0], 1, **options)


def test_beam_search_refuses_two_prompts():
    with pytest.raises(ValueError, match="the prompt has 2 rows"):
        beam_search(chain, [[0], [1]], 1)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.6, 1.0, 2.0, 0.0, -1.0])
def test_beam_search_equals_generate(tiny, length_penalty, early_stopping):
    """All four returned sequences and their scores, with none, one and several stop tokens."""
    for i, prompt in enumerate(prompts(6)):
        stop = [[], [7], MANY][i % 3]
        search = {"num_beams": 4, "length_penalty": length_penalty}
        search["early_stopping"] = early_stopping
        ours = beam_search(cached_next_logits_of(tiny), prompt, 8, stop=stop, **search)
        expected, out = generate(
            tiny,
            prompt,
            8,
            eos_token_id=stop or None,
            num_return_sequences=4,
            return_dict_in_generate=True,
            output_scores=True,
            **search,
        )
        fill = PAD if stop else -1  # what generate pads with
        assert padded(ours, fill) == expected
        scores = torch.tensor([c.score for c in ours])
        # fp32, and the prompt read once here, once for each beam there
        torch.testing.assert_close(scores, out.sequences_scores, rtol=1e-4, atol=1e-5)


def test_beam_search_with_penalties_equals_generate(tiny):
    for prompt in prompts(4):
        penalties = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
        process = processors.processor(**penalties)
        ours = beam_search(cached_next_logits_of(tiny), prompt, 10, process=process)
        expected, _ = generate(tiny, prompt, 10, num_beams=4, **penalties)
        assert list(ours[0].tokens) == expected[0]


def test_beam_search_reads_each_token_once(tiny):
    cached = cached_next_logits_of(tiny)
    beam_search(cached, prompts(1)[0], 6, num_beams=4)
    assert cached.tokens_read == 5 + 4 * 5  # the prompt once, then four beams for five steps


def ends_of_sentence(tokenizer):
    """Stop tokens that come early, so that beams of different lengths compete."""
    return [tokenizer.eos_token_id, *tokenizer(".\n,").input_ids]


def test_beam_search_equals_generate_on_smollm2(smollm2):
    """Every pair of length penalty and early stopping once; `tiny` has all of them six times."""
    model, tokenizer = smollm2
    stop = ends_of_sentence(tokenizer)
    next_logits, lengths = cached_next_logits_of(model), set()
    pairs = itertools.product((0.6, 1.0, 2.0), (False, True, "never"))
    for text, (length_penalty, early_stopping) in zip(TEXTS, pairs, strict=False):
        prompt = tokenizer(text, return_tensors="pt").input_ids
        search = {"num_beams": 4, "length_penalty": length_penalty}
        search["early_stopping"] = early_stopping
        ours = beam_search(next_logits, prompt, 6, stop=stop, **search)
        expected, _ = generate(model, prompt, 6, eos_token_id=stop, **search)
        assert list(ours[0].tokens) == expected[0], text
        lengths |= {len(c.tokens) for c in ours}
    assert len(lengths) > 2, "every beam ran to the maximum: nothing was shown of length penalties"


def test_exact_search_beats_greedy_and_beams_on_smollm2(smollm2):
    model, tokenizer = smollm2
    prompt = tokenizer("Snow is white because", return_tensors="pt").input_ids
    next_logits = cached_next_logits_of(model)
    best = exact_search(next_logits, prompt, 4)
    (greedy,) = decoding.greedy(next_logits, prompt, 4)
    beam = beam_search(next_logits, prompt, 4)[0]
    assert greedy.logprob + 0.1 < beam.logprob < best.logprob - 0.1  # measured: −6.7, −6.4, −5.0
    ids = torch.cat([prompt, torch.tensor([best.tokens])], dim=1)
    close(torch.tensor(best.logprob), token_logprobs(model, ids, prompt.shape[1]).sum())
