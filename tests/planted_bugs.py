"""Plausible wrong versions of the package's functions. Each must be rejected by its module's tests.

A module adds a list of `Bug` and one line to `PLANTED`; tests/test_planted_bugs.py does the rest:
it puts the wrong version in the function's place, runs those of tests/test_<module>.py whose names
hold the function's name, and wants at least one to fail. The wrong versions also serve the
exercises: what a check must reject, and which mistake it should name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from course_utils import decoding, metrics, retrieval


@dataclass(frozen=True)
class Bug:
    """One wrong version of `course_utils.<module>.<function>`.

    `tests` is the pytest -k expression of the tests that must notice, by default the function's
    name. Tests on real models are left out: those here must notice within a second or so.
    `exercise` is the id of an exercise whose check must reject the wrong version too, or "".
    """

    function: str
    description: str
    wrong: Callable[..., Any]
    tests: str = ""
    exercise: str = ""

    @property
    def selection(self) -> str:
        return self.tests or self.function.lower().strip("_")


# ── decoding ──────────────────────────────────────────────────────────────────────────────────────

right = {name: getattr(decoding, name) for name in dir(decoding) if not name.startswith("__")}


def temperature_multiplied(logits, T):
    return logits * T if T > 0 else right["temperature"](logits, T)


def temperature_on_probabilities(logits, T):
    return logits.softmax(-1) / T if T > 0 else right["temperature"](logits, T)


def temperature_without_zero(logits, T):
    return logits / T if T > 0 else logits


def top_k_strict(logits, k):
    edge = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits <= edge, -math.inf)


def top_k_without_ties(logits, k):
    best = logits.topk(min(k, logits.shape[-1])).indices
    return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))


def top_k_smallest(logits, k):
    edge = logits.topk(min(k, logits.shape[-1]), largest=False).values[..., -1:]
    return logits.masked_fill(logits > edge, -math.inf)


def top_k_to_zero(logits, k):
    return right["top_k"](logits, k).where(right["top_k"](logits, k) > -math.inf, 0)


def largest_of_each_block(x, k, block=64):
    if x.shape[-1] % block or k * block >= x.shape[-1]:
        return x.topk(k)
    return x.unflatten(-1, (-1, block)).amax(-1).topk(k)


def _nucleus(logits, dropped):
    """Drop sorted tokens for which `dropped(mass up to and with it, its own mass)` holds."""
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    mass = values.softmax(-1)
    out = dropped(mass.cumsum(-1), mass)
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -math.inf)


def top_p_one_too_few(logits, p):
    """The mask is not shifted: the token that reaches p goes as well."""
    return _nucleus(logits, lambda upto, own: upto > p)


def top_p_one_too_many(logits, p):
    return _nucleus(logits, lambda upto, own: upto - own - own.roll(1, -1).tril() > p)


def top_p_unsorted(logits, p):
    mass = logits.softmax(-1)
    return logits.masked_fill(mass.cumsum(-1) - mass >= p, -math.inf)


def top_p_not_scattered_back(logits, p):
    mass = logits.sort(dim=-1, descending=True).values.softmax(-1)
    return logits.masked_fill(mass.cumsum(-1) - mass >= p, -math.inf)


def top_p_as_threshold(logits, p):
    return logits.masked_fill(logits.softmax(-1) < 1 - p, -math.inf)


def top_p_may_empty(logits, p):
    """p = 0 leaves no token."""
    return _nucleus(logits, lambda upto, own: upto - own >= p)


def top_p_with_ties(logits, p):
    got = right["top_p"](logits, p)
    edge = got.where(got > -math.inf, math.inf).amin(-1, keepdim=True)
    return logits.masked_fill(logits < edge, -math.inf)


def min_p_absolute(logits, p_base):
    """Relative to 1, not to the likeliest token."""
    return logits.masked_fill(logits.softmax(-1) < p_base, -math.inf)


def min_p_on_logits(logits, p_base):
    return logits.masked_fill(logits < p_base * logits.amax(-1, keepdim=True), -math.inf)


def min_p_over_the_batch(logits, p_base):
    mass = logits.softmax(-1)
    return logits.masked_fill(mass < p_base * mass.max(), -math.inf)


def repetition_penalty_divides_all(logits, ids, penalty):
    return logits.scatter(-1, ids, logits.gather(-1, ids) / penalty)


def repetition_penalty_per_occurrence(logits, ids, penalty):
    counts = torch.zeros_like(logits).scatter_add(-1, ids, torch.ones_like(ids, dtype=logits.dtype))
    return torch.where(logits < 0, logits * penalty**counts, logits / penalty**counts)


def repetition_penalty_subtracts(logits, ids, penalty):
    return logits.scatter(-1, ids, logits.gather(-1, ids) - math.log(penalty))


def repetition_penalty_in_place(logits, ids, penalty):
    return logits.copy_(right["repetition_penalty"](logits, ids, penalty))


def repetition_penalty_last_token(logits, ids, penalty):
    return right["repetition_penalty"](logits, ids[..., -1:], penalty)


def no_repeat_ngram_longer(logits, ids, n):
    return right["no_repeat_ngram"](logits, ids, n + 1 if n else 0)


def no_repeat_ngram_shorter(logits, ids, n):
    return right["no_repeat_ngram"](logits, ids, max(n - 1, 0))


def no_repeat_ngram_misses_the_last(logits, ids, n):
    """The windows end one token early."""
    if n < 2 or ids.shape[-1] < n:
        return right["no_repeat_ngram"](logits, ids, n)
    shorter = torch.cat([ids[..., :-1], ids[..., -n + 1 :]], dim=-1)
    return right["no_repeat_ngram"](logits, shorter, n)


def no_repeat_ngram_allows_once_more(logits, ids, n):
    """Another match of the same start lifts the ban."""
    if n == 0 or ids.shape[-1] < n:
        return logits
    seen = ids.unfold(-1, n, 1)
    start = ids[..., None, ids.shape[-1] - n + 1 :]
    repeats = (seen[..., :-1] == start).all(-1)
    old = logits.gather(-1, seen[..., -1])
    return logits.scatter(-1, seen[..., -1], torch.where(repeats, -math.inf, old))


def entropy_in_bits(logits):
    return right["entropy"](logits) / math.log(2)


def entropy_nan(logits):
    mass = logits.softmax(-1)
    return -(mass * mass.log()).sum(-1)


def knobs_temperature_last(*, T=1.0, **others):
    """The filters see the distribution before the temperature."""
    filters, heat = right["knobs"](**others), right["knobs"](T=T)
    return lambda logits, ids: heat(filters(logits, ids), ids)


def knobs_filters_before_penalties(*, penalty=1.0, n=0, **others):
    filters, penalties = right["knobs"](**others), right["knobs"](penalty=penalty, n=n)
    return lambda logits, ids: penalties(filters(logits, ids), ids)


def greedy_ignores_stop(next_logits, prompt, max_new_tokens, *, stop=(), process=None):
    return right["greedy"](next_logits, prompt, max_new_tokens, process=process)


def greedy_drops_the_stop_token(next_logits, prompt, max_new_tokens, **options):
    found = right["greedy"](next_logits, prompt, max_new_tokens, **options)
    return [replace(c, tokens=c.tokens[:-1]) if c.finish_reason == "stop" else c for c in found]


def greedy_ignores_process(next_logits, prompt, max_new_tokens, *, stop=(), process=None):
    return right["greedy"](next_logits, prompt, max_new_tokens, stop=stop)


def greedy_always_length(*arguments, **options):
    return [replace(c, finish_reason="length") for c in right["greedy"](*arguments, **options)]


def cut_nothing(tokens, stop, logprob):
    """Rows that ended keep what the rest of the batch made them write."""
    reason = "stop" if set(tokens) & set(stop) else "length"
    return decoding.Continuation(tuple(tokens), logprob, reason, logprob)


def sample_ignores_generator(*arguments, generator=None, **options):
    return right["sample"](*arguments, **options)


def sample_uniform(next_logits, prompt, max_new_tokens, *, process=None, **options):
    """Draws among the tokens that are left without regard to their probabilities."""

    def flat(logits, ids):
        logits = process(logits, ids) if process else logits
        return torch.where(logits > -math.inf, 0, logits)

    return right["sample"](next_logits, prompt, max_new_tokens, process=flat, **options)


def sample_ignores_process(*arguments, process=None, **options):
    return right["sample"](*arguments, **options)


def candidates_without_penalty(tokens, totals, fates, normaliser):
    return right["_candidates"](tokens, totals, fates, 1.0)


def candidates_with_inverse_penalty(tokens, totals, fates, normaliser):
    return right["_candidates"](tokens, totals, fates, 1 / normaliser)


def fates_of_any_rank(tokens, stops, num_beams, *, last):
    """A stop far down the list ends a beam too."""
    reasons = right["_fates"](tokens, stops, num_beams, last=last)
    return [
        "stop" if end else fate
        for end, fate in zip(torch.isin(tokens, stops), reasons, strict=True)
    ]


def fates_stopped_beams_take_places(tokens, stops, num_beams, *, last):
    """The beams that stop are not replaced."""
    reasons = right["_fates"](tokens, stops, num_beams, last=last)
    return [fate if rank < num_beams else "pruned" for rank, fate in enumerate(reasons)]


def fates_stop_ignored(tokens, stops, num_beams, *, last):
    return right["_fates"](tokens, stops[:0], num_beams, last=last)


def expand_per_beam(ids, totals, logprobs, width):
    """The next token's own log-probability decides, not the sum."""
    longer, own = right["_expand"](ids, torch.zeros_like(totals), logprobs, width)
    parents = [(ids == row[:-1]).all(1).nonzero()[0, 0] for row in longer]
    return longer, own + totals[parents]


def best_by_logprob(continuations, count):
    return sorted(continuations, key=lambda c: -c.logprob)[:count]


def settled_at_once(totals, finished, num_beams, early, normaliser):
    """As if early_stopping were always True."""
    return right["_settled"](totals, finished, num_beams, True, normaliser)


def settled_never(totals, finished, num_beams, early, normaliser):
    return len(totals) == 0


def settled_against_the_best(totals, finished, num_beams, early, normaliser):
    return right["_settled"](totals, finished[:1] * len(finished), num_beams, early, normaliser)


class CacheNotReordered(right["CachedNextLogits"]):
    """Beams go on with each other's keys and values."""

    def _align(self, ids):
        if self.ids is None or self.ids.shape[1] >= ids.shape[1] or len(self.ids) != len(ids):
            self.forget()
            return 0
        return self.ids.shape[1]


class CacheNeverForgets(right["CachedNextLogits"]):
    """Another text of the same shape goes on with the old keys and values."""

    def _align(self, ids):
        known = super()._align(ids)
        if known or self.last is None or self.last[0].shape[1] >= ids.shape[1]:
            return known
        self.ids, self.cache = self.last
        return self.ids.shape[1] if len(self.ids) == len(ids) else super()._align(ids)

    def forget(self):
        self.last = (self.ids, self.cache) if getattr(self, "ids", None) is not None else None
        super().forget()


class CacheReadsAll(right["CachedNextLogits"]):
    """Right, but it reads every token again: no cache at all."""

    def _align(self, ids):
        self.forget()
        return 0


def likeliest_is_greedy(next_logits, prompt, max_new_tokens, *, stop=(), max_prefixes=256):
    return right["greedy"](next_logits, prompt, max_new_tokens, stop=stop)[0]


def likeliest_is_beam_search(next_logits, prompt, max_new_tokens, *, stop=(), max_prefixes=256):
    found = right["beam_search"](next_logits, prompt, max_new_tokens, num_beams=2, stop=stop)
    return found[0]


def sequence_logprob_with_prompt(next_logits, ids, prompt_len):
    return right["sequence_logprob"](next_logits, ids, 1)


def token_logprobs_unshifted(model, ids, prompt_len=1):
    """Position t is taken to predict token t."""
    ids = right["_as_ids"](ids)
    right["_check_prompt_len"](prompt_len, ids)
    logprobs = model(input_ids=ids).logits[:, prompt_len:].log_softmax(-1)
    return logprobs.gather(-1, ids[:, prompt_len:, None])[..., 0]


DECODING = [
    Bug("temperature", "multiplies by T", temperature_multiplied),
    Bug("temperature", "divides probabilities, not logits", temperature_on_probabilities),
    Bug("temperature", "T = 0 changes nothing", temperature_without_zero),
    Bug("top_k", "drops the k-th token too", top_k_strict),
    Bug("top_k", "drops ties", top_k_without_ties),
    Bug("top_k", "keeps the smallest", top_k_smallest),
    Bug("top_k", "sets filtered tokens to 0, not -inf", top_k_to_zero),
    Bug("largest", "takes one number from each block", largest_of_each_block),
    Bug("top_p", "keeps one token too few", top_p_one_too_few),
    Bug("top_p", "keeps one token too many", top_p_one_too_many),
    Bug("top_p", "adds up without sorting", top_p_unsorted),
    Bug("top_p", "masks by rank instead of by token", top_p_not_scattered_back),
    Bug("top_p", "drops tokens below 1 - p", top_p_as_threshold),
    Bug("top_p", "can leave no token", top_p_may_empty),
    Bug("top_p", "keeps all ties at the edge", top_p_with_ties),
    Bug("min_p", "is relative to 1 instead of the maximum", min_p_absolute),
    Bug("min_p", "takes a share of the largest logit", min_p_on_logits),
    Bug("min_p", "takes the maximum of the whole batch", min_p_over_the_batch),
    Bug("repetition_penalty", "divides negative logits too", repetition_penalty_divides_all),
    Bug("repetition_penalty", "counts occurrences", repetition_penalty_per_occurrence),
    Bug("repetition_penalty", "subtracts log(penalty)", repetition_penalty_subtracts),
    Bug("repetition_penalty", "changes its input", repetition_penalty_in_place),
    Bug("repetition_penalty", "sees the last token only", repetition_penalty_last_token),
    Bug("no_repeat_ngram", "blocks n-grams one longer", no_repeat_ngram_longer),
    Bug("no_repeat_ngram", "blocks n-grams one shorter", no_repeat_ngram_shorter),
    Bug("no_repeat_ngram", "misses the last n-gram", no_repeat_ngram_misses_the_last),
    Bug("no_repeat_ngram", "another window lifts the ban", no_repeat_ngram_allows_once_more),
    Bug("entropy", "is in bits", entropy_in_bits),
    Bug("entropy", "is NaN where a probability is 0", entropy_nan),
    Bug("knobs", "applies the temperature last", knobs_temperature_last),
    Bug("knobs", "filters before it penalises", knobs_filters_before_penalties),
    Bug("greedy", "ignores stop tokens", greedy_ignores_stop),
    Bug("greedy", "drops the stop token", greedy_drops_the_stop_token),
    Bug("greedy", "ignores process", greedy_ignores_process),
    Bug("greedy", "always says length", greedy_always_length),
    Bug("_cut", "rows write on after their stop", cut_nothing, tests="greedy"),
    Bug("sample", "ignores its generator", sample_ignores_generator),
    Bug("sample", "draws uniformly", sample_uniform),
    Bug("sample", "ignores process", sample_ignores_process),
    Bug("_candidates", "no length penalty", candidates_without_penalty, tests="beam_search"),
    Bug("_candidates", "penalty upside down", candidates_with_inverse_penalty, tests="beam_search"),
    Bug("_fates", "a stop of any rank counts", fates_of_any_rank, tests="beam_search"),
    Bug("_fates", "no place is refilled", fates_stopped_beams_take_places, tests="beam_search"),
    Bug("_fates", "stop tokens are ignored", fates_stop_ignored, tests="beam_search"),
    Bug("_expand", "ranks by the last token alone", expand_per_beam, tests="beam_search"),
    Bug("_best", "ranks by log-probability", best_by_logprob, tests="beam_search"),
    Bug("_settled", "always stops early", settled_at_once, tests="beam_search"),
    Bug("_settled", "never stops early", settled_never, tests="beam_search"),
    Bug("_settled", "compares with the best", settled_against_the_best, tests="beam_search"),
    Bug("CachedNextLogits", "rows are not reordered", CacheNotReordered),
    Bug("CachedNextLogits", "an old text is not forgotten", CacheNeverForgets),
    Bug("CachedNextLogits", "reads every token again", CacheReadsAll),
    Bug("likeliest", "is greedy", likeliest_is_greedy),
    Bug("likeliest", "is beam search", likeliest_is_beam_search),
    Bug("sequence_logprob", "scores the prompt as well", sequence_logprob_with_prompt),
    Bug("token_logprobs", "is off by one position", token_logprobs_unshifted),
]

# ── retrieval ─────────────────────────────────────────────────────────────────────────────────────

found = {name: getattr(retrieval, name) for name in dir(retrieval) if not name.startswith("__")}


def chunk_words_without_overlap(text, *, size=120, overlap=20, source=""):
    return found["chunk_words"](text, size=size, overlap=0, source=source)


def chunk_words_without_the_rest(text, *, size=120, overlap=20, source=""):
    passages = found["chunk_words"](text, size=size, overlap=overlap, source=source)
    return [p for p in passages if len(p.text.split()) == size]


def chunk_blocks_as_windows(text, *, size=120, source=""):
    return found["chunk_words"](text, size=size, overlap=0, source=source)


def chunk_blocks_one_each(text, *, size=120, source=""):
    blocks = [text[start:end] for start, end in found["_blocks"](text)]
    return [retrieval.Passage(b, source, (at := text.index(b)), at + len(b)) for b in blocks]


def tokenize_with_capitals(text, *, drop=()):
    return [word for word in found["_WORD"].findall(text) if word not in drop]


def tokenize_at_spaces(text, *, drop=()):
    return [word for word in text.lower().split() if word not in drop]


def bm25_scores_without_length(query, documents, *, k1=1.5, b=0.75, variant="lucene"):
    return found["bm25_scores"](query, documents, k1=k1, b=0, variant=variant)


def bm25_scores_without_saturation(query, documents, *, k1=1.5, b=0.75, variant="lucene"):
    idf = found["_idf"](Counter(w for d in documents for w in set(d)), len(documents), variant)
    return [sum(idf.get(w, 0) * list(d).count(w) for w in query) for d in documents]


def bm25_scores_of_distinct_words(query, documents, **options):
    return found["bm25_scores"](list(dict.fromkeys(query)), documents, **options)


def bm25_scores_always_scaled(query, documents, *, k1=1.5, b=0.75, variant="lucene"):
    scale = k1 + 1 if variant == "lucene" else 1
    plain = found["bm25_scores"](query, documents, k1=k1, b=b, variant=variant)
    return [scale * score for score in plain]


def idf_without_halves(containing, n_documents, variant):
    return {word: math.log1p((n_documents - n) / n) for word, n in containing.items()}


def idf_by_occurrences_of_words(containing, n_documents, variant):
    total = sum(containing.values())
    return {word: math.log1p((total - n + 0.5) / (n + 0.5)) for word, n in containing.items()}


def idf_negative(containing, n_documents, variant):
    odds = {word: (n_documents - n + 0.5) / (n + 0.5) for word, n in containing.items()}
    return {w: math.log1p(x) if variant == "lucene" else math.log(x) for w, x in odds.items()}


class BM25AddsOnce(retrieval.BM25):
    def scores(self, query):
        return super().scores(list(dict.fromkeys(query)))


class BM25FindsEverything(retrieval.BM25):
    def search(self, query, k=10):
        scores = self.scores(query)
        return [retrieval.Hit(i, scores[i]) for i in found["top_k"](scores, k).tolist()]


def top_k_unsorted(scores, k, *, above=-math.inf):
    return np.sort(found["top_k"](scores, k, above=above))


def top_k_ties_from_the_end(scores, k, *, above=-math.inf):
    order = np.argsort(scores, kind="stable")[::-1]
    return order[scores[order] > above][:k]


def top_k_lowest(scores, k, *, above=-math.inf):
    return found["top_k"](-scores, k)


def mean_pool_with_padding(hidden, mask):
    return hidden.mean(1)


def mean_pool_divided_by_all(hidden, mask):
    return (hidden * mask.unsqueeze(-1)).mean(1)


def mean_pool_first_token(hidden, mask):
    return hidden[:, 0]


def embedder_in_sorted_order(model, tokenizer, *, batch_size=16, max_length=256):
    embed = found["embedder"](model, tokenizer, batch_size=batch_size, max_length=max_length)
    return lambda texts: embed(sorted(texts, key=len, reverse=True))


def embedder_of_any_length(model, tokenizer, *, batch_size=16, max_length=256):
    return found["embedder"](model, tokenizer, batch_size=batch_size, max_length=10_000)


def reciprocal_rank_fusion_from_zero(rankings, *, k=60):
    return found["reciprocal_rank_fusion"](rankings, k=k - 1 if k >= 1 else k)


def reciprocal_rank_fusion_best_place(rankings, *, k=60):
    scores: dict = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = max(scores.get(item, 0), 1 / (k + rank))
    return sorted(scores.items(), key=lambda pair: -pair[1])


def reciprocal_rank_fusion_unsorted(rankings, *, k=60):
    return sorted(found["reciprocal_rank_fusion"](rankings, k=k), key=lambda pair: str(pair[0]))


def assemble_context_stops_early(passages, budget, count_tokens, **options):
    whole = found["assemble_context"](passages, budget, count_tokens, **options)
    first = passages.index(whole.left_out[0]) if whole.left_out else len(passages)
    kept = passages[: max(first, 1)]
    return replace(
        found["assemble_context"](kept, budget, count_tokens, **options),
        left_out=tuple(passages[len(kept) :]),
    )


def assemble_context_adds_up(passages, budget, count_tokens, **options):
    kept, used = [], 0
    for passage in passages:
        used += count_tokens(passage.text)
        kept += [passage] if used <= budget else []
    text = "\n\n".join(f"[{n}] ({p.source})\n{p.text}" for n, p in enumerate(kept, start=1))
    return retrieval.Context(text, tuple(kept), used, tuple(p for p in passages if p not in kept))


def overlap_never(one, other):
    return 0.0


def overlap_across_sources(one, other):
    return found["_overlap"](one, replace(other, source=one.source))


def without_markers_none(text):
    return text


def cited_numbers_first_of_a_group(text):
    return [int(group.split(",")[0].split(";")[0]) for group in found["_MARKER"].findall(text)]


def support_of_all_words(said, passage):
    words = set(found["tokenize"](said))
    return len(words & set(found["tokenize"](passage))) / len(words) if words else 0.0


def support_any_word(said, passage):
    return float(found["_support"](said, passage) > 0)


def recall_at_k_as_precision(ranking, relevant, k):
    found["recall_at_k"](ranking, relevant, k)
    return len(set(ranking[:k]) & set(relevant)) / k


def recall_at_k_as_hit_rate(ranking, relevant, k):
    return float(found["recall_at_k"](ranking, relevant, k) > 0)


def reciprocal_rank_of_the_last(ranking, relevant):
    ranks = [rank for rank, item in enumerate(ranking, start=1) if item in set(relevant)]
    return 1 / ranks[-1] if ranks else 0.0


def reciprocal_rank_from_zero(ranking, relevant):
    return next((1 / (i + 2) for i, item in enumerate(ranking) if item in set(relevant)), 0.0)


def ndcg_at_k_against_itself(ranking, gains, k):
    present = {item: gain for item, gain in gains.items() if item in ranking[:k] and gain > 0}
    return found["ndcg_at_k"](ranking, present, k) if present else 0.0


def ndcg_at_k_of_all(ranking, gains, k):
    best = found["_discounted"](sorted(gains.values(), reverse=True))
    return found["_discounted"](gains.get(item, 0) for item in ranking[:k]) / best


def ndcg_at_k_exponential(ranking, gains, k):
    return found["ndcg_at_k"](ranking, {item: 2**gain - 1 for item, gain in gains.items()}, k)


def discounted_by_rank(gains):
    return sum(gain / rank for rank, gain in enumerate(gains, start=1))


def evaluate_sums(rankings, relevant, *, ks=(1, 5, 10)):
    table = found["evaluate"](rankings, relevant, ks=ks)
    return {name: value * len(rankings) for name, value in table.items()}


RETRIEVAL = [
    Bug("chunk_words", "windows do not overlap", chunk_words_without_overlap),
    Bug("chunk_words", "the short window at the end is lost", chunk_words_without_the_rest),
    Bug("chunk_blocks", "cuts through blocks", chunk_blocks_as_windows),
    Bug("chunk_blocks", "does not pack blocks together", chunk_blocks_one_each),
    Bug("tokenize", "keeps capitals", tokenize_with_capitals),
    Bug("tokenize", "leaves punctuation on words", tokenize_at_spaces),
    Bug("bm25_scores", "ignores the document's length", bm25_scores_without_length),
    Bug("bm25_scores", "grows with every repetition", bm25_scores_without_saturation),
    Bug("bm25_scores", "counts a repeated query word once", bm25_scores_of_distinct_words),
    Bug("bm25_scores", "scales the wrong variant by k1 + 1", bm25_scores_always_scaled),
    Bug("_idf", "leaves out the halves", idf_without_halves, tests="bm25_scores"),
    Bug("_idf", "counts words, not documents", idf_by_occurrences_of_words, tests="bm25_scores"),
    Bug("_idf", "lets frequent words count against", idf_negative, tests="bm25_scores"),
    Bug("BM25", "counts a repeated query word once", BM25AddsOnce, tests="bm25_class"),
    Bug("BM25", "returns documents without the words", BM25FindsEverything, tests="bm25_search"),
    Bug("top_k", "does not sort", top_k_unsorted),
    Bug("top_k", "prefers the later of equal scores", top_k_ties_from_the_end),
    Bug("top_k", "takes the lowest", top_k_lowest),
    Bug("mean_pool", "averages over padding", mean_pool_with_padding),
    Bug("mean_pool", "divides by all positions", mean_pool_divided_by_all),
    Bug("mean_pool", "takes the first token", mean_pool_first_token),
    Bug("embedder", "returns the order of lengths", embedder_in_sorted_order),
    Bug("embedder", "does not cut long texts", embedder_of_any_length),
    Bug("reciprocal_rank_fusion", "counts ranks from zero", reciprocal_rank_fusion_from_zero),
    Bug("reciprocal_rank_fusion", "takes the best place", reciprocal_rank_fusion_best_place),
    Bug("reciprocal_rank_fusion", "does not sort by score", reciprocal_rank_fusion_unsorted),
    Bug("assemble_context", "stops at what does not fit", assemble_context_stops_early),
    Bug("assemble_context", "adds up the parts", assemble_context_adds_up),
    Bug("_overlap", "repeats passages", overlap_never, tests="assemble_context"),
    Bug("_overlap", "mixes sources", overlap_across_sources, tests="assemble_context"),
    Bug("_without_markers", "lets pose", without_markers_none, tests="assemble_context"),
    Bug("cited_numbers", "reads one number of a group", cited_numbers_first_of_a_group),
    Bug("_support", "counts function words", support_of_all_words, tests="check_citations"),
    Bug("_support", "is content with one word", support_any_word, tests="check_citations"),
    Bug("recall_at_k", "is precision", recall_at_k_as_precision),
    Bug("recall_at_k", "is the hit rate", recall_at_k_as_hit_rate),
    Bug("reciprocal_rank", "takes the last relevant item", reciprocal_rank_of_the_last),
    Bug("reciprocal_rank", "is off by one", reciprocal_rank_from_zero),
    Bug("ndcg_at_k", "compares with what it found itself", ndcg_at_k_against_itself),
    Bug("ndcg_at_k", "does not cut the best ranking at k", ndcg_at_k_of_all),
    Bug("ndcg_at_k", "uses exponential gains", ndcg_at_k_exponential),
    Bug("_discounted", "divides by the rank", discounted_by_rank, tests="ndcg_at_k"),
    Bug("evaluate", "sums instead of averaging", evaluate_sums),
]

# ── metrics ───────────────────────────────────────────────────────────────────────────────────────

honest = {name: getattr(metrics, name) for name in dir(metrics) if not name.startswith("__")}


def perplexity_of_sum(logprobs):
    return math.exp(-math.fsum(logprobs))


def perplexity_in_bits(logprobs):
    return 2 ** (-math.fsum(logprobs) / len(logprobs))


def edit_distance_without_substitution(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, kept = row[j], diagonal
            row[j] = kept if x == y else 1 + min(row[j], row[j - 1])
    return row[-1]


def edit_distance_by_position(a, b):
    return sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))


def error_rates_first_reference(hypotheses, references):
    return honest["error_rates"](hypotheses, [accepted[:1] for accepted in references])


def accuracy_with_normal_interval(correct, confidence=0.95):
    share = sum(correct) / len(correct)
    half = 1.96 * math.sqrt(share * (1 - share) / len(correct))
    return metrics.Proportion(share, share - half, share + half, len(correct))


def paired_p_value_one_sided(a, b):
    return honest["paired_p_value"](a, b) / 2


def distinct_n_mean_of_texts(texts, n):
    return sum(honest["distinct_n"]([text], n) for text in texts) / len(texts)


def ends_in_loop_anywhere(tokens, times=3, shortest=2):
    return any(honest["ends_in_loop"](tokens[:end]) for end in range(len(tokens) + 1))


def ends_in_loop_twice(tokens, times=3, shortest=2):
    return honest["ends_in_loop"](tokens, 2, shortest)


def time_ratio_upside_down(fast, slow, repeats=5, warmup=1):
    return honest["time_ratio"](slow, fast, repeats, warmup)


def parameter_bytes_counting_twice(module):
    state = module.state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in state)


def checksum_of_shapes(module):
    return str([tensor.shape for tensor in module.state_dict().values()])


METRICS = [
    Bug("perplexity", "sums instead of averaging", perplexity_of_sum),
    Bug("perplexity", "takes nats for bits", perplexity_in_bits),
    Bug("edit_distance", "knows no substitution", edit_distance_without_substitution),
    Bug("edit_distance", "compares place by place", edit_distance_by_position),
    Bug("error_rates", "takes the first reference", error_rates_first_reference),
    Bug("accuracy", "uses the normal interval", accuracy_with_normal_interval),
    Bug("paired_p_value", "is one-sided", paired_p_value_one_sided, tests="paired_test"),
    Bug("distinct_n", "averages over texts", distinct_n_mean_of_texts),
    Bug("ends_in_loop", "finds a loop that was left again", ends_in_loop_anywhere),
    Bug("ends_in_loop", "is content with two", ends_in_loop_twice),
    Bug("time_ratio", "divides the wrong way", time_ratio_upside_down),
    Bug("parameter_bytes", "counts tied weights twice", parameter_bytes_counting_twice),
    Bug("checksum", "looks at shapes only", checksum_of_shapes),
]

# ── One line for each module ──────────────────────────────────────────────────────────────────────

PLANTED: dict[str, list[Bug]] = {
    "decoding": DECODING,
    "metrics": METRICS,
    "retrieval": RETRIEVAL,
}
