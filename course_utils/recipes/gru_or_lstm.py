"""GRU or LSTM, on little and on much data: a grid of trainings from spelling to sound. Notebook 01.

`course train gru-or-lstm` trains both nets with six seeds on 1,000 and on 100,000 words, and writes
data/checkpoints/gru-or-lstm: `runs.json`, a row a training, the weights of the first GRU that saw
the most words, and a card. Both nets have about 75 thousand weights, the same words in the same
order, and as many steps. `runs` and `load` give what is stored. Some of the grid is a shorter
training, which the notebook repeats.
"""

from __future__ import annotations

import json
import platform
import time
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from course_utils import models, training
from course_utils.architectures.layers import copy_weights
from course_utils.architectures.objectives import label_loss
from course_utils.architectures.seq2seq import RecurrentSeq2Seq
from course_utils.assets import catalogue
from course_utils.profiles import device_for, for_profile, threads
from course_utils.tasks import pronunciation
from course_utils.tasks.pronunciation import SYMBOLS, Batch, Entry

NAME = "gru-or-lstm"
WEIGHTS = "model.safetensors"
RUNS = "runs.json"
WIDTHS = {"gru": 74, "lstm": 64}  # 75,069 and 73,573 weights

CARD = """\
# gru-or-lstm

A grid of {n} trainings of two recurrent encoder–decoders with attention (`RecurrentSeq2Seq` in
`course_utils.architectures`), from the spelling of an English word to its phonemes, on the CMU
Pronouncing Dictionary (BSD-2-Clause). `runs.json` has a row a training; `model.safetensors` holds,
in float16, the GRU of seed {seed} that learned from {words:,} words. `course train gru-or-lstm`
makes all of it again, and this card. Licence: Apache-2.0, as the course.

| | |
|---|---|
| nets | {weights} |
| training | {steps:,} steps of {batch} words, in some rows {short:,}; Adam, one cycle to {lr} |
| scored on | {heldout:,} held-out words, stress dropped, against the nearest pronunciation |
| run | profile {profile}, {minutes} minutes on {device}, {threads} thread(s) |
| torch | {torch} |
"""


class Run(NamedTuple):
    """One training: what it was given, and the shares of phonemes and of words it got wrong."""

    kind: str
    words: int
    steps: int
    seed: int
    symbol: float
    word: float
    seconds: float


def budget_for(profile: str) -> SimpleNamespace:
    """Sizes and length of the grid in one profile."""
    common = dict(batch=128, lr=6e-3, short=250, heldout=1000, words=(1_000, 100_000))
    return for_profile(
        profile,
        cpu=dict(steps=1500, seeds=6, **common),
        gpu=dict(steps=6000, seeds=12, **common),
    )


def build(kind: str) -> RecurrentSeq2Seq:
    """The untrained net: letters in both directions, attention, `WIDTHS` units."""
    return RecurrentSeq2Seq(
        len(SYMBOLS),
        len(SYMBOLS),
        kind=kind,
        d_model=48,
        d_hidden=WIDTHS[kind],
        bidirectional=True,
        attention=True,
    )


def loss_of(model: RecurrentSeq2Seq, batch: Batch) -> Tensor:
    """The mean loss of guessing each next phoneme, in nats."""
    device = next(model.parameters()).device
    logits = model(batch.source.to(device), batch.target_in.to(device), batch.lengths)
    return label_loss(logits, batch.labels.to(device))


def pronounce(
    kind: str,
    words: list[Entry],
    heldout: list[Entry],
    *,
    steps: int,
    seed: int,
    batch: int = 128,
    lr: float = 6e-3,
    device: torch.device | str = "cpu",
) -> tuple[Run, RecurrentSeq2Seq]:
    """Train one net on `words` and score it on `heldout` -> its row and the net."""
    torch.manual_seed(seed)
    model, seeds = build(kind).to(device), count(1000 * seed)
    source = training.cycle(lambda: pronunciation.batches(words, batch, seed=next(seeds)))
    optimizer = torch.optim.Adam(model.parameters())
    history = training.train(
        partial(loss_of, model),
        source,
        optimizer,
        steps=steps,
        max_norm=1.0,
        scheduler=torch.optim.lr_scheduler.OneCycleLR(
            optimizer, lr, total_steps=steps, pct_start=0.1
        ),
        label=f"{kind} on {len(words):,} words, seed {seed}",
    )
    rates = pronunciation.score(pronunciation.writer(model.eval()), heldout)
    row = Run(kind, len(words), steps, seed, rates.symbol, rates.word, history.seconds)
    return row, model


def train(profile: str = "cpu", seed: int = 0, out: Path | None = None) -> Path:
    """Train the whole grid and write rows, weights and card; return their folder."""
    budget, device = budget_for(profile), device_for(profile)
    torch.set_num_threads(threads())
    known, _, test = pronunciation.split(pronunciation.entries(pronunciation.load_cmudict()))
    heldout, kept, rows = test[: budget.heldout], None, []
    start = time.perf_counter()
    sizes = [(min(budget.words), budget.short), *((words, budget.steps) for words in budget.words)]
    for words, steps in sizes:
        for each in range(seed, seed + budget.seeds):
            for kind in WIDTHS:
                row, model = pronounce(
                    kind,
                    known[:words],
                    heldout,
                    steps=steps,
                    seed=each,
                    batch=budget.batch,
                    lr=budget.lr,
                    device=device,
                )
                rows.append(row)
                print(
                    f"    wrong: {row.symbol:.1%} of phonemes, {row.word:.1%} of words", flush=True
                )
                if (kind, words, each) == ("gru", max(budget.words), seed):
                    kept = model
    facts = {
        "profile": profile,
        "seed": seed,
        "n": len(rows),
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "threads": threads(),
        "device": str(device),
        "machine": platform.machine(),
        "torch": torch.__version__,
        **{name: getattr(budget, name) for name in ("steps", "short", "batch", "lr", "heldout")},
    }
    return save(kept, rows, facts, out)


# ── what is stored ────────────────────────────────────────────────────────────────────────────────


def save(model: RecurrentSeq2Seq, rows: list[Run], facts: dict, out: Path | None = None) -> Path:
    """Write runs.json, model.safetensors (float16) and README.md; return their folder."""
    from safetensors.torch import save_file

    folder = Path(out) if out else catalogue.data_folder() / "checkpoints" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().half().cpu().contiguous() for name, p in model.named_parameters()}
    save_file(tensors, folder / WEIGHTS)
    stored = {"facts": facts, "columns": Run._fields, "runs": [_rounded(row) for row in rows]}
    lines = json.dumps(stored, ensure_ascii=False).replace("], [", "],\n[")
    (folder / RUNS).write_text(lines + "\n", encoding="utf-8")
    weights = ", ".join(
        f"{kind.upper()} {sum(p.numel() for p in build(kind).parameters()):,} weights"
        for kind in WIDTHS
    )
    card = CARD.format(weights=weights, words=max(row.words for row in rows), **facts)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _rounded(row: Run) -> list:
    return [round(value, 4) if isinstance(value, float) else value for value in row]


def runs(folder: Path | None = None) -> list[Run]:
    """The rows of the stored grid. AssetError when it is not there."""
    folder = folder or models.checkpoint_folder(NAME)
    stored = json.loads((folder / RUNS).read_text(encoding="utf-8"))
    return [Run(*row) for row in stored["runs"]]


def facts_of(folder: Path | None = None) -> dict:
    """How the stored grid was made: seed, minutes, device, steps, version of torch."""
    folder = folder or models.checkpoint_folder(NAME)
    return json.loads((folder / RUNS).read_text(encoding="utf-8"))["facts"]


def load(folder: Path | None = None) -> RecurrentSeq2Seq:
    """The stored GRU: eval mode, no gradients, float32. AssetError when it is not there."""
    from safetensors.torch import load_file

    folder = folder or models.checkpoint_folder(NAME)
    model = build("gru")
    names = {name: name for name, _ in model.named_parameters()}
    copy_weights(model, load_file(folder / WEIGHTS), names, NAME)
    return model.eval().requires_grad_(False)
