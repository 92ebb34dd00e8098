"""From spelling to sound: the course's sequence-to-sequence task. Notebooks 01 and 03.

A word of CMUdict is read letter by letter, its phonemes are written one by one. What numbers mean:

- phonemes without stress: "AH0" and "AH1" are both "AH", which leaves 39;
- split by word, and a possessive ("aaron's") stays on its base word's side ("aaron");
- a word with several pronunciations is right when any of them is met, and symbol errors count
  against the nearest (`metrics.error_rates`).

Published scores differ in all three, so they are to be read beside these, not against them.
Source and target share one vocabulary, `SYMBOLS`. Shapes: B words, S letters, T phonemes.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from course_utils.architectures.objectives import IGNORED
from course_utils.architectures.seq2seq import RecurrentSeq2Seq
from course_utils.assets.catalogue import describe
from course_utils.assets.fetching import fetch
from course_utils.inference.decoding import Continuation, greedy
from course_utils.inference.next_logits import CachedNextLogits
from course_utils.metrics import ErrorRates, error_rates

if TYPE_CHECKING:
    from course_utils.architectures.encoder_decoder import EncoderDecoder


LETTERS = tuple("'abcdefghijklmnopqrstuvwxyz")
PHONEMES = (
    *("AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH"),
    *("IH", "IY", "JH", "K", "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH"),
    *("UW", "V", "W", "Y", "Z", "ZH"),
)
SYMBOLS = ("<pad>", "<s>", "</s>", *LETTERS, *PHONEMES)


PAD, START, STOP = 0, 1, 2


LONGEST = 40  # phonemes written at most; CMUdict's longest word has 29
_ids = {symbol: i for i, symbol in enumerate(SYMBOLS)}
Write = Callable[[Tensor, Tensor], list[list[int]]]  # source ids and mask (B, S) -> phoneme ids


class Entry(NamedTuple):
    """A word and its accepted pronunciations, without stress, each once."""

    word: str
    pronunciations: tuple[tuple[str, ...], ...]


class Batch(NamedTuple):
    """Padded ids: `source` (B, S); `target_in` (B, T), what the decoder is given; `labels` (B, T).

    The decoder is given start and phonemes, and must say phonemes and stop; −100 is no label.
    """

    source: Tensor
    target_in: Tensor
    labels: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, S), True where there is a letter."""
        return self.source != PAD

    @property
    def lengths(self) -> Tensor:
        """(B,), letters of each word."""
        return self.mask.sum(dim=1)


# ── words and their split ─────────────────────────────────────────────────────────────────────────


def without_stress(phonemes: Iterable[str]) -> tuple[str, ...]:
    """("AH0", "B") -> ("AH", "B")."""
    return tuple(phoneme.rstrip("012") for phoneme in phonemes)


def entries(dictionary: Mapping[str, Iterable[Iterable[str]]]) -> list[Entry]:
    """CMUdict's words of letters and apostrophes alone, in its order, their stress dropped."""
    return [
        Entry(word, tuple(dict.fromkeys(without_stress(p) for p in pronunciations)))
        for word, pronunciations in dictionary.items()
        if re.fullmatch("[a-z']*[a-z][a-z']*", word)
    ]


def base_word(word: str) -> str:
    """The word without a possessive ending: what the split keeps together.

    >>> base_word("aaron's"), base_word("boys'"), base_word("'")
    ('aaron', 'boys', "'")
    """
    return re.sub(r"(?<=.)('s|')$", "", word)


def split(
    words: Sequence[Entry], *, n_test: int = 12_000, n_dev: int = 2_000
) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """Train, dev and test entries, the same on every machine and whatever the words' order.

    Words are ordered by the SHA-256 of their base word; the first `n_test` are for testing, the
    next `n_dev` for choosing settings. ValueError when that leaves nothing to train on.
    """
    if n_test < 0 or n_dev < 0 or n_test + n_dev >= len(words):
        raise ValueError(
            f"n_test {n_test} and n_dev {n_dev} leave none of {len(words)} words to train on"
        )
    groups: dict[str, list[Entry]] = {}
    for entry in words:
        groups.setdefault(base_word(entry.word), []).append(entry)
    parts: tuple[list[Entry], ...] = ([], [], [])  # test, dev, train
    for base in sorted(groups, key=lambda word: hashlib.sha256(word.encode()).digest()):
        group = groups[base]
        room = (n_test - len(parts[0]), n_dev - len(parts[1]), len(words))
        next(p for p, free in zip(parts, room, strict=True) if len(group) <= free).extend(group)
    test, dev, train = parts
    return train, dev, test


# ── ids and batches ───────────────────────────────────────────────────────────────────────────────


def word_ids(word: str) -> list[int]:
    """Ids of a word's letters; ValueError for anything but a–z and the apostrophe."""
    if odd := sorted(set(word) - set(LETTERS)) or ([] if word else ["nothing"]):
        raise ValueError(
            f"the word {word!r} has {' '.join(odd)}; give lower-case letters a–z and apostrophes"
        )
    return [_ids[letter] for letter in word]


def phoneme_ids(phonemes: Iterable[str]) -> list[int]:
    """Ids of phonemes without stress; ValueError for one that is not in `PHONEMES`."""
    phonemes = list(phonemes)
    if odd := [p for p in phonemes if p not in PHONEMES]:
        raise ValueError(f"{odd[0]!r} is no phoneme here; they are {' '.join(PHONEMES)}")
    return [_ids[p] for p in phonemes]


def symbols_of(ids: Iterable[int]) -> list[str]:
    """Symbols of ids, such as a decoder wrote."""
    return [SYMBOLS[i] for i in ids]


def padded(rows: Sequence[Sequence[int]], value: int = PAD) -> Tensor:
    """Lists of ids as one tensor (B, longest), filled up on the right.

    >>> padded([[5, 6, 7], [8]]).tolist()
    [[5, 6, 7], [8, 0, 0]]
    """
    longest = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def pairs_of(words: Iterable[Entry]) -> list[tuple[list[int], list[int]]]:
    """(letters, phonemes) ids, a pair for each pronunciation: what a model trains on."""
    return [(word_ids(e.word), phoneme_ids(p)) for e in words for p in e.pronunciations]


def collate(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Batch:
    """A batch of (letters, phonemes) pairs."""
    source = padded([letters for letters, _ in pairs])
    target_in = padded([[START, *phonemes] for _, phonemes in pairs])
    return Batch(source, target_in, padded([[*p, STOP] for _, p in pairs], IGNORED))


def batches(words: Sequence[Entry], size: int, seed: int = 0, pool: int = 32) -> Iterator[Batch]:
    """One epoch in batches of `size` pairs of similar length, in random order.

    Pairs are shuffled, then sorted by length within pools of `pool` batches, so that a batch holds
    little padding. ValueError when there is no word, or `size` < 1.
    """
    if size < 1 or not words:
        raise ValueError(f"{len(words)} words in batches of {size}; give at least one of each")
    shuffle, pairs = random.Random(seed).shuffle, pairs_of(words)
    shuffle(pairs)
    groups = []
    for start in range(0, len(pairs), size * pool):
        near = sorted(
            pairs[start : start + size * pool], key=lambda pair: (len(pair[0]), len(pair[1]))
        )
        groups += [near[i : i + size] for i in range(0, len(near), size)]
    shuffle(groups)
    yield from map(collate, groups)


# ── writing and scoring ───────────────────────────────────────────────────────────────────────────


def writer(model: EncoderDecoder | RecurrentSeq2Seq) -> Write:
    """Greedy decoding of either kind of model, as `transcribe` and `score` take it.

    Words are brought to the device that the model is on.
    """

    def write(source: Tensor, mask: Tensor) -> list[list[int]]:
        device = next(model.parameters()).device
        recurrent = isinstance(model, RecurrentSeq2Seq)  # which counts letters, and masks none
        real = mask.sum(dim=1) if recurrent else mask
        reader = CachedNextLogits(*model.read_and_reorder(source.to(device), real.to(device)))
        start = torch.full((len(source), 1), START, device=device)
        return without_stop(greedy(reader, start, LONGEST, stop=[STOP]))

    return write


def without_stop(written: Iterable[Continuation]) -> list[list[int]]:
    """Ids of continuations, without the stop that ended them.

    >>> without_stop([Continuation((5, 6, STOP), -1.0, "stop", -1.0)])
    [[5, 6]]
    """
    return [list(c.tokens[: -1 if c.finish_reason == "stop" else None]) for c in written]


def transcribe(write: Write, words: Sequence[str], size: int = 512) -> list[list[str]]:
    """Phonemes of each word, in the words' order; words of similar length share a batch.

    What a model writes beside phonemes stays in, and counts as an error.
    """
    order = sorted(range(len(words)), key=lambda i: len(words[i]))
    written: dict[int, list[str]] = {}
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        source = padded([word_ids(words[i]) for i in rows])
        for i, ids in zip(rows, write(source, source != PAD), strict=True):
            written[i] = symbols_of(ids)
    return [written[i] for i in range(len(words))]


def score(write: Write, words: Sequence[Entry], size: int = 512) -> ErrorRates:
    """Phoneme and word error rate against the nearest accepted pronunciation."""
    hypotheses = transcribe(write, [entry.word for entry in words], size)
    return error_rates(hypotheses, [entry.pronunciations for entry in words])


def load_cmudict() -> dict[str, list[list[str]]]:
    """Return word → its pronunciations, each a list of phonemes, vowels with stress 0, 1 or 2.

    Words are in lower case; the variants, marked "word(2)" in the file, follow in its order.
    """
    dictionary: dict[str, list[list[str]]] = {}
    text = (fetch(describe("cmudict")) / "cmudict.dict").read_text(encoding="utf-8")
    for line in text.splitlines():
        entry, _, _comment = line.partition(" #")
        word, *phonemes = entry.split()
        word = re.sub(r"\(\d+\)$", "", word)
        dictionary.setdefault(word, []).append(phonemes)
    return dictionary
