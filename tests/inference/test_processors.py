"""Logits processors against worked cases, their plain forms, and transformers' warpers."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from decoding_inputs import INF, chain
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from course_utils.engines import Engine
from course_utils.inference import decoding, processors
from course_utils.inference.search import beam_search

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


# Derandomized: the guard of this course must not fail on one machine and pass on another.
prop = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@st.composite
def logits_(draw, dtypes=DTYPES, shapes=((), (1,), (3,), (2, 2)), holes=True):
    """Logits of any shape, type and scale, with ties, extremes and −inf; never a row all −inf."""
    dtype, lead = draw(st.sampled_from(dtypes)), draw(st.sampled_from(shapes))
    size = draw(st.sampled_from((1, 2, 7, 64, 200, 1024)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from((0.0, 0.1, 1.0, 4.0, 1000.0)))
    x = torch.randn(*lead, size, generator=generator) * scale
    if draw(st.booleans()):
        x = x.mul(2).round().div(2)  # a grid: many ties
    if holes and draw(st.booleans()):
        x[torch.rand(x.shape, generator=generator) < 0.3] = -INF
        x[..., draw(st.integers(0, size - 1))] = 0.25
    return x.to(dtype)


@st.composite
def logits_and_ids(draw, **options):
    x = draw(logits_(**options))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    length, alphabet = draw(st.integers(1, 30)), draw(st.sampled_from((1, 2, 5, 1000)))
    top = min(alphabet, x.shape[-1])
    return x, torch.randint(top, (*x.shape[:-1], length), generator=generator)


def theirs(processor, logits, ids=None):
    """transformers' processors take (B, V) only."""
    flat = logits.reshape(-1, logits.shape[-1])
    ids = torch.zeros(len(flat), 1, dtype=torch.long) if ids is None else ids
    return processor(ids.reshape(len(flat), -1), flat.clone()).reshape(logits.shape)


def rows(logits):
    return logits.reshape(-1, logits.shape[-1])


def same(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def kept(logits):
    return logits > -INF


def test_temperature_worked_case():
    same(
        processors.temperature(torch.tensor([1.0, -2.0, -INF]), 0.5),
        torch.tensor([2.0, -4.0, -INF]),
    )


def test_temperature_zero_keeps_the_first_of_the_largest():
    got = processors.temperature(torch.tensor([[1.0, 3.0, 3.0], [-1.0, -2.0, -3.0]]), 0)
    same(got, torch.tensor([[-INF, 3.0, -INF], [-1.0, -INF, -INF]]))


@pytest.mark.parametrize(
    ("dtype", "temperature"),
    [
        (torch.float32, 1e-37),
        (torch.float32, 1e-39),  # its inverse is no float32
        (torch.float32, 5e-324),  # the least there is; its inverse is no float64 either
        (torch.float64, 5e-324),
        (torch.bfloat16, 1e-38),
        (torch.float16, 1e-4),
    ],
)
def test_temperature_near_zero_is_greedy(dtype, temperature):
    batch = torch.tensor([[9.0, 8.0, -INF, 0.0], [0.0, -70.0, -9.0, -80.0], [-9, -8, -7, -9]])
    got = processors.temperature(batch.to(dtype), temperature)
    same(got.double().softmax(-1).argmax(-1), torch.tensor([0, 0, 2]))
    same(got.double().softmax(-1).amax(-1), torch.ones(3).double())
    assert got.dtype == dtype


def test_temperature_that_overflows_leaves_other_rows_and_ties_alone():
    """float16 holds numbers up to 65,504: at 0.5 the first row is beyond it, the second is not."""
    logits = torch.tensor([[40_000.0, 40_000.0, 39_968.0], [1.0, 2.0, 3.0]]).half()
    got = processors.temperature(logits, 0.5)
    same(got, torch.tensor([[0.0, 0.0, -64.0], [2.0, 4.0, 6.0]]).half())
    below = processors.temperature(-logits[:1], 0.5)  # to -inf, all of them: no token would be left
    same(below, torch.tensor([[-64.0, -64.0, 0.0]]).half())
    broken = processors.temperature(torch.tensor([[0.0, math.nan], [0.0, INF]]).half(), 0.5)
    assert not broken.amax(-1).isfinite().any(), "what the model broke is not repaired"


def test_temperature_near_zero_samples_as_greedy_does():
    cold = processors.processor(temperature=1e-39)
    (a,), (b,) = decoding.greedy(chain, [0], 6), decoding.sample(chain, [0], 6, process=cold)
    assert a == b


@prop
@given(logits_(), st.floats(0.05, 20))
def test_temperature_equals_transformers(logits, temperature):
    got = processors.temperature(logits, temperature)
    # A product with 1 / temperature may round its last bit differently from a quotient.
    last_bits = 2 * torch.finfo(logits.dtype).eps
    torch.testing.assert_close(
        got, theirs(TemperatureLogitsWarper(temperature), logits), rtol=last_bits, atol=1e-7
    )
    assert got.dtype == logits.dtype


@prop
@given(logits_(dtypes=(torch.float64,), holes=False), st.floats(0.2, 5), st.floats(1.05, 3))
def test_temperature_raises_entropy_strictly(logits, T, factor):
    spread = (logits.amax(-1) - logits.amin(-1)).flatten()
    low, high = (processors.entropy(processors.temperature(logits, t)) for t in (T, T * factor))
    # Where all are equal entropy is at its maximum already; far apart it is 0 to the last bit.
    moving = ((spread > 1e-3) & (spread < 30)).reshape(low.shape)
    assert (high > low)[moving].all()
    assert (high >= low - 1e-12).all()  # float64 rounding


def test_top_k_worked_case():
    got = processors.top_k(torch.tensor([[1.0, 4.0, 2.0, 3.0], [0.0, 0.0, -1.0, 5.0]]), 2)
    same(got, torch.tensor([[-INF, 4.0, -INF, 3.0], [0.0, 0.0, -INF, 5.0]]))  # ties stay


@prop
@given(logits_(), st.integers(1, 300))
def test_top_k_equals_transformers(logits, k):
    same(processors.top_k(logits, k), theirs(TopKLogitsWarper(k), logits))


@prop
@given(logits_(), st.integers(1, 300))
def test_top_k_equals_plain(logits, k):
    plain = torch.stack([processors.top_k_plain(row, k) for row in rows(logits)])
    same(processors.top_k(logits, k), plain.reshape(logits.shape))


@prop
@given(logits_(holes=False), st.integers(1, 300))
def test_top_k_keeps_k_and_ties(logits, k):
    count = kept(processors.top_k(logits, k)).sum(-1)
    assert (count >= min(k, logits.shape[-1])).all()


@prop
@given(logits_(), st.integers(1, 20), st.sampled_from((8, 64)))
def test_topk_by_blocks_equals_topk(logits, k, block):
    k = min(k, logits.shape[-1])
    values, indices = processors.topk_by_blocks(logits, k, block)
    same(values, logits.topk(k).values)
    same(logits.gather(-1, indices), values)
    assert indices.sort(-1).values.diff(dim=-1).ne(0).all(), "an index came twice"


def test_top_p_worked_case():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    assert kept(processors.top_p(logits, 0.5 - 1e-6)).tolist() == [False, True, False, False]
    assert kept(processors.top_p(logits, 0.5 + 1e-6)).tolist() == [False, True, False, True]
    assert kept(processors.top_p(logits, 0.9 - 1e-6)).tolist() == [False, True, True, True]
    assert kept(processors.top_p(logits, 0.9 + 1e-6)).all()
    same(processors.top_p(logits, 0.6)[1], logits[1])  # what stays keeps its logit


def test_top_p_limits():
    logits = torch.tensor([1.0, 3.0, 3.0, -200.0, -INF])
    assert kept(processors.top_p(logits, 0)).tolist() == [False, True, False, False, False]
    # transformers' class drops tokens of probability 0 in float32 at p = 1; `generate` does not
    # apply it then. Here p = 1 changes nothing.
    same(processors.top_p(logits, 1), logits)


def test_top_p_ties_at_the_edge_keep_lower_ids():
    assert kept(processors.top_p(torch.zeros(8), 0.3)).tolist() == [True] * 3 + [False] * 5
    batch = torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]])
    expected = [[True, True, True, False], [True, False, False, False]]
    assert kept(processors.top_p(batch, 0.6)).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 3, 7, 10, 64, 100, 1000, 1024])
def test_top_p_of_equal_tokens_keeps_as_many_as_the_share_says(size, dtype):
    """p = j / V of V equal tokens is reached by j of them, in the fast form and in the plain."""
    for level in (0.0, -3.3, 11.1):
        row = torch.full((size,), level, dtype=dtype)
        for j in {1, size // 3 or 1, size // 2, size - 1}:
            for form in (processors.top_p, processors.top_p_plain):
                got = kept(form(row, j / size)).tolist()
                assert got == [True] * j + [False] * (size - j), (form.__name__, j)


def test_top_p_counts_the_tail_when_p_is_almost_one():
    """2,000 tokens of 1e-12: together more than what is missing to p."""
    tail = torch.full((2000,), math.log(1e-12), dtype=torch.float64)
    logits = torch.cat([torch.zeros(1, dtype=torch.float64), tail])
    p = 1 - 1e-9  # and SUM_ERROR, 1e-10: the sum without the last 1,100 is enough
    got = processors.top_p(logits, p)
    same(got, processors.top_p_plain(logits, p))
    assert kept(got).sum() == pytest.approx(901, abs=2)


def same_nucleus(got, expected, logits, p, slack=2e-6):
    """As many tokens, of the same logits; except where p meets the sum within rounding."""
    probabilities = logits.double().softmax(-1)
    for a, b, row in zip(rows(got), rows(expected), rows(probabilities), strict=True):
        if kept(a).sum() == kept(b).sum():
            same(a.sort().values, b.sort().values)
        else:
            mass = row.sort(descending=True).values.cumsum(-1)
            low, high = sorted((int(kept(a).sum()), int(kept(b).sum())))
            off = (mass[low - 1 : high - 1] - p).abs().max()
            assert off < slack, (
                f"sizes {low} and {high} differ by {off:.1e} of probability at p={p}"
            )


@prop
@given(logits_(dtypes=(torch.float32, torch.float64)), st.floats(0, 0.999))
def test_top_p_equals_transformers(logits, p):
    got = processors.top_p(logits, p)
    same_nucleus(got, theirs(TopPLogitsWarper(p), logits), logits, p)
    assert got.dtype == logits.dtype
    assert (got[kept(got)] == logits[kept(got)]).all()


@prop
@given(logits_(dtypes=(torch.float16, torch.bfloat16)), st.floats(0, 0.999))
def test_top_p_equals_transformers_in_half_precision(logits, p):
    # transformers adds the probabilities up in the type of the logits, which is rough in half
    # precision; its `generate` converts to float32 first, and so does top_p within.
    got = processors.top_p(logits, p)
    same_nucleus(got.float(), theirs(TopPLogitsWarper(p), logits.float()), logits.float(), p)
    assert got.dtype == logits.dtype


def test_top_p_equals_transformers_at_full_vocabulary():
    generator = torch.Generator().manual_seed(0)
    for scale in (0.5, 3.0, 8.0):  # nuclei of tens of thousands, of thousands, and of a few
        logits = torch.randn(2, 49_152, generator=generator) * scale
        for p in (0.1, 0.9, 0.99):
            got = processors.top_p(logits, p)
            # slack: float32 sums of 49,152 terms
            same_nucleus(got, theirs(TopPLogitsWarper(p), logits), logits, p, slack=2e-5)


@prop
@given(logits_(), st.floats(0, 0.999))
def test_top_p_equals_plain(logits, p):
    plain = torch.stack([processors.top_p_plain(row, p) for row in rows(logits)])
    same_nucleus(processors.top_p(logits, p), plain.reshape(logits.shape), logits, p)
    grid = torch.equal(logits, logits.mul(2).round().div(2))
    if not grid:  # the same tokens too, unless rounding at a tie decides between equals
        sizes = (
            kept(processors.top_p(logits, p)).sum(-1),
            kept(plain).sum(-1).reshape(logits.shape[:-1]),
        )
        if torch.equal(*sizes):
            same(processors.top_p(logits, p), plain.reshape(logits.shape))


@prop
@given(logits_(dtypes=(torch.float64,)), st.floats(0.001, 0.999))
def test_top_p_nucleus_is_minimal(logits, p):
    inside = kept(processors.top_p(logits, p))
    probabilities = logits.softmax(-1)
    mass = probabilities.where(inside, 0).sum(-1)
    smallest = probabilities.where(inside, 2).amin(-1)
    assert (mass >= p - 1e-9).all()  # float64 rounding
    assert (mass - smallest < p + 1e-9).all(), "one token fewer would do"
    assert (probabilities.where(~inside, 0).amax(-1) <= smallest).all()


def test_nucleus_size_adapts_where_k_does_not():
    sharp, flat = torch.tensor([9.0, 0, 0, 0, 0]), torch.zeros(5)
    same(processors.nucleus_size(torch.stack([sharp, flat]), 0.9), torch.tensor([1, 5]))
    assert processors.nucleus_size(torch.tensor([0.0, -INF]), 1) == 1


def test_topk_by_blocks_worked_case():
    x = torch.tensor([9.0, 8.0, 7.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    values, indices = processors.topk_by_blocks(x, 3, block=2)
    assert (values.tolist(), indices.tolist()) == ([9.0, 8.0, 7.0], [0, 1, 2])


def test_min_p_worked_case_of_a_batch():
    batch = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3]]).log()
    expected = [[True, False, False], [True, True, True]]
    assert kept(processors.min_p(batch, 0.5)).tolist() == expected


def test_min_p_worked_case():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert kept(processors.min_p(logits, 0.6)).tolist() == [True, True, False, False]
    assert kept(processors.min_p(logits, 0.4)).tolist() == [True, True, True, False]
    same(processors.min_p(logits, 0), logits)
    tie = torch.tensor([2.0, 2.0, 1.0])
    same(processors.min_p(tie, 1), torch.tensor([2.0, 2.0, -INF]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_min_p_keeps_a_token_at_the_very_edge(dtype):
    """Of counts 1 to 60 those from 60 · p on stay, although the logarithms are rounded."""
    logits = torch.arange(1, 61, dtype=dtype).log()
    for least in range(1, 61):
        for form in (processors.min_p, processors.min_p_plain):
            got = kept(form(logits, least / 60)).tolist()
            assert got == [count >= least for count in range(1, 61)], (form.__name__, least)


def off_the_edge(logits, p, slack=1e-5):
    """No token is within rounding of the threshold, where float32 may decide either way."""
    if p == 0:
        return True
    gap = logits.double() - logits.double().amax(-1, keepdim=True) - math.log(p)
    return bool((gap.abs() > slack).all())


@prop
@given(logits_(dtypes=(torch.float32, torch.float64)), st.floats(0, 1))
def test_min_p_equals_transformers(logits, p):
    got = processors.min_p(logits, p)
    expected = theirs(MinPLogitsWarper(p), logits)
    if p < 1e-30:  # a probability below the smallest float is 0 to transformers, and stays
        assert (kept(got) <= kept(expected)).all()
    elif off_the_edge(logits, p):
        same(got, expected)


@prop
@given(logits_(dtypes=(torch.float16, torch.bfloat16)), st.floats(0.001, 1))
def test_min_p_equals_transformers_in_half_precision(logits, p):
    got = processors.min_p(logits, p)
    if off_the_edge(logits, p):
        same(got.float(), theirs(MinPLogitsWarper(p), logits.float()))
    assert got.dtype == logits.dtype


@prop
@given(logits_(), st.floats(0.001, 1))
def test_min_p_equals_plain(logits, p):
    plain = torch.stack([processors.min_p_plain(row, p) for row in rows(logits)])
    if off_the_edge(logits, p):
        same(processors.min_p(logits, p), plain.reshape(logits.shape))


def test_repetition_penalty_worked_case():
    logits = torch.tensor([[4.0, -4.0, 1.0, 0.0]])
    got = processors.repetition_penalty(logits, torch.tensor([[0, 1, 0, 0, 3]]), 2.0)
    same(got, torch.tensor([[2.0, -8.0, 1.0, 0.0]]))  # once each, however often it occurred
    same(logits, torch.tensor([[4.0, -4.0, 1.0, 0.0]]))  # the input stays as it was


@prop
@given(logits_and_ids(), st.floats(0.2, 5))
def test_repetition_penalty_equals_transformers(case, penalty):
    logits, ids = case
    expected = theirs(RepetitionPenaltyLogitsProcessor(penalty), logits, ids)
    same(processors.repetition_penalty(logits, ids, penalty), expected)


@prop
@given(logits_and_ids(), st.floats(0.2, 5))
def test_repetition_penalty_equals_plain(case, penalty):
    logits, ids = case
    pairs = zip(rows(logits), ids.reshape(-1, ids.shape[-1]), strict=True)
    plain = torch.stack([processors.repetition_penalty_plain(*pair, penalty) for pair in pairs])
    same(processors.repetition_penalty(logits, ids, penalty), plain.reshape(logits.shape))


@prop
@given(logits_and_ids(holes=False, dtypes=(torch.float64,)), st.floats(1.01, 5))
def test_repetition_penalty_lowers_what_was_seen_and_nothing_else(case, penalty):
    logits, ids = case
    got = processors.repetition_penalty(logits, ids, penalty)
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)
    assert (got[seen] <= logits[seen]).all()
    same(got[~seen], logits[~seen])


def test_no_repeat_ngram_worked_case():
    logits, ids = torch.zeros(1, 6), torch.tensor([[1, 2, 3, 1, 2, 4, 1, 2]])
    forbidden = {0: [], 1: [1, 2, 3, 4], 2: [3, 4], 3: [3, 4], 4: [], 8: [], 9: []}
    for n, tokens in forbidden.items():
        got = processors.no_repeat_ngram(logits, ids, n)
        assert (~kept(got))[0].nonzero().flatten().tolist() == tokens, f"n={n}"
    short = processors.no_repeat_ngram(torch.zeros(1, 3), torch.tensor([[0, 0]]), 2)
    same(short, torch.tensor([[-INF, 0.0, 0.0]]))  # the n-gram that ends the text counts


@prop
@given(logits_and_ids(), st.integers(1, 6))
def test_no_repeat_ngram_equals_transformers(case, n):
    logits, ids = case
    expected = theirs(NoRepeatNGramLogitsProcessor(n), logits, ids)
    same(processors.no_repeat_ngram(logits, ids, n), expected)


@prop
@given(logits_and_ids(), st.integers(0, 6))
def test_no_repeat_ngram_equals_plain(case, n):
    logits, ids = case
    pairs = zip(rows(logits), ids.reshape(-1, ids.shape[-1]), strict=True)
    plain = torch.stack([processors.no_repeat_ngram_plain(*pair, n) for pair in pairs])
    same(processors.no_repeat_ngram(logits, ids, n), plain.reshape(logits.shape))


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize(
    "choose",
    [
        lambda x: processors.top_k(x, 2),
        lambda x: processors.top_p(x, 0.9),
        lambda x: processors.min_p(x, 0.1),
        lambda x: processors.entropy(x),
        lambda x: decoding.greedy(lambda ids: x, [0], 1),
        lambda x: decoding.sample(lambda ids: x, [0], 1),
        lambda x: beam_search(lambda ids: x, [0], 1),
    ],
    ids=["top_k", "top_p", "min_p", "entropy", "greedy", "sample", "beam_search"],
)
def test_broken_logits_are_refused(choose, bad):
    with pytest.raises(ValueError, match="the largest logit of a row is"):
        choose(torch.tensor([[0.0, bad, 1.0]]))


@prop
@given(
    logits_and_ids(),
    st.builds(
        processors.processor,
        temperature=st.sampled_from((0, 0.3, 1.0, 2.0)),
        top_k=st.sampled_from((None, 1, 5)),
        top_p=st.sampled_from((0.0, 0.5, 1.0)),
        min_p=st.sampled_from((0.0, 0.2)),
        repetition_penalty=st.sampled_from((1.0, 1.3)),
        no_repeat_ngram_size=st.sampled_from((0, 2)),
    ),
)
def test_processor_leaves_a_distribution(case, process):
    """Probabilities sum to 1, shape and type stay, the input is not changed."""
    logits, ids = case
    # Blocking n-grams may forbid the whole of a small vocabulary.
    assume(kept(processors.no_repeat_ngram(logits, ids, 2)).any(-1).all())
    before = logits.clone()
    got = process(logits, ids)
    same(logits, before)
    assert (got.shape, got.dtype) == (logits.shape, logits.dtype)
    total = got.double().softmax(-1).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-9)


def test_processors_take_numpy_numbers():
    logits, ids = torch.randn(2, 200), torch.tensor([[1, 2, 1], [3, 3, 3]])
    counts = {"top_k": 5, "no_repeat_ngram_size": 2}
    shares = {"temperature": 0.5, "top_p": 0.75, "min_p": 0.125, "repetition_penalty": 1.5}
    expected = processors.processor(**counts, **shares)(logits, ids)
    for integer, real in ((np.int64, np.float64), (np.int32, np.float32), (np.uint8, np.float16)):
        numbers = {name: integer(value) for name, value in counts.items()}
        numbers |= {name: real(value) for name, value in shares.items()}  # all of them exact
        same(processors.processor(**numbers)(logits, ids), expected)
    (a,) = decoding.greedy(chain, [0], np.int64(3))
    assert a == decoding.greedy(chain, [0], 3)[0]
    assert beam_search(chain, [0], np.int64(2), num_beams=np.int64(2)) == beam_search(
        chain, [0], 2, num_beams=2
    )


def test_settings_have_the_names_and_defaults_they_have_in_the_engines():
    ours = inspect.signature(processors.processor).parameters
    theirs = inspect.signature(Engine.generate).parameters
    assert set(ours) - set(theirs) == {"no_repeat_ngram_size"}  # llama.cpp has no such rule
    differing = {n for n in ours if n in theirs and ours[n].default != theirs[n].default}
    assert differing == {"temperature"}
    assert (ours["temperature"].default, theirs["temperature"].default) == (1.0, 0.0)


def test_processor_by_default_changes_nothing():
    logits = torch.randn(3, 20)
    assert processors.processor()(logits, torch.zeros(3, 4).long()) is logits


def test_entropy_worked_cases():
    same(processors.entropy(torch.tensor([3.0, -INF, -INF])), torch.tensor(0.0))
    got = processors.entropy(torch.zeros(2, 8))
    torch.testing.assert_close(got, torch.full((2,), math.log(8)))


def test_greedy_applies_process_and_keeps_the_models_logprob():
    process = processors.processor(no_repeat_ngram_size=1)
    (got,) = decoding.greedy(chain, [0, 1], 2, process=process)
    assert got.tokens == (2, 3)
    assert got.logprob == pytest.approx(math.log(0.3 * 0.9), abs=1e-6)  # fp32


def test_greedy_is_sample_at_temperature_zero():
    (a,), (b,) = (
        decoding.greedy(chain, [0], 6),
        decoding.sample(chain, [0], 6, process=processors.processor(temperature=0)),
    )
    assert a == b


# ── several in one batch ────────────────────────────────────────────────────────────────────────


def test_in_blocks_each_process_has_its_rows():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])
    first = processors.processor(top_k=2)
    second = processors.processor(repetition_penalty=2.0)
    got = processors.in_blocks([first, second])(logits, ids)
    assert torch.equal(got, torch.cat([first(logits[:2], ids[:2]), second(logits[2:], ids[2:])]))


@pytest.mark.parametrize("count", [0, 3])
def test_in_blocks_refuses_a_rest(count):
    process = processors.in_blocks([processors.processor()] * count)
    with pytest.raises(ValueError, match="4 rows do not divide"):
        process(torch.zeros(4, 9), torch.zeros(4, 2, dtype=torch.long))
