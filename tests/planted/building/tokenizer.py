"""Plausible wrong versions of course_utils.building.tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from planting import Bug, originals

right = originals("building.tokenizer")


def most_frequent_first_seen(counts):
    return max(counts, key=counts.get)


def most_frequent_by_higher_ids(counts):
    return max(counts, key=lambda pair: (counts[pair], pair))


def merge_pair_from_the_right(symbols, pair, merged):
    backwards = right["merge_pair"](list(symbols)[::-1], pair[::-1], merged)
    return backwards[::-1]


def merge_pair_once(symbols, pair, merged):
    for i, found in enumerate(pairwise(symbols)):
        if found == pair:
            return [*symbols[:i], merged, *symbols[i + 2 :]]
    return list(symbols)


def count_pairs_of_different_words(words):
    return Counter(pair for symbols, _ in words for pair in pairwise(symbols))


def merge_in_without_taking_away(where, pair, new, spelled, times, counts, holders):
    """The neighbours' old pairs keep their counts."""
    kept = Counter(counts)
    grown = right["_merge_in"](where, pair, new, spelled, times, counts, holders)
    for old, count in kept.items():
        if old != pair:
            counts[old] = max(counts[old], count)
    return grown


def pop_whatever_stands_first(queue, counts, min_frequency):
    while queue:
        count, pair = queue.pop(queue.index(min(queue)))
        if counts[pair] > 0:
            return pair if -count >= min_frequency else None
    return None


def encode_word_by_longest_token(word, ranks, known):
    """The longest token that fits, from the left: WordPiece's way."""
    symbols = []
    while word:
        end = next((n for n in range(len(word), 0, -1) if known(word[:n])), 1)
        symbols, word = [*symbols, word[:end]], word[end:]
    return symbols


def encode_word_from_the_left(word, ranks, known):
    symbols = [bytes([byte]) for byte in word if known(bytes([byte]))]
    while pair := next((pair for pair in pairwise(symbols) if pair in ranks), None):
        symbols = right["merge_pair"](symbols, pair, pair[0] + pair[1])
    return symbols


def encode_word_refuses_nothing(word, ranks, known):
    return right["encode_word"](word, ranks, lambda token: True)


def pattern_with_pythons_white_space(digits):
    return re.compile(right["word_pattern"](digits).pattern.replace(right["WHITE"], r"\s"))


def pattern_with_ascii_letters(digits):
    letters = right["category_ranges"]("L")
    return re.compile(right["word_pattern"](digits).pattern.replace(letters, "A-Za-z"))


def pattern_without_looking_ahead(digits):
    return re.compile(re.sub(r"\(\?!\[.*?\]\)", "", right["word_pattern"](digits).pattern))


def pattern_that_never_parts_digits(digits):
    return right["word_pattern"](False)


class ObeysUsers(right["Tokenizer"]):
    """Whoever types a special token gets it."""

    def encode(self, text, *, specials=False):
        return super().encode(text, specials=True)


class TakesTheFirst(right["Tokenizer"]):
    """<end>! is never seen, for <end> stands before it in the list."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._special = re.compile(f"({'|'.join(map(re.escape, self.specials))})")


class DropsBrokenBytes(right["Tokenizer"]):
    def decode(self, ids, *, specials=True):
        return self.decode_bytes(ids, specials=specials).decode(errors="ignore")


def byte_characters_in_order(_=None):
    return {byte: chr(256 + byte) for byte in range(256)}


BUGS = [
    Bug(
        "most_frequent",
        "takes the first of equals",
        most_frequent_first_seen,
        tests="by_hand or plain_loop",
    ),
    Bug(
        "most_frequent", "takes the last of equals", most_frequent_by_higher_ids, tests="plain_loop"
    ),
    Bug("merge_pair", "merges from the right", merge_pair_from_the_right),
    Bug("merge_pair", "merges once a word", merge_pair_once),
    Bug("count_pairs", "counts each word once", count_pairs_of_different_words, tests="by_hand"),
    Bug(
        "_merge_in",
        "keeps the neighbours' counts",
        merge_in_without_taking_away,
        tests="plain_loop or by_hand",
    ),
    Bug(
        "_pop",
        "believes counts that have fallen",
        pop_whatever_stands_first,
        tests="plain_loop or by_hand",
    ),
    Bug(
        "encode_word",
        "takes the longest token",
        encode_word_by_longest_token,
        tests="order_learned",
    ),
    Bug("encode_word", "merges from the left", encode_word_from_the_left, tests="order_learned"),
    Bug("encode_word", "needs every byte", encode_word_refuses_nothing, tests="loses_bytes"),
    Bug(
        "word_pattern",
        "has Python's white space",
        pattern_with_pythons_white_space,
        tests="split_words",
    ),
    Bug(
        "word_pattern",
        "knows English letters only",
        pattern_with_ascii_letters,
        tests="split_words",
    ),
    Bug(
        "word_pattern",
        "gives all blanks to one word",
        pattern_without_looking_ahead,
        tests="split_words",
    ),
    Bug("word_pattern", "never parts digits", pattern_that_never_parts_digits, tests="split_words"),
    Bug("Tokenizer", "obeys users", ObeysUsers, tests="users_special"),
    Bug("Tokenizer", "takes the first special token", TakesTheFirst, tests="longest_special"),
    Bug("Tokenizer", "drops broken bytes", DropsBrokenBytes, tests="half_a_character"),
    Bug(
        "byte_characters",
        "shows no byte as itself",
        byte_characters_in_order,
        tests="table_of_byte_level",
        where="building.tokenizer_files",
    ),
]
