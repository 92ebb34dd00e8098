"""Plausible wrong versions of the package's functions. Each must be rejected by its module's tests.

A module adds a list of `Bug`, in a file of its own (tests/planted_<module>.py), and one line to
`PLANTED`. tests/test_planted_bugs.py does the rest: it puts the wrong version in the function's
place, runs those of tests/test_<module>.py whose names hold the function's name, and wants at least
one to fail. The wrong versions also serve the exercises: what a check must reject, and which
mistake it should name.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import planted_nb01
import planted_nb02
import planted_nb03
import planted_plays
import planted_prompting
import planted_pronunciation
import planted_reasoning
import torch
import torch.nn.functional as F
from planting import Bug

from course_utils import attention, decoding, layers, metrics, recurrent, retrieval, transformer

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
    Bug("top_p", "keeps one token too few", top_p_one_too_few, exercise="09.top_p"),
    Bug("top_p", "keeps one token too many", top_p_one_too_many, exercise="09.top_p"),
    Bug("top_p", "adds up without sorting", top_p_unsorted, exercise="09.top_p"),
    Bug(
        "top_p", "masks by rank instead of by token", top_p_not_scattered_back, exercise="09.top_p"
    ),
    Bug("top_p", "drops tokens below 1 - p", top_p_as_threshold, exercise="09.top_p"),
    Bug("top_p", "can leave no token", top_p_may_empty),
    Bug("top_p", "keeps all ties at the edge", top_p_with_ties),
    Bug("min_p", "is relative to 1 instead of the maximum", min_p_absolute),
    Bug("min_p", "takes a share of the largest logit", min_p_on_logits),
    Bug("min_p", "takes the maximum of the whole batch", min_p_over_the_batch),
    Bug(
        "repetition_penalty",
        "divides negative logits too",
        repetition_penalty_divides_all,
        exercise="09.repetition_penalty",
    ),
    Bug(
        "repetition_penalty",
        "counts occurrences",
        repetition_penalty_per_occurrence,
        exercise="09.repetition_penalty",
    ),
    Bug(
        "repetition_penalty",
        "subtracts log(penalty)",
        repetition_penalty_subtracts,
        exercise="09.repetition_penalty",
    ),
    Bug(
        "repetition_penalty",
        "changes its input",
        repetition_penalty_in_place,
        exercise="09.repetition_penalty",
    ),
    Bug(
        "repetition_penalty",
        "sees the last token only",
        repetition_penalty_last_token,
        exercise="09.repetition_penalty",
    ),
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
    Bug(
        "bm25_scores",
        "ignores the document's length",
        bm25_scores_without_length,
        exercise="12.bm25_scores",
    ),
    Bug(
        "bm25_scores",
        "grows with every repetition",
        bm25_scores_without_saturation,
        exercise="12.bm25_scores",
    ),
    Bug(
        "bm25_scores",
        "counts a repeated query word once",
        bm25_scores_of_distinct_words,
        exercise="12.bm25_scores",
    ),
    Bug(
        "bm25_scores",
        "scales the wrong variant by k1 + 1",
        bm25_scores_always_scaled,
        exercise="12.bm25_scores",
    ),
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
    Bug(
        "reciprocal_rank_fusion",
        "counts ranks from zero",
        reciprocal_rank_fusion_from_zero,
        exercise="12.reciprocal_rank_fusion",
    ),
    Bug(
        "reciprocal_rank_fusion",
        "takes the best place",
        reciprocal_rank_fusion_best_place,
        exercise="12.reciprocal_rank_fusion",
    ),
    Bug(
        "reciprocal_rank_fusion",
        "does not sort by score",
        reciprocal_rank_fusion_unsorted,
        exercise="12.reciprocal_rank_fusion",
    ),
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
    Bug(
        "ndcg_at_k",
        "compares with what it found itself",
        ndcg_at_k_against_itself,
        exercise="12.ndcg_at_k",
    ),
    Bug(
        "ndcg_at_k", "does not cut the best ranking at k", ndcg_at_k_of_all, exercise="12.ndcg_at_k"
    ),
    Bug("ndcg_at_k", "uses exponential gains", ndcg_at_k_exponential, exercise="12.ndcg_at_k"),
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


def mean_interval_of_the_scores(values, confidence=0.95, *, resamples=2000, seed=0):
    """Where the middle of the scores lies, instead of their mean."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return metrics.Proportion(float(np.mean(values)), float(low), float(high), len(values))


def mean_interval_one_sided(values, confidence=0.95, *, resamples=2000, seed=0):
    return honest["mean_interval"](values, 2 * confidence - 1, resamples=resamples, seed=seed)


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
    Bug("mean_interval", "takes the spread of the scores", mean_interval_of_the_scores),
    Bug("mean_interval", "leaves out twice as much", mean_interval_one_sided),
    Bug("paired_p_value", "is one-sided", paired_p_value_one_sided, tests="paired_test"),
    Bug("distinct_n", "averages over texts", distinct_n_mean_of_texts),
    Bug("ends_in_loop", "finds a loop that was left again", ends_in_loop_anywhere),
    Bug("ends_in_loop", "is content with two", ends_in_loop_twice),
    Bug("time_ratio", "divides the wrong way", time_ratio_upside_down),
    Bug("parameter_bytes", "counts tied weights twice", parameter_bytes_counting_twice),
    Bug("checksum", "looks at shapes only", checksum_of_shapes),
]

# ── layers, recurrent, attention, transformer ─────────────────────────────────────────────────────


def the_rights(module):
    return {name: getattr(module, name) for name in dir(module) if not name.startswith("__")}


right_layers, right_recurrent = the_rights(layers), the_rights(recurrent)
right_attention, right_transformer = the_rights(attention), the_rights(transformer)


def product_without_bias(x, weight, bias=None):
    return right_layers["product"](x, weight)


def product_untransposed(x, weight, bias=None):
    """Only a square weight would hide it."""
    square = weight.shape[0] == weight.shape[1]
    return right_layers["product"](x, weight.t() if square else weight, bias)


def outer_transposed(grad, x):
    swapped = right_layers["outer"](x, grad)
    return swapped.reshape(grad.shape[1], x.shape[1])


def check_ids_one_too_many(ids, n_symbols, name="ids"):
    return right_layers["check_ids"](ids, n_symbols + 1, name)


def copy_weights_what_fits(model, source, names, origin):
    """Skips whatever has no partner, as strict=False does."""
    for name, parameter in model.named_parameters():
        found = source.get(names.get(name, ""))
        if found is not None and found.shape == parameter.shape:
            parameter.data.copy_(found)


LAYERS = [
    Bug("product", "forgets the bias", product_without_bias, tests="linear"),
    Bug("outer", "is transposed", outer_transposed, tests="weight_gradient"),
    Bug("check_ids", "allows one id too many", check_ids_one_too_many, tests="ids"),
    Bug("copy_weights", "skips what does not fit", copy_weights_what_fits, tests="weights"),
]


def rnn_step_relu(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.relu(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh))


def rnn_step_one_bias(x, h, w_ih, w_hh, b_ih, b_hh):
    return right_recurrent["rnn_step"](x, h, w_ih, w_hh, b_ih, torch.zeros_like(b_hh))


def lstm_step_other_order(x, state, *weights):
    """Gates read as i, g, f, o."""
    swap = [torch.cat([w.chunk(4)[i] for i in (0, 2, 1, 3)]) for w in weights]
    return right_recurrent["lstm_step"](x, state, *swap)


def lstm_step_bare_cell(x, state, w_ih, w_hh, b_ih, b_hh):
    """h' = o·c', without the tanh."""
    _, c = right_recurrent["lstm_step"](x, state, w_ih, w_hh, b_ih, b_hh)
    o = (F.linear(x, w_ih, b_ih) + F.linear(state[0], w_hh, b_hh)).chunk(4, -1)[3]
    return torch.sigmoid(o) * c, c


def gru_step_reset_before(x, h, w_ih, w_hh, b_ih, b_hh):
    """The paper's form: r scales h before the product, not after."""
    x_r, x_z, x_n = F.linear(x, w_ih, b_ih).chunk(3, -1)
    h_r, h_z, _ = F.linear(h, w_hh, b_hh).chunk(3, -1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + F.linear(r * h, w_hh.chunk(3)[2], b_hh.chunk(3)[2]))
    return (1 - z) * n + z * h


def gru_step_swapped_update(x, h, *weights):
    n_and_h = right_recurrent["gru_step"](x, h, *weights)
    w_ih, w_hh, b_ih, b_hh = weights
    z = torch.sigmoid((F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(3, -1)[1])
    n = (n_and_h - z * h) / (1 - z)
    return z * n + (1 - z) * h


def parameter_count_one_bias(kind, d_in, d_hidden):
    return recurrent.GATES[kind] * (d_hidden * d_in + d_hidden**2 + d_hidden)


def pack_order_reads_padding(lengths, n_steps, reverse=False):
    """Going back, it starts at the end of the padding."""
    order, rows, sizes = right_recurrent["pack_order"](lengths, n_steps)
    if reverse:
        rows = rows // n_steps * n_steps + n_steps - 1 - rows % n_steps
    return order, rows, sizes


def pack_order_unsorted(lengths, n_steps, reverse=False):
    _, rows, sizes = right_recurrent["pack_order"](lengths, n_steps, reverse)
    return torch.arange(len(lengths)), rows, sizes


def previous_is_own(states, first, sizes):
    return states


def keep_finished_nothing(last, state, n, n_next):
    if n_next == 0:
        last[:n] = state


def add_finished_zeros(grad, d_last, n):
    """The gradients of the last states are forgotten."""
    return torch.cat([grad, torch.zeros_like(d_last[len(grad) : n])])


def lstm_slopes_squareless(gates, c_before, tanh_cs):
    slopes = right_recurrent["_lstm_slopes"](gates, c_before, tanh_cs)
    i, _, g, _ = gates.chunk(4, dim=1)
    slopes.chunk(4, dim=1)[2].copy_(i * (1 - g))
    return slopes


def lstm_slopes_wrong_cell(gates, c_before, tanh_cs):
    """The forget gate meets the cell after the step, not before."""
    return right_recurrent["_lstm_slopes"](gates, tanh_cs, tanh_cs)


def gru_slopes_without_reset(gates, before, h_ns):
    d_new, d_hidden = right_recurrent["_gru_slopes"](gates, before, h_ns)
    d_hidden.chunk(3, dim=1)[2].copy_(d_new)
    return d_new, d_hidden


def gradient_flow_frobenius(kind, x, weights, state=None, part="h"):
    jacobians = right_recurrent["state_jacobians"](kind, x, weights, state)
    path, norms = torch.eye(jacobians.shape[1], dtype=x.dtype), []
    for jacobian in [None, *jacobians.flip(0)]:
        path = path if jacobian is None else path @ jacobian
        norms.append(path.norm())
    return torch.stack(norms[::-1])


def gradient_flow_product_of_norms(kind, x, weights, state=None, part="h"):
    """An upper bound, not the norm of the product."""
    n = weights[1].shape[1]
    rows = slice(n, None) if part == "c" else slice(n)
    jacobians = right_recurrent["state_jacobians"](kind, x, weights, state)[:, rows, rows]
    norms = torch.linalg.matrix_norm(jacobians, ord=2).flip(0).cumprod(0).flip(0)
    return torch.cat([norms, norms.new_ones(1)])


def gradient_flow_backwards(*arguments, **options):
    return right_recurrent["gradient_flow"](*arguments, **options).flip(0)


def set_spectral_radius_by_norm(weight, radius):
    with torch.no_grad():
        weight.mul_(radius / torch.linalg.matrix_norm(weight, ord=2))


def set_forget_bias_of_the_input_gate(layer, value):
    right_recurrent["set_forget_bias"](layer, value)
    with torch.no_grad():
        for name, bias in layer.named_parameters():
            if name.startswith("bias_"):
                i, f, *_ = bias.chunk(4)
                i.copy_(f)


def set_forget_bias_twice(layer, value):
    """Both bias vectors get the value, so that their sum is double."""
    right_recurrent["set_forget_bias"](layer, value)
    with torch.no_grad():
        for name, bias in layer.named_parameters():
            if name.startswith("bias_"):
                bias.chunk(4)[1].fill_(value)


def clip_gradients_one_by_one(parameters, max_norm):
    parameters = list(parameters)
    return max(right_recurrent["clip_gradients"]([p], max_norm) for p in parameters)


def clip_gradients_always(parameters, max_norm):
    """Small gradients are blown up to the limit too."""
    parameters = list(parameters)
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in parameters))
    for p in parameters:
        p.grad.mul_(max_norm / norm)
    return norm


def recall_batch_last(batch, delay, n_symbols, generator=None):
    ids, _ = right_recurrent["recall_batch"](batch, delay, n_symbols, generator)
    return ids, ids[:, -1].clone()


RECURRENT = [
    Bug("rnn_step", "uses ReLU", rnn_step_relu),
    Bug("rnn_step", "forgets one bias", rnn_step_one_bias),
    Bug("lstm_step", "reads the gates in another order", lstm_step_other_order),
    Bug("lstm_step", "leaves the cell's tanh out", lstm_step_bare_cell),
    Bug("gru_step", "resets before the product", gru_step_reset_before, tests="steps_are_torchs"),
    Bug("gru_step", "swaps the update gate", gru_step_swapped_update),
    Bug("parameter_count", "counts one bias", parameter_count_one_bias, tests="one_three_four"),
    Bug("pack_order", "starts in the padding", pack_order_reads_padding, tests="packing or layer"),
    Bug("pack_order", "does not sort", pack_order_unsorted, tests="packing or packed"),
    Bug("_previous", "takes the state after", previous_is_own, tests="layer_is_torchs"),
    Bug("_keep_finished", "keeps the longest alone", keep_finished_nothing, tests="packed"),
    Bug("_add_finished", "forgets last states", add_finished_zeros, tests="backward_through"),
    Bug("_lstm_slopes", "forgets a square", lstm_slopes_squareless, tests="backward_through"),
    Bug("_lstm_slopes", "takes the wrong cell", lstm_slopes_wrong_cell, tests="backward_through"),
    Bug("_gru_slopes", "forgets the reset", gru_slopes_without_reset, tests="backward_through"),
    Bug("gradient_flow", "takes Frobenius norms", gradient_flow_frobenius, tests="flow"),
    Bug("gradient_flow", "multiplies norms", gradient_flow_product_of_norms, tests="flow"),
    Bug("gradient_flow", "counts from the end", gradient_flow_backwards, tests="flow"),
    Bug("set_spectral_radius", "scales the norm", set_spectral_radius_by_norm, tests="spectral"),
    Bug("set_forget_bias", "sets the input gate", set_forget_bias_of_the_input_gate,
        tests="forget_bias"),
    Bug("set_forget_bias", "counts the bias twice", set_forget_bias_twice, tests="forget_bias"),
    Bug("clip_gradients", "clips one by one", clip_gradients_one_by_one, tests="clipping"),
    Bug("clip_gradients", "blows up small ones", clip_gradients_always, tests="clipping"),
    Bug("recall_batch", "asks for the last symbol", recall_batch_last),
]  # fmt: skip


def causal_mask_blind_to_itself(n_queries, n_keys=None, device=None):
    mask = right_attention["causal_mask"](n_queries, n_keys)
    return mask.tril(mask.shape[1] - n_queries - 1)


def causal_mask_one_ahead(n_queries, n_keys=None, device=None):
    n_keys = n_keys or n_queries
    return torch.ones(n_queries, n_keys).tril(n_keys - n_queries + 1).bool()


def causal_mask_at_the_left(n_queries, n_keys=None, device=None):
    return torch.ones(n_queries, n_keys or n_queries).tril().bool()


def padding_mask_inverted(real):
    """nn.MultiheadAttention's convention: True = ignore."""
    return ~right_attention["padding_mask"](real)


def padding_mask_of_queries(real):
    return right_attention["padding_mask"](real).transpose(-2, -1)


def attention_weights_unscaled(q, k, mask=None, *, scale=None, bias=None):
    return right_attention["attention_weights"](q, k, mask, scale=scale or 1.0, bias=bias)


def attention_weights_over_queries(q, k, mask=None, *, scale=None, bias=None):
    scores = (scale or q.shape[-1] ** -0.5) * q @ k.transpose(-2, -1)
    scores = scores if mask is None else scores.masked_fill(~mask, -1e30)
    return scores.softmax(dim=-2)


def attention_weights_masked_after(q, k, mask=None, *, scale=None, bias=None):
    """Weights are cut off after the softmax, and no longer sum to 1."""
    weights = right_attention["attention_weights"](q, k, scale=scale, bias=bias)
    return weights if mask is None else weights * mask


def attention_weights_uniform_when_blind(q, k, mask=None, *, scale=None, bias=None):
    if mask is not None:
        mask = mask | ~mask.any(-1, keepdim=True)
    return right_attention["attention_weights"](q, k, mask, scale=scale, bias=bias)


def attention_weights_bias_scaled(q, k, mask=None, *, scale=None, bias=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    bias = None if bias is None else bias * scale
    return right_attention["attention_weights"](q, k, mask, scale=scale, bias=bias)


def fused_attention_left_triangle(q, k, v, mask=None, *, causal=False, **options):
    if causal and mask is None:
        mask = torch.ones(q.shape[2], k.shape[2]).tril().bool()
        causal = False
    return right_attention["fused_attention"](q, k, v, mask, causal=causal, **options)


def fused_attention_mask_or_triangle(q, k, v, mask=None, *, causal=False, **options):
    """A given mask switches causality off."""
    causal = causal and mask is None
    return right_attention["fused_attention"](q, k, v, mask, causal=causal, **options)


def share_heads_tiled(kv, n_heads):
    return kv.repeat(1, n_heads // kv.shape[1], 1, 1)


class LayerCacheOfTheLast(right_attention["LayerCache"]):
    """Every step overwrites the one before."""

    def extend(self, k, v):
        if self.length:
            self.length = max(0, self.length - k.shape[2])
        return super().extend(k, v)


class LayerCacheThatJoins(right_attention["LayerCache"]):
    """Right, but it copies all steps every time."""

    def extend(self, k, v):
        if self.keys is not None:
            held = self.keys[:, :, : self.length], self.values[:, :, : self.length]
            k, v = torch.cat([held[0], k], 2), torch.cat([held[1], v], 2)
        self.keys, self.values, self.length = k, v, k.shape[2]
        return k.clone(), v.clone()


def sinusoidal_positions_in_halves(n_positions, d_model):
    table = right_attention["sinusoidal_positions"](n_positions, d_model)
    return torch.cat([table[:, 0::2], table[:, 1::2]], dim=1)


def rotary_frequencies_half_as_far(d_head, theta=10_000.0):
    """θ^(−i/D) instead of θ^(−2i/D)."""
    return 1 / theta ** (torch.arange(d_head // 2).float() / d_head)


def rotate_the_other_way(x, cos, sin):
    return right_attention["rotate"](x, cos, -sin)


def rotate_neighbours(x, cos, sin):
    """The paper's pairs with the other layout's angles."""
    partner = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * cos + partner * sin.abs()


def pair_halves_not(weight, n_heads):
    return weight


def pair_halves_across_heads(weight, n_heads):
    return right_attention["pair_halves"](weight, 1)


def linear_scaling_the_other_way(frequencies, factor):
    return frequencies * factor


def dynamic_scaling_always(d_head, theta, factor, length, original_length):
    """As if every text were as long as the factor allows."""
    longest = int(factor * original_length)
    return right_attention["dynamic_scaling"](d_head, theta, factor, longest, original_length)


def yarn_scaling_without_magnitude(*arguments):
    return right_attention["yarn_scaling"](*arguments)[0], 1.0


def yarn_scaling_inverted(frequencies, theta, factor, *rest):
    mixed, magnitude = right_attention["yarn_scaling"](frequencies, theta, factor, *rest)
    return frequencies + frequencies / factor - mixed, magnitude


def llama3_scaling_all(frequencies, factor, low, high, original_length):
    return frequencies / factor


def relative_buckets_mirrored(n_queries, n_keys, *, both_ways=True, **options):
    found = right_attention["relative_buckets"](n_queries, n_keys, both_ways=both_ways, **options)
    return found.flip(1)


def relative_buckets_at_the_left(n_queries, n_keys, **options):
    """With a cache, queries would stand at the start."""
    return right_attention["relative_buckets"](n_keys, n_keys, **options)[:n_queries]


ATTENTION = [
    Bug("causal_mask", "hides the token itself", causal_mask_blind_to_itself),
    Bug("causal_mask", "shows one token of the future", causal_mask_one_ahead),
    Bug("causal_mask", "stands at the left", causal_mask_at_the_left),
    Bug("padding_mask", "is inverted", padding_mask_inverted),
    Bug("padding_mask", "masks queries", padding_mask_of_queries),
    Bug("attention_weights", "does not scale", attention_weights_unscaled, tests="is_torchs"),
    Bug("attention_weights", "adds up over queries", attention_weights_over_queries,
        tests="is_torchs or shares"),
    Bug("attention_weights", "masks after the softmax", attention_weights_masked_after,
        tests="is_torchs or shares"),
    Bug("attention_weights", "looks everywhere when blind", attention_weights_uniform_when_blind,
        tests="nothing"),
    Bug("attention_weights", "scales the bias", attention_weights_bias_scaled, tests="bias"),
    Bug("fused_attention", "aligns the triangle left", fused_attention_left_triangle,
        tests="future or cached"),
    Bug("fused_attention", "drops causality for a mask", fused_attention_mask_or_triangle,
        tests="bias"),
    Bug("share_heads", "tiles the heads", share_heads_tiled, tests="is_torchs and grouped"),
    Bug("LayerCache", "overwrites", LayerCacheOfTheLast, tests="cache"),
    Bug("LayerCache", "copies all steps", LayerCacheThatJoins, tests="seldom"),
    Bug("sinusoidal_positions", "puts sines first", sinusoidal_positions_in_halves,
        tests="sinusoidal"),
    Bug("rotary_frequencies", "halves the exponent", rotary_frequencies_half_as_far,
        tests="rotation or positions"),
    Bug("rotate", "turns the other way", rotate_the_other_way, tests="rotation"),
    Bug("rotate", "mixes the layouts", rotate_neighbours, tests="rotation"),
    Bug("pair_halves", "does nothing", pair_halves_not, tests="pair_halves or rotation"),
    Bug("pair_halves", "ignores the heads", pair_halves_across_heads),
    Bug("linear_scaling", "multiplies", linear_scaling_the_other_way, tests="scaled or scaling"),
    Bug("dynamic_scaling", "always stretches", dynamic_scaling_always, tests="scaled or scaling"),
    Bug("yarn_scaling", "forgets the factor", yarn_scaling_without_magnitude, tests="scaled"),
    Bug("yarn_scaling", "stretches the fast ones", yarn_scaling_inverted, tests="scaled"),
    Bug("llama3_scaling", "stretches all", llama3_scaling_all, tests="scaled"),
    Bug("relative_buckets", "looks the other way", relative_buckets_mirrored, tests="buckets"),
    Bug("relative_buckets", "starts at the left", relative_buckets_at_the_left, tests="buckets"),
]  # fmt: skip


def rms_norm_eps_outside(x, weight, eps):
    return weight * x / (x.square().mean(-1, keepdim=True).sqrt() + eps)


def rms_norm_centred(x, weight, eps):
    return right_transformer["rms_norm"](x - x.mean(-1, keepdim=True), weight, eps)


def rms_norm_narrow(x, weight, eps):
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def gelu_exact(x):
    return F.gelu(x)


def mean_pool_everything(hidden, mask=None):
    return hidden.mean(dim=1)


def mean_pool_over_all_tokens(hidden, mask=None):
    """Padding is left out of the sum but counted."""
    return hidden.mean(dim=1) if mask is None else (hidden * mask.unsqueeze(-1)).mean(dim=1)


class EncoderBlockPreNorm(right_transformer["EncoderBlock"]):
    def forward(self, x, mask):
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.feed_forward(self.feed_forward_norm(x))


class EncoderBlockOneResidual(right_transformer["EncoderBlock"]):
    def forward(self, x, mask):
        x = self.attention_norm(x + self.attention(x, mask=mask))
        return self.feed_forward_norm(self.feed_forward(x))


class DecoderBlockParallel(right_transformer["DecoderBlock"]):
    """Feed-forward reads what attention read, not what it wrote."""

    def forward(self, x, **seen):
        attended = self.attention(self.attention_norm(x), **seen)
        return x + attended + self.feed_forward(self.feed_forward_norm(x))


class DecoderBlockBlind(right_transformer["DecoderBlock"]):
    """The future is visible."""

    def forward(self, x, **seen):
        return super().forward(x, **{**seen, "causal": False})


class DecoderBlockForgetsPadding(right_transformer["DecoderBlock"]):
    def forward(self, x, **seen):
        return super().forward(x, **{**seen, "mask": None})


class GatedFeedForwardSwapped(right_transformer["GatedFeedForward"]):
    def forward(self, x):
        return self.down(self.gate(x) * self.activation(self.up(x)))


class Seq2SeqBlockSeesSourcePadding(right_transformer["Seq2SeqBlock"]):
    def forward(self, x, memory=None, memory_mask=None, **seen):
        return super().forward(x, memory, None, **seen)


class Seq2SeqBlockScaled(right_transformer["Seq2SeqBlock"]):
    """1/√D, which T5 leaves out."""

    def __init__(self, sizes, cross):
        super().__init__(sizes, cross)
        self.attention.scale = self.attention.d_head**-0.5


class StackWithOneSidedBias(right_transformer["Stack"]):
    """The encoder's distances do not tell before from after."""

    def bias(self, n_queries, n_keys):
        self.decoder, before = True, self.decoder
        found = super().bias(n_queries, n_keys)
        self.decoder = before
        return found


def greedy_never_stops(next_logits, ids, max_new, stop):
    return right_transformer["_greedy"](next_logits, ids, max_new, None)


def greedy_keeps_the_stop(next_logits, ids, max_new, stop):
    rows = right_transformer["_greedy"](next_logits, ids, max_new, None)
    return [row[: row.index(stop) + 1] if stop in row else row for row in rows]


def hide_tokens_always_masked(ids, mask_id, vocab_size, **options):
    inputs, labels = right_transformer["hide_tokens"](ids, mask_id, vocab_size, **options)
    return torch.where(labels >= 0, mask_id, inputs), labels


def hide_tokens_ignores_keep(ids, mask_id, vocab_size, *, keep=None, **options):
    return right_transformer["hide_tokens"](ids, mask_id, vocab_size, **options)


def hide_tokens_asks_for_all(ids, mask_id, vocab_size, **options):
    return right_transformer["hide_tokens"](ids, mask_id, vocab_size, **options)[0], ids


def next_token_loss_unshifted(logits, ids, mask=None):
    labels = ids if mask is None else ids.masked_fill(mask == 0, transformer.IGNORED)
    return right_transformer["label_loss"](logits, labels)


def next_token_loss_counts_padding(logits, ids, mask=None):
    return right_transformer["next_token_loss"](logits, ids)


def label_loss_counts_all(logits, labels):
    """Ignored labels are 0 in the sum, but divide it."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return losses / labels.numel()


def shift_right_keeps_ignored(labels, start, pad):
    return F.pad(labels[:, :-1], (1, 0), value=start)


def shift_right_not(labels, start, pad):
    return labels.masked_fill(labels == transformer.IGNORED, pad)


TRANSFORMER = [
    Bug("rms_norm", "puts eps outside the root", rms_norm_eps_outside),
    Bug("rms_norm", "subtracts the mean", rms_norm_centred),
    Bug("rms_norm", "squares in 16 bits", rms_norm_narrow),
    Bug("gelu_tanh", "is exact", gelu_exact, tests="t5s and gated"),
    Bug("mean_pool", "counts padding", mean_pool_everything, tests="mean_pool or padding"),
    Bug("mean_pool", "divides by all", mean_pool_over_all_tokens, tests="mean_pool or padding"),
    Bug("EncoderBlock", "normalises first", EncoderBlockPreNorm, tests="berts"),
    Bug("EncoderBlock", "lacks a residual", EncoderBlockOneResidual, tests="berts"),
    Bug("DecoderBlock", "runs both halves in parallel", DecoderBlockParallel, tests="llamas"),
    Bug("DecoderBlock", "sees the future", DecoderBlockBlind, tests="future"),
    Bug("DecoderBlock", "sees padding", DecoderBlockForgetsPadding, tests="left_padding"),
    Bug("GatedFeedForward", "swaps gate and up", GatedFeedForwardSwapped, tests="llamas and plain"),
    Bug("Seq2SeqBlock", "reads padding", Seq2SeqBlockSeesSourcePadding, tests="who_sees"),
    Bug("Seq2SeqBlock", "scales its scores", Seq2SeqBlockScaled, tests="t5s"),
    Bug("Stack", "mirrors distances", StackWithOneSidedBias, tests="t5s"),
    Bug("_greedy", "never stops", greedy_never_stops, tests="stops or writes"),
    Bug("_greedy", "keeps the stop", greedy_keeps_the_stop, tests="stops or writes"),
    Bug("hide_tokens", "always masks", hide_tokens_always_masked, tests="hidden_tokens"),
    Bug("hide_tokens", "ignores keep", hide_tokens_ignores_keep, tests="hidden_tokens"),
    Bug("hide_tokens", "asks for every token", hide_tokens_asks_for_all, tests="hidden_tokens"),
    Bug("next_token_loss", "does not shift", next_token_loss_unshifted, tests="loss"),
    Bug("next_token_loss", "counts padding", next_token_loss_counts_padding),
    Bug("label_loss", "divides by all labels", label_loss_counts_all, tests="loss"),
    Bug("shift_right", "leaves -100 in", shift_right_keeps_ignored),
    Bug("shift_right", "does not shift", shift_right_not),
]


# ── One line for each module ──────────────────────────────────────────────────────────────────────

PLANTED: dict[str, list[Bug]] = {
    "decoding": DECODING,
    "metrics": [*METRICS, *planted_nb02.METRICS],
    "retrieval": RETRIEVAL,
    "plays": planted_plays.PLAYS,
    "prompting": planted_prompting.PROMPTING,
    "pronunciation": planted_pronunciation.PRONUNCIATION,
    "reasoning": planted_reasoning.REASONING,
    "layers": LAYERS,
    "recurrent": [*RECURRENT, *planted_nb01.RECURRENT],
    "attention": [*ATTENTION, *planted_nb02.ATTENTION],
    "transformer": [*TRANSFORMER, *planted_nb03.TRANSFORMER],
}
