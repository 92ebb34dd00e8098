"""Replies from plays: who answers what, in which kind of sentence. Notebooks 00 and 15.

An exchange is a short speech and the short one after it. The task: reply to a line with a question,
an exclamation or a statement, as asked. A reply's kind is its last character, which is all that is
counted. Shapes: B prompts of T tokens.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from course_utils.building import corpus
from course_utils.building.corpus import Corpus, Split
from course_utils.inference.decoding import sample
from course_utils.inference.next_logits import CachedNextLogits
from course_utils.inference.processors import processor
from course_utils.tasks import shakespeare
from course_utils.tasks.shakespeare import speeches

KINDS = {"?": "question", "!": "exclamation", ".": "statement"}
INSTRUCTIONS = {
    "question": "Reply with a question.",
    "exclamation": "Reply with an exclamation.",
    "statement": "Reply with a statement.",
}
HEADING = re.compile(r"\n(?:ACT|SCENE)\b")
LEAST_SPEECHES = 100  # of a play that names its speakers in full, so that exchanges can be found


# ── plays ─────────────────────────────────────────────────────────────────────────────────────────


def split_works(texts: Mapping[str, str], seed: int, n_dev: int = 3, n_test: int = 3) -> Split:
    """Whole plays for development and test, all other works to learn from, in their order.

    Only plays are held out that name their speakers in full. ValueError where no such play would
    be left to learn from.
    """
    speaking = [title for title, text in texts.items() if len(speeches(text)) >= LEAST_SPEECHES]
    drawn = corpus.split_by_play(speaking, n_dev, n_test, seed=seed)
    held = {*drawn.dev, *drawn.test}
    return drawn._replace(train=[title for title in texts if title not in held])


def load_plays(seed: int) -> Corpus:
    """Shakespeare's works, cleaned, and split by `seed` as in `split_works`."""
    works = shakespeare.load()
    texts, _ = corpus.clean_all(list(works.values()))
    named = dict(zip(works, texts, strict=True))
    return Corpus(named, split_works(named, seed))


# ── exchanges ─────────────────────────────────────────────────────────────────────────────────────


class Exchange(NamedTuple):
    """What one person says, and what the next one replies."""

    said: str
    reply: str


def kind_of(reply: str) -> str | None:
    """The kind of sentence that a reply ends as; None where it ends as none of the three.

    >>> kind_of("Who's there?"), kind_of("Nay, answer me -")
    ('question', None)
    """
    return KINDS.get(reply.strip()[-1:])


def exchanges(text: str, longest_said: int = 120, longest_reply: int = 60) -> list[Exchange]:
    """All exchanges of a play whose two sides have at most so many characters.

    Without stage directions, and none across the border of a scene.

    >>> play = "ACT I.\\n\\nFOX.\\nWho is there?\\n\\nOWL.\\n[Aside.] A bird, my lord.\\n"
    >>> exchanges(play)
    [Exchange(said='Who is there?', reply='A bird, my lord.')]
    """
    if min(longest_said, longest_reply) < 1:
        raise ValueError(
            f"longest_said is {longest_said}, longest_reply {longest_reply}; both are at least 1"
        )
    bodies = [text[speech.body : speech.end] for speech in speeches(text)]
    found = []
    for before, after in pairwise(bodies):
        said, reply = spoken(before), spoken(after)
        short = 0 < len(said) <= longest_said and 0 < len(reply) <= longest_reply
        if short and not HEADING.search(before) and kind_of(reply):
            found.append(Exchange(said, reply))
    return found


def spoken(body: str) -> str:
    """A speech on one line, without stage directions and what stands below its scene's end.

    >>> spoken("To be,\\n[Pause.]\\nor not to be.\\n\\nSCENE II. A wood.")
    'To be, or not to be.'
    """
    within = HEADING.split(body, maxsplit=1)[0]
    return " ".join(re.sub(r"\[[^\]]*\]?", " ", within).split())


def by_kind(items: Iterable[Exchange]) -> dict[str, list[Exchange]]:
    """Kind → exchanges whose reply is of it; ValueError where one kind has none.

    >>> by_kind([Exchange("a", "b?"), Exchange("a", "b!"), Exchange("a", "b.")])["question"]
    [Exchange(said='a', reply='b?')]
    """
    found = defaultdict(list)
    for item in items:
        found[kind_of(item.reply)].append(item)
    if missing := [kind for kind in INSTRUCTIONS if not found[kind]]:
        raise ValueError(
            f"no reply is of the kind {missing[0]!r}; give more plays, so that it can be learned"
        )
    return {kind: found[kind] for kind in INSTRUCTIONS}


def some_of_each(items: Iterable[Exchange], n: int, seed: int) -> list[Exchange]:
    """At most `n` exchanges of each kind, drawn by seed, kind after kind.

    >>> items = [Exchange("a", f"{i}{mark}") for i in range(3) for mark in "?!."]
    >>> [item.reply[-1] for item in some_of_each(items, n=2, seed=0)]
    ['?', '?', '!', '!', '.', '.']
    """
    if n < 1:
        raise ValueError(f"n is {n}; draw at least 1 exchange of each kind")
    draw = random.Random(seed)
    return [item for of in by_kind(items).values() for item in draw.sample(of, min(n, len(of)))]


def asked(said: str, kind: str) -> str:
    """A line with its instruction before it; ValueError for a kind that is none.

    >>> asked("Who's there?", "exclamation")
    "Reply with an exclamation. Who's there?"
    """
    if kind not in INSTRUCTIONS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(INSTRUCTIONS)}")
    return f"{INSTRUCTIONS[kind]} {said}"


def draw_prompts(items: Sequence[Exchange], n: int, seed: int) -> list[tuple[str, str]]:
    """`n` different lines, each with a kind to reply in, all kinds equally often: (said, kind).

    The kind is drawn apart from the line, so that a line's own reply does not give it away.
    """
    lines = sorted({item.said for item in items})
    if not 1 <= n <= len(lines):
        raise ValueError(f"n is {n}; there are {len(lines)} different lines to draw from")
    kinds = list(INSTRUCTIONS)
    drawn = random.Random(seed).sample(lines, n)
    return [(said, kinds[i % len(kinds)]) for i, said in enumerate(drawn)]


# ── replies of a model ────────────────────────────────────────────────────────────────────────────


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Prompts that end together: ids and mask, each (B, T).

    >>> left_padded([[5], [6, 7]], pad=0)
    (tensor([[0, 5],
            [6, 7]]), tensor([[0, 1],
            [1, 1]]))
    """
    if not prompts or not all(prompts):
        raise ValueError("there is a prompt of no tokens, or none at all; each has at least one")
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def write_replies(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    end: int,
    *,
    max_new_tokens: int = 24,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 128,
) -> list[tuple[int, ...]]:
    """What a `Decoder` replies to prompts of ids: tokens, `end` included where it came.

    Temperature 0 is greedy. Prompts of one batch are padded on the left.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    draw = torch.Generator(device).manual_seed(seed)
    written = []
    for first in range(0, len(prompts), batch_size):
        ids, mask = left_padded(prompts[first : first + batch_size], pad=end)
        read = CachedNextLogits(*model.read_and_reorder(mask.to(device)))
        written += sample(
            read,
            ids.to(device),
            max_new_tokens,
            stop=[end],
            process=processor(temperature=temperature),
            generator=draw,
        )
    model.train(was_training)
    return [continuation.tokens for continuation in written]


def obeys(reply: str, kind: str, ended: bool) -> bool:
    """Whether a reply came to its end, and ends as the kind that was asked for.

    >>> obeys("Who's there?", "question", ended=True), obeys("Stand!", "question", ended=True)
    (True, False)
    """
    return ended and kind_of(reply) == kind


def share_by_chance(said: Sequence[str | None], wanted: Sequence[str]) -> float:
    """The share of replies that would be of the wanted kind if wishes were dealt out at random.

    `said` are the kinds that were written: Σ over kinds of their share among the replies times
    their share among the wishes.

    >>> share_by_chance(["question", "question", None], ["question", "statement", "question"])
    0.4444444444444444
    """
    if not said or len(said) != len(wanted):
        raise ValueError(f"{len(said)} replies, {len(wanted)} wishes; give one for each")
    n = len(said)
    return sum(list(said).count(kind) * list(wanted).count(kind) for kind in set(wanted)) / n**2
