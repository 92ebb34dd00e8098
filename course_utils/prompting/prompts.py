"""Prompts as code: templates, shots, budgets. Notebook 10.

A model comes in only as a function: `count_tokens(prompt)` is a prompt's length in tokens. An
engine of `course_utils.engines` has it as a method, but anything that keeps to this will do.

Sources: Brown et al. 2020 (zero, one and few shots), Liu et al. 2022 (nearest shots), Lu et al.
2022 (order).
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from course_utils.metrics import check_labels

if TYPE_CHECKING:
    from course_utils.prompting.retrieval import DenseIndex


Message = dict[str, str]
Prompt = str | list[Message]
Part = TypeVar("Part")


class Shot(NamedTuple):
    """A solved example to show in a prompt."""

    text: str
    label: str


# ── templates ─────────────────────────────────────────────────────────────────────────────────


_FIELD = re.compile(r"\{([a-z_]+)\}")


def fill(template: str, **fields: str) -> str:
    """Put each field in the place of its {name}, all in one pass.

    Braces inside a field's own text stay as they are, unlike in `str.format` twice. Raises
    ValueError when the template names a field that is not given, or lacks one that is.

    >>> fill("{text} is {label}.", text="{label}", label="good")
    '{label} is good.'
    """
    named = set(_FIELD.findall(template))
    if odd := sorted(named ^ set(fields)):
        where = "is not given" if odd[0] in named else "is not in the template"
        raise ValueError(f"the field {{{odd[0]}}} {where} {template!r}")
    return _FIELD.sub(lambda match: fields[match[1]], template)


@dataclass(frozen=True)
class Template:
    """A form to fill in, its label last: prompts and the endings to score come from one form.

    Raises ValueError for a form without {text}, or that does not end with {label}.

    >>> form = Template("{text}? {label}")
    >>> form.prompt("Up", [Shot("Day", "night"), Shot("In", "out")], separator="; ")
    'Day? night; In? out; Up?'
    >>> form.endings(["down", "up"])
    [' down', ' up']
    """

    form: str

    def __post_init__(self) -> None:
        _, label, after = self.form.partition("{label}")
        if not label or after:
            raise ValueError(f"the template must end with {{label}}, unlike {self.form!r}")
        fill(self.form, text="", label="")

    def prompt(
        self,
        text: str,
        shots: Sequence[Shot] = (),
        *,
        instruction: str = "",
        separator: str = "\n\n",
    ) -> str:
        """Return a prompt to complete: instruction, shots, and the text up to its label's place.

        It ends before the blank: a tokenizer of today has that inside the next word, so that a
        prompt which ends with a blank asks for a word that begins with none.
        """
        begun = self.form.removesuffix("{label}").rstrip(" ")
        shown = [fill(self.form, text=shot.text, label=shot.label) for shot in shots]
        parts = [instruction] if instruction else []
        return separator.join([*parts, *shown, fill(begun, text=text)])

    def endings(self, labels: Sequence[str]) -> list[str]:
        """Return the labels as they go on after `prompt`: with the form's blank in front.

        Raises ValueError for labels that `predict` could not tell apart or score.
        """
        check_labels(labels)
        begun = self.form.removesuffix("{label}")
        blank = begun[len(begun.rstrip(" ")) :]
        return [blank + label for label in labels]


def chat_prompt(
    text: str, shots: Sequence[Shot] = (), *, template: str = "{text}", system: str = ""
) -> list[Message]:
    """Return a chat: each shot a question and its answer, then the text as the last question.

    `template` is what the user says, with {text}; the endings to score are the labels themselves.
    How a chat becomes a text is the engine's business. Raises ValueError for a template without
    {text}.
    """
    messages = [{"role": "system", "content": system}] if system else []
    for shot in shots:
        messages.append({"role": "user", "content": fill(template, text=shot.text)})
        messages.append({"role": "assistant", "content": shot.label})
    return [*messages, {"role": "user", "content": fill(template, text=text)}]


# ── shots ─────────────────────────────────────────────────────────────────────────────────────


def _check_count(k: int, available: int, what: str) -> None:
    if not 0 <= k <= available:
        raise ValueError(
            f"{k} shots are asked for, and {what} {available}; ask for 0 to {available}"
        )


def random_shots(pool: Sequence[Shot], k: int, *, seed: int) -> list[Shot]:
    """Draw k shots without replacement, in random order. ValueError when the pool has fewer."""
    _check_count(k, len(pool), "the pool holds")
    return random.Random(seed).sample(list(pool), k)


def balanced_shots(pool: Sequence[Shot], k: int, *, labels: Sequence[str], seed: int) -> list[Shot]:
    """Draw k shots, as many of each label as of any other, in random order.

    Where k is no multiple of the number of labels, those that get one more are drawn too. Raises
    ValueError for a shot with a label that is not in `labels`, and when one has too few shots.
    """
    check_labels(labels)
    if unknown := {shot.label for shot in pool} - set(labels):
        raise ValueError(f"the pool has the label {min(unknown)!r}; known are {list(labels)}")
    _check_count(k, len(pool), "the pool holds")
    draw = random.Random(seed)
    counts = Counter([*labels] * (k // len(labels)) + draw.sample(list(labels), k % len(labels)))
    shots = []
    for label in labels:
        own = [shot for shot in pool if shot.label == label]
        _check_count(counts[label], len(own), f"of label {label!r} the pool holds")
        shots += draw.sample(own, counts[label])
    draw.shuffle(shots)
    return shots


def nearest_shots(text: str, pool: Sequence[Shot], k: int, *, index: DenseIndex) -> list[Shot]:
    """Return the k shots whose texts are most like `text`, the most like it last, next to it.

    `index` is a `retrieval.DenseIndex` of the pool's texts, in the pool's order. A shot with the
    very text is left out, since it would give its label away. Raises ValueError when there are
    fewer than k others. Source: Liu et al. 2022, section 3 (kATE).

    >>> from course_utils.prompting.retrieval import DenseIndex
    >>> pool = [Shot("aa", "x"), Shot("ab", "y"), Shot("bb", "z")]
    >>> counts = lambda texts: [[text.count("a"), text.count("b")] for text in texts]
    >>> index = DenseIndex([shot.text for shot in pool], counts)
    >>> [shot.text for shot in nearest_shots("aa", pool, 2, index=index)]
    ['bb', 'ab']
    """
    others = [i for i, shot in enumerate(pool) if shot.text != text]
    _check_count(k, len(others), "the pool holds other texts:")
    if k == 0:
        return []
    hits = index.search(text, k + len(pool) - len(others))
    best = [hit.index for hit in hits if pool[hit.index].text != text][:k]
    return [pool[i] for i in reversed(best)]


def different_orders(shots: Sequence[Shot], n: int, *, seed: int) -> list[list[Shot]]:
    """Return n different orders of the same shots, the given one first (Lu et al. 2022).

    Raises ValueError when there are fewer than n; equal shots do not make another order.
    """
    repeats = math.prod(math.factorial(count) for count in Counter(shots).values())
    possible = math.factorial(len(shots)) // repeats
    if not 1 <= n <= possible:
        raise ValueError(f"{n} orders are asked for, and these shots have {possible}")
    draw, orders = random.Random(seed), [list(shots)]
    while len(orders) < n:
        shuffled = draw.sample(list(shots), len(shots))
        if shuffled not in orders:
            orders.append(shuffled)
    return orders


# ── the context window ────────────────────────────────────────────────────────────────────────


def fit_budget(
    parts: Sequence[Part],
    build: Callable[[list[Part]], Prompt],
    *,
    count_tokens: Callable[[Prompt], int],
    budget: int,
) -> list[Part]:
    """Drop parts from the front until the prompt `build(parts)` has at most `budget` tokens.

    Parts are shots, facts or turns of a chat, the least needed first: the oldest, or the least
    alike as `nearest_shots` orders them. A budget is the context window less the tokens of the
    answer. Raises ValueError when even `build([])` does not fit.

    >>> count_words = lambda prompt: len(prompt.split())
    >>> fit_budget(["one two", "three", "four"], " ".join, count_tokens=count_words, budget=2)
    ['three', 'four']
    """
    kept = list(parts)
    while (size := count_tokens(build(kept))) > budget:
        if not kept:
            raise ValueError(
                f"the prompt has {size} tokens with all its parts dropped, and the budget is "
                f"{budget}; shorten the text or the instruction, or take a larger context window"
            )
        del kept[0]
    return kept
