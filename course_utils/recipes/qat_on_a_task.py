"""A classifier of tweets, rounded before, while and after it learns more. Notebook 14.

`course train qat-on-a-task` trains all-MiniLM-L6-v2 a little on tweets with human ratings, and goes
on from there: not at all, with its linear layers rounded in the forward pass, or without rounding
for as many steps on the same tweets. What was trained without rounding is rounded in the end, with
the best steps and by GPTQ. It writes data/checkpoints/qat-on-a-task: `runs.json`, a row for each
model, and a card. A run that was stopped goes on with the seed that was not done.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils import training
from course_utils.architectures.encoder import Encoder
from course_utils.compression.step_size import Swept
from course_utils.finetuning.transfer import Classifier, graded
from course_utils.profiles import device_for, for_profile, threads
from course_utils.recipes import qat_minilm, stored
from course_utils.tasks import sentence_vectors, sentiment
from course_utils.tasks.sentence_vectors import Text
from course_utils.tasks.sentiment import Rated

NAME = "qat-on-a-task"
BITS = (4, 2)
FLOOR = "shares of the classes"
EARLY, WHILE, LONGER = "as it was", "trained on while rounded", "trained on, then rounded"
WHOLE, BEST, GPTQ, OWN = "not rounded", "best step", "GPTQ", "own weights"
CLEAR = 1.0  # tweets whose mean rating, −4 to 4, is further from 0 than this are taken
STARTS = {4: (OWN,), 2: (OWN, GPTQ)}  # where training while rounded begins
HEAD_RATE = 3e-3
PLAIN_RATE = 1e-4
RATES = {  # while rounded: of weights and of steps; norms and biases learn at the plain rate
    (OWN, 4): (1e-4, 1e-4),
    (OWN, 2): (5e-4, 1e-3),
    (GPTQ, 2): (3e-4, 3e-4),
}
PLAIN = (PLAIN_RATE,) * 3

CARD = """\
# qat-on-a-task

{n} rows: all-MiniLM-L6-v2 (Apache-2.0) with a head tells whether people found a tweet positive or
negative (Hutto & Gilbert 2014, MIT). It learns for {early} steps; then it is rounded as it was, or
trained on for {steps} steps while its linear layers are rounded, or trained on for as many steps
without rounding and rounded then: symmetric grids, a step for each group of 64 weights. A row has
the share of right answers and the nats that the right one costs, on tweets of nobody's training.
Row "{floor}" says of every tweet how often the classes were met.
`course train qat-on-a-task` makes all of it again, and this card. No weights are stored.

| | |
|---|---|
| training | batches of {batch} tweets of like length, none twice; Adam; embeddings stay |
| schedule | up in a tenth of the steps, then down to 0 in a straight line, anew when training on |
| rates | head {head:g}, the rest {plain:g}; while rounded, weights and steps: {rates} |
| they were found | the plain one as the better of two on development tweets; the others, but for \
the steps at 4 bits, for qat-minilm |
| GPTQ reads | the first {read} of the tweets that are trained on, with the model that it rounds |
| run | profile {profile}, {minutes} minutes of training on {device}, {threads} thread(s) |
| torch | {torch} |
"""


class Run(NamedTuple):
    """One model: what was trained, how it was rounded (or where training began), and its grades.

    `right` is the share of right answers on exam tweets, `nats` what the right one costs.
    """

    arm: str
    how: str
    bits: int
    seed: int
    right: float
    nats: float
    seconds: float


Lesson = tuple[Text, Tensor]  # and labels (B,)
Rates = tuple[float, float, float]  # of rounded weights, of steps, of what else learns in the body


def budget_for(profile: str) -> SimpleNamespace:
    """Sizes and length of the trainings in one profile."""
    return for_profile(
        profile,
        cpu=dict(early=16, steps=32, batch=16, read=512, seeds=3),
        gpu=dict(early=16, steps=90, batch=16, read=1440, seeds=10),
    )


# ── tweets ────────────────────────────────────────────────────────────────────────────────────────


def clear_tweets(n: int, seed: int, exam: str = "test") -> tuple[list[Rated], list[Rated]]:
    """n tweets to learn from, drawn by seed, and all of the exam ("dev" where rates are chosen).

    Only tweets that people found clearly positive or negative take part. ValueError where there are
    fewer than n to learn from.
    """
    parts = sentiment.split(sentiment.load("tweets"))
    known, held = (
        [tweet for tweet in part if abs(tweet.rating) > CLEAR]
        for part in (parts.train, getattr(parts, exam))
    )
    if n > len(known):
        raise ValueError(f"{n} tweets are asked for, and {len(known)} have a clear rating")
    return random.Random(seed).sample(known, n), held


# ── one model ─────────────────────────────────────────────────────────────────────────────────────


def lessons_of(
    tokenizer: Callable, tweets: Sequence[Rated], size: int, seed: int, device: str = "cpu"
) -> list[Lesson]:
    """Batches of tweets of like length with their labels (1 is positive), in a random order."""
    rows = sorted(tweets, key=lambda tweet: len(tweet.text))
    texts = sentence_vectors.batches(tokenizer, [tweet.text for tweet in rows], size, device)
    labels = torch.tensor([int(tweet.rating > 0) for tweet in rows], device=device)
    made = list(zip(texts, labels.split(size), strict=True))
    order = torch.randperm(len(made), generator=torch.Generator().manual_seed(seed))
    return [made[i] for i in order.tolist()]


def new_classifier(base: Encoder) -> Classifier:
    """A copy of the encoder whose blocks learn, under a head that starts at zero."""
    net = Classifier(copy.deepcopy(base), base.config.d_model, n_labels=2)
    sentence_vectors.learn_blocks(net.encoder)
    return net.to(next(base.parameters()).device).eval()


def with_encoder(net: Classifier, encoder: Encoder) -> Classifier:
    """A copy of the classifier's head on another encoder."""
    new = copy.copy(net)
    new._modules = {**net._modules, "encoder": encoder, "head": copy.deepcopy(net.head)}
    return new


def loss_of(net: Classifier, lesson: Lesson) -> Tensor:
    """The mean nats of the right labels."""
    (ids, mask), labels = lesson
    return F.cross_entropy(net(ids, mask), labels)


def learn(net: Classifier, lessons: Sequence[Lesson], rates: Rates, label: str) -> training.History:
    """One step a lesson; weights, steps, the rest and the head have their own rates. In place."""
    groups = qat_minilm.groups_of(net.encoder, rates)
    groups += [{"params": list(net.head.parameters()), "lr": HEAD_RATE}]
    optimizer = torch.optim.Adam(groups)
    schedule = training.warm_up_and_decay(optimizer, len(lessons))
    options = dict(steps=len(lessons), max_norm=1.0, scheduler=schedule, label=label)
    return training.train(partial(loss_of, net), lessons, optimizer, **options)


@torch.no_grad()
def graded_on(net: Classifier, exam: Sequence[Lesson]) -> tuple[float, float]:
    """The share of right answers and the nats that the right one costs."""
    logits = torch.cat([net(*texts) for texts, _ in exam])
    return graded(logits, torch.cat([labels for _, labels in exam]))


def floor_of(lessons: Sequence[Lesson], exam: Sequence[Lesson]) -> tuple[float, float]:
    """The grades of saying how often each class was met, whatever the tweet."""
    met, truth = (torch.cat([labels for _, labels in part]) for part in (lessons, exam))
    shares = torch.bincount(met, minlength=2) / len(met)
    return graded(shares.log().expand(len(truth), 2), truth)


# ── the grid ──────────────────────────────────────────────────────────────────────────────────────


class Ward:
    """What one seed's models are made from and graded on."""

    def __init__(
        self,
        base: Encoder,
        tokenizer: Callable,
        budget: SimpleNamespace,
        seed: int,
        part: str = "test",
    ) -> None:
        size, device = budget.batch, next(base.parameters()).device
        n = budget.early * size
        known, held = clear_tweets(n + budget.steps * size, seed, part)
        texts = known[:n], known[n:], held
        parts = (lessons_of(tokenizer, each, size, seed, device) for each in texts)
        self.first, self.further, self.exam = parts
        self.read = [texts for texts, _ in self.further[: budget.read // size]]
        self.base, self.seed = base, seed

    def run(self, arm: str, how: str, bits: int, net: Classifier, seconds: float) -> Run:
        """The row of a model."""
        return Run(arm, how, bits, self.seed, *graded_on(net, self.exam), seconds)

    def learned(self, net: Classifier, lessons: Sequence[Lesson], rates: Rates, what: str) -> float:
        """Train a model in place; seconds."""
        return learn(net, lessons, rates, f"{what}, seed {self.seed}").seconds

    def rounded(
        self, net: Classifier, arm: str, swept: Mapping[int, Mapping[str, Swept]]
    ) -> Iterator[Run]:
        """A row for each width and way to round what was trained without."""
        for bits, found in swept.items():
            for how in (BEST, GPTQ):
                encoder = qat_minilm.rounded(net.encoder, how, bits, found)
                yield self.run(arm, how, bits, with_encoder(net, encoder), 0.0)

    def swept(self, net: Classifier) -> dict[int, dict[str, Swept]]:
        """What GPTQ makes of a model at each width."""
        moments = sentence_vectors.moments(net.encoder, self.read)
        return {bits: qat_minilm.sweep(net.encoder, bits, moments) for bits in BITS}

    def rows(self) -> Iterator[Run]:
        """All rows of this seed: `cells`."""
        known = [*self.first, *self.further]
        yield Run(FLOOR, WHOLE, 0, self.seed, *floor_of(known, self.exam), 0.0)
        early = new_classifier(self.base)
        seconds = self.learned(early, self.first, PLAIN, "at first")
        yield self.run(EARLY, WHOLE, 0, early, seconds)
        swept = self.swept(early)
        yield from self.rounded(early, EARLY, swept)
        for bits in BITS:
            for how in STARTS[bits]:
                start = swept[bits] if how == GPTQ else None
                net = with_encoder(early, qat_minilm.prepared(early.encoder, bits, swept=start))
                label = f"{bits} bits, {WHILE} from {how}"
                seconds = self.learned(net, self.further, (*RATES[how, bits], PLAIN_RATE), label)
                yield self.run(WHILE, how, bits, net, seconds)
        longer = early  # of which nothing else is made any more
        seconds = self.learned(longer, self.further, PLAIN, "without rounding")
        yield self.run(LONGER, WHOLE, 0, longer, seconds)
        yield from self.rounded(longer, LONGER, self.swept(longer))


def cells() -> set[tuple[str, str, int]]:
    """What a seed's rows are: arm, how it was rounded (or where training began), bits."""
    whole = {(arm, WHOLE, 0) for arm in (FLOOR, EARLY, LONGER)}
    after = {(arm, how, b) for arm in (EARLY, LONGER) for how in (BEST, GPTQ) for b in BITS}
    return whole | after | {(WHILE, how, bits) for bits in BITS for how in STARTS[bits]}


def train(profile: str = "cpu", seed: int = 0, out: Path | None = None) -> Path:
    """Compute the seeds that are not yet stored, write rows and card; return their folder."""
    budget, device = budget_for(profile), device_for(profile)
    torch.set_num_threads(threads())
    base, tokenizer = sentence_vectors.load(device=device)
    facts = stored.facts_now(profile, seed, device, **vars(budget))
    grid = stored.Grid(NAME, Run, facts, out)
    for each in range(seed, seed + budget.seeds):
        if {tuple(row[:3]) for row in grid.rows if row.seed == each} != cells():
            grid.rows = [row for row in grid.rows if row.seed != each]
            for row in Ward(base, tokenizer, budget, each).rows():
                grid.add(row)
    rates = "; ".join(f"{b} bits from {h}: {w:g}, {s:g}" for (h, b), (w, s) in RATES.items())
    return grid.finish(CARD, floor=FLOOR, rates=rates, head=HEAD_RATE, plain=PLAIN_RATE)


def runs(folder: Path | None = None) -> list[Run]:
    """The rows of the stored grid. AssetError when it is not there."""
    return stored.read_rows(folder or stored.folder_of(NAME), Run)
