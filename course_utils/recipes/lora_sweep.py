"""LoRA, full tuning and their rivals over learning rates: a grid on one encoder. Notebook 07.

`course train lora-sweep` tunes all-MiniLM-L6-v2 to see whether the words of a line were shuffled,
and writes data/checkpoints/lora-sweep: `runs.json`, a row a training, and a card. All arms see the
same texts in the same order, start from the same head, which stands still, and take as many steps.
Three families are swept over all their rates with several seeds, the others with one; then each is
trained with all seeds at the rate that was best on development texts. What was made already is
kept, so that the recipe can be stopped and called again. `runs` gives what is stored; `tune` is one
training, which the notebook repeats for two arms.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils import training
from course_utils.architectures.encoder import Encoder, embed_sentences, mean_pool
from course_utils.finetuning import ratings
from course_utils.finetuning.light import inject_ia3, train_biases
from course_utils.finetuning.lora import inject_lora, linear_names
from course_utils.finetuning.transfer import (
    Classifier,
    Example,
    freeze,
    pad,
    train_only,
    trainable,
)
from course_utils.profiles import device_for, for_profile, threads
from course_utils.recipes import stored
from course_utils.tasks import sentence_vectors, sentiment, word_order

NAME = "lora-sweep"
BLOCKS = r"encoder\.blocks\.\d+\."
WHERE = {
    "all": BLOCKS + r"(attention\.(query|key|value|out)|feed_forward\.(up|down))",
    "attention": BLOCKS + r"attention\.(query|key|value|out)",
    "feed-forward": BLOCKS + r"feed_forward\.(up|down)",
}
HEAD = 400  # texts that fit the head, and are not tuned on

CARD = """\
# lora-sweep

A grid of {n} trainings of all-MiniLM-L6-v2 (Apache-2.0): full tuning, LoRA, DoRA, BitFit and IA³
over learning rates, on lines of film reviews (Hutto and Gilbert 2014, MIT) of which one half has
its words shuffled. `runs.json` has a row a training. `course train lora-sweep` makes all of it
again, and this card. Licence: Apache-2.0, as the course.

| | |
|---|---|
| training | {labels} lines, {steps} steps of {batch}; AdamW, warm-up, then down to 0 |
| head | ridge regression on the untuned encoder's vectors of other lines; it stands still |
| scored on | {tests} held-out lines; rates are chosen on {devs} others |
| seeds | {seeds} at the chosen rates; {swept} over all rates (full tuning, LoRA), 1 (the others) |
| run | profile {profile}, {minutes} minutes on {device}, {threads} thread(s) |
| torch | {torch} |
"""


class Arm(NamedTuple):
    """One way to tune: the method, its rate and, for LoRA, rank, α/r and where adapters stand."""

    method: str
    rate: float = 0.0
    rank: int = 0
    scale: float = 0.0
    where: str = "all"
    shuffled: bool = False  # are the labels dealt out to other texts?


class Run(NamedTuple):
    """One training: its arm, how many numbers learned, and what came of it.

    `dev` and `test` are mean squared errors, `recall` the share of editorials whose
    halves still find each other. `seconds` are those of training and scoring.
    """

    method: str
    rate: float
    rank: int
    scale: float
    where: str
    shuffled: bool
    seed: int
    trainable: int
    dev: float
    test: float
    recall: float
    seconds: float

    @property
    def arm(self) -> Arm:
        return Arm(*self[: len(Arm._fields)])


LORA = Arm("lora", rank=8, scale=2.0)
SWEPT = {  # rates that several seeds try
    Arm("frozen"): (0.0,),
    Arm("full"): (3e-5, 1e-4, 3e-4, 1e-3),
    LORA: (3e-4, 1e-3, 3e-3, 1e-2),
    LORA._replace(scale=16.0): (1e-4, 3e-4, 1e-3, 3e-3),
}
RIVALS = {  # rates that one seed tries
    LORA._replace(rank=1): (3e-3,),
    LORA._replace(where="attention"): (3e-3,),
    LORA._replace(method="dora"): (3e-3,),
    Arm("bitfit"): (3e-3, 1e-2),
    Arm("ia3"): (1e-2, 3e-2),
}


def budget_for(profile: str) -> SimpleNamespace:
    """Sizes of the grid in one profile."""
    return for_profile(
        profile,
        cpu=dict(seeds=2, swept=2, steps=24, batch=16, labels=384, devs=160, tests=320, pairs=96),
        gpu=dict(
            seeds=6, swept=3, steps=400, batch=32, labels=1600, devs=280, tests=560, pairs=400
        ),
    )


# ── the task ──────────────────────────────────────────────────────────────────────────────────────


class Text(NamedTuple):
    """A line's ids, and what is to be said of it: 1 as it was written, −1 shuffled."""

    ids: list[int]
    target: float


class Task(NamedTuple):
    """Lines to fit the head, to tune, to choose by, to report; and halves of editorials."""

    head: list[Text]
    train: list[Text]
    dev: list[Text]
    test: list[Text]
    halves: list[tuple[Text, Text]]


def load_task(tokenizer: Any, *, devs: int = 160, tests: int = 320, pairs: int = 96) -> Task:
    """The lines of `word_order` as ids, and so many editorials cut in half."""
    parts = word_order.load()
    news = sentiment.halves([rated.text for rated in sentiment.load("editorials")])

    def texts(lines: Sequence[word_order.Line]) -> list[Text]:
        rows = tokenizer([line.text for line in lines])["input_ids"]
        return [
            Text(ids, 1.0 if line.written else -1.0) for ids, line in zip(rows, lines, strict=True)
        ]

    sides = [
        tokenizer(list(side))["input_ids"] for side in zip(*spread_over(news, pairs), strict=True)
    ]
    halves = [tuple(Text(ids, 0.0) for ids in pair) for pair in zip(*sides, strict=True)]
    train = texts(parts.train)
    dev, test = texts(parts.dev)[:devs], texts(parts.test)[:tests]
    return Task(train[:HEAD], train[HEAD:], dev, test, halves)


def spread_over(items: Sequence, n: int) -> list:
    """n items, evenly from all of them: a sorted list's first ones would be of one kind.

    >>> spread_over("abcdefg", 3)
    ['a', 'c', 'e']
    """
    n = min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def batch_of(texts: Sequence[Text], device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """ids and mask (B, T), targets (B,)."""
    padded = pad([Example(text.ids, text.ids) for text in texts])
    targets = torch.tensor([text.target for text in texts])
    return padded.ids.to(device), padded.mask.to(device), targets.to(device)


@torch.no_grad()
def in_batches(look: object, texts: Sequence[Text], device: torch.device | str) -> Tensor:
    """`look(ids, mask)` of all texts, (N, …), in batches of similar lengths."""
    found: list[Tensor | None] = [None] * len(texts)
    for group in training.batches_by_length([len(text.ids) for text in texts], 64):
        ids, mask, _ = batch_of([texts[i] for i in group], device)
        for i, row in zip(group, look(ids, mask).cpu(), strict=True):
            found[i] = row
    return torch.stack(found)


# ── the head, which stands still ──────────────────────────────────────────────────────────────────


def with_head(base: Encoder, known: Sequence[Text]) -> Classifier:
    """A copy of the encoder under a head that is fitted on its frozen vectors, all of it frozen."""
    encoder = copy.deepcopy(base)
    device = next(encoder.parameters()).device
    features = in_batches(lambda ids, mask: mean_pool(encoder(ids, mask), mask), known, device)
    fit = ratings.ridge(features, torch.tensor([text.target for text in known]))
    model = Classifier(encoder, features.shape[1], 1)
    with torch.no_grad():
        model.head.weight.copy_(fit.weights.unsqueeze(0))
        model.head.bias.fill_(fit.offset - (fit.center @ fit.weights).item())
    freeze(model)
    return model.to(device).eval()


# ── one training ──────────────────────────────────────────────────────────────────────────────────


def prepare(model: nn.Module, arm: Arm) -> None:
    """Let that of a frozen model learn which the arm trains; ValueError for an unknown method."""
    if arm.method == "frozen":
        freeze(model)
    elif arm.method == "full":
        train_only(model, [f"{name}.weight" for name in linear_names(model, WHERE["all"])])
    elif arm.method in ("lora", "dora"):
        dora = arm.method == "dora"
        inject_lora(model, WHERE[arm.where], arm.rank, arm.scale * arm.rank, dora=dora)
    elif arm.method == "bitfit":
        train_biases(model, BLOCKS + ".*")
    elif arm.method == "ia3":
        inject_ia3(model, BLOCKS + r"attention\.(key|value)", BLOCKS + r"feed_forward\.down")
    else:
        raise ValueError(f"method is {arm.method!r}; it must be full, lora, dora, bitfit or ia3")


def loss_of(model: Classifier, batch: Sequence[Text]) -> Tensor:
    """The mean squared error of a batch's targets."""
    ids, mask, targets = batch_of(batch, model.head.weight.device)
    return F.mse_loss(model(ids, mask).squeeze(1), targets)


def drawn(task: Task, seed: int, labels: int, shuffled: bool) -> tuple[list[Text], list[Text]]:
    """A seed's lines with their own targets, and as they are trained on."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(task.train), generator=generator)[:labels].tolist()
    known = [task.train[i] for i in order]
    if not shuffled:
        return known, known
    dealt = torch.randperm(len(known), generator=generator).tolist()
    return known, [Text(t.ids, known[i].target) for t, i in zip(known, dealt, strict=True)]


def tune(
    arm: Arm,
    seed: int,
    task: Task,
    start: Classifier,
    *,
    labels: int = 384,
    steps: int = 24,
    batch: int = 16,
) -> Classifier:
    """Train one arm with one seed: a copy of `start`, the model `with_head`, which stays."""
    _, texts = drawn(task, seed, labels, arm.shuffled)
    model = copy.deepcopy(start)
    torch.manual_seed(seed)
    prepare(model, arm)
    if arm.method != "frozen":
        source = training.shuffled_batches(texts, batch, 1000 + seed)
        _train(model.to(model.head.weight.device), source, arm, seed, steps)
    return model.eval()


def _train(model: Classifier, source: Iterator, arm: Arm, seed: int, steps: int) -> None:
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=arm.rate, weight_decay=0.0)
    with contextlib.suppress(training.TrainingDiverged):  # the weights before it are scored
        training.train(
            partial(loss_of, model),
            source,
            optimizer,
            steps=steps,
            max_norm=1.0,
            scheduler=training.warm_up_and_decay(optimizer, steps),
            label=f"{arm.method}, rate {arm.rate:g}, seed {seed}",
        )


# ── scores ────────────────────────────────────────────────────────────────────────────────────────


def errors(model: Classifier, texts: Sequence[Text]) -> Tensor:
    """Squared errors, line by line (N,)."""
    model.eval()
    found = in_batches(model, texts, model.head.weight.device).squeeze(1)
    return (found - torch.tensor([text.target for text in texts])).square()


def halves_found(encoder: nn.Module, halves: Sequence[tuple[Text, Text]]) -> Tensor:
    """Whether each first half lies nearest to its own second half, of all of them: (N,) of 0, 1."""
    device = next(encoder.parameters()).device
    look = partial(embed_sentences, encoder)
    first, second = (in_batches(look, [pair[side] for pair in halves], device) for side in (0, 1))
    nearest = (first @ second.T).argmax(dim=1)
    return (nearest == torch.arange(len(halves))).float()


# ── the grid ──────────────────────────────────────────────────────────────────────────────────────


def train(profile: str = "cpu", seed: int = 0, out: Path | None = None) -> Path:
    """Train what is not yet stored of the grid, write rows and card; return their folder."""
    budget, device = budget_for(profile), device_for(profile)
    torch.set_num_threads(threads())
    base, tokenizer = sentence_vectors.load()
    task = load_task(tokenizer, devs=budget.devs, tests=budget.tests, pairs=budget.pairs)
    facts = stored.facts_now(profile, seed, device, **vars(budget))
    grid = stored.Grid(NAME, Run, facts, out)
    one = _training(task, base.to(device), budget)
    for arm, each in _plan(grid.rows, range(seed, seed + budget.seeds), budget.swept):
        if not any((row.arm, row.seed) == (arm, each) for row in grid.rows):
            row = one(arm, each)
            print(f"    dev {row.dev:.3f}, test {row.test:.3f}", flush=True)
            grid.add(row)
    return grid.finish(CARD)


def _training(task: Task, base: Encoder, budget: SimpleNamespace) -> Callable[[Arm, int], Run]:
    """A function that trains and scores an arm with a seed, all from the same head."""
    start = with_head(base, task.head)

    def one(arm: Arm, seed: int) -> Run:
        begun = time.perf_counter()
        sizes = dict(labels=budget.labels, steps=budget.steps, batch=budget.batch)
        model = tune(arm, seed, task, start, **sizes)
        scores = (errors(model, part).mean().item() for part in (task.dev, task.test))
        recall = halves_found(model.encoder, task.halves).mean().item()
        return Run(*arm, seed, trainable(model), *scores, recall, time.perf_counter() - begun)

    return one


def _plan(rows: Sequence[Run], seeds: Sequence[int], swept: int) -> Iterator[tuple[Arm, int]]:
    """Which arm with which seed, in order; `rows` grows between them and decides the rates."""
    for families, first in ((SWEPT, seeds[:swept]), (RIVALS, seeds[:1])):
        for like, rates in families.items():
            yield from ((like._replace(rate=rate), seed) for seed in first for rate in rates)
            chosen = like._replace(rate=best_rate(rows, like))
            yield from ((chosen, seed) for seed in seeds[len(first) :])
    at_fulls = LORA._replace(rate=best_rate(rows, Arm("full")))
    yield from ((at_fulls, seed) for seed in seeds[:swept])
    yield LORA._replace(rate=best_rate(rows, LORA), shuffled=True), seeds[0]


# ── what is stored ────────────────────────────────────────────────────────────────────────────────


def runs(folder: Path | None = None) -> list[Run]:
    """The rows of the stored grid. AssetError when it is not there."""
    return stored.read_rows(folder or stored.folder_of(NAME), Run)


def facts_of(folder: Path | None = None) -> dict:
    """How the stored grid was made."""
    return stored.read_facts(folder or stored.folder_of(NAME))


def family(arm: Arm) -> Arm:
    """An arm without its rate: what is compared, each at a rate of its own."""
    return arm._replace(rate=0.0)


def by_rate(rows: Sequence[Run], like: Arm) -> dict[float, list[Run]]:
    """The rows of a family, rate by rate, each in the order of seeds.

    >>> row = Run("full", 1e-4, 0, 0.0, "all", False, 0, 9, 0.5, 0.6, 0.7, 1.0)
    >>> list(by_rate([row], Arm("full")))
    [0.0001]
    """
    found: dict[float, list[Run]] = {}
    for row in sorted(rows, key=lambda row: (row.rate, row.seed)):
        if family(row.arm) == family(like):
            found.setdefault(row.rate, []).append(row)
    if not found:
        raise ValueError(f"no row is of the family {like}; the grid has others")
    return found


def best_rate(rows: Sequence[Run], like: Arm, seed: int | None = None) -> float:
    """The rate with the least error on the development texts, of one seed or of several.

    Several are those that tried every rate of the family.
    """
    found = by_rate(rows, like)
    tried = set.intersection(*({row.seed for row in some} for some in found.values()))
    seeds = tried if seed is None else tried & {seed}
    if not seeds:
        raise ValueError(f"seed {seed} did not try every rate of {like}; {sorted(tried)} did")
    return min(found, key=lambda rate: sum(r.dev for r in found[rate] if r.seed in seeds))


def at_its_best(rows: Sequence[Run], like: Arm) -> list[Run]:
    """A family's rows at the rate that is best on the development texts, in the order of seeds."""
    return by_rate(rows, like)[best_rate(rows, like)]
