"""From files to batches: clean, drop duplicates, split by play, pack. Notebook 00.

What each step takes away is counted. Shapes: N rows of T tokens, H hashes. A document is a str;
positions count documents from 0.
"""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, compress, pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from course_utils.building.tokenizer import Tokenizer

PRIME = 2**31 - 1  # hashes are below it, so that a product of two fits in 64 bits


class Removed(NamedTuple):
    """What one step took away."""

    step: str
    documents: int
    characters: int


# ── cleaning ──────────────────────────────────────────────────────────────────────────────────────


def as_text(data: bytes) -> str:
    """The text of a file's bytes; ValueError names the first byte that is no UTF-8.

    >>> as_text("naïve".encode())
    'naïve'
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start} of {len(data)}, 0x{data[error.start]:02x}, is no UTF-8 "
            f"({error.reason}); decode the file in its own encoding, often latin-1 or cp1252"
        ) from None


LINE_END = re.compile(r"\r\n|[\r\v\f\x85\u2028\u2029]")


def _without_controls(text: str) -> str:
    """No control character but newline and tab, no half surrogate pair, no byte-order mark."""
    kept = (
        c in "\n\t" or (c != "\ufeff" and unicodedata.category(c) not in ("Cc", "Cs")) for c in text
    )
    return "".join(compress(text, kept))


CLEANING = {
    "line ends": lambda text: LINE_END.sub("\n", text),
    "control characters": _without_controls,
    "composed characters": lambda text: unicodedata.normalize("NFC", text),
    "blanks at line ends": lambda text: re.sub(r"[ \t]+(?=\n|\Z)", "", text),
    "blank lines": lambda text: re.sub(r"\n{3,}", "\n\n", text).strip("\n"),
}


def clean(text: str) -> str:
    """All of `CLEANING`, in order: what reads the same is written the same.

    >>> clean("A rose  \\r\\n\\r\\n\\r\\n\\r\\nby any\\x00 other name\\n")
    'A rose\\n\\nby any other name'
    """
    for step in CLEANING.values():
        text = step(text)
    return text


def clean_all(texts: Sequence[str]) -> tuple[list[str], list[Removed]]:
    """Clean documents, drop those of which nothing is left, and say what each step took away.

    Composing characters can add a few, which counts below 0.
    ValueError for a corpus of nothing.

    >>> clean_all(["to be\\r\\n", " \\n"])[1][0], clean_all(["to be\\r\\n", " \\n"])[1][-1]
    (Removed(step='line ends', documents=0, characters=1), Removed(step='empty', documents=1, \
characters=0))
    """
    texts, removed = list(texts), []
    for name, step in CLEANING.items():
        cleaned = [step(text) for text in texts]
        removed.append(Removed(name, 0, _size(texts) - _size(cleaned)))
        texts = cleaned
    left = [text for text in texts if text]
    if not left:
        raise ValueError(f"of {len(texts)} documents none holds a character; the corpus is empty")
    return left, [*removed, Removed("empty", len(texts) - len(left), 0)]


def _size(texts: Iterable[str]) -> int:
    return sum(map(len, texts))


# ── duplicates ────────────────────────────────────────────────────────────────────────────────────


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def exact_duplicates(texts: Sequence[str]) -> list[int]:
    """Positions of documents whose words stood before in the same order, whatever the case.

    >>> exact_duplicates(["To be!", "not to be", "to  be", ""])
    [2]
    """
    seen: set[tuple[str, ...]] = set()
    repeated = []
    for i, text in enumerate(texts):
        words = tuple(words_of(text)) or (text,)
        if words in seen:
            repeated.append(i)
        seen.add(words)
    return repeated


def shingles(text: str, n: int = 5) -> set[str]:
    """All runs of `n` words; of a shorter text, all its words as one run. Broder 1997.

    >>> sorted(shingles("To be or not", n=3))
    ['be or not', 'to be or']
    """
    if n < 1:
        raise ValueError(f"n is {n}; a shingle has at least 1 word")
    words = words_of(text)
    return {" ".join(words[i : i + n]) for i in range(max(len(words) - n, 0) + 1)}


def jaccard(a: Collection[str], b: Collection[str]) -> float:
    """Shared members over all members, from 0 to 1.

    >>> jaccard({"a", "b", "c"}, {"b", "c", "d"})
    0.5
    """
    a, b = set(a), set(b)
    return len(a & b) / len(a | b) if a | b else 1.0


def signature(members: Collection[str], n_hashes: int = 128, seed: int = 0) -> Tensor:
    """The least hash of a set under each of H hash functions: -> (H,).

    Two sets agree in a place with the probability of their Jaccard similarity. The functions are
    (a·x + b) mod 2³¹ − 1 of a hash x. Broder 1997; Broder et al. 1998.

    >>> same = signature({"a", "b"}) == signature({"b", "a"})
    >>> bool(same.all())
    True
    """
    if not members:
        raise ValueError("the set has 0 members; leave empty documents out")
    draw = torch.Generator().manual_seed(seed)
    a = torch.randint(1, PRIME, (n_hashes, 1), generator=draw)
    b = torch.randint(0, PRIME, (n_hashes, 1), generator=draw)
    x = torch.tensor([_hash(member) for member in members])  # (members,)
    return ((a * x + b) % PRIME).amin(dim=1)


def _hash(text: str) -> int:
    """Below `PRIME`, the same in every process, as `hash` is not."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % PRIME


def estimated_jaccard(a: Tensor, b: Tensor) -> float:
    """The share of places in which two signatures (H,) agree.

    >>> estimated_jaccard(torch.tensor([3, 5, 7, 9]), torch.tensor([3, 5, 8, 1]))
    0.5
    """
    return (a == b).float().mean().item()


def candidates(signatures: Tensor, bands: int) -> set[tuple[int, int]]:
    """Pairs of rows that agree in a whole band: signatures (documents, H), cut into `bands`.

    A pair of similarity s is found with probability 1 − (1 − s^r)^bands, r = H / bands: no pair
    needs to be looked at that shares no band. Leskovec, Rajaraman & Ullman 2014, §3.4.

    >>> candidates(torch.tensor([[1, 2, 3, 4], [1, 2, 9, 9], [7, 7, 9, 9]]), bands=2)
    {(0, 1), (1, 2)}
    """
    n_hashes = signatures.shape[1]
    if bands < 1 or n_hashes % bands:
        raise ValueError(f"bands is {bands}; it must divide the {n_hashes} hashes")
    buckets = defaultdict(list)
    for i, row in enumerate(signatures.view(len(signatures), bands, -1).tolist()):
        for band, values in enumerate(row):
            buckets[band, tuple(values)].append(i)
    return {pair for members in buckets.values() for pair in combinations(members, 2)}


def near_duplicates(
    texts: Sequence[str],
    threshold: float = 0.8,
    *,
    n: int = 5,
    n_hashes: int = 128,
    bands: int = 32,
    seed: int = 0,
) -> list[int]:
    """Positions of documents that share `threshold` of their shingles with an earlier kept one.

    MinHash finds the pairs, the sets themselves decide. Training on copies teaches models to recite
    (Lee et al. 2022). ValueError for a threshold that is not above 0 and at most 1.

    >>> line = "shall I compare thee to a summer's day thou art more lovely"
    >>> near_duplicates([line, "and now something else", line + " and"], n=2)
    [2]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it is above 0 and at most 1")
    if not texts:
        return []
    sets = [shingles(text, n) for text in texts]
    rows = torch.stack([signature(members, n_hashes, seed) for members in sets])
    dropped: set[int] = set()
    for first, second in sorted(candidates(rows, bands), key=lambda pair: pair[::-1]):
        if first not in dropped and jaccard(sets[first], sets[second]) >= threshold:
            dropped.add(second)
    return sorted(dropped)


def prepare(texts: Sequence[str], threshold: float = 0.8) -> tuple[list[str], list[Removed]]:
    """Clean, drop exact and then near duplicates; what is left, and what each step took away.

    >>> left, removed = prepare(["Out, out, brief candle!\\n", "out out brief candle", "Enough."])
    >>> left, removed[-2].documents, removed[-1].documents
    (['Out, out, brief candle!', 'Enough.'], 1, 0)
    """
    texts, removed = clean_all(texts)
    texts, exact = _without(texts, exact_duplicates(texts), "exact duplicates")
    texts, near = _without(texts, near_duplicates(texts, threshold), "near duplicates")
    return texts, [*removed, exact, near]


def _without(texts: list[str], gone: Collection[int], step: str) -> tuple[list[str], Removed]:
    left = [text for i, text in enumerate(texts) if i not in set(gone)]
    return left, Removed(step, len(gone), _size(texts) - _size(left))


# ── splits ────────────────────────────────────────────────────────────────────────────────────────


class Split(NamedTuple):
    """Titles: what is learned from, what settings are picked on, what is reported."""

    train: list[str]
    dev: list[str]
    test: list[str]


def split_by_play(titles: Iterable[str], n_dev: int, n_test: int, *, seed: int = 0) -> Split:
    """Whole plays to each part, drawn by `seed`: lines of one play never stand on both sides.

    The order in which titles come does not matter. ValueError where a title stands twice, or none
    is left to learn from.

    >>> split_by_play(["Hamlet", "Macbeth", "Othello", "King Lear"], n_dev=1, n_test=1)
    Split(train=['Hamlet', 'Macbeth'], dev=['Othello'], test=['King Lear'])
    """
    ordered = sorted(titles)
    if len(set(ordered)) < len(ordered):
        twice = next(a for a, b in pairwise(ordered) if a == b)
        raise ValueError(f"{twice!r} stands twice among the titles; it could fall on both sides")
    if min(n_dev, n_test) < 0 or n_dev + n_test >= len(ordered):
        raise ValueError(
            f"n_dev is {n_dev} and n_test {n_test} of {len(ordered)} plays; neither is below 0, "
            "and at least one play must be left to learn from"
        )
    drawn = random.Random(seed).sample(ordered, n_dev + n_test)
    left = [title for title in ordered if title not in drawn]
    return Split(left, sorted(drawn[:n_dev]), sorted(drawn[n_dev:]))


def of_titles(texts: Mapping[str, str], titles: Iterable[str]) -> list[str]:
    """The texts of these titles; ValueError for one that is not there."""
    titles = list(titles)
    unknown = [title for title in titles if title not in texts]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not among the {len(texts)} texts")
    return [texts[title] for title in titles]


class Corpus(NamedTuple):
    """Texts by title, and the titles of each part.

    >>> corpus = Corpus({"a": "one", "b": "two", "c": "six"}, Split(["c", "a"], ["b"], []))
    >>> corpus.of("train")
    ['six', 'one']
    """

    texts: dict[str, str]
    split: Split

    def of(self, part: str) -> list[str]:
        """The texts of "train", "dev" or "test"; ValueError for another part."""
        if part not in Split._fields:
            raise ValueError(f"part is {part!r}; it must be one of {', '.join(Split._fields)}")
        return of_titles(self.texts, getattr(self.split, part))


# ── packing ───────────────────────────────────────────────────────────────────────────────────────


def pack(documents: Iterable[Sequence[int]], length: int, end: int) -> tuple[Tensor, int]:
    """All documents in one row, `end` after each, cut into rows: -> (N, T), and how many tokens of
    the last, unfinished row were left out.

    Nothing is padded, so every token teaches; a row may hold parts of several documents, as in
    GPT-3 (Brown et al. 2020, §2.3). ValueError where there is not enough for one row.

    >>> pack([[1, 2, 3], [4, 5]], length=3, end=0)
    (tensor([[1, 2, 3],
            [0, 4, 5]]), 1)
    """
    if length < 1:
        raise ValueError(f"length is {length}; a row has at least 1 token")
    stream = [id for document in documents for id in (*document, end)]
    rows = len(stream) // length
    if rows == 0:
        raise ValueError(f"{len(stream)} tokens do not fill one row of {length}; shorten the rows")
    return torch.tensor(stream[: rows * length]).view(rows, length), len(stream) - rows * length


def packed(tokenizer: Tokenizer, texts: Iterable[str], length: int, end: str) -> Tensor:
    """Texts in tokens, packed: (N, T), the special token `end` after each text.

    What does not fill the last row is left out; see `pack`. ValueError where the tokenizer has no
    such special token.

    >>> from course_utils.building import tokenizer
    >>> small = tokenizer.train(["to be"], 0, specials=["<end>"])
    >>> rows = packed(small, ["to be", "or"], length=4, end="<end>")
    >>> [small.decode(row) for row in rows.tolist()]
    ['to b', 'e<end>or']
    """
    if end not in tokenizer.specials:
        raise ValueError(f"end is {end!r}; the special tokens are {list(tokenizer.specials)}")
    documents = (tokenizer.encode(text) for text in texts)
    return pack(documents, length, tokenizer.specials[end])[0]


def spread_out(rows: Tensor, n: int) -> Tensor:
    """At most n of the rows (N, T), from the first to the last at even distances: -> (n, T).

    >>> spread_out(torch.arange(7).unsqueeze(1), n=3).flatten()
    tensor([0, 3, 6])
    """
    if n < 1:
        raise ValueError(f"n is {n}; keep at least 1 row")
    kept = min(n, len(rows))
    return rows[[i * (len(rows) - 1) // max(kept - 1, 1) for i in range(kept)]]


def batches(rows: Tensor, size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """One pass over rows (N, T) in random order: batches (size, T), the last perhaps smaller.

    >>> sizes = [len(batch) for batch in batches(torch.zeros(5, 2), size=2)]
    >>> sizes
    [2, 2, 1]
    """
    if size < 1:
        raise ValueError(f"size is {size}; a batch holds at least 1")
    order = torch.randperm(len(rows), generator=generator)
    yield from (rows[chosen] for chosen in order.split(size))
