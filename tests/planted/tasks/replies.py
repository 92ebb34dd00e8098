"""Plausible wrong versions of course_utils.tasks.replies."""

from __future__ import annotations

import re

import torch
from planting import Bug, originals

right = originals("tasks.replies")


def kind_of_the_first_mark(reply):
    marks = [c for c in reply if c in "?!."]
    return {"?": "question", "!": "exclamation", ".": "statement"}.get(marks[0] if marks else "")


def spoken_with_directions(body):
    return " ".join(right["HEADING"].split(body, maxsplit=1)[0].split())


def spoken_past_the_scene(body):
    return " ".join(re.sub(r"\[[^\]]*\]?", " ", body).split())


def left_padded_on_the_right(prompts, pad):
    ids, mask = right["left_padded"](prompts, pad)
    rows = [[*p, *[pad] * (ids.shape[1] - len(p))] for p in prompts]
    return torch.tensor(rows), mask.flip(1)


def left_padded_without_a_mask(prompts, pad):
    ids, mask = right["left_padded"](prompts, pad)
    return ids, torch.ones_like(mask)


def obeys_without_an_end(reply, kind, ended):
    return right["kind_of"](reply) == kind


def share_by_chance_of_a_third(said, wanted):
    return 1 / 3


def draw_prompts_with_their_own_kind(items, n, seed):
    right["draw_prompts"](items, n, seed)
    return [(item.said, right["kind_of"](item.reply)) for item in items[:n]]


def split_works_of_all(texts, seed, n_dev=3, n_test=3):
    """Poems may be held out."""
    right["split_works"](texts, seed, n_dev, n_test)
    return right["corpus"].split_by_play(texts, n_dev, n_test, seed=seed)


def split_works_that_learns_from_the_test(texts, seed, n_dev=3, n_test=3):
    split = right["split_works"](texts, seed, n_dev, n_test)
    return split._replace(train=list(texts))


def some_of_each_from_the_front(items, n, seed):
    right["some_of_each"](items, n, seed)
    return [item for of in right["by_kind"](items).values() for item in of[:n]]


BUGS = [
    Bug("split_works", "holds out poems", split_works_of_all),
    Bug("split_works", "learns from the test", split_works_that_learns_from_the_test),
    Bug("some_of_each", "takes the first", some_of_each_from_the_front),
    Bug("kind_of", "reads the first mark", kind_of_the_first_mark, "kind_of or by_hand"),
    Bug("spoken", "keeps stage directions", spoken_with_directions, "by_hand or spoken"),
    Bug("spoken", "reads on into the next scene", spoken_past_the_scene, "exchanges or spoken"),
    Bug("left_padded", "pads on the right", left_padded_on_the_right, "write_replies"),
    Bug("left_padded", "lets padding be seen", left_padded_without_a_mask, "write_replies"),
    Bug("obeys", "does not ask whether it ended", obeys_without_an_end),
    Bug("share_by_chance", "is a third whatever was said", share_by_chance_of_a_third),
    Bug("draw_prompts", "asks for the kind of the line's own reply",
        draw_prompts_with_their_own_kind),
]  # fmt: skip
