"""course_utils.decoding against worked cases, its plain forms, and transformers.

Tests whose name has `smollm2` need the packaged model; the others take milliseconds. Each test has
the name of the function that it tests in its own, so that tests/planted_bugs.py finds it.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from course_utils import decoding

INF = math.inf
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Derandomized: the guard of this course must not fail on one machine and pass on another.
prop = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small operations gain nothing from threads, and wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ── Inputs ────────────────────────────────────────────────────────────────────────────────────────


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


# ── temperature ───────────────────────────────────────────────────────────────────────────────────


def test_temperature_worked_case():
    same(
        decoding.temperature(torch.tensor([1.0, -2.0, -INF]), 0.5), torch.tensor([2.0, -4.0, -INF])
    )


def test_temperature_zero_keeps_the_first_of_the_largest():
    got = decoding.temperature(torch.tensor([[1.0, 3.0, 3.0], [-1.0, -2.0, -3.0]]), 0)
    same(got, torch.tensor([[-INF, 3.0, -INF], [-1.0, -INF, -INF]]))


@prop
@given(logits_(), st.floats(0.05, 20))
def test_temperature_equals_transformers(logits, T):
    got = decoding.temperature(logits, T)
    # A product with 1 / T may round its last bit differently from a quotient.
    last_bits = 2 * torch.finfo(logits.dtype).eps
    torch.testing.assert_close(
        got, theirs(TemperatureLogitsWarper(T), logits), rtol=last_bits, atol=1e-7
    )
    assert got.dtype == logits.dtype


@prop
@given(logits_(dtypes=(torch.float64,), holes=False), st.floats(0.2, 5), st.floats(1.05, 3))
def test_temperature_raises_entropy_strictly(logits, T, factor):
    spread = (logits.amax(-1) - logits.amin(-1)).flatten()
    low, high = (decoding.entropy(decoding.temperature(logits, t)) for t in (T, T * factor))
    # Where all are equal entropy is at its maximum already; far apart it is 0 to the last bit.
    moving = ((spread > 1e-3) & (spread < 30)).reshape(low.shape)
    assert (high > low)[moving].all()
    assert (high >= low - 1e-12).all()  # float64 rounding


# ── top_k ─────────────────────────────────────────────────────────────────────────────────────────


def test_top_k_worked_case():
    got = decoding.top_k(torch.tensor([[1.0, 4.0, 2.0, 3.0], [0.0, 0.0, -1.0, 5.0]]), 2)
    same(got, torch.tensor([[-INF, 4.0, -INF, 3.0], [0.0, 0.0, -INF, 5.0]]))  # ties stay


@prop
@given(logits_(), st.integers(1, 300))
def test_top_k_equals_transformers(logits, k):
    same(decoding.top_k(logits, k), theirs(TopKLogitsWarper(k), logits))


@prop
@given(logits_(), st.integers(1, 300))
def test_top_k_equals_plain(logits, k):
    plain = torch.stack([decoding.top_k_plain(row, k) for row in rows(logits)])
    same(decoding.top_k(logits, k), plain.reshape(logits.shape))


@prop
@given(logits_(holes=False), st.integers(1, 300))
def test_top_k_keeps_k_and_ties(logits, k):
    count = kept(decoding.top_k(logits, k)).sum(-1)
    assert (count >= min(k, logits.shape[-1])).all()


@prop
@given(logits_(), st.integers(1, 20), st.sampled_from((8, 64)))
def test_largest_equals_topk(logits, k, block):
    k = min(k, logits.shape[-1])
    values, indices = decoding.largest(logits, k, block)
    same(values, logits.topk(k).values)
    same(logits.gather(-1, indices), values)
    assert indices.sort(-1).values.diff(dim=-1).ne(0).all(), "an index came twice"


# ── top_p ─────────────────────────────────────────────────────────────────────────────────────────


def test_top_p_worked_case():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    assert kept(decoding.top_p(logits, 0.5 - 1e-6)).tolist() == [False, True, False, False]
    assert kept(decoding.top_p(logits, 0.5 + 1e-6)).tolist() == [False, True, False, True]
    assert kept(decoding.top_p(logits, 0.9 - 1e-6)).tolist() == [False, True, True, True]
    assert kept(decoding.top_p(logits, 0.9 + 1e-6)).all()
    same(decoding.top_p(logits, 0.6)[1], logits[1])  # what stays keeps its logit


def test_top_p_limits():
    logits = torch.tensor([1.0, 3.0, 3.0, -200.0, -INF])
    assert kept(decoding.top_p(logits, 0)).tolist() == [False, True, False, False, False]
    # transformers' class drops tokens of probability 0 in float32 at p = 1; `generate` does not
    # apply it then. Here p = 1 changes nothing.
    same(decoding.top_p(logits, 1), logits)


def test_top_p_ties_at_the_edge_keep_lower_ids():
    assert kept(decoding.top_p(torch.zeros(8), 0.3)).tolist() == [True] * 3 + [False] * 5
    batch = torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]])
    expected = [[True, True, True, False], [True, False, False, False]]
    assert kept(decoding.top_p(batch, 0.6)).tolist() == expected


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
    got = decoding.top_p(logits, p)
    same_nucleus(got, theirs(TopPLogitsWarper(p), logits), logits, p)
    assert got.dtype == logits.dtype
    assert (got[kept(got)] == logits[kept(got)]).all()


@prop
@given(logits_(dtypes=(torch.float16, torch.bfloat16)), st.floats(0, 0.999))
def test_top_p_equals_transformers_in_half_precision(logits, p):
    # transformers adds the probabilities up in the type of the logits, which is rough in half
    # precision; its `generate` converts to float32 first, and so does top_p within.
    got = decoding.top_p(logits, p)
    same_nucleus(got.float(), theirs(TopPLogitsWarper(p), logits.float()), logits.float(), p)
    assert got.dtype == logits.dtype


def test_top_p_equals_transformers_at_full_vocabulary():
    generator = torch.Generator().manual_seed(0)
    for scale in (0.5, 3.0, 8.0):  # nuclei of tens of thousands, of thousands, and of a few
        logits = torch.randn(2, 49_152, generator=generator) * scale
        for p in (0.1, 0.9, 0.99):
            got = decoding.top_p(logits, p)
            # slack: float32 sums of 49,152 terms
            same_nucleus(got, theirs(TopPLogitsWarper(p), logits), logits, p, slack=2e-5)


@prop
@given(logits_(), st.floats(0, 0.999))
def test_top_p_equals_plain(logits, p):
    plain = torch.stack([decoding.top_p_plain(row, p) for row in rows(logits)])
    same_nucleus(decoding.top_p(logits, p), plain.reshape(logits.shape), logits, p)
    grid = torch.equal(logits, logits.mul(2).round().div(2))
    if not grid:  # the same tokens too, unless rounding at a tie decides between equals
        sizes = (
            kept(decoding.top_p(logits, p)).sum(-1),
            kept(plain).sum(-1).reshape(logits.shape[:-1]),
        )
        if torch.equal(*sizes):
            same(decoding.top_p(logits, p), plain.reshape(logits.shape))


@prop
@given(logits_(dtypes=(torch.float64,)), st.floats(0.001, 0.999))
def test_top_p_nucleus_is_minimal(logits, p):
    inside = kept(decoding.top_p(logits, p))
    probabilities = logits.softmax(-1)
    mass = probabilities.where(inside, 0).sum(-1)
    smallest = probabilities.where(inside, 2).amin(-1)
    assert (mass >= p - 1e-9).all()  # float64 rounding
    assert (mass - smallest < p + 1e-9).all(), "one token fewer would do"
    assert (probabilities.where(~inside, 0).amax(-1) <= smallest).all()


def test_nucleus_size_adapts_where_k_does_not():
    sharp, flat = torch.tensor([9.0, 0, 0, 0, 0]), torch.zeros(5)
    same(decoding.nucleus_size(torch.stack([sharp, flat]), 0.9), torch.tensor([1, 5]))
    assert decoding.nucleus_size(torch.tensor([0.0, -INF]), 1) == 1


# ── min_p ─────────────────────────────────────────────────────────────────────────────────────────


def test_largest_worked_case():
    x = torch.tensor([9.0, 8.0, 7.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    values, indices = decoding.largest(x, 3, block=2)
    assert (values.tolist(), indices.tolist()) == ([9.0, 8.0, 7.0], [0, 1, 2])


def test_min_p_worked_case_of_a_batch():
    batch = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3]]).log()
    expected = [[True, False, False], [True, True, True]]
    assert kept(decoding.min_p(batch, 0.5)).tolist() == expected


def test_min_p_worked_case():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert kept(decoding.min_p(logits, 0.6)).tolist() == [True, True, False, False]
    assert kept(decoding.min_p(logits, 0.4)).tolist() == [True, True, True, False]
    same(decoding.min_p(logits, 0), logits)
    tie = torch.tensor([2.0, 2.0, 1.0])
    same(decoding.min_p(tie, 1), torch.tensor([2.0, 2.0, -INF]))


def off_the_edge(logits, p_base, slack=1e-5):
    """No token is within rounding of the threshold, where float32 may decide either way."""
    if p_base == 0:
        return True
    gap = logits.double() - logits.double().amax(-1, keepdim=True) - math.log(p_base)
    return bool((gap.abs() > slack).all())


@prop
@given(logits_(dtypes=(torch.float32, torch.float64)), st.floats(0, 1))
def test_min_p_equals_transformers(logits, p_base):
    got = decoding.min_p(logits, p_base)
    expected = theirs(MinPLogitsWarper(p_base), logits)
    if p_base < 1e-30:  # a probability below the smallest float is 0 to transformers, and stays
        assert (kept(got) <= kept(expected)).all()
    elif off_the_edge(logits, p_base):
        same(got, expected)


@prop
@given(logits_(dtypes=(torch.float16, torch.bfloat16)), st.floats(0.001, 1))
def test_min_p_equals_transformers_in_half_precision(logits, p_base):
    got = decoding.min_p(logits, p_base)
    if off_the_edge(logits, p_base):
        same(got.float(), theirs(MinPLogitsWarper(p_base), logits.float()))
    assert got.dtype == logits.dtype


@prop
@given(logits_(), st.floats(0.001, 1))
def test_min_p_equals_plain(logits, p_base):
    plain = torch.stack([decoding.min_p_plain(row, p_base) for row in rows(logits)])
    if off_the_edge(logits, p_base):
        same(decoding.min_p(logits, p_base), plain.reshape(logits.shape))


# ── repetition_penalty ────────────────────────────────────────────────────────────────────────────


def test_repetition_penalty_worked_case():
    logits = torch.tensor([[4.0, -4.0, 1.0, 0.0]])
    got = decoding.repetition_penalty(logits, torch.tensor([[0, 1, 0, 0, 3]]), 2.0)
    same(got, torch.tensor([[2.0, -8.0, 1.0, 0.0]]))  # once each, however often it occurred
    same(logits, torch.tensor([[4.0, -4.0, 1.0, 0.0]]))  # the input stays as it was


@prop
@given(logits_and_ids(), st.floats(0.2, 5))
def test_repetition_penalty_equals_transformers(case, penalty):
    logits, ids = case
    expected = theirs(RepetitionPenaltyLogitsProcessor(penalty), logits, ids)
    same(decoding.repetition_penalty(logits, ids, penalty), expected)


@prop
@given(logits_and_ids(), st.floats(0.2, 5))
def test_repetition_penalty_equals_plain(case, penalty):
    logits, ids = case
    pairs = zip(rows(logits), ids.reshape(-1, ids.shape[-1]), strict=True)
    plain = torch.stack([decoding.repetition_penalty_plain(*pair, penalty) for pair in pairs])
    same(decoding.repetition_penalty(logits, ids, penalty), plain.reshape(logits.shape))


@prop
@given(logits_and_ids(holes=False, dtypes=(torch.float64,)), st.floats(1.01, 5))
def test_repetition_penalty_lowers_what_was_seen_and_nothing_else(case, penalty):
    logits, ids = case
    got = decoding.repetition_penalty(logits, ids, penalty)
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)
    assert (got[seen] <= logits[seen]).all()
    same(got[~seen], logits[~seen])


# ── no_repeat_ngram ───────────────────────────────────────────────────────────────────────────────


def test_no_repeat_ngram_worked_case():
    logits, ids = torch.zeros(1, 6), torch.tensor([[1, 2, 3, 1, 2, 4, 1, 2]])
    forbidden = {0: [], 1: [1, 2, 3, 4], 2: [3, 4], 3: [3, 4], 4: [], 8: [], 9: []}
    for n, tokens in forbidden.items():
        got = decoding.no_repeat_ngram(logits, ids, n)
        assert (~kept(got))[0].nonzero().flatten().tolist() == tokens, f"n={n}"
    short = decoding.no_repeat_ngram(torch.zeros(1, 3), torch.tensor([[0, 0]]), 2)
    same(short, torch.tensor([[-INF, 0.0, 0.0]]))  # the n-gram that ends the text counts


@prop
@given(logits_and_ids(), st.integers(1, 6))
def test_no_repeat_ngram_equals_transformers(case, n):
    logits, ids = case
    expected = theirs(NoRepeatNGramLogitsProcessor(n), logits, ids)
    same(decoding.no_repeat_ngram(logits, ids, n), expected)


@prop
@given(logits_and_ids(), st.integers(0, 6))
def test_no_repeat_ngram_equals_plain(case, n):
    logits, ids = case
    pairs = zip(rows(logits), ids.reshape(-1, ids.shape[-1]), strict=True)
    plain = torch.stack([decoding.no_repeat_ngram_plain(*pair, n) for pair in pairs])
    same(decoding.no_repeat_ngram(logits, ids, n), plain.reshape(logits.shape))


# ── all processors: what they refuse, and what they have in common ────────────────────────────────

ONE_ID = torch.tensor([[0]])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("temperature", (-0.1,), "temperature T is -0.1; it must be a finite number >= 0"),
        ("temperature", (INF,), "temperature T is inf"),
        ("temperature", (math.nan,), "temperature T is nan"),
        ("top_k", (0,), "k is 0; it must be an integer >= 1"),
        ("top_k", (2.5,), "k is 2.5"),
        ("top_p", (1.01,), "p is 1.01; it must be between 0 and 1"),
        ("top_p", (-0.01,), "p is -0.01"),
        ("top_p", (math.nan,), "p is nan"),
        ("min_p", (1.01,), "p_base is 1.01; it must be between 0 and 1"),
        ("min_p", (-0.01,), "p_base is -0.01"),
        ("repetition_penalty", (ONE_ID, 0.0), "penalty is 0.0; it must be a finite number > 0"),
        ("repetition_penalty", (ONE_ID, -1.0), "penalty is -1.0"),
        ("repetition_penalty", (ONE_ID, math.nan), "penalty is nan"),
        ("no_repeat_ngram", (ONE_ID, -1), "n is -1; it must be an integer >= 0"),
        ("no_repeat_ngram", (ONE_ID, 1.5), "n is 1.5"),
    ],
)
def test_bad_parameters_are_named_with_their_range(name, arguments, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        getattr(decoding, name)(torch.zeros(1, 4), *arguments)


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize(
    "choose",
    [
        lambda x: decoding.top_k(x, 2),
        lambda x: decoding.top_p(x, 0.9),
        lambda x: decoding.min_p(x, 0.1),
        lambda x: decoding.entropy(x),
        lambda x: decoding.greedy(lambda ids: x, [0], 1),
        lambda x: decoding.sample(lambda ids: x, [0], 1),
        lambda x: decoding.beam_search(lambda ids: x, [0], 1),
    ],
    ids=["top_k", "top_p", "min_p", "entropy", "greedy", "sample", "beam_search"],
)
def test_broken_logits_are_refused(choose, bad):
    with pytest.raises(ValueError, match="the largest logit of a row is"):
        choose(torch.tensor([[0.0, bad, 1.0]]))


def test_filters_that_leave_no_token_are_refused():
    def nothing(logits, ids):
        return torch.full_like(logits, -INF)

    for loop in (decoding.greedy, decoding.sample, decoding.beam_search):
        with pytest.raises(ValueError, match="the filters left no token"):
            loop(lambda ids: torch.zeros(len(ids), 3), [0], 2, process=nothing)


@prop
@given(
    logits_and_ids(),
    st.builds(
        decoding.knobs,
        T=st.sampled_from((0, 0.3, 1.0, 2.0)),
        k=st.sampled_from((None, 1, 5)),
        p=st.sampled_from((0.0, 0.5, 1.0)),
        p_base=st.sampled_from((0.0, 0.2)),
        penalty=st.sampled_from((1.0, 1.3)),
        n=st.sampled_from((0, 2)),
    ),
)
def test_knobs_leave_a_distribution(case, process):
    """Probabilities sum to 1, shape and type stay, the input is not changed."""
    logits, ids = case
    # Blocking n-grams may forbid the whole of a small vocabulary.
    assume(kept(decoding.no_repeat_ngram(logits, ids, 2)).any(-1).all())
    before = logits.clone()
    got = process(logits, ids)
    same(logits, before)
    assert (got.shape, got.dtype) == (logits.shape, logits.dtype)
    total = got.double().softmax(-1).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-9)


def test_entropy_worked_cases():
    same(decoding.entropy(torch.tensor([3.0, -INF, -INF])), torch.tensor(0.0))
    got = decoding.entropy(torch.zeros(2, 8))
    torch.testing.assert_close(got, torch.full((2,), math.log(8)))


# ── Loops over a model small enough to work by hand ───────────────────────────────────────────────

# Next-token probabilities after each token: greedy takes 0 → 1 → 1, but 0 → 2 → 3 is likelier.
CHAIN = torch.tensor(
    [
        [0.0, 0.5, 0.4, 0.1],
        [0.3, 0.4, 0.3, 0.0],
        [0.05, 0.05, 0.0, 0.9],
        [1.0, 0.0, 0.0, 0.0],
    ]
)


def chain(ids):
    return CHAIN[ids[:, -1]].log()


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


def test_greedy_applies_process_and_keeps_the_models_logprob():
    process = decoding.knobs(n=1)
    (got,) = decoding.greedy(chain, [0, 1], 2, process=process)
    assert got.tokens == (2, 3)
    assert got.logprob == pytest.approx(math.log(0.3 * 0.9), abs=1e-6)  # fp32


def test_greedy_is_sample_at_temperature_zero():
    (a,), (b,) = (
        decoding.greedy(chain, [0], 6),
        decoding.sample(chain, [0], 6, process=decoding.knobs(T=0)),
    )
    assert a == b


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
    process = decoding.knobs(T=0.7, k=3)
    prompt = torch.ones(20_000, 1).long()
    drawn = decoding.sample(chain, prompt, 1, process=process, generator=generator)
    tokens = torch.tensor([c.tokens[0] for c in drawn])
    exact = torch.tensor([0.3, 0.4, 0.3, 0.0]) ** (1 / 0.7)
    assert chi_square(tokens, exact) > 1e-3  # as above


def test_beam_search_finds_what_greedy_misses():
    best = decoding.beam_search(chain, [0], 2, num_beams=2)
    assert [c.tokens for c in best] == [(2, 3), (1, 1)]
    assert best[0].logprob == pytest.approx(math.log(0.4 * 0.9), abs=1e-6)  # fp32
    assert best[0].score == pytest.approx(best[0].logprob / 2)


def test_beam_search_with_one_beam_is_greedy():
    (beam,) = decoding.beam_search(chain, [0], 5, num_beams=1)
    (greedy,) = decoding.greedy(chain, [0], 5)
    assert (beam.tokens, beam.finish_reason) == (greedy.tokens, greedy.finish_reason)
    assert beam.logprob == pytest.approx(greedy.logprob, abs=1e-6)  # fp32


def test_beam_search_length_penalty_prefers_long_or_short():
    stop, short, long = [3], (3,), (2, 3)
    for penalty, first in ((0.0, long), (-3.0, short), (1.0, long)):
        best = decoding.beam_search(
            chain, [0], 2, num_beams=4, length_penalty=penalty, stop=stop, early_stopping="never"
        )
        assert best[0].tokens == first, f"length_penalty={penalty}"
    for c in decoding.beam_search(chain, [0], 3, num_beams=4, length_penalty=2.0, stop=stop):
        assert c.score == pytest.approx(c.logprob / len(c.tokens) ** 2.0)


def follow(table):
    return lambda ids: torch.tensor(table)[ids[:, -1]].log()


def test_beam_search_early_stopping_does_not_wait_for_better_beams():
    table = [[0, 0.7, 0.12, 0.18], [0, 0.8, 0.05, 0.15], [0, 0, 0, 1], [1, 0, 0, 0]]
    found = {
        early: [
            c.tokens
            for c in decoding.beam_search(
                follow(table), [0], 3, num_beams=2, stop=[3], early_stopping=early
            )
        ]
        for early in (True, False)
    }
    # After two steps ln 0.12 / 2 and ln 0.18 are finished; beam (1, 1), ln 0.56 / 2, is better.
    assert found == {True: [(2, 3), (3,)], False: [(1, 1, 1), (1, 1, 3)]}


def test_beam_search_early_stopping_never_waits_for_what_length_may_bring():
    table = [[0, 0.4, 0.1, 0.5], [0.1, 0, 0, 0.9], [1, 0, 0, 0], [1, 0, 0, 0]]
    found = {
        early: decoding.beam_search(
            follow(table), [0], 4, num_beams=1, stop=[3], early_stopping=early
        )[0].tokens
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

    decoding.beam_search(counted, [0], 4, num_beams=1, stop=[3])
    assert len(calls) == 1


def test_beam_search_wide_enough_is_exhaustive():
    best = decoding.beam_search(chain, [0], 3, num_beams=64)
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
    best = decoding.beam_search(chain, [0], 3, num_beams=1, stop=[3])
    assert best[0].tokens == (1, 1, 1), "3 was third after 0: it may not end a search of one beam"


def test_beam_search_records_its_tree():
    tree = []
    best = decoding.beam_search(chain, [0], 3, num_beams=2, stop=[3], tree=tree)
    assert {c.finish_reason for c in tree} <= {"running", "pruned", "stop", "length"}
    assert all(c in tree for c in best)
    running = {c.tokens for c in tree if c.finish_reason == "running"} | {()}
    assert all(c.tokens[:-1] in running for c in tree), "a candidate without a parent"
    for length in (1, 2, 3):
        level = [c for c in tree if len(c.tokens) == length]
        assert [c.logprob for c in level] == sorted((c.logprob for c in level), reverse=True)
        assert sum(c.finish_reason == "running" for c in level) <= 2


def test_beam_search_applies_process_to_log_probabilities():
    best = decoding.beam_search(chain, [0, 1], 2, num_beams=4, process=decoding.knobs(n=1))
    assert best[0].tokens == (2, 3)
    assert all(len({0, 1, *c.tokens}) == 2 + len(c.tokens) for c in best)


def test_likeliest_beats_greedy():
    best = decoding.likeliest(chain, [0], 2)
    assert best.tokens == (2, 3)
    assert best.logprob > decoding.greedy(chain, [0], 2)[0].logprob


@pytest.mark.parametrize("seed", range(8))
def test_likeliest_equals_plain(seed):
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)) * 2

    def random_chain(ids):
        return table[ids[:, -1]] + table[ids[:, 0]].flip(-1)

    best = decoding.likeliest(random_chain, [seed % 5], 4)
    assert best.tokens == decoding.likeliest_plain(random_chain, [seed % 5], 4, vocab_size=5)
    assert best.finish_reason == "length"


def test_likeliest_weighs_short_and_long_endings_alike():
    best = decoding.likeliest(chain, [0], 4, stop=[3])
    assert (best.tokens, best.finish_reason) == ((2, 3), "stop")
    assert decoding.likeliest(chain, [2], 4, stop=[3]).tokens == (3,)


def test_likeliest_refuses_to_run_away():
    with pytest.raises(
        ValueError, match=r"can still win, more than max_prefixes = 3; search fewer"
    ):
        decoding.likeliest(chain, [0], 6, max_prefixes=3)


def test_sequence_logprob_worked_case():
    got = decoding.sequence_logprob(chain, [0, 2, 3, 0], 1)
    assert got == pytest.approx(math.log(0.4 * 0.9 * 1.0), abs=1e-6)  # fp32
    assert decoding.sequence_logprob(chain, [0, 2, 3, 0], 3) == pytest.approx(0.0, abs=1e-6)


LOOPS = {
    "greedy": decoding.greedy,
    "sample": decoding.sample,
    "beam_search": decoding.beam_search,
    "likeliest": decoding.likeliest,
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
        decoding.beam_search(chain, [0], 1, **options)


def test_beam_search_refuses_two_prompts():
    with pytest.raises(ValueError, match="the prompt has 2 rows"):
        decoding.beam_search(chain, [[0], [1]], 1)


def test_loops_refuse_logits_of_every_position():
    with pytest.raises(ValueError, match=r"shape \(1, 2, 4\) .* of the last position only"):
        decoding.greedy(lambda ids: torch.zeros(*ids.shape, 4), [0, 1], 1)


@pytest.mark.parametrize("prompt_len", [0, 2, 1.0])
def test_scoring_refuses_a_bad_prompt_len(prompt_len):
    for score in (lambda: decoding.sequence_logprob(chain, [0, 1], prompt_len),
                  lambda: decoding.token_logprobs(None, [0, 1], prompt_len)):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"prompt_len is .*; it must be an integer from 1 to 1"
        ):
            score()


# ── Loops over a random Llama, against `generate` ─────────────────────────────────────────────────

VOCAB, PAD = 96, 1
MANY = list(range(2, VOCAB, 4))  # stop tokens that come often


@pytest.fixture(scope="module")
def tiny():
    """A Llama with random weights, large enough that its distributions are far from flat."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.6,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def prompts(count, length=5):
    return torch.randint(2, VOCAB, (count, 1, length), generator=torch.Generator().manual_seed(1))


def generate(model, prompt, max_new_tokens, **options):
    """transformers' own answer: the new tokens of each returned sequence, padded."""
    options = {"do_sample": False, "pad_token_id": PAD, **options}
    mask = torch.ones_like(prompt)
    out = model.generate(prompt, attention_mask=mask, max_new_tokens=max_new_tokens, **options)
    ids = out if isinstance(out, torch.Tensor) else out.sequences
    return ids[:, prompt.shape[1] :].tolist(), out


def padded(continuations, pad=PAD):
    longest = max(len(c.tokens) for c in continuations)
    return [[*c.tokens, *[pad] * (longest - len(c.tokens))] for c in continuations]


@pytest.mark.parametrize("stop", [[], [7], MANY])
def test_greedy_equals_generate(tiny, stop):
    for prompt in prompts(5):
        ours = decoding.greedy(decoding.CachedNextLogits(tiny), prompt, 20, stop=stop)
        expected, _ = generate(tiny, prompt, 20, eos_token_id=stop or None)
        assert padded(ours) == expected


def test_greedy_of_a_batch_equals_generate(tiny):
    prompt, stop = prompts(6)[:, 0], MANY
    ours = decoding.greedy(decoding.CachedNextLogits(tiny), prompt, 15, stop=stop)
    assert padded(ours) == generate(tiny, prompt, 15, eos_token_id=stop)[0]


def test_greedy_with_penalties_equals_generate(tiny):
    process = decoding.knobs(penalty=1.3, n=2)
    for prompt in prompts(5):
        ours = decoding.greedy(decoding.next_logits_of(tiny), prompt, 20, process=process)
        options = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
        assert padded(ours) == generate(tiny, prompt, 20, **options)[0]


KNOBS = [
    ({"T": 1.5}, {"temperature": 1.5}),
    ({"k": 5}, {"top_k": 5}),
    ({"p": 0.7}, {"top_p": 0.7}),
    ({"p_base": 0.2}, {"min_p": 0.2}),
    (
        {"T": 1.7, "k": 20, "p": 0.9, "p_base": 0.02, "penalty": 1.2, "n": 3},
        {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2,
         "no_repeat_ngram_size": 3},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs_"), KNOBS, ids=["T", "k", "p", "p_base", "all"])
def test_sample_with_knobs_equals_generate_draw_for_draw(tiny, ours, theirs_):
    """The same seed gives the same text: the distributions agree, and so does their order."""
    for seed, prompt in enumerate(prompts(4)):
        torch.manual_seed(seed)
        next_logits = decoding.CachedNextLogits(tiny)
        got = decoding.sample(next_logits, prompt, 15, process=decoding.knobs(**ours))
        torch.manual_seed(seed)
        options = {"do_sample": True, "top_k": 0, "top_p": 1.0, **theirs_}
        assert padded(got) == generate(tiny, prompt, 15, **options)[0]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.6, 1.0, 2.0, 0.0, -1.0])
def test_beam_search_equals_generate(tiny, length_penalty, early_stopping):
    """All four returned sequences and their scores, with none, one and several stop tokens."""
    for i, prompt in enumerate(prompts(6)):
        stop = [[], [7], MANY][i % 3]
        search = {"num_beams": 4, "length_penalty": length_penalty}
        search["early_stopping"] = early_stopping
        ours = decoding.beam_search(decoding.CachedNextLogits(tiny), prompt, 8, stop=stop, **search)
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
        ours = decoding.beam_search(
            decoding.CachedNextLogits(tiny), prompt, 10, process=decoding.knobs(penalty=1.3, n=2)
        )
        expected, _ = generate(
            tiny, prompt, 10, num_beams=4, repetition_penalty=1.3, no_repeat_ngram_size=2
        )
        assert list(ours[0].tokens) == expected[0]


# ── The cache ─────────────────────────────────────────────────────────────────────────────────────


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)  # fp32, other summation order


def test_cachednextlogits_equals_next_logits_of(tiny):
    cached, plain = decoding.CachedNextLogits(tiny), decoding.next_logits_of(tiny)
    ids = prompts(1, length=9)[0]
    for length in (4, 5, 6, 9):  # one token at a time, then three
        close(cached(ids[:, :length]), plain(ids[:, :length]))
    assert cached.tokens_read == 9


def test_cachednextlogits_follows_its_rows(tiny):
    """Rows swapped, repeated, dropped and multiplied, as beam search does."""
    cached, plain = decoding.CachedNextLogits(tiny), decoding.next_logits_of(tiny)
    ids = prompts(3)[:, 0]
    close(cached(ids), plain(ids))
    for order in ([2, 0, 1], [1, 1, 0], [0, 2], [1, 0, 0, 1]):
        ids = ids[order]
        ids = torch.cat([ids, torch.arange(10, 10 + len(ids))[:, None]], dim=1)
        close(cached(ids), plain(ids))
    assert cached.tokens_read == 15 + 3 + 3 + 2 + 4


def test_cachednextlogits_starts_over_for_another_text(tiny):
    cached, plain = decoding.CachedNextLogits(tiny), decoding.next_logits_of(tiny)
    one, other = prompts(2, length=6)
    for ids in (one[:, :4], other[:, :5], other[:, :5], one, one[:, :3], torch.cat([one, other])):
        close(cached(ids), plain(ids))


def test_cachednextlogits_ignores_later_changes_of_the_callers_ids(tiny):
    cached, plain = decoding.CachedNextLogits(tiny), decoding.next_logits_of(tiny)
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
    cached, ids = decoding.CachedNextLogits(model), prompts(1, length=6)[0]
    cached(ids[:, :4])
    model.fail = True
    with pytest.raises(KeyboardInterrupt):
        cached(ids[:, :5])
    model.fail = False
    close(cached(ids), decoding.next_logits_of(tiny)(ids))


def test_cachednextlogits_gives_ordinary_tensors(tiny):
    logits = decoding.CachedNextLogits(tiny)(prompts(1)[0])
    logits[0, 0] = -INF  # an inference tensor would refuse this
    assert not logits.is_inference()


def test_cachednextlogits_goes_on_after_a_loop(tiny):
    """The loops run in inference mode; what they left in the cache must be of use outside it."""
    cached, plain = decoding.CachedNextLogits(tiny), decoding.next_logits_of(tiny)
    beams = decoding.beam_search(cached, prompts(1)[0], 4)
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
    close(decoding.CachedNextLogits(Wrapped())(ids), decoding.next_logits_of(tiny)(ids))
    close(decoding.next_logits_of(Wrapped())(ids), decoding.next_logits_of(tiny)(ids))


@pytest.mark.parametrize("loop", ["greedy", "beam_search", "likeliest"])
def test_loops_cannot_tell_cachednextlogits_from_next_logits_of(tiny, loop):
    run = getattr(decoding, loop)
    for prompt in prompts(3):
        cached = decoding.CachedNextLogits(tiny)
        with_cache, without = (run(f, prompt, 4) for f in (cached, decoding.next_logits_of(tiny)))
        if loop == "likeliest":
            with_cache, without = [with_cache], [without]
        assert [c.tokens for c in with_cache] == [c.tokens for c in without]


def test_beam_search_reads_each_token_once(tiny):
    cached = decoding.CachedNextLogits(tiny)
    decoding.beam_search(cached, prompts(1)[0], 6, num_beams=4)
    assert cached.tokens_read == 5 + 4 * 5  # the prompt once, then four beams for five steps


def test_token_logprobs_equals_sequence_logprob(tiny):
    ids = prompts(2, length=8)[:, 0]
    for prompt_len in (1, 3, 7):
        got = decoding.token_logprobs(tiny, ids, prompt_len)
        assert got.shape == (2, 8 - prompt_len)
        next_logits = decoding.next_logits_of(tiny)
        expected = [decoding.sequence_logprob(next_logits, row, prompt_len) for row in ids]
        close(got.sum(-1), torch.tensor(expected))


def test_greedy_logprob_equals_token_logprobs(tiny):
    prompt = prompts(1)[0]
    (got,) = decoding.greedy(decoding.CachedNextLogits(tiny), prompt, 6)
    ids = torch.cat([prompt, torch.tensor([got.tokens])], dim=1)
    close(torch.tensor(got.logprob), decoding.token_logprobs(tiny, ids, 5).sum())
    beams = decoding.beam_search(decoding.CachedNextLogits(tiny), prompt, 6)
    ids = torch.cat([prompt, torch.tensor([beams[-1].tokens])], dim=1)
    close(torch.tensor(beams[-1].logprob), decoding.token_logprobs(tiny, ids, 5).sum())


# ── SmolLM2 ───────────────────────────────────────────────────────────────────────────────────────

TEXTS = (
    "The capital of France is",
    "Once upon a time there was",
    "The largest planet is",
    "Water boils at",
    "My favourite food is",
    "Two plus two equals",
    "The opposite of hot is",
    "In the beginning",
    "The cat sat on the",
    "Birds fly because",
    "The sun rises in the",
    "A triangle has",
    "She opened the door and",
    "The first president was",
    "To make tea, you",
    "Dogs are known for",
    "The colour of grass is",
    "He looked at me and said",
    "Snow is white because",
    "The answer to the question is",
)


def smollm2_prompts(tokenizer):
    return [tokenizer(text, return_tensors="pt").input_ids for text in TEXTS]


def ends_of_sentence(tokenizer):
    """Stop tokens that come early, so that beams of different lengths compete."""
    return [tokenizer.eos_token_id, *tokenizer(".\n,").input_ids]


def test_greedy_equals_generate_on_smollm2(smollm2):
    model, tokenizer = smollm2
    stop = [tokenizer.eos_token_id, tokenizer(".").input_ids[0]]
    next_logits = decoding.CachedNextLogits(model)
    for prompt in smollm2_prompts(tokenizer):
        (ours,) = decoding.greedy(next_logits, prompt, 16, stop=stop)
        ((*expected,), *_), _ = generate(model, prompt, 16, eos_token_id=stop)
        assert list(ours.tokens) == expected
        assert ours.finish_reason == ("stop" if expected[-1] in stop else "length")


@pytest.mark.parametrize("length_penalty", [0.6, 1.0, 2.0])
def test_beam_search_equals_generate_on_smollm2(smollm2, length_penalty):
    model, tokenizer = smollm2
    stop = ends_of_sentence(tokenizer)
    next_logits, lengths = decoding.CachedNextLogits(model), set()
    for i, prompt in enumerate(smollm2_prompts(tokenizer)):
        early_stopping = (False, True, "never")[i % 3]
        search = {"num_beams": 4, "length_penalty": length_penalty}
        search["early_stopping"] = early_stopping
        ours = decoding.beam_search(next_logits, prompt, 7, stop=stop, **search)
        expected, _ = generate(model, prompt, 7, eos_token_id=stop, **search)
        assert list(ours[0].tokens) == expected[0], TEXTS[i]
        lengths |= {len(c.tokens) for c in ours}
    assert len(lengths) > 2, "every beam ran to the maximum: nothing was shown of length penalties"


def test_sample_follows_the_exact_distribution_of_smollm2(smollm2):
    model, tokenizer = smollm2
    prompt = smollm2_prompts(tokenizer)[4]
    logits, process = decoding.next_logits_of(model)(prompt), decoding.knobs(T=1.2, k=30, p=0.95)
    generator = torch.Generator().manual_seed(0)
    tokens = []
    for _ in range(20):
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


def test_likeliest_beats_greedy_and_beams_on_smollm2(smollm2):
    model, tokenizer = smollm2
    prompt = tokenizer("Snow is white because", return_tensors="pt").input_ids
    next_logits = decoding.CachedNextLogits(model)
    best = decoding.likeliest(next_logits, prompt, 4)
    (greedy,) = decoding.greedy(next_logits, prompt, 4)
    beam = decoding.beam_search(next_logits, prompt, 4)[0]
    assert greedy.logprob + 0.1 < beam.logprob < best.logprob - 0.1  # measured: −6.7, −6.4, −5.0
    ids = torch.cat([prompt, torch.tensor([best.tokens])], dim=1)
    close(torch.tensor(best.logprob), decoding.token_logprobs(model, ids, prompt.shape[1]).sum())
