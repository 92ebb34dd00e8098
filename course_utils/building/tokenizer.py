"""Byte-level byte-pair encoding: learn merges, encode, decode. Notebook 00.

Sennrich, Haddow & Birch 2016, over bytes as in GPT-2 (Radford et al. 2019, §2.2). `learn_plain`
counts every pair anew, `learn_merges` only what a merge changed; tested equal. Files are written by
`tokenizer_files`. Left out: normalisers, dropout, templates around a text.
"""

from __future__ import annotations

import functools
import heapq
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import pairwise

Pair = tuple[int, int]
WHITE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # White_Space


# ── text to words ─────────────────────────────────────────────────────────────────────────────────


@functools.cache
def category_ranges(letter: str) -> str:
    """All characters of a general category (L letters, N numbers), as a regex's ranges.

    They are those of the interpreter's Unicode tables (`unicodedata.unidata_version`).
    """
    ranges, start = [], None
    for code in range(0x110001):
        inside = code < 0x110000 and unicodedata.category(chr(code))[0] == letter
        if inside and start is None:
            start = code
        elif not inside and start is not None:
            ranges.append(f"\\U{start:08x}-\\U{code - 1:08x}")
            start = None
    return "".join(ranges)


@functools.cache
def word_pattern(digits: bool) -> re.Pattern[str]:
    """GPT-2's pattern: a word takes the blank before it, and merges never leave a word."""
    L, N, W = category_ranges("L"), category_ranges("N"), WHITE
    number, after = (f"[{N}]", f"[^{W}{N}]") if digits else (f" ?[{N}]+", f"[^{W}]")
    return re.compile(
        rf"'(?:[stmd]|re|ve|ll)| ?[{L}]+|{number}| ?[^{W}{L}{N}]+|[{W}]+(?!{after})|[{W}]+"
    )


def split_words(text: str, *, digits: bool = False) -> list[str]:
    """Cut a text into the words inside which pairs are merged; joined they are the text again.

    With `digits` every digit is a word of its own, as in SmolLM2. Letters that Unicode assigned
    after the interpreter's tables count as punctuation. Radford et al. 2019.

    >>> split_words("It's  10 o'clock")
    ['It', "'s", ' ', ' 10', ' o', "'", 'clock']
    >>> split_words("in 10", digits=True)
    ['in', ' ', '1', '0']
    """
    return word_pattern(digits).findall(text)


def count_words(texts: Iterable[str], *, digits: bool = False) -> Counter[bytes]:
    """How often each word stands in the texts. Raises for no text, a bare string, surrogates."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts is one {type(texts).__name__}; give a list of str: [text]")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_words(text, digits=digits))
    if not counts:
        raise ValueError("the corpus holds 0 characters; give at least one text that is not empty")
    return Counter({_utf8(word): count for word, count in counts.items()})


def _utf8(word: str) -> bytes:
    try:
        return word.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{word!r} holds half a surrogate pair, which has no bytes in UTF-8; decode the bytes "
            'of the text anew, with errors="replace"'
        ) from None


# ── merges ────────────────────────────────────────────────────────────────────────────────────────


def merge_pair(symbols: Sequence, pair: tuple, merged: Hashable) -> list:
    """Replace each occurrence of the pair by `merged`, from the left; none overlap.

    >>> merge_pair([1, 1, 1, 2], (1, 1), 9)
    [9, 1, 2]
    """
    out, i = [], 0
    while i < len(symbols):
        if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == pair:
            out.append(merged)
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out


def count_pairs(words: Iterable[tuple[Sequence[int], int]]) -> Counter[Pair]:
    """How often each pair of neighbours stands in words, given as (symbols, how often).

    >>> count_pairs([([1, 2, 1, 2], 3), ([2, 1], 1)])  # 1 2 twice in each of three words
    Counter({(1, 2): 6, (2, 1): 4})
    """
    counts: Counter[Pair] = Counter()
    for symbols, times in words:
        for pair in pairwise(symbols):
            counts[pair] += times
    return counts


def most_frequent(counts: Mapping[Pair, int]) -> Pair:
    """The pair that stands most often; of several, the one with the lower ids, as in `tokenizers`.

    >>> most_frequent({(7, 8): 5, (1, 9): 5, (1, 2): 4})
    (1, 9)
    """
    return min(counts, key=lambda pair: (-counts[pair], pair))


def learn_plain(
    words: Mapping[bytes, int], n_merges: int, tokens: Sequence[bytes], min_frequency: int = 2
) -> list[tuple[bytes, bytes]]:
    """`learn_merges` in its plain form: count all pairs, merge the most frequent, again."""
    tokens = list(tokens)
    spelled = [([tokens.index(bytes([b])) for b in word], n) for word, n in words.items()]
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < n_merges:
        counts = count_pairs(spelled)
        if not counts or max(counts.values()) < min_frequency:
            break
        pair = most_frequent(counts)
        new = _number(tokens, pair)
        merges.append((tokens[pair[0]], tokens[pair[1]]))
        spelled = [(merge_pair(symbols, pair, new), n) for symbols, n in spelled]
    return merges


def _number(tokens: list[bytes], pair: Pair) -> int:
    """The id of the pair's token, which is new, or else spelled the same from other parts."""
    token = tokens[pair[0]] + tokens[pair[1]]
    if token in tokens:
        return tokens.index(token)
    tokens.append(token)
    return len(tokens) - 1


def learn_merges(
    words: Mapping[bytes, int], n_merges: int, tokens: Sequence[bytes], min_frequency: int = 2
) -> list[tuple[bytes, bytes]]:
    """The pairs to merge, in order: each time the most frequent one (`most_frequent`).

    `words`: how often each stands; `tokens`: those there are at first, all 256 bytes among them;
    their order decides ties. Fewer than `n_merges` come back where no pair stands `min_frequency`
    times any more. Sennrich, Haddow & Birch 2016, algorithm 1.

    >>> learn_merges({b"abab": 2, b"ab": 3}, 2, byte_tokens())  # a b stands 7 times, ab ab twice
    [(b'a', b'b'), (b'ab', b'ab')]
    >>> len(learn_merges({b"abab": 2, b"ab": 3}, 99, byte_tokens()))
    2
    """
    tokens, ids = list(tokens), {token: i for i, token in enumerate(tokens)}
    spelled = [[ids[bytes([b])] for b in word] for word in words]
    times = list(words.values())
    counts = count_pairs(zip(spelled, times, strict=True))
    holders = _holders(spelled)
    queue = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(queue)
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < n_merges and (pair := _pop(queue, counts, min_frequency)):
        parts = tokens[pair[0]], tokens[pair[1]]
        new = ids.setdefault(parts[0] + parts[1], len(tokens))
        if new == len(tokens):
            tokens.append(parts[0] + parts[1])
        merges.append(parts)
        for grown in _merge_in(holders.pop(pair), pair, new, spelled, times, counts, holders):
            heapq.heappush(queue, (-counts[grown], grown))
    return merges


def _holders(spelled: Sequence[Sequence[int]]) -> defaultdict[Pair, set[int]]:
    """Pair → the words that hold it, or held it once."""
    holders: defaultdict[Pair, set[int]] = defaultdict(set)
    for i, symbols in enumerate(spelled):
        for pair in pairwise(symbols):
            holders[pair].add(i)
    return holders


def _pop(queue: list, counts: Mapping[Pair, int], min_frequency: int) -> Pair | None:
    """The pair with the highest count; an entry whose count has fallen since goes back."""
    while queue:
        count, pair = heapq.heappop(queue)
        if -count == counts[pair]:
            return pair if -count >= min_frequency else None
        if counts[pair] > 0:
            heapq.heappush(queue, (-counts[pair], pair))
    return None


def _merge_in(
    where: Iterable[int],
    pair: Pair,
    new: int,
    spelled: list[list[int]],
    times: Sequence[int],
    counts: Counter[Pair],
    holders: defaultdict[Pair, set[int]],
) -> set[Pair]:
    """Merge the pair in these words and keep the counts right; the pairs that hold `new` now."""
    grown: set[Pair] = set()
    for i in where:
        before, n = spelled[i], times[i]
        after = merge_pair(before, pair, new)
        if len(after) == len(before):
            continue  # an earlier merge took the pair from this word
        for old in pairwise(before):
            counts[old] -= n
        for now in pairwise(after):
            counts[now] += n
            if new in now:
                holders[now].add(i)
                grown.add(now)
        spelled[i] = after
    counts.pop(pair, None)
    return grown


# ── bytes as characters ───────────────────────────────────────────────────────────────────────────


@functools.cache
def byte_characters() -> dict[int, str]:
    """Byte → the visible character that stands for it in files: GPT-2's table.

    >>> byte_characters()[ord("a")], byte_characters()[ord(" ")]
    ('a', 'Ġ')
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {byte: chr(byte) for byte in shown}
    return table | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def byte_tokens() -> list[bytes]:
    """The 256 bytes in the order of their characters, which is that of `tokenizers`."""
    return [bytes([byte]) for byte in sorted(range(256), key=byte_characters().__getitem__)]


# ── the tokenizer ─────────────────────────────────────────────────────────────────────────────────


def encode_word(
    word: bytes, ranks: Mapping[tuple[bytes, bytes], int], known: Callable[[bytes], object]
) -> list[bytes]:
    """Merge the pair that was learned first, again and again; bytes that are not `known` are left
    out, as in `tokenizers`.

    >>> encode_word(b"abab", {(b"a", b"b"): 0, (b"ab", b"a"): 1}, known=lambda token: True)
    [b'ab', b'ab']
    """
    symbols = [bytes([byte]) for byte in word if known(bytes([byte]))]
    while len(symbols) > 1:
        first = min(pairwise(symbols), key=lambda pair: ranks.get(pair, len(ranks)))
        if first not in ranks:
            break
        symbols = merge_pair(symbols, first, first[0] + first[1])
    return symbols


class Tokenizer:
    """Text to ids and back. `train` makes one, or `tokenizer_files.load`.

    `vocab`: token → id; `merges`: in the order learned; `specials`: text → id; `digits`: whether
    every digit stands alone. ValueError where a merge has no id, or two tokens share one.
    """

    def __init__(
        self,
        vocab: Mapping[bytes, int],
        merges: Sequence[tuple[bytes, bytes]],
        specials: Mapping[str, int],
        *,
        digits: bool = False,
    ) -> None:
        self.vocab, self.merges = dict(vocab), list(merges)
        self.specials, self.digits = dict(specials), digits
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.tokens = {id: token for token, id in self.vocab.items()}
        self.special_tokens = {id: text for text, id in self.specials.items()}
        self._check()
        longest_first = sorted(self.specials, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._ids_of = functools.lru_cache(2**16)(self._ids_of_word)

    def _check(self) -> None:
        for left, right in self.merges:
            missing = [part for part in (left, right, left + right) if part not in self.vocab]
            if missing:
                raise ValueError(f"the merge {left!r} {right!r} needs {missing[0]!r}: it has no id")
        if "" in self.specials:
            raise ValueError("a special token is '', which stands everywhere; give it a text")
        n_ids = len(self.tokens.keys() | self.special_tokens.keys())
        if n_ids < len(self):
            raise ValueError(f"{len(self)} tokens have {n_ids} ids; each needs its own")

    def __len__(self) -> int:
        return len(self.vocab) + len(self.specials)

    @property
    def missing_bytes(self) -> list[int]:
        """Bytes without a token, which `encode` loses: none after `train`."""
        return [byte for byte in range(256) if bytes([byte]) not in self.vocab]

    def _ids_of_word(self, word: str) -> tuple[int, ...]:
        symbols = encode_word(_utf8(word), self.ranks, self.vocab.__contains__)
        return tuple(self.vocab[symbol] for symbol in symbols)

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """The ids of a text.

        What looks like a special token is plain text, unless `specials`: leave that off for text
        that a user wrote, or he ends the conversation by typing its end.
        """
        pieces = self._special.split(text) if specials and self.specials else [text]
        ids: list[int] = []
        for i, piece in enumerate(pieces):
            if i % 2:
                ids.append(self.specials[piece])
                continue
            for word in split_words(piece, digits=self.digits):
                ids += self._ids_of(word)
        return ids

    def decode_bytes(self, ids: Iterable[int], *, specials: bool = True) -> bytes:
        """The bytes of ids, special tokens too unless `specials` is off; ValueError for no id."""
        parts = []
        for id in map(int, ids):
            if id in self.special_tokens:
                parts.append(self.special_tokens[id].encode() if specials else b"")
            elif id in self.tokens:
                parts.append(self.tokens[id])
            else:
                raise ValueError(f"id {id} is no token; the vocabulary has {len(self)}")
        return b"".join(parts)

    def decode(self, ids: Iterable[int], *, specials: bool = True) -> str:
        """The text of ids. Bytes that are no UTF-8, as of half a character, become U+FFFD."""
        return self.decode_bytes(ids, specials=specials).decode(errors="replace")


def train(
    texts: Iterable[str],
    n_merges: int,
    *,
    specials: Sequence[str] = (),
    min_frequency: int = 2,
    digits: bool = False,
) -> Tokenizer:
    """Learn a tokenizer: ids are the special tokens, the 256 bytes, the merges in order.

    It has fewer merges than `n_merges` where no pair stands `min_frequency` times any more. Raises
    ValueError for no text, a negative `n_merges`, a special token given twice.

    >>> tokenizer = train(["low lower lowest"], 2, specials=["<end>"])
    >>> tokenizer.merges, len(tokenizer)
    ([(b'l', b'o'), (b'lo', b'w')], 259)
    >>> [tokenizer.tokens[id] for id in tokenizer.encode("slow")]
    [b's', b'low']
    """
    if n_merges < 0 or min_frequency < 1:
        raise ValueError(
            f"n_merges is {n_merges} and min_frequency {min_frequency}; they are at least 0 and 1"
        )
    if len(set(specials)) < len(specials):
        raise ValueError(f"specials are {list(specials)}; each stands once")
    words = count_words(texts, digits=digits)
    merges = learn_merges(words, n_merges, byte_tokens(), min_frequency)
    tokens = dict.fromkeys([*byte_tokens(), *(left + right for left, right in merges)])
    vocab = {token: len(specials) + i for i, token in enumerate(tokens)}
    return Tokenizer(vocab, merges, {text: i for i, text in enumerate(specials)}, digits=digits)
