"""Adapters for SmolLM2, with and without a 4-bit base, and the trainings behind them. Notebook 07.

`course train smollm2-adapters` teaches SmolLM2-135M-Instruct to answer a tweet with one word,
positive or negative, and to answer a line of Shakespeare with the next one, and writes
data/checkpoints/smollm2-adapters: a folder an adapter in peft's format, `runs.json` with a row a
training, and a card. Compared are LoRA and LoRA on a base in NF4 (QLoRA), with all seeds; where
`RATES` has several rates, one seed chooses on development texts. What was made already is kept, so
that the recipe can be stopped and called again.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils import models, training
from course_utils.architectures.objectives import IGNORED
from course_utils.finetuning.adapter_files import WEIGHTS, load_adapter, save_adapter
from course_utils.finetuning.changes import update_norm
from course_utils.finetuning.lora import (
    inject_lora,
    linear_names,
    lora_layers,
    merge_lora,
    unmerge_lora,
)
from course_utils.finetuning.qlora import quantize_linears
from course_utils.finetuning.transfer import (
    Batch,
    Example,
    answer_loss,
    chat_prompt,
    freeze,
    instruction,
    pad,
    train_only,
    trainable,
)
from course_utils.profiles import device_for, for_profile, threads
from course_utils.recipes import stored
from course_utils.recipes.lora_sweep import spread_over
from course_utils.tasks import sentiment, shakespeare

NAME = "smollm2-adapters"
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
LINEARS = r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
RANK, ALPHA = 4, 8
ADAPTERS = ("mood", "mood-nf4", "shakespeare")
STORED = {"lora": "mood", "qlora": "mood-nf4"}  # whose adapter of the first seed is kept
LABELS = ("negative", "positive")
QUESTION = "Is the mood of this tweet positive or negative? One word.\n\n{}"
RATES = {"lora": (1e-3,), "qlora": (1e-3,)}
LONGEST = 96  # tokens of an example

CARD = """\
# smollm2-adapters

Adapters of rank {rank} on all 210 linear layers of SmolLM2-135M-Instruct (Apache-2.0), in peft's
format and float16. `mood` answers a tweet with one word, `mood-nf4` does so on a base in NF4,
`shakespeare` answers a line of a play with the next speech. Trained on tweets of Hutto and Gilbert
2014 (MIT) and on Shakespeare's plays (public domain). `runs.json` has a row for each of {n}
trainings. `course train smollm2-adapters` makes all of it again, and this card. Licence:
Apache-2.0, as the course.

| | |
|---|---|
| base | the course's packaged weights: a 4-bit grid (Q4_1), dequantized |
| training | mood {steps} steps, shakespeare {speech_steps}, of {batch}; AdamW |
| scored on | {tests} held-out tweets |
| seeds | {seeds} for LoRA and QLoRA at the rate {rate:g}; 1 with labels dealt out |
| run | profile {profile}, {minutes} minutes on {device}, {threads} thread(s) |
| torch | {torch} |
"""


class Run(NamedTuple):
    """One training. `nats` a token of the answer on test texts, `dev` on those that choose a rate.

    `format`: how often the likeliest first token is one of the labels'; `right`: the right one's.
    `news` are nats a token on editorials. `merged_nats` and `merged_format` are of the adapter
    merged into its base (one in NF4 is rounded anew); where there is none they repeat the others.
    """

    method: str
    rate: float
    seed: int
    shuffled: bool
    trainable: int
    norm: float
    dev: float
    nats: float
    format: float
    right: float
    news: float
    merged_nats: float
    merged_format: float
    seconds: float


def budget_for(profile: str) -> SimpleNamespace:
    """Sizes of the trainings in one profile."""
    common = dict(batch=4, speech_rate=1e-3)
    return for_profile(
        profile,
        cpu=dict(steps=20, speech_steps=40, seeds=2, devs=8, tests=40, news=16, **common),
        gpu=dict(steps=150, speech_steps=2000, seeds=6, devs=100, tests=200, news=100, **common),
    )


# ── the two tasks ─────────────────────────────────────────────────────────────────────────────────


class Mood(NamedTuple):
    """A tweet as an instruction, and which label is right: 0 or 1."""

    example: Example
    label: int
    text: str


class Split(NamedTuple):
    train: list[Any]
    dev: list[Any]
    test: list[Any]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answering(tokenizer: Any, said: str, answer: str) -> Example:
    """A turn of the user's, and the answer with the sign that ends it; the answer alone counts."""
    prompt = ids_of(tokenizer, chat_prompt([("user", said)]))
    return instruction(prompt, ids_of(tokenizer, f"{answer}<|im_end|>"), limit=2048)


def moods(tokenizer: Any) -> Split:
    """Clear tweets (|rating| > 1.5), split by their text, as instructions."""
    clear = [rated for rated in sentiment.load("tweets") if abs(rated.rating) > 1.5]
    parts = sentiment.split(clear)

    def each(rated: Any) -> Mood:
        label = int(rated.rating > 0)
        said = QUESTION.format(rated.text)
        return Mood(answering(tokenizer, said, LABELS[label]), label, rated.text)

    made = ([each(rated) for rated in part] for part in parts)
    return Split(*([m for m in part if len(m.example.ids) <= LONGEST] for part in made))


def speech_pairs(words: tuple[int, int] = (4, 24)) -> Split:
    """Speeches that follow each other, (said, replied); every fifth play is left out of training.

    Both have so many words, and no stage direction.
    """
    plays = list(shakespeare.load().values())[:37]
    parts = Split([], [], [])
    for number, text in enumerate(plays):
        said = [" ".join(text[s.body : s.end].split()) for s in shakespeare.speeches(text)]
        part = parts.train if number % 5 else (parts.test if number % 2 else parts.dev)
        for pair in itertools.pairwise(said):
            fits = all(words[0] <= len(speech.split()) <= words[1] for speech in pair)
            if fits and not any("[" in speech for speech in pair):
                part.append(pair)
    return parts


def news_of(tokenizer: Any, n: int) -> list[Example]:
    """So many editorial snippets, all of whose tokens count but the first."""
    texts = [r.text for r in sentiment.load("editorials") if 8 <= len(r.text.split()) <= 24]
    rows = [ids_of(tokenizer, text) for text in spread_over(texts, n)]
    return [Example(row, [IGNORED, *row[1:]]) for row in rows]


def some(items: Sequence[Any], n: int, seed: int) -> list[Any]:
    """n items, drawn without replacement by a seed of their own."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    return [items[i] for i in order[:n].tolist()]


# ── scores ────────────────────────────────────────────────────────────────────────────────────────


def logits_of(net: nn.Module, batch: Batch) -> Tensor:
    return net(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits


@torch.no_grad()
def nats(net: nn.Module, examples: Sequence[Example], size: int = 8) -> Tensor:
    """Nats a token that counts, example by example: (N,)."""
    net.eval()
    device, found = next(net.parameters()).device, torch.zeros(len(examples))
    for group in training.batches_by_length([len(e.ids) for e in examples], size):
        batch = Batch(*(x.to(device) for x in pad([examples[i] for i in group])))
        labels = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
        flat = logits_of(net, batch).flatten(0, 1).float()
        losses = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none")
        counted = (labels != IGNORED).sum(1)
        found[group] = (losses.view_as(labels).sum(1) / counted).cpu()
    return found


class Moods(NamedTuple):
    """What a model makes of tweets: nats a token of the right answer, and its first tokens.

    `format` and `right` are shares; `first` the likeliest first token of each answer.
    """

    nats: float
    format: float
    right: float
    first: list[int]


@torch.no_grad()
def score_moods(net: nn.Module, asked: Sequence[Mood], tokenizer: Any, size: int = 8) -> Moods:
    """One pass over the tweets."""
    net.eval()
    device = next(net.parameters()).device
    names = [ids_of(tokenizer, label)[0] for label in LABELS]
    examples, first, losses = [m.example for m in asked], [0] * len(asked), []
    for group in training.batches_by_length([len(e.ids) for e in examples], size):
        batch = Batch(*(x.to(device) for x in pad([examples[i] for i in group])))
        logits = logits_of(net, batch)
        starts = (batch.labels != IGNORED).int().argmax(1) - 1  # the last token of each prompt
        tops = logits[torch.arange(len(group)), starts].argmax(1).tolist()
        for i, top in zip(group, tops, strict=True):
            first[i] = top
        counted = (batch.labels[:, 1:] != IGNORED).sum().item()
        losses.append((answer_loss(logits, batch.labels).item() * counted, counted))
    total = sum(n for _, n in losses)
    return Moods(
        nats=sum(loss for loss, _ in losses) / total,
        format=sum(token in names for token in first) / len(first),
        right=sum(t == names[m.label] for t, m in zip(first, asked, strict=True)) / len(first),
        first=first,
    )


# ── one training ──────────────────────────────────────────────────────────────────────────────────


def prepare(net: nn.Module, method: str) -> None:
    """Let that learn which the method trains; ValueError for an unknown method.

    "base" and "base-nf4" train nothing: what the others start from.
    """
    if method in ("base", "base-nf4"):
        freeze(net)
        if method == "base-nf4":
            quantize_linears(net, LINEARS)
    elif method == "full":
        train_only(net, [f"{name}.weight" for name in linear_names(net, LINEARS)])
    elif method in ("lora", "qlora"):
        if method == "qlora":
            quantize_linears(net, LINEARS)
        inject_lora(net, LINEARS, RANK, ALPHA)
    else:
        raise ValueError(f"method is {method!r}; it must be full, lora, qlora or base")


def teach(
    net: nn.Module,
    examples: Sequence[Example],
    *,
    rate: float,
    steps: int,
    batch: int = 4,
    seed: int = 0,
    label: str = "training",
) -> training.History:
    """Train whatever of the net learns on the answers of these examples."""
    device = next(net.parameters()).device
    learning = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0)

    def loss_of(group: Sequence[Example]) -> Tensor:
        padded = Batch(*(x.to(device) for x in pad(group)))
        return answer_loss(logits_of(net, padded), padded.labels)

    net.train()
    history = training.train(
        loss_of,
        training.shuffled_batches(examples, batch, 1000 + seed),
        optimizer,
        steps=steps,
        max_norm=1.0,
        scheduler=training.warm_up_and_decay(optimizer, steps),
        label=label,
    )
    net.eval()
    return history


def shuffled_labels(known: Sequence[Mood], tokenizer: Any, seed: int) -> list[Example]:
    """The same tweets, their labels dealt out at random."""
    dealt = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed)).tolist()
    return [
        answering(tokenizer, QUESTION.format(mood.text), LABELS[known[i].label])
        for mood, i in zip(known, dealt, strict=True)
    ]


def tune(
    method: str,
    rate: float,
    seed: int,
    task: Split,
    news: Sequence[Example],
    tokenizer: Any,
    *,
    steps: int,
    batch: int = 4,
    shuffled: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[Run, nn.Module]:
    """Train one method on the moods of tweets with one seed -> its row and the net."""
    begun = time.perf_counter()
    net, _ = models.load_decoder("smollm2", device=device)
    torch.manual_seed(seed)
    prepare(net, method)
    known = some(task.train, steps * batch, seed)
    examples = [mood.example for mood in known]
    if shuffled:
        examples = shuffled_labels(known, tokenizer, seed)
    label = f"{method}, rate {rate:g}, seed {seed}"
    sizes = dict(rate=rate, steps=steps, batch=batch, seed=seed, label=label)
    net.to(device)
    if trainable(net):
        teach(net, examples, **sizes)
    dev, after = (score_moods(net, part, tokenizer) for part in (task.dev, task.test))
    forgetting, norm, merged = nats(net, news).mean().item(), 0.0, after
    if method in ("lora", "qlora"):
        norm = update_norm(net)
        merge_lora(net)
        merged = score_moods(net, task.test, tokenizer)
        unmerge_lora(net)
    scores = dev.nats, after.nats, after.format, after.right, forgetting
    numbers = trainable(net), norm, *scores, merged.nats, merged.format
    return Run(method, rate, seed, shuffled, *numbers, time.perf_counter() - begun), net


# ── the grid, and the adapters ────────────────────────────────────────────────────────────────────


def train(profile: str = "cpu", seed: int = 0, out: Path | None = None) -> Path:
    """Train what is not yet stored; write adapters, rows and card; return their folder."""
    budget, device = budget_for(profile), device_for(profile)
    torch.set_num_threads(threads())
    _, tokenizer = models.load_decoder("smollm2")
    whole = moods(tokenizer)
    task = Split(whole.train, some(whole.dev, budget.devs, 0), some(whole.test, budget.tests, 0))
    facts = stored.facts_now(profile, seed, device, rank=RANK, **vars(budget))
    grid = stored.Grid(NAME, Run, facts, out)
    sizes = dict(steps=budget.steps, batch=budget.batch, device=device)
    one = functools.partial(
        tune, task=task, news=news_of(tokenizer, budget.news), tokenizer=tokenizer, **sizes
    )
    if not (grid.folder / "shakespeare" / WEIGHTS).is_file():
        _teach_shakespeare(grid.folder, tokenizer, budget, seed, device)
    for method, rate, each, dealt in _plan(grid.rows, range(seed, seed + budget.seeds)):
        if (method, rate, each, dealt) not in [row[:4] for row in grid.rows]:
            row, net = one(method, rate, each, shuffled=dealt)
            first = each == seed and not dealt and method in STORED
            if first and best_rate([*grid.rows, row], method) == rate:
                keep(net, grid.folder / STORED[method])
            grid.add(row)
    return grid.finish(CARD, rate=best_rate(grid.rows, "lora"))


def _plan(rows: Sequence[Run], seeds: Sequence[int]) -> Iterator[tuple[str, float, int, bool]]:
    """Method, rate, seed, and whether labels are dealt out; `rows` grows in between.

    Each method at all rates with the first seed, then at its best rate with the others.
    """
    yield from ((method, 0.0, seeds[0], False) for method in ("base", "base-nf4"))
    yield from ((m, rate, seeds[0], False) for m, rates in RATES.items() for rate in rates)
    yield "lora", best_rate(rows, "lora"), seeds[0], True
    yield from ((m, best_rate(rows, m), seed, False) for seed in seeds[1:] for m in RATES)


def _teach_shakespeare(
    folder: Path, tokenizer: Any, budget: SimpleNamespace, seed: int, device: torch.device
) -> None:
    net, _ = models.load_decoder("smollm2", device=device)
    torch.manual_seed(seed)
    prepare(net, "lora")
    pairs = some(speech_pairs().train, budget.speech_steps * budget.batch, seed)
    examples = [answering(tokenizer, *pair) for pair in pairs]
    sizes = dict(rate=budget.speech_rate, steps=budget.speech_steps, batch=budget.batch, seed=seed)
    teach(net.to(device), examples, label="shakespeare", **sizes)
    keep(net, folder / "shakespeare")


def keep(net: nn.Module, folder: Path) -> None:
    """Write a net's adapter in float16, in peft's format."""
    for layer in lora_layers(net).values():
        layer.adapters["default"].half()
    save_adapter(net, folder, base=BASE)


# ── what is stored ────────────────────────────────────────────────────────────────────────────────


def folder_of(adapter: str) -> Path:
    """The folder of a stored adapter; ValueError for another name, AssetError if it is missing."""
    if adapter not in ADAPTERS:
        raise ValueError(f"there is no adapter {adapter!r}; there are {', '.join(ADAPTERS)}")
    return stored.folder_of(NAME) / adapter


def put_on(net: nn.Module, adapter: str, name: str = "default") -> None:
    """Load a stored adapter onto a SmolLM2 of transformers, whose linears may be in NF4."""
    load_adapter(net, folder_of(adapter), name=name)


def runs(folder: Path | None = None) -> list[Run]:
    """The rows of the stored trainings. AssetError when they are not there."""
    return stored.read_rows(folder or stored.folder_of(NAME), Run)


def facts_of(folder: Path | None = None) -> dict:
    """How they were made."""
    return stored.read_facts(folder or stored.folder_of(NAME))


def best_rate(rows: Sequence[Run], method: str) -> float:
    """The rate that was chosen for a method: of the first seed's, the best on development texts."""
    found = [row for row in rows if row.method == method and not row.shuffled]
    if not found:
        raise ValueError(f"no row is of the method {method!r}")
    first = min(row.seed for row in found)
    return min((row for row in found if row.seed == first), key=lambda row: row.dev).rate


def at_its_best(rows: Sequence[Run], method: str, *, shuffled: bool = False) -> list[Run]:
    """A method's rows at its chosen rate, in the order of seeds."""
    rate = best_rate(rows, method)
    chosen = [r for r in rows if (r.method, r.rate, r.shuffled) == (method, rate, shuffled)]
    return sorted(chosen, key=lambda row: row.seed)
