"""Plausible wrong versions of course_utils.metrics."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import torch
from planting import Bug, originals

from course_utils import metrics
from course_utils.metrics import Comparison, accuracy

right = originals("metrics")


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
    return right["error_rates"](hypotheses, [accepted[:1] for accepted in references])


def accuracy_with_normal_interval(correct, confidence=0.95):
    share = sum(correct) / len(correct)
    half = 1.96 * math.sqrt(share * (1 - share) / len(correct))
    return metrics.Interval(share, share - half, share + half, len(correct))


def mean_interval_of_the_scores(values, confidence=0.95, *, resamples=2000, seed=0):
    """Where the middle of the scores lies, instead of their mean."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return metrics.Interval(float(np.mean(values)), float(low), float(high), len(values))


def mean_interval_one_sided(values, confidence=0.95, *, resamples=2000, seed=0):
    return right["mean_interval"](values, 2 * confidence - 1, resamples=resamples, seed=seed)


def paired_p_value_one_sided(a, b):
    return right["paired_p_value"](a, b) / 2


def distinct_n_mean_of_texts(texts, n):
    return sum(right["distinct_n"]([text], n) for text in texts) / len(texts)


def time_ratio_upside_down(fast, slow, repeats=5, warmup=1):
    return right["time_ratio"](slow, fast, repeats, warmup)


def checksum_of_shapes(module):
    return str([tensor.shape for tensor in module.state_dict().values()])


def kept_counts_twice(call):
    sizes = []

    def note(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        call()
    return sum(sizes)


def kept_counts_the_result(call):
    return call().nbytes


def evaluate_skips_the_unanswered(predictions, truth, *, labels):
    got = right["evaluate"](predictions, truth, labels=labels)
    answered = [c for c, p in zip(got.correct, predictions, strict=True) if p is not None]
    return replace(got, accuracy=accuracy(answered or [False]))


def evaluate_precision_for_recall(predictions, truth, *, labels):
    got = right["evaluate"](predictions, truth, labels=labels)
    hits = [p for p, c in zip(predictions, got.correct, strict=True) if c]
    shares = {label: hits.count(label) / max(got.predicted[label], 1) for label in got.recall}
    return replace(got, recall=shares)


def evaluate_balanced_over_all_labels(predictions, truth, *, labels):
    got = right["evaluate"](predictions, truth, labels=labels)
    return replace(got, balanced=sum(got.recall.values()) / len(labels))


def compare_the_other_way_round(first, second):
    got = right["compare"](first, second)
    return got._replace(difference=-got.difference)


def compare_only_accuracies(first, second):
    """As if the two had answered different items."""
    got = right["compare"](first, second)
    return Comparison(got.difference, 1.0, got.only_first, got.only_second)


def timed_without_turns(first, second, repeats, *, warmup=1, clock=time.perf_counter):
    """All calls of the one, then all of the other: a change of load hits one of them."""
    sides = []
    for call in (first, second):
        sides.append([right["timed_in_turns"](call, int, 1, warmup=warmup, clock=clock)[0][0]])
        sides[-1] *= repeats
    return list(zip(*sides, strict=True))


def paired_one_sided(a, b, **options):
    got = right["paired"](a, b, **options)
    return replace(got, p_value=got.p_value / 2)


def paired_unpaired(a, b, **options):
    return right["paired"](a, sorted(b), **options)


def paired_p_of_zero(difference, spread, n, flipped):
    got = right["_paired"](difference, spread, n, flipped)
    return replace(got, p_value=sum(abs(x) >= abs(difference) for x in flipped) / len(flipped))


def paired_spread_of_the_pairs(difference, spread, n, flipped):
    return right["_paired"](difference, spread * n, n, flipped)


def ends_in_loop_anywhere(tokens, *, times=3, least=2):
    right["ends_in_loop"](tokens, times=times, least=least)
    ends = range(1, len(tokens) + 1)
    return any(right["ends_in_loop"](tokens[:n], times=times, least=least) for n in ends)


BUGS = [
    Bug("ends_in_loop", "takes a loop that was left again", ends_in_loop_anywhere),
    Bug("paired", "tests one side", paired_one_sided),
    Bug("paired", "takes the pairs apart", paired_unpaired),
    Bug("_paired", "can be certain", paired_p_of_zero, tests="too_many"),
    Bug("_paired", "shows the spread of pairs", paired_spread_of_the_pairs, tests="scipys"),
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
    Bug("timed_in_turns", "takes no turns", timed_without_turns, tests="take_turns"),
    Bug("time_ratio", "divides the wrong way", time_ratio_upside_down),
    Bug("checksum", "looks at shapes only", checksum_of_shapes),
    Bug("kept_for_backward", "counts shared storage twice", kept_counts_twice),
    Bug("kept_for_backward", "measures the result", kept_counts_the_result),
    Bug("evaluate", "skips the unanswered", evaluate_skips_the_unanswered),
    Bug("evaluate", "takes precision for recall", evaluate_precision_for_recall),
    Bug("evaluate", "averages over absent labels", evaluate_balanced_over_all_labels),
    Bug("compare", "has the sign wrong", compare_the_other_way_round),
    Bug("compare", "forgets the pairs", compare_only_accuracies),
]
