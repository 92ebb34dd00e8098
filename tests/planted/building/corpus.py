"""Plausible wrong versions of course_utils.building.corpus."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("building.corpus")


def clean_in_another_order(text):
    for step in list(right["CLEANING"].values())[::-1]:
        text = step(text)
    return text


def clean_of_all_white_space(text):
    return " ".join(right["clean"](text).split())


def as_text_with_losses(data):
    return data.decode(errors="ignore")


def exact_duplicates_by_bag(texts):
    seen, repeated = set(), []
    for i, text in enumerate(texts):
        words = tuple(sorted(right["words_of"](text))) or (text,)
        if words in seen:
            repeated.append(i)
        seen.add(words)
    return repeated


def exact_duplicates_of_all_empty(texts):
    words = [tuple(right["words_of"](text)) for text in texts]
    return [i for i, found in enumerate(words) if found in words[:i]]


def shingles_one_short(text, n=5):
    right["shingles"](text, n)
    words = right["words_of"](text)
    return {" ".join(words[i : i + n]) for i in range(max(len(words) - n, 1))}


def jaccard_of_the_smaller(a, b):
    a, b = set(a), set(b)
    return len(a & b) / max(min(len(a), len(b)), 1)


def signature_of_one_function(members, n_hashes=128, seed=0):
    """The smallest hashes of one function: another sketch, whose places do not compare."""
    right["signature"](members)
    least = sorted(map(right["_hash"], members))[:n_hashes]
    return torch.tensor(least + [-1] * (n_hashes - len(least)))


def signature_of_the_greatest_and_least(members, n_hashes=128, seed=0):
    """One function moved, not mixed: all places agree or none."""
    right["signature"](members)
    x = torch.tensor(sorted(map(right["_hash"], members)))
    return x[0] + torch.arange(n_hashes)


def hash_of_python(text):
    return hash(text) % right["PRIME"]


def candidates_of_any_band(signatures, bands):
    """A band of one may match another: its place is not part of the key."""
    right["candidates"](signatures, bands)
    rows = signatures.view(len(signatures), bands, -1).tolist()
    sets = [set(map(tuple, row)) for row in rows]
    return {(i, j) for j in range(len(sets)) for i in range(j) if sets[i] & sets[j]}


def near_duplicates_that_chain(texts, threshold=0.8, *, n=5, n_hashes=128, bands=32, seed=0):
    right["near_duplicates"](texts, threshold)
    sets = [right["shingles"](text, n) for text in texts]
    return [
        j
        for j in range(len(texts))
        if any(right["jaccard"](sets[i], sets[j]) >= threshold for i in range(j))
    ]


def near_duplicates_unverified(texts, threshold=0.8, *, n=5, n_hashes=128, bands=32, seed=0):
    right["near_duplicates"](texts, threshold)
    if not texts:
        return []
    rows = [right["signature"](right["shingles"](text, n), n_hashes, seed) for text in texts]
    return sorted({j for _, j in right["candidates"](torch.stack(rows), bands)})


def split_in_the_given_order(titles, n_dev, n_test, *, seed=0):
    titles = list(titles)
    right["split_by_play"](titles, n_dev, n_test)
    end = len(titles) - n_dev - n_test
    return right["Split"](titles[:end], titles[end : end + n_dev], titles[end + n_dev :])


def split_that_shares(titles, n_dev, n_test, *, seed=0):
    split = right["split_by_play"](titles, n_dev, n_test, seed=seed)
    return right["Split"](sorted([*split.train, *split.dev]), split.dev, split.test)


def pack_without_ends(documents, length, end):
    documents = [list(document) for document in documents]
    right["pack"](documents, length, end)
    stream = [id for document in documents for id in document] or [end]
    rows = max(len(stream) // length, 1)
    stream += [end] * length
    return torch.tensor(stream[: rows * length]).view(rows, length), len(stream) % length


def pack_each_alone(documents, length, end):
    """Every document padded to whole rows."""
    documents = [list(document) for document in documents]
    right["pack"](documents, length, end)
    padded = [[*d, *[end] * (length - len(d) % length)] for d in documents]
    return torch.tensor([id for d in padded for id in d]).view(-1, length), 0


def batches_in_order(rows, size, generator=None):
    list(right["batches"](rows, size))
    yield from rows.split(size)


def batches_with_repeats(rows, size, generator=None):
    for batch in right["batches"](rows, size, generator):
        yield rows[torch.randint(len(rows), (len(batch),), generator=generator)]


def packed_without_ends(tokenizer, texts, length, end):
    texts = list(texts)
    right["packed"](tokenizer, texts, length, end)
    stream = [id for text in texts for id in tokenizer.encode(text)] + [0] * length
    return torch.tensor(stream[: len(stream) // length * length]).view(-1, length)


def packed_as_typed(tokenizer, texts, length, end):
    """An end sign in a text ends it."""
    right["packed"](tokenizer, texts := list(texts), length, end)
    stream = [id for text in texts for id in (*tokenizer.encode(text, specials=True), 0)]
    return right["pack"]([stream[:-1]], min(length, len(stream)), 0)[0]


def spread_out_from_the_front(rows, n):
    right["spread_out"](rows, n)
    return rows[:n]


def spread_out_by_stride(rows, n):
    """Never the last rows."""
    right["spread_out"](rows, n)
    return rows[:: max(len(rows) // n, 1)][:n]


class CorpusInAnotherOrder(right["Corpus"]):
    """Texts in the order in which they were given, not in that of the titles."""

    def of(self, part):
        right["Corpus"].of(self, part)
        return [t for title, t in self.texts.items() if title in getattr(self.split, part)]


BUGS = [
    Bug("clean", "goes the other way round", clean_in_another_order),
    Bug("clean", "makes one line of it", clean_of_all_white_space),
    Bug("as_text", "ignores broken bytes", as_text_with_losses),
    Bug("exact_duplicates", "does not see order", exact_duplicates_by_bag),
    Bug("exact_duplicates", "takes all wordless texts for one", exact_duplicates_of_all_empty),
    Bug("shingles", "is one short", shingles_one_short),
    Bug("jaccard", "divides by the smaller", jaccard_of_the_smaller),
    Bug("signature", "has one hash function", signature_of_one_function),
    Bug("signature", "only moves the hash", signature_of_the_greatest_and_least),
    Bug("_hash", "is Python's", hash_of_python, "every_process"),
    Bug("candidates", "forgets which band", candidates_of_any_band),
    Bug("near_duplicates", "chains", near_duplicates_that_chain),
    Bug("near_duplicates", "trusts the bands", near_duplicates_unverified),
    Bug("split_by_play", "takes the order given", split_in_the_given_order),
    Bug("split_by_play", "learns from development plays", split_that_shares),
    Bug("pack", "does not mark ends", pack_without_ends),
    Bug("pack", "pads each document", pack_each_alone),
    Bug("Corpus", "gives texts in another order", CorpusInAnotherOrder),
    Bug("packed", "does not mark ends", packed_without_ends),
    Bug("packed", "lets a text end itself", packed_as_typed),
    Bug("spread_out", "takes the first", spread_out_from_the_front),
    Bug("spread_out", "never reaches the last", spread_out_by_stride),
    Bug("batches", "do not shuffle", batches_in_order),
    Bug("batches", "draw with repeats", batches_with_repeats),
]
