"""Plausible wrong versions of course_utils.tasks.pronunciation."""

from __future__ import annotations

import random

import torch
from planting import Bug, originals

from course_utils.architectures.objectives import IGNORED
from course_utils.tasks.pronunciation import PAD, START, STOP, Batch, Entry

right = originals("tasks.pronunciation")


def entries_with_stress(dictionary):
    return [Entry(word, tuple(map(tuple, sounds))) for word, sounds in dictionary.items()]


def entries_first_pronunciation_only(dictionary):
    return [Entry(e.word, e.pronunciations[:1]) for e in right["entries"](dictionary)]


def base_word_without_s(word):
    return word.removesuffix("s").removesuffix("'")


def split_at_random(words, *, n_test=12_000, n_dev=2_000):
    mixed = random.sample(words, len(words))
    return mixed[n_test + n_dev :], mixed[n_test : n_test + n_dev], mixed[:n_test]


def split_by_pair(words, *, n_test=12_000, n_dev=2_000):
    """Every word by itself: possessives leave their base word."""
    ordered = sorted(words, key=lambda e: str(hash(e.word[::-1])))
    return ordered[n_test + n_dev :], ordered[n_test : n_test + n_dev], ordered[:n_test]


def collate_without_stop(pairs):
    batch = right["collate"](pairs)
    return Batch(
        batch.source, batch.target_in, batch.labels.masked_fill(batch.labels == STOP, -100)
    )


def collate_counts_padding(pairs):
    batch = right["collate"](pairs)
    return Batch(batch.source, batch.target_in, batch.labels.masked_fill(batch.labels < 0, PAD))


def collate_shows_the_answer(pairs):
    batch = right["collate"](pairs)
    return Batch(batch.source, batch.labels.masked_fill(batch.labels == IGNORED, PAD), batch.labels)


def collate_without_start(pairs):
    batch = right["collate"](pairs)
    return Batch(
        batch.source, batch.target_in.masked_fill(batch.target_in == START, PAD), batch.labels
    )


def batches_drop_the_last(words, size, seed=0, pool=32):
    made = list(right["batches"](words, size, seed, pool))
    yield from made[:-1]


def batches_in_order_of_length(words, size, seed=0, pool=32):
    yield from sorted(right["batches"](words, size, seed, pool), key=lambda b: b.source.shape[1])


def batches_unsorted(words, size, seed=0, pool=32):
    pairs = right["pairs_of"](words)
    random.Random(seed).shuffle(pairs)
    for start in range(0, len(pairs), size):
        yield right["collate"](pairs[start : start + size])


def transcribe_in_order_of_length(write, words, size=512):
    return right["transcribe"](write, sorted(words, key=len), size)


def score_first_pronunciation(write, words, size=512):
    return right["score"](write, [Entry(e.word, e.pronunciations[:1]) for e in words], size)


def writer_ignores_padding(model):
    write = right["writer"](model)
    return lambda source, mask: write(source, torch.ones_like(mask))


BUGS = [
    Bug("entries", "keeps stress and odd words", entries_with_stress),
    Bug("entries", "drops variants", entries_first_pronunciation_only),
    Bug("base_word", "cuts every s", base_word_without_s),
    Bug("split", "differs from run to run", split_at_random),
    Bug("split", "parts possessives", split_by_pair),
    Bug("collate", "never asks for the stop", collate_without_stop),
    Bug("collate", "counts padding", collate_counts_padding),
    Bug("collate", "shows the decoder its answer", collate_shows_the_answer),
    Bug("collate", "gives no start", collate_without_start),
    Bug("batches", "drop the last", batches_drop_the_last, tests="every_pair"),
    Bug("batches", "go from short to long", batches_in_order_of_length),
    Bug("batches", "are mostly padding", batches_unsorted),
    Bug("transcribe", "answers in another order", transcribe_in_order_of_length),
    Bug("score", "knows one pronunciation", score_first_pronunciation),
    Bug("writer", "reads padding", writer_ignores_padding),
]
