"""What may learn, and from how many ratings: a grid of fine-tunings of one encoder. Notebook 06.

`course train transfer-grid` tunes all-MiniLM-L6-v2 on human ratings of film-review lines, with
several ways to choose what learns, on 16 to 1,200 ratings, and writes
data/checkpoints/transfer-grid: `runs.json`, a row a training, and a card. First every arm's rates
are tried on 256 ratings; then each is trained at the rate that was best on development lines. What
was made already is kept, so that the recipe can be stopped and called again. `runs` gives what is
stored; the notebook repeats a few rows with the functions below.
"""

from __future__ import annotations

import copy
import functools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils import training
from course_utils.architectures.encoder import Encoder, mean_pool
from course_utils.finetuning.ratings import (
    Ridge,
    common_words,
    correlation,
    count_words,
    recall_nats,
    ridge,
)
from course_utils.finetuning.transfer import Classifier, train_last
from course_utils.profiles import device_for, for_profile, threads
from course_utils.recipes import stored
from course_utils.recipes.lora_sweep import batch_of, in_batches
from course_utils.tasks import sentence_vectors, sentiment, word_order
from course_utils.tasks.question_sets import load_shakespeare_questions
from course_utils.tasks.sentiment import Rated

NAME = "transfer-grid"
UNIT = 2.0  # ratings from −4 to 4 are divided by it: about their deviation
HEAD_RATE = 3e-3
LONGEST = 24  # word pieces
DOMAINS = ("products", "tweets", "editorials")
STEPS = {16: 24, 64: 32, 256: 48, 1200: 100}
SEEDS = {16: 3, 256: 2, 1200: 2, 64: 2}  # by the number of ratings, in the order of the grid

FITTED = ("words", "frozen", "random body")  # a ridge regression each, in one go
SWEEP = {  # the rates that are tried on 256 ratings, with one seed
    "last 2": (1e-4, 2e-4, 4e-4, 8e-4),
    "all": (5e-5, 1e-4, 2e-4, 4e-4),
    "head first": (5e-5, 1e-4, 2e-4),
    "random": (3e-4, 1e-3),
}
SWEPT_AT = 256
ONCE = ("random", "shuffled")  # with the first seed alone
AT = {"head first": (256,), "random": (256,), "shuffled": (256,)}

CARD = """\
# transfer-grid

A grid of {n} fits and fine-tunings of all-MiniLM-L6-v2 (Apache-2.0) on human ratings of lines from
film reviews (Hutto and Gilbert 2014, MIT). `runs.json` has a row a training: what learned, from how
many ratings, how well others' ratings were told afterwards, in films and in three other domains,
and what a paraphrase's own line costs. `course train transfer-grid` makes all of it again, and this
card. Licence: Apache-2.0, as the course.

| | |
|---|---|
| texts | up to {longest} word pieces; {tests} held-out film lines, {others} of each other domain |
| training | batches of 16 of like length, Adam, warm-up, then down to 0; steps {steps} |
| rates | chosen on {devs} other film lines, at 256 ratings with the first seed |
| seeds | {seeds}; of "{once}" one |
| run | profile {profile}, {minutes} minutes on {device}, {threads} thread(s) |
| torch | {torch} |
"""


class Run(NamedTuple):
    """One training: what learned, from how many ratings, and what came of it.

    `dev` is the correlation with people's ratings on the lines by which rates are chosen, `r` that
    on held-out ones, `error` their mean squared error; then r in three other domains, and `nats`,
    what a paraphrase's own line costs among all of them.
    """

    arm: str
    labels: int
    rate: float
    seed: int
    dev: float
    r: float
    error: float
    products: float
    tweets: float
    editorials: float
    nats: float
    seconds: float


class Line(NamedTuple):
    """A rated text as token ids, its rating from −4 to 4, and its words."""

    ids: list[int]
    target: float
    text: str


Cell = tuple[str, int, float, int]  # arm, ratings, rate, seed


def budget_for(profile: str) -> SimpleNamespace:
    """Sizes of the grid in one profile."""
    return for_profile(
        profile,
        cpu=dict(devs=200, tests=400, others=150),
        gpu=dict(devs=500, tests=900, others=400),
    )


# ── lines ─────────────────────────────────────────────────────────────────────────────────────────


def lines(rows: Sequence[Rated], tokenizer: Callable, longest: int = LONGEST) -> list[Line]:
    """The texts of at most so many word pieces, the two signs around them included."""
    ids = tokenizer([row.text for row in rows])["input_ids"]
    made = [Line(x, row.rating, row.text) for x, row in zip(ids, rows, strict=True)]
    return [line for line in made if len(line.ids) <= longest]


def drawn(known: Sequence[Line], n: int, seed: int) -> list[Line]:
    """n of the lines, the same for a seed on every machine. ValueError when there are fewer."""
    if n > len(known):
        raise ValueError(f"{n} texts are wanted and there are {len(known)}; ask for fewer")
    return random.Random(seed).sample(list(known), n)


def ratings_of(texts: Sequence[Line]) -> Tensor:
    """What people said (N,)."""
    return torch.tensor([line.target for line in texts])


def dealt(texts: Sequence[Line], seed: int) -> list[Line]:
    """The same lines with their ratings dealt out anew: a control."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    return [x._replace(target=texts[i].target) for x, i in zip(texts, order, strict=True)]


def paraphrases(tokenizer: Callable) -> tuple[list[Line], list[Line]]:
    """Questions in modern English, each about a line of Shakespeare, and these lines."""
    rows = [q for part in ("dev", "test") for q in load_shakespeare_questions(part)]
    pairs = list({q.line: q for q in rows if q.form == "paraphrase"}.values())
    sides = ([q.question for q in pairs], [q.quote for q in pairs])
    asked, lines = (
        [Line(ids, 0.0, x) for ids, x in zip(tokenizer(side)["input_ids"], side, strict=True)]
        for side in sides
    )
    return asked, lines


# ── one training ──────────────────────────────────────────────────────────────────────────────────


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def build(base: Encoder, arm: str, seed: int) -> Classifier:
    """A rater on a copy of the encoder, of which the arm's part learns; the head starts at 0."""
    torch.manual_seed(seed)
    encoder = Encoder(base.config) if arm == "random" else copy.deepcopy(base)
    net = Classifier(encoder, base.config.d_model, n_labels=1).to(device_of(base))
    if arm == "last 2":
        train_last(net, encoder.blocks, 2)
        net.head.requires_grad_(True)
    else:
        net.requires_grad_(True)  # the embeddings too
    return net.eval()


@torch.no_grad()
def start_head(net: Classifier, fit: Ridge) -> None:
    """Let the head begin as the ridge regression on the frozen body's vectors."""
    net.head.weight.copy_(fit.weights.unsqueeze(0) / UNIT)
    net.head.bias.fill_((fit.offset - (fit.center @ fit.weights).item()) / UNIT)


def groups(net: Classifier, arm: str, rate: float) -> list[dict]:
    """What learns, with its rates, for an optimizer."""
    if arm == "head first":
        return [{"params": list(net.parameters()), "lr": rate}]
    head = {"params": list(net.head.parameters()), "lr": HEAD_RATE}
    body = [p for p in net.encoder.parameters() if p.requires_grad]
    return [{"params": body, "lr": rate}, head]


def batches(texts: Sequence[Line], seed: int, size: int = 16) -> Iterator[list[Line]]:
    """For ever: batches of lines of like length, which saves padding, in another order an epoch."""
    lengths = [len(line.ids) for line in texts]
    grouped = [[texts[i] for i in group] for group in training.batches_by_length(lengths, size)]
    return (group for (group,) in training.shuffled_batches(grouped, 1, seed))


def loss_of(net: Classifier, batch: Sequence[Line]) -> Tensor:
    """The mean squared difference to people's ratings, in units of `UNIT`."""
    ids, mask, ratings = batch_of(batch, device_of(net))
    return F.mse_loss(net(ids, mask).squeeze(1), ratings / UNIT)


def tune(base: Encoder, arm: str, texts: Sequence[Line], seed: int, rate: float) -> Classifier:
    """Fine-tune a copy of `base` on rated texts."""
    net, steps = build(base, arm, seed), STEPS[len(texts)]
    if arm == "head first":
        start_head(net, ridge(vectors(base, texts), ratings_of(texts)))
    optimizer = torch.optim.Adam(groups(net, arm, rate), fused=True)
    training.train(
        functools.partial(loss_of, net),
        batches(texts, seed),
        optimizer,
        steps=steps,
        max_norm=1.0,
        scheduler=training.warm_up_and_decay(optimizer, steps),
        label=f"{arm}, {len(texts):,} ratings, rate {rate:g}, seed {seed}",
    )
    return net


# ── scores ────────────────────────────────────────────────────────────────────────────────────────


def told(net: Classifier, texts: Sequence[Line]) -> Tensor:
    """The ratings (N,), from −4 to 4, that a rater gives to texts."""
    return UNIT * in_batches(net, texts, device_of(net)).squeeze(1)


def vectors(encoder: Encoder, texts: Sequence[Line]) -> Tensor:
    """Mean-pooled vectors (N, D) of texts."""

    def look(ids: Tensor, mask: Tensor) -> Tensor:
        return mean_pool(encoder(ids, mask), mask)

    return in_batches(look, texts, device_of(encoder))


def counted(texts: Sequence[Line], vocabulary: Sequence[str]) -> Tensor:
    """How often each text has each word (N, V)."""
    return count_words([word_order.words(line.text) for line in texts], vocabulary)


def vocabulary_of(texts: Sequence[Line]) -> list[str]:
    """Words that stand in at least two of the texts."""
    return common_words([word_order.words(line.text) for line in texts])


def recalled(encoder: Encoder, pairs: tuple[list[Line], list[Line]]) -> Tensor:
    """Nats (N,) that each paraphrase's own line costs among all lines: `recall_nats`."""
    return recall_nats(*(vectors(encoder, side) for side in pairs))


class Held(NamedTuple):
    """What every training is scored on; `dev` is where rates are chosen."""

    dev: list[Line]
    films: list[Line]
    products: list[Line]
    tweets: list[Line]
    editorials: list[Line]


def held_out(tokenizer: Callable, budget: SimpleNamespace) -> tuple[list[Line], Held]:
    """Film lines to learn from, and what is scored, the same for all seeds."""
    films = sentiment.split(sentiment.load("movies"))
    others = [sentiment.split(sentiment.load(domain)).test for domain in DOMAINS]
    parts = [(films.dev, budget.devs), (films.test, budget.tests)]
    parts += [(part, budget.others) for part in others]
    held = Held(*(drawn(lines(part, tokenizer), n, 0) for part, n in parts))
    return lines(films.train, tokenizer), held


def scored(held: Held, said: Callable[[list[Line]], Tensor]) -> dict[str, float]:
    """r on every part, and the error on held-out films."""
    found = {name: (said(part), ratings_of(part)) for name, part in held._asdict().items()}
    r = {name: correlation(*pair) for name, pair in found.items()}
    told, people = found["films"]
    return {"r": r.pop("films"), "error": (told - people).square().mean().item(), **r}


class Bench:
    """The base, what is learned from and what is scored; `row` makes one row of the grid."""

    def __init__(self, base: Encoder, tokenizer: Callable, budget: SimpleNamespace) -> None:
        self.base, self.pairs = base, paraphrases(tokenizer)
        self.known, self.held = held_out(tokenizer, budget)
        self.base_nats = recalled(base, self.pairs).mean().item()
        self._seen: dict[tuple, Tensor] = {}  # vectors, by whose they are and of what

    def row(self, cell: Cell) -> Run:
        """One fit or training with its scores."""
        arm, n, rate, seed = cell
        begun, texts = time.perf_counter(), drawn(self.known, n, seed)
        if arm in FITTED:
            found, nats = scored(self.held, self._fitted(arm, texts, seed)), self.base_nats
        else:
            learned = dealt(texts, seed) if arm == "shuffled" else texts
            net = tune(self.base, "all" if arm == "shuffled" else arm, learned, seed, rate)
            found = scored(self.held, functools.partial(told, net))
            nats = recalled(net.encoder, self.pairs).mean().item()
        return Run(*cell, **found, nats=nats, seconds=time.perf_counter() - begun)

    def _fitted(self, arm: str, texts: list[Line], seed: int) -> Callable[[list[Line]], Tensor]:
        """A ridge regression on counted words, or on vectors of a body that stays as it is."""
        if arm == "words":
            vocabulary = vocabulary_of(texts)
            look = functools.partial(counted, vocabulary=vocabulary)
        else:
            random_body = arm == "random body"
            body = build(self.base, "random", seed).encoder if random_body else self.base
            look = functools.partial(self._look, body, str(seed) if random_body else "")
        fit = ridge(look(texts), ratings_of(texts))
        return lambda part: fit.predict(look(part))

    def _look(self, body: Encoder, name: str, texts: list[Line]) -> Tensor:
        """A body's vectors, kept for the next fit."""
        key = (name, *(line.text for line in texts))
        if key not in self._seen:
            self._seen[key] = vectors(body, texts)
        return self._seen[key]


# ── the grid ──────────────────────────────────────────────────────────────────────────────────────


def first_plan(seed: int) -> list[Cell]:
    """Every rate of the sweep on 256 ratings."""
    return [(arm, SWEPT_AT, rate, seed) for arm, rates in SWEEP.items() for rate in rates]


def best_rates(rows: Sequence[Run]) -> dict[str, float]:
    """Each arm's rate: that of the best mean r on development lines; 0 for what is fitted.

    The votes are the seeds that tried every rate on 256 ratings. "shuffled" takes that of "all".
    """
    best = dict.fromkeys(FITTED, 0.0)
    for arm, rates in SWEEP.items():
        found = {
            (row.rate, row.seed): row.dev
            for row in rows
            if (row.arm, row.labels) == (arm, SWEPT_AT)
        }
        voting = [s for s in {s for _, s in found} if all((rate, s) in found for rate in rates)]
        best[arm] = max(rates, key=lambda rate: mean(found[rate, s] for s in voting))
    return best | {"shuffled": best["all"]}


def second_plan(seed: int, rates: dict[str, float]) -> list[Cell]:
    """Every arm at its rate on all numbers of ratings, but for what the sweep had."""
    cells = [
        (arm, n, rates[arm], each)
        for n, seeds in SEEDS.items()
        for each in range(seed, seed + seeds)
        for arm in rates
        if n in AT.get(arm, SEEDS) and (each == seed or arm not in ONCE)
    ]
    had = set(first_plan(seed))
    return [cell for cell in cells if cell not in had]


def plan(rows: Sequence[Run], seed: int) -> Iterator[Cell]:
    """What is trained, in order; `rows` grows in between and decides the rates."""
    yield from first_plan(seed)
    yield from second_plan(seed, best_rates(rows))


def train(profile: str = "cpu", seed: int = 0, out: Path | None = None) -> Path:
    """Make what is not yet stored of the grid, write rows and card; return their folder."""
    budget, device = budget_for(profile), device_for(profile)
    torch.set_num_threads(threads())
    facts = stored.facts_now(profile, seed, device, **vars(budget))
    grid = stored.Grid(NAME, Run, facts, out)
    base, tokenizer = sentence_vectors.load(device=device)
    bench = Bench(base, tokenizer, budget)
    for cell in plan(grid.rows, seed):
        if not any(row[:4] == cell for row in grid.rows):
            row = bench.row(cell)
            print(f"    {cell}: r {row.r:.3f}, {row.nats:.2f} nats", flush=True)
            grid.add(row)
    return grid.finish(
        CARD,
        longest=LONGEST,
        steps=", ".join(f"{steps} on {n:,}" for n, steps in STEPS.items()),
        seeds=", ".join(f"{seeds} on {n:,}" for n, seeds in SEEDS.items()),
        once='", "'.join(ONCE),
    )


# ── what is stored ────────────────────────────────────────────────────────────────────────────────


def runs(folder: Path | None = None) -> list[Run]:
    """The rows of the stored grid. AssetError when it is not there."""
    return stored.read_rows(folder or stored.folder_of(NAME), Run)


def facts_of(folder: Path | None = None) -> dict[str, Any]:
    """How the stored grid was made."""
    return stored.read_facts(folder or stored.folder_of(NAME))


def cells(rows: Sequence[Run]) -> dict[str, dict[int, list[Run]]]:
    """Arm → number of ratings → its rows at the arm's best rate, in the order of seeds."""
    rates = best_rates(rows)
    found: dict[str, dict[int, list[Run]]] = {}
    for row in sorted(rows, key=lambda row: row.seed):
        if row.rate == rates[row.arm]:
            found.setdefault(row.arm, {}).setdefault(row.labels, []).append(row)
    return found
