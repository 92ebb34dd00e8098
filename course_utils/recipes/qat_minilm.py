"""Rounded after training, or trained while rounded: a grid over bits and methods. Notebook 14.

`course train qat-minilm` takes the packaged encoder's linear layers to 8, 4, 3 and 2 bits, with
several seeds: rounded to nearest, rounded with the best steps, by GPTQ with those steps, and
trained with rounding in the forward pass, from the encoder's own weights or from where GPTQ ended;
or GPTQ's weights stay, and norms and biases learn; or the other way round.
It writes data/checkpoints/qat-minilm: `runs.json`, a row for each model, and a card. A run that was
stopped goes on where it was. The notebook repeats trainings of the shortest length.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from course_utils import training
from course_utils.architectures.encoder import Encoder
from course_utils.compression import qat, step_size
from course_utils.compression.calibration import Moments
from course_utils.compression.rtn import quantize_linears, round_to_nearest
from course_utils.compression.step_size import Swept
from course_utils.profiles import device_for, for_profile, threads
from course_utils.recipes import stored
from course_utils.tasks import editorials, sentence_vectors
from course_utils.tasks.sentence_vectors import Lesson

NAME = "qat-minilm"
BITS = (8, 4, 3, 2)
ROUNDED = ("nearest", "best step", "GPTQ")
ANOTHER_GRID = "GPTQ, a level more"  # a minimum for each group: 2^bits levels, and more bytes
LEARNED, KEPT, LARGEST = (f"trained, {how}" for how in ("steps learned", "first steps kept",
                                                         "steps of the largest"))  # fmt: skip
GPTQ_ON = "trained from GPTQ on"
NORMS = "GPTQ, then norms and biases"  # its weights stay; only what was never rounded learns
WEIGHTS = "from GPTQ on, norms and biases held"  # what NORMS lets learn stays, and nothing else
OWN_RATES = "from GPTQ on, norms and biases at their rate"  # all learns, at two rates
TRAINED = (LEARNED, KEPT, LARGEST, GPTQ_ON, NORMS, WEIGHTS, OWN_RATES)
FROM_GPTQ = (GPTQ_ON, NORMS, WEIGHTS, OWN_RATES)
SHORT, MIDDLE, LONG = range(3)  # places among the lengths
# Method → bits → which of the lengths are trained.
PLAN = {
    LEARNED: {3: (SHORT, MIDDLE), 2: (SHORT, MIDDLE, LONG)},
    KEPT: {2: (SHORT, MIDDLE)},
    LARGEST: {2: (SHORT,)},
    GPTQ_ON: {4: (SHORT,), 3: (SHORT, MIDDLE), 2: (SHORT, MIDDLE, LONG)},
    NORMS: {2: (SHORT, MIDDLE, LONG)},
    WEIGHTS: {2: (SHORT, LONG)},
    OWN_RATES: {2: (SHORT, LONG)},
}

CARD = """\
# qat-minilm

{n} rows: the linear layers of all-MiniLM-L6-v2 (Apache-2.0) on symmetric grids of few bits, a step
for each group of {group_size} weights, by ten methods, and one on a grid with a level more. GPTQ
and training look at the same sentences of editorials (Hutto & Gilbert 2014, MIT), GPTQ at the
first {read}; the score is the mean cosine to the whole encoder's vectors on sentences of other
editorials. A row's seconds are what its model took from the start, GPTQ's reading included.
`course train qat-minilm` makes all of it again, and this card. No weights are stored.

| | |
|---|---|
| training | {lengths} steps of {batch} sentences, each length a training of its own; Adam |
| rates of weights, of steps, of the rest | {rates} |
| they were found | on editorials that no exam of the seeds 0 to 9 takes |
| schedule | up in a tenth of the steps, then down to 0 in a straight line |
| scored on | {each} sentences of each of {articles} editorials |
| run | profile {profile}, {minutes} minutes on {device}, {threads} thread(s) |
| torch | {torch} |
"""


class Run(NamedTuple):
    """One model: method, bits, steps of training, mean cosine, and the seconds it took to make."""

    method: str
    bits: int
    steps: int
    seed: int
    cosine: float
    seconds: float


# Rates of weights, of learned steps, of norms and biases; found on editorials that no exam takes.
RATES = {
    ("own weights", "2 bits"): (5e-4, 1e-3, 5e-4),
    ("own weights", "more"): (1e-4, 3e-4, 1e-4),
    ("from GPTQ", "2 bits"): (3e-4, 3e-4, 3e-4),
    ("from GPTQ", "more"): (3e-5, 1e-4, 3e-5),
    ("norms and biases", "2 bits"): (0.0, 0.0, 3e-3),
    ("weights and steps", "2 bits"): (1e-4, 1e-4, 0.0),
    ("norms and biases at their rate", "2 bits"): (1e-4, 1e-4, 1e-3),
}
STARTS = {
    GPTQ_ON: "from GPTQ",
    NORMS: "norms and biases",
    WEIGHTS: "weights and steps",
    OWN_RATES: "norms and biases at their rate",
}


def rates_of(method: str, bits: int) -> tuple[float, float, float]:
    """Rates of weights, of steps, and of the rest: small where little is to be mended.

    >>> rates_of(LEARNED, 2), rates_of(GPTQ_ON, 3)
    ((0.0005, 0.001, 0.0005), (3e-05, 0.0001, 3e-05))
    """
    start = STARTS.get(method, "own weights")
    weights, steps, rest = RATES[start, "2 bits" if bits == 2 else "more"]
    return weights, 0.0 if method in (KEPT, LARGEST) else steps, rest


def budget_for(profile: str) -> SimpleNamespace:
    """Sizes and length of the grid in one profile."""
    common = dict(batch=12, articles=16, each=6, group_size=64)
    return for_profile(
        profile,
        cpu=dict(lengths=(20, 60, 120), seeds=2, read=600, **common),
        gpu=dict(lengths=(20, 200, 2000), seeds=6, read=2400, **common),
    )


# ── pieces that the notebook uses too ─────────────────────────────────────────────────────────────


def sweep(
    dense: Encoder,
    bits: int,
    moments: Mapping[str, Moments],
    group_size: int = 64,
    *,
    from_minimum: bool = False,
) -> dict[str, Swept]:
    """GPTQ with the best steps, in order of activations, of each linear layer: name → what came."""
    options = dict(act_order=True, from_minimum=from_minimum)
    return {
        name: step_size.gptq_with_best_step(
            dense.get_submodule(name).weight, seen.hessian(), bits, group_size, **options
        )
        for name, seen in moments.items()
    }


@torch.no_grad()
def rounded(
    dense: Encoder,
    method: str,
    bits: int,
    swept: Mapping[str, Swept] | None = None,
    group_size: int = 64,
) -> Encoder:
    """A copy whose linear layers were rounded after training; GPTQ's come from a `sweep`.

    ValueError for another method, and for GPTQ without one.
    """
    roundings = {"nearest": round_to_nearest, "best step": step_size.round_with_best_step}
    model = copy.deepcopy(dense)
    if rounding := roundings.get(method):
        quantize_linears(model, partial(rounding, bits=bits, group_size=group_size))
        return model
    if method not in (*ROUNDED, ANOTHER_GRID):
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(ROUNDED)}")
    if not swept:
        raise ValueError(f"{method} rounds by what it has read; give what sweep() found")
    for name, done in swept.items():
        model.get_submodule(name).weight.copy_(done.weight)
    return model


@torch.no_grad()
def prepared(
    dense: Encoder,
    bits: int,
    learned: bool = True,
    swept: Mapping[str, Swept] | None = None,
    group_size: int = 64,
) -> Encoder:
    """A copy that computes with rounded weights, and whose blocks and steps learn.

    With `swept` it begins where GPTQ ended: the numbers as they were just before they were rounded,
    and the steps that rounded them.
    """
    model = copy.deepcopy(dense)
    sentence_vectors.learn_blocks(model)  # before: what is put in keeps which weights learn
    qat.prepare_qat(model, bits, "group", group_size, learned=learned)
    for name, done in (swept or {}).items():
        layer = model.get_submodule(name)
        layer.weight.copy_(done.before)
        layer.scale.copy_(done.step)
    return model


def keep_weights(model: Encoder) -> Encoder:
    """Let weights and steps of the rounded layers stay: only norms and biases learn. The model."""
    for layer in model.modules():
        if isinstance(layer, qat.QATLinear):
            layer.weight.requires_grad_(False)
            layer.scale.requires_grad_(False)
    return model


def keep_others(model: Encoder) -> Encoder:
    """Let norms and biases stay: only weights and steps of the rounded layers learn. The model."""
    layers = [layer for layer in model.modules() if isinstance(layer, qat.QATLinear)]
    learns = {id(p) for layer in layers for p in (layer.weight, layer.scale)}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in learns)
    return model


def begun(
    dense: Encoder,
    method: str,
    bits: int,
    swept: Mapping[str, Swept] | None = None,
    group_size: int = 64,
) -> Encoder:
    """A copy that is about to be trained by a method of `TRAINED`; what it lets learn, learns.

    ValueError for another method, and where one begins with what GPTQ left and has no `sweep`.
    """
    if method not in TRAINED:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(TRAINED)}")
    if method in FROM_GPTQ and not swept:
        raise ValueError(f"{method!r} begins where GPTQ ended; give what sweep() found")
    start = swept if method in FROM_GPTQ else None
    model = prepared(dense, bits, method != LARGEST, start, group_size)
    hold = {NORMS: keep_weights, WEIGHTS: keep_others}.get(method)
    return hold(model) if hold else model


def groups_of(model: nn.Module, rates: tuple[float, float, float]) -> list[dict]:
    """Parameter groups for an optimizer: rounded weights, learned steps, and what else learns."""
    steps, others = qat.scales_and_others(model)
    layers = [layer for layer in model.modules() if isinstance(layer, qat.QATLinear)]
    rounded = {id(layer.weight) for layer in layers}
    weights = [p for p in others if id(p) in rounded]
    rest = [p for p in others if id(p) not in rounded]
    parts = zip((weights, steps, rest), rates, strict=True)
    return [{"params": part, "lr": rate} for part, rate in parts if part]


def train_rounded(
    model: Encoder,
    lessons: Sequence[Lesson],
    rates: tuple[float, float, float],
    label: str = "training while rounded",
) -> training.History:
    """One step a lesson; weights, learned steps and the rest have rates of their own. In place."""
    optimizer = torch.optim.Adam(groups_of(model, rates))
    schedule = training.warm_up_and_decay(optimizer, len(lessons))
    options = dict(steps=len(lessons), max_norm=1.0, scheduler=schedule, label=label)
    return training.train(partial(sentence_vectors.distance, model), lessons, optimizer, **options)


# ── the grid ──────────────────────────────────────────────────────────────────────────────────────


class Ward(NamedTuple):
    """What one seed's models are made from and examined with."""

    exam: list[sentence_vectors.Text]
    wanted: Tensor  # the whole encoder's vectors of it
    lessons: list[Lesson]
    moments: Mapping[str, Moments]
    reading: float  # seconds


def ward_of(
    dense: Encoder, tokenizer: Callable, budget: SimpleNamespace, seed: int, device: str = "cpu"
) -> Ward:
    """One seed's own exam, and what is read and learned, from other editorials."""
    sizes = dict(articles=budget.articles, each=budget.each)
    drawn = editorials.draw(editorials.load(), seed=seed, **sizes)
    exam = sentence_vectors.batches(tokenizer, [s.text for s in drawn.exam], device=device)
    others = [s.text for s in drawn.others]
    lessons = sentence_vectors.lessons_by_stops(
        dense, tokenizer, others, (0, *budget.lengths), budget.batch, seed=seed, device=device
    )
    started = time.perf_counter()
    read = [batch for batch, _ in lessons[: budget.read // budget.batch]]
    moments, reading = sentence_vectors.moments(dense, read), time.perf_counter() - started
    wanted = sentence_vectors.vectors_of(dense, exam)
    return Ward(exam, wanted, lessons, moments, reading)


def at_one_width(
    dense: Encoder,
    ward: Ward,
    bits: int,
    seed: int,
    budget: SimpleNamespace,
    done: Sequence[Run] = (),
) -> Iterator[Run]:
    """All rows of one seed at one width, but those that are done."""
    known, size = {row[:4] for row in done}, budget.group_size
    started = time.perf_counter()
    swept = sweep(dense, bits, ward.moments, size)
    spent = {"GPTQ": ward.reading + time.perf_counter() - started}
    for method in (*ROUNDED, ANOTHER_GRID):
        if (method, bits, 0, seed) not in known:
            started, found = time.perf_counter(), swept
            if method == ANOTHER_GRID:
                found = sweep(dense, bits, ward.moments, size, from_minimum=True)
                spent[method] = ward.reading
            model = rounded(dense, method, bits, found, size)
            seconds = spent.get(method, 0.0) + time.perf_counter() - started
            yield Run(
                method,
                bits,
                0,
                seed,
                sentence_vectors.mean_cosine(model, ward.exam, ward.wanted),
                seconds,
            )
    for method, plan in PLAN.items():
        for length in lengths_of(plan, bits, budget):
            if (method, bits, length, seed) in known:
                continue
            model = begun(dense, method, bits, swept, size)
            seconds = spent["GPTQ"] if method in FROM_GPTQ else 0.0
            if length:
                label = f"{bits} bits, {method}, {length} steps, seed {seed}"
                rates = rates_of(method, bits)
                seconds += train_rounded(model, ward.lessons[:length], rates, label).seconds
            yield Run(
                method,
                bits,
                length,
                seed,
                sentence_vectors.mean_cosine(model, ward.exam, ward.wanted),
                seconds,
            )


def train(profile: str = "cpu", seed: int = 0, out: Path | None = None) -> Path:
    """Compute what is not yet stored of the grid, write rows and card; return their folder."""
    budget, device = budget_for(profile), device_for(profile)
    torch.set_num_threads(threads())
    dense, tokenizer = sentence_vectors.load(device=device)
    facts = stored.facts_now(profile, seed, device, **vars(budget))
    grid = stored.Grid(NAME, Run, facts, out)
    for each in range(seed, seed + budget.seeds):
        done = {(row.bits, row.method, row.steps) for row in grid.rows if row.seed == each}
        if left := [bits for bits in BITS if not cells_of(bits, budget) <= done]:
            ward = ward_of(dense, tokenizer, budget, each, device)
            for bits in left:
                for row in at_one_width(dense, ward, bits, each, budget, tuple(grid.rows)):
                    grid.add(row)
    return grid.finish(CARD, seconds=_seconds(grid.rows), rates=_rates())


def _seconds(rows: Sequence[Run]) -> float:
    """In all; what others had from GPTQ is counted there."""
    known = {(row.bits, row.seed): row.seconds for row in rows if row.method == "GPTQ"}
    later = (row for row in rows if row.method in FROM_GPTQ)
    shared = sum(known[row.bits, row.seed] for row in later)
    return sum(row.seconds for row in rows) - shared


def cells_of(bits: int, budget: SimpleNamespace) -> set[tuple[int, str, int]]:
    """What a seed's rows at one width are: bits, method, steps."""
    cells = {(bits, method, 0) for method in (*ROUNDED, ANOTHER_GRID)}
    for method, plan in PLAN.items():
        cells |= {(bits, method, n) for n in lengths_of(plan, bits, budget)}
    return cells


def lengths_of(plan: Mapping[int, Sequence[int]], bits: int, budget: SimpleNamespace) -> list[int]:
    """The steps that a method of the plan is trained for at one width, after none at all."""
    return [0, *(budget.lengths[i] for i in plan[bits])] if bits in plan else []


def _rates() -> str:
    return "; ".join(
        f"{start}, {at}: {', '.join(f'{rate:g}' for rate in rates)}"
        for (start, at), rates in RATES.items()
    )


def runs(folder: Path | None = None) -> list[Run]:
    """The rows of the stored grid. AssetError when it is not there."""
    return stored.read_rows(folder or stored.folder_of(NAME), Run)
