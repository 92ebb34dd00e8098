"""Pruned and trained on: a grid over masks, shares and steps. Notebook 16.

`course train pruned-minilm` prunes the packaged encoder by three choices of weights, at three
shares, with several seeds, and lets what is left learn to give the whole encoder's vectors again.
It writes data/checkpoints/pruned-minilm: `runs.json`, a row for each stop on the way, and a card. A
run that was stopped goes on where it was. The notebook repeats two trainings up to the first stop.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from course_utils import training
from course_utils.architectures.encoder import Encoder
from course_utils.compression import pruning
from course_utils.compression.calibration import Moments
from course_utils.profiles import device_for, for_profile, threads
from course_utils.recipes import stored
from course_utils.tasks import editorials, sentence_vectors
from course_utils.tasks.sentence_vectors import Lesson

NAME = "pruned-minilm"
CHOICES = ("random", "magnitude", "wanda")

CARD = """\
# pruned-minilm

{n} rows: all-MiniLM-L6-v2 (Apache-2.0) with a share of each row of its linear layers at 0, chosen
at random, by size, or by size times input (Wanda), and trained on with the zeros kept. It learns to
give the whole encoder's vectors of editorials' sentences (Hutto & Gilbert 2014, MIT); the score is
the mean cosine to them on sentences of other editorials. `course train pruned-minilm` makes all of
it again, and this card. No weights are stored.

| | |
|---|---|
| shares | {shares} |
| training | {stops} steps of {batch} sentences; Adam at {rate}; embeddings stay as they are |
| scored on | {each} sentences of each of {articles} editorials |
| run | profile {profile}, {minutes} minutes of training on {device}, {threads} thread(s) |
| torch | {torch} |
"""


class Run(NamedTuple):
    """One stop of a training: the choice, the share that went, and the mean cosine by then."""

    choice: str
    share: float
    steps: int
    seed: int
    cosine: float
    seconds: float


def budget_for(profile: str) -> SimpleNamespace:
    """Sizes and length of the grid in one profile."""
    common = dict(batch=12, rate=3e-4, articles=14, each=6, calibration=128)
    return for_profile(
        profile,
        cpu=dict(shares=(0.5, 0.7), stops=(0, 15, 45, 135), seeds=2, **common),
        gpu=dict(shares=(0.5, 0.7, 0.8, 0.9), stops=(0, 15, 150, 1500), seeds=6, **common),
    )


# ── pieces that the notebook uses too ─────────────────────────────────────────────────────────────


def scores_of(
    model: Encoder, choice: str, moments: Mapping[str, Moments], seed: int = 0
) -> dict[str, Tensor]:
    """A score for each weight; the smallest are pruned. ValueError for another choice."""
    if choice not in CHOICES:
        raise ValueError(f"choice is {choice!r}; it must be one of {', '.join(CHOICES)}")
    if choice == "wanda":
        return pruning.linear_scores(model, moments)
    scores = pruning.linear_scores(model)
    if choice == "magnitude":
        return scores
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(s.shape, generator=generator).to(s) for n, s in scores.items()}


def retrain(
    model: Encoder,
    masks: Mapping[str, Tensor],
    lessons: Sequence[Lesson],
    *,
    rate: float = 3e-4,
    label: str = "retraining",
) -> training.History:
    """One step a lesson, a batch and its vectors: 1 − cosine falls, and what is masked stays 0.

    The embeddings stay as they are. Changes the model in place.
    """
    optimizer = torch.optim.Adam(sentence_vectors.learn_blocks(model), lr=rate)
    loss_of = partial(sentence_vectors.distance, model)
    with pruning.MaskKeeper(model, optimizer) as keeper:
        keeper.keep(masks)
        return training.train(
            loss_of, lessons, optimizer, steps=len(lessons), max_norm=1.0, label=label
        )


# ── the grid ──────────────────────────────────────────────────────────────────────────────────────


class Ward(NamedTuple):
    """What one seed's models are made from and examined with."""

    exam: list[sentence_vectors.Text]
    wanted: Tensor  # the whole encoder's vectors of it
    moments: Mapping[str, Moments]
    lessons: list[Lesson]


def ward_of(
    dense: Encoder, tokenizer: Callable, budget: SimpleNamespace, seed: int, device: str = "cpu"
) -> Ward:
    """One seed's own exam, and what is read and learned, from other editorials."""
    sizes = dict(articles=budget.articles, each=budget.each)
    drawn = editorials.draw(editorials.load(), seed=seed, **sizes)
    exam = sentence_vectors.batches(tokenizer, [s.text for s in drawn.exam], device=device)
    others = [s.text for s in drawn.others]
    reading = sorted(others[: budget.calibration], key=len)
    read = sentence_vectors.batches(tokenizer, reading, device=device)
    lessons = sentence_vectors.lessons_by_stops(
        dense, tokenizer, others, budget.stops, budget.batch, seed=seed, device=device
    )
    wanted = sentence_vectors.vectors_of(dense, exam)
    return Ward(exam, wanted, sentence_vectors.moments(dense, read), lessons)


def one_training(
    dense: Encoder, ward: Ward, choice: str, share: float, seed: int, budget: SimpleNamespace
) -> Iterator[Run]:
    """Prune by one choice, train, and score at each stop."""
    scores = scores_of(dense, choice, ward.moments, seed)
    masks = {name: pruning.row_mask(each, share) for name, each in scores.items()}
    model, done, seconds = copy.deepcopy(dense), 0, 0.0
    pruning.apply_masks(model, masks)
    for stop in budget.stops:
        if stop > done:
            part, label = ward.lessons[done:stop], f"{choice}, {share:.0%}, seed {seed}"
            seconds += retrain(model, masks, part, rate=budget.rate, label=label).seconds
        done = stop
        cosine = sentence_vectors.mean_cosine(model, ward.exam, ward.wanted)
        yield Run(choice, share, stop, seed, cosine, seconds)


def train(profile: str = "cpu", seed: int = 0, out: Path | None = None) -> Path:
    """Compute what is not yet stored of the grid, write rows and card; return their folder."""
    budget, device = budget_for(profile), device_for(profile)
    torch.set_num_threads(threads())
    dense, tokenizer = sentence_vectors.load(device=device)
    facts = stored.facts_now(profile, seed, device, **vars(budget))
    grid = stored.Grid(NAME, Run, facts, out)
    done = {(row.seed, row.share, row.choice) for row in grid.rows}
    for each in range(seed, seed + budget.seeds):
        plan = itertools.product(budget.shares, CHOICES)
        if left := [arm for arm in plan if (each, *arm) not in done]:
            ward = ward_of(dense, tokenizer, budget, each, device)
            for share, choice in left:
                grid.add(*one_training(dense, ward, choice, share, each, budget))
    last = [row.seconds for row in grid.rows if row.steps == max(budget.stops)]
    return grid.finish(CARD, seconds=sum(last))


def runs(folder: Path | None = None) -> list[Run]:
    """The rows of the stored grid. AssetError when it is not there."""
    return stored.read_rows(folder or stored.folder_of(NAME), Run)
