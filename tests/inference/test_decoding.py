"""Greedy and sampling against transformers' `generate`, and by hand.

Tests whose name has `smollm2` need the packaged model; the others take milliseconds. Each test has
the name of the function that it tests in its own, so that tests/planted finds it.
"""

from __future__ import annotations

import math

import pytest
import torch
from decoding_inputs import CHAIN, INF, MANY, chain, generate, padded, prompts, smollm2_prompts
from scipy.stats import chisquare
from transformers import TopKLogitsWarper, TopPLogitsWarper

from course_utils.inference import decoding, processors
from course_utils.inference.next_logits import cached_next_logits_of, next_logits_of
from course_utils.inference.search import beam_search, exact_search
from course_utils.training import batches_by_length

ONE_ID = torch.tensor([[0]])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("temperature", (-0.1,), "temperature is -0.1; it must be a finite number >= 0"),
        ("temperature", (INF,), "temperature is inf"),
        ("temperature", (math.nan,), "temperature is nan"),
        ("top_k", (0,), "top_k is 0; it must be an integer >= 1"),
        ("top_k", (2.5,), "top_k is 2.5"),
        ("top_p", (1.01,), "top_p is 1.01; it must be between 0 and 1"),
        ("top_p", (-0.01,), "top_p is -0.01"),
        ("top_p", (math.nan,), "top_p is nan"),
        ("min_p", (1.01,), "min_p is 1.01; it must be between 0 and 1"),
        ("min_p", (-0.01,), "min_p is -0.01"),
        ("repetition_penalty", (ONE_ID, 0.0), "repetition_penalty is 0.0; it must be a finite num"),
        ("repetition_penalty", (ONE_ID, -1.0), "repetition_penalty is -1.0"),
        ("repetition_penalty", (ONE_ID, math.nan), "repetition_penalty is nan"),
        ("no_repeat_ngram", (ONE_ID, -1), "no_repeat_ngram_size is -1; it must be an integer >= 0"),
        ("no_repeat_ngram", (ONE_ID, 1.5), "no_repeat_ngram_size is 1.5"),
    ],
)
def test_bad_parameters_are_named_with_their_range(name, arguments, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        getattr(processors, name)(torch.zeros(1, 4), *arguments)


def test_filters_that_leave_no_token_are_refused():
    def nothing(logits, ids):
        return torch.full_like(logits, -INF)

    for loop in (decoding.greedy, decoding.sample, beam_search):
        with pytest.raises(ValueError, match="the filters left no token"):
            loop(lambda ids: torch.zeros(len(ids), 3), [0], 2, process=nothing)


def test_greedy_takes_the_likeliest_token():
    (got,) = decoding.greedy(chain, [0], 2)
    assert got.tokens == (1, 1)
    assert got.finish_reason == "length"
    assert got.finished
    assert got.logprob == pytest.approx(math.log(0.5 * 0.4), abs=1e-6)  # fp32


def test_greedy_stops_at_a_stop_token_and_keeps_it():
    (got,) = decoding.greedy(chain, [2], 5, stop=[0])
    assert (got.tokens, got.finish_reason) == ((3, 0), "stop")


def test_greedy_rows_of_a_batch_end_on_their_own():
    got = decoding.greedy(chain, torch.tensor([[1, 2], [0, 0], [3, 3]]), 3, stop=[3])
    assert [c.tokens for c in got] == [(3,), (1, 1, 1), (0, 1, 1)]
    assert [c.finish_reason for c in got] == ["stop", "length", "length"]
    alone = [decoding.greedy(chain, row, 3, stop=[3])[0] for row in ([1, 2], [0, 0], [3, 3])]
    assert got == alone


def test_greedy_takes_the_first_of_equals():
    (got,) = decoding.greedy(lambda ids: torch.zeros(1, 5), [0], 1)
    assert got.tokens == (0,)


def test_sample_repeats_with_its_generator():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return decoding.sample(chain, torch.zeros(50, 1).long(), 8, generator=generator)

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def chi_square(tokens, probabilities):
    """p-value of drawn tokens against the exact distribution; bins below 5 expected are pooled."""
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    expected = probabilities.double() / probabilities.sum() * len(tokens)
    assert counts[expected == 0].sum() == 0, "a token of probability 0 was drawn"
    small = (expected < 5) & (expected > 0)
    if small.any():
        counts = torch.cat([counts[expected >= 5], counts[small].sum()[None]])
        expected = torch.cat([expected[expected >= 5], expected[small].sum()[None]])
    else:
        counts, expected = counts[expected > 0], expected[expected > 0]
    return chisquare(counts, expected).pvalue


def test_sample_follows_the_joint_distribution_of_two_tokens():
    generator = torch.Generator().manual_seed(0)
    drawn = decoding.sample(chain, torch.zeros(20_000, 1).long(), 2, generator=generator)
    pairs = torch.tensor([4 * a + b for a, b in (c.tokens for c in drawn)])
    exact = (CHAIN[0][:, None] * CHAIN).flatten()
    assert chi_square(pairs, exact) > 1e-3  # one seed in a thousand would fail; this one is fixed


def test_sample_follows_the_reshaped_distribution():
    generator = torch.Generator().manual_seed(0)
    process = processors.processor(temperature=0.7, top_k=3)
    prompt = torch.ones(20_000, 1).long()
    drawn = decoding.sample(chain, prompt, 1, process=process, generator=generator)
    tokens = torch.tensor([c.tokens[0] for c in drawn])
    exact = torch.tensor([0.3, 0.4, 0.3, 0.0]) ** (1 / 0.7)
    assert chi_square(tokens, exact) > 1e-3  # as above


LOOPS = {
    "greedy": decoding.greedy,
    "sample": decoding.sample,
    "beam_search": beam_search,
    "exact_search": exact_search,
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize(
    ("prompt", "length", "options", "message"),
    [
        ([], 1, {}, "the prompt is empty"),
        (torch.zeros(1, 0).long(), 1, {}, "the prompt is empty"),
        ([0.5], 1, {}, "dtype torch.float32; it must be token ids"),
        ([[[0]]], 1, {}, r"shape \(1, 1, 1\)"),
        ([0], 0, {}, "max_new_tokens is 0; it must be an integer >= 1"),
        ([0], 1.5, {}, "max_new_tokens is 1.5"),
        ([0], 1, {"stop": 2}, "stop is 2; it must be a collection"),
    ],
)
def test_loops_refuse_bad_arguments(loop, prompt, length, options, message):
    with pytest.raises(ValueError, match=message):
        loop(chain, prompt, length, **options)


def test_loops_refuse_logits_of_every_position():
    with pytest.raises(ValueError, match=r"shape \(1, 2, 4\) .* of the last position only"):
        decoding.greedy(lambda ids: torch.zeros(*ids.shape, 4), [0, 1], 1)


@pytest.mark.parametrize("stop", [[], [7], MANY])
def test_greedy_equals_generate(tiny, stop):
    for prompt in prompts(5):
        ours = decoding.greedy(cached_next_logits_of(tiny), prompt, 20, stop=stop)
        expected, _ = generate(tiny, prompt, 20, eos_token_id=stop or None)
        assert padded(ours) == expected


def test_greedy_of_a_batch_equals_generate(tiny):
    prompt, stop = prompts(6)[:, 0], MANY
    ours = decoding.greedy(cached_next_logits_of(tiny), prompt, 15, stop=stop)
    assert padded(ours) == generate(tiny, prompt, 15, eos_token_id=stop)[0]


def test_greedy_with_penalties_equals_generate(tiny):
    penalties = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    for prompt in prompts(5):
        process = processors.processor(**penalties)
        ours = decoding.greedy(next_logits_of(tiny), prompt, 20, process=process)
        assert padded(ours) == generate(tiny, prompt, 20, **penalties)[0]


SETTINGS = [
    {"temperature": 1.5},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2,
     "no_repeat_ngram_size": 3},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "+".join(settings))
def test_sample_with_processors_equals_generate_draw_for_draw(tiny, settings):
    """The same settings and seed, the same text: distributions agree, and so does their order."""
    for seed, prompt in enumerate(prompts(4)):
        torch.manual_seed(seed)
        next_logits = cached_next_logits_of(tiny)
        got = decoding.sample(next_logits, prompt, 15, process=processors.processor(**settings))
        torch.manual_seed(seed)
        options = {"do_sample": True, "top_k": 0, "top_p": 1.0, **settings}
        assert padded(got) == generate(tiny, prompt, 15, **options)[0]


def test_greedy_equals_generate_on_smollm2(smollm2):
    """Twenty prompts, those of one length in one batch, whose rows end on their own."""
    model, tokenizer = smollm2
    stop = [tokenizer.eos_token_id, tokenizer(".").input_ids[0]]
    every, reasons = smollm2_prompts(tokenizer), set()
    for rows in batches_by_length([ids.shape[1] for ids in every], 20, equal=True):
        prompt = torch.cat([every[i] for i in rows])
        ours = decoding.greedy(cached_next_logits_of(model), prompt, 7, stop=stop)
        assert padded(ours) == generate(model, prompt, 7, eos_token_id=stop)[0]
        for c in ours:
            assert c.finish_reason == ("stop" if c.tokens[-1] in stop else "length")
        reasons |= {c.finish_reason for c in ours}
    assert reasons == {"stop", "length"}


def test_sample_follows_the_exact_distribution_of_smollm2(smollm2):
    model, tokenizer = smollm2
    prompt = smollm2_prompts(tokenizer)[4]
    logits = next_logits_of(model)(prompt)
    process = processors.processor(temperature=1.2, top_k=30, top_p=0.95)
    generator = torch.Generator().manual_seed(0)
    tokens = []
    for _ in range(10):
        many = prompt.expand(100, -1)
        drawn = decoding.sample(
            lambda ids: logits.expand(len(ids), -1), many, 1, process=process, generator=generator
        )
        tokens += [c.tokens[0] for c in drawn]
    warped = logits / 1.2
    for warper in (TopKLogitsWarper(30), TopPLogitsWarper(0.95)):
        warped = warper(prompt, warped)
    exact = warped[0].softmax(-1)
    assert chi_square(torch.tensor(tokens), exact) > 1e-3  # the seed is fixed, see above


@pytest.mark.parametrize("stop", [(), (2,)])
def test_greedy_equals_write_plain(stop):
    def likeliest(logits):
        return int(logits.argmax())

    for prompt in ([0], [1, 0, 2]):
        (fast,) = decoding.greedy(chain, prompt, 6, stop=stop)
        assert tuple(decoding.write_plain(chain, prompt, 6, likeliest, stop=stop)) == fast.tokens
