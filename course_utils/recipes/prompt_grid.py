"""Soft prompts on SmolLM2: rate by start, lengths, steps, and comparators. Notebook 08.

`course train prompt-grid` teaches SmolLM2 to name the mood of tweets by learned vectors before the
text, from five starts and at three rates, and writes data/checkpoints/prompt-grid: `runs.json`, a
row a training, and a card. LoRA learns on the same tweets in the same order. On development tweets
the first seed chooses a start and rates; with them follow labels that say the opposite, and with
one seed prefixes, more steps and other lengths. What was made already is kept, so that the recipe
can be stopped and called again. The notebook repeats some cells with the functions below.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from course_utils import models, training
from course_utils.architectures.decoder import Decoder
from course_utils.architectures.pretrained import llama_config, load_llama_weights
from course_utils.finetuning import prompt_tuning
from course_utils.finetuning.label_words import chosen, in_format, label_nats
from course_utils.finetuning.lora import inject_lora, remove_adapter
from course_utils.finetuning.prompt_tuning import PrefixTuned, PromptTuned, prompt_as_prefix
from course_utils.profiles import device_for, for_profile, threads
from course_utils.recipes import stored
from course_utils.recipes.smollm2_adapters import some
from course_utils.tasks import sentiment
from course_utils.tasks.sentiment import Rated

NAME = "prompt-grid"
LONGEST = 16  # tokens of a tweet
CLEAR = 1.5  # a rating further from 0 is taken for clear
BATCH = 4
HARD = "Say positive or negative.\n"
STARTS = ("random", "small random", "words", "labels", "text")
RATES = {
    "soft": (3e-3, 3e-2, 3e-1),
    "prefix": (3e-3, 3e-2),
    "lora": (1e-3, 3e-3),
}
RANK = 8
TARGETS = r"blocks\.\d+\.attention\.(query|value)"

CARD = """\
# prompt-grid

A grid of {n} trainings of soft prompts (Lester et al. 2021), prefixes (Li and Liang 2021) and LoRA
adapters on SmolLM2-135M-Instruct (Apache-2.0; weights as packaged, a 4-bit grid), on clear tweets
with human ratings (Hutto and Gilbert 2014, MIT). `runs.json` has a row a training. `course train
prompt-grid` makes all of it again, and this card. Licence: Apache-2.0, as the course.

| | |
|---|---|
| texts | tweets of at most {longest} tokens; {test} are scored, others choose start and rates |
| training | {steps} steps of {batch} tweets, if not said otherwise; Adam, warm-up, then down to 0 |
| chosen | start "{start}" at the rate {rate:g}; LoRA at {lora_rate:g} |
| seeds | {seeds} for starts, rates and swapped labels, 1 for the rest |
| run | profile {profile}, {minutes} minutes on {device}, {threads} thread(s) |
| torch | {torch} |
"""


class Task(NamedTuple):
    """How a text is asked about: a form with {text}, and a word for each label, good before bad."""

    form: str
    labels: tuple[str, str]


TASKS = {
    "words": Task("{text}\nMood:", (" positive", " negative")),
    "swapped": Task("{text}\nMood:", (" negative", " positive")),
}


class Cell(NamedTuple):
    """What is to be trained. `method` is "soft", "prefix" or "lora"; `length` counts vectors."""

    method: str
    task: str
    start: str
    length: int
    rate: float
    steps: int
    seed: int


class Run(NamedTuple):
    """One training, and what the right label costs afterwards on held-out tweets, in nats.

    `dev` is the whole cost on other tweets, on which settings are chosen. `format` and `choice` add
    up to the whole cost; `formed` and `right` are shares of tweets. `seconds` are those of training
    and scoring.
    """

    method: str
    task: str
    start: str
    length: int
    rate: float
    steps: int
    seed: int
    dev: float
    format: float
    choice: float
    formed: float
    right: float
    seconds: float

    @property
    def cell(self) -> Cell:
        return Cell(*self[: len(Cell._fields)])


class Asked(NamedTuple):
    """Texts as they are asked: token ids each, the right label (N,) (0 good, 1 bad), label ids."""

    ids: list[list[int]]
    right: Tensor
    labels: list[int]
    rows: list[Rated]


def budget_for(profile: str) -> SimpleNamespace:
    """Sizes of the grid in one profile."""
    return for_profile(
        profile,
        cpu=dict(length=5, lengths=(1, 20), steps=12, long=24, seeds=2, dev=32, test=48),
        gpu=dict(length=5, lengths=(1, 20, 100), steps=100, long=2000, seeds=6, dev=60, test=120),
    )


# ── model and data ────────────────────────────────────────────────────────────────────────────────


def load_smollm2() -> tuple[Decoder, Any]:
    """SmolLM2's weights in the course's own decoder, frozen, and its tokenizer."""
    theirs, tokenizer = models.load_decoder("smollm2")
    decoder = Decoder(llama_config(theirs.config.to_dict()))
    load_llama_weights(decoder, theirs.state_dict())
    return decoder.eval().requires_grad_(False), tokenizer


def clear_tweets(tokenizer: Any) -> sentiment.Split:
    """Short tweets of clear mood without links, divided once and for all."""
    rows = [row for row in sentiment.load("tweets") if abs(row.rating) > CLEAR]
    rows = [row for row in rows if "http" not in row.text]
    lengths = [len(ids) for ids in tokenizer([row.text for row in rows])["input_ids"]]
    return sentiment.split([row for row, n in zip(rows, lengths, strict=True) if n <= LONGEST])


def asked(rows: Sequence[Rated], tokenizer: Any, task: str = "words") -> Asked:
    """Tweets in the task's form: ids and right labels. ValueError for a label of several tokens."""
    form, labels = TASKS[task]
    ends = [tokenizer.encode(label, add_special_tokens=False) for label in labels]
    if any(len(ids) > 1 for ids in ends):
        raise ValueError(f"the labels {labels} have {[len(i) for i in ends]} tokens; give one each")
    texts = [form.replace("{text}", row.text) for row in rows]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    right = torch.tensor([int(row.rating < 0) for row in rows])
    return Asked(ids, right, [ids[0] for ids in ends], list(rows))


def padded_left(
    ids: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Token ids of different lengths -> ids and mask (B, T); all texts end at the last place.

    >>> padded_left([[7, 8, 9], [5]])[0].tolist()
    [[7, 8, 9], [0, 0, 5]]
    """
    longest = max(map(len, ids))
    rows = torch.tensor([[*[0] * (longest - len(row)), *row] for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    return rows.to(device), mask.to(device)


class LastLogits(nn.Module):
    """A `Decoder`, or a `PrefixTuned`, of which the last token's logits are wanted: (B, V)."""

    def __init__(self, decoder: Decoder | PrefixTuned) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.decoder(ids, mask, last_only=True)[:, 0]


def start_vectors(
    decoder: Decoder, start: str, n: int, tokenizer: Any, texts: Asked, seed: int
) -> Tensor:
    """(P, D): where a soft prompt of n vectors begins; ValueError for an unknown start."""
    table, draw = decoder.token_embedding.weight.cpu(), torch.Generator().manual_seed(seed)
    if start == "random":
        return prompt_tuning.random_prompt(n, table.shape[1], generator=draw)
    if start == "small random":  # as long as words are
        std = table.square().mean().sqrt().item()
        return prompt_tuning.random_prompt(n, table.shape[1], std, generator=draw)
    if start == "words":
        return prompt_tuning.sampled_prompt(table, n, generator=draw)
    if start == "labels":
        if n < len(texts.labels):
            return prompt_tuning.text_prompt(table, texts.labels, n)
        return prompt_tuning.label_prompt(table, [[i] for i in texts.labels], n, generator=draw)
    if start == "text":
        said = tokenizer.encode(HARD, add_special_tokens=False)
        return prompt_tuning.text_prompt(table, said, n)
    raise ValueError(f"start is {start!r}; it must be one of {', '.join(STARTS)}")


# ── one training ──────────────────────────────────────────────────────────────────────────────────


def dealt_anew(texts: Asked, seed: int) -> Asked:
    """The same texts, their right labels dealt out at random."""
    order = torch.randperm(len(texts.right), generator=torch.Generator().manual_seed(seed))
    return texts._replace(right=texts.right[order])


def teach(
    read: Callable[[Tensor, Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    texts: Asked,
    *,
    rate: float,
    steps: int,
    seed: int,
    label: str = "training",
) -> float:
    """Let what `parameters` are make the right label likelier -> seconds.

    `read(ids, mask)` gives the logits of the next token (B, V). A training that diverges stops.
    """
    device = parameters[0].device
    optimizer = torch.optim.Adam(parameters, lr=rate)

    def loss_of(batch: list[int]) -> Tensor:
        logits = read(*padded_left([texts.ids[i] for i in batch], device))
        return label_nats(logits, texts.labels, texts.right[batch]).all.mean()

    begin = time.perf_counter()
    with contextlib.suppress(training.TrainingDiverged):  # the numbers before it are scored
        training.train(
            loss_of,
            training.shuffled_batches(range(len(texts.ids)), BATCH, 1000 + seed),
            optimizer,
            steps=steps,
            scheduler=training.warm_up_and_decay(optimizer, steps),
            label=label,
        )
    return time.perf_counter() - begin


def tune_prompt(
    decoder: Decoder, vectors: Tensor, texts: Asked, *, label: str = "soft prompt", **how: Any
) -> tuple[PromptTuned, float]:
    """Learn vectors that stand before the texts -> the tuned model, and seconds."""
    tuned = PromptTuned(LastLogits(decoder), decoder.token_embedding, vectors)
    tuned.to(decoder.token_embedding.weight.device)
    return tuned, teach(tuned, [tuned.vectors], texts, label=label, **how)


def tune_prefix(
    decoder: Decoder, vectors: Tensor, texts: Asked, *, label: str = "prefix", **how: Any
) -> tuple[LastLogits, float]:
    """Learn keys and values, at first those that the vectors would have -> what reads, seconds."""
    device = decoder.token_embedding.weight.device
    begin = PromptTuned(decoder, decoder.token_embedding, vectors.to(device))
    tuned = PrefixTuned(decoder, prompt_as_prefix(begin))
    read = LastLogits(tuned)
    return read, teach(read, list(tuned.prefix.parameters()), texts, label=label, **how)


def tune_lora(
    decoder: Decoder, texts: Asked, *, seed: int, label: str = "LoRA", **how: Any
) -> tuple[LastLogits, float]:
    """Put an adapter into the decoder *itself* and train it -> what reads, and seconds.

    `remove_adapter(decoder, "default")` takes it out again.
    """
    torch.manual_seed(seed)
    inject_lora(decoder, TARGETS, RANK, alpha=2 * RANK)
    learned = [p for p in decoder.parameters() if p.requires_grad]
    read = LastLogits(decoder)
    return read, teach(read, learned, texts, seed=seed, label=label, **how)


@torch.no_grad()
def logits_of(
    read: Callable[[Tensor, Tensor], Tensor], texts: Asked, device: torch.device | str = "cpu"
) -> Tensor:
    """Logits of the next token (N, V) after each text, in the texts' order."""
    order = training.batches_by_length(list(map(len, texts.ids)), 16)
    parts = [read(*padded_left([texts.ids[i] for i in batch], device)).cpu() for batch in order]
    out = torch.empty(len(texts.ids), parts[0].shape[1])
    out[torch.tensor(list(itertools.chain.from_iterable(order)))] = torch.cat(parts)
    return out


def scores(logits: Tensor, texts: Asked) -> dict[str, float]:
    """Mean format and choice in nats, and the shares formed and right."""
    cost = label_nats(logits, texts.labels, texts.right)
    return {
        "format": cost.format.mean().item(),
        "choice": cost.choice.mean().item(),
        "formed": in_format(logits, texts.labels).float().mean().item(),
        "right": (chosen(logits, texts.labels) == texts.right).float().mean().item(),
    }


# ── the grid ──────────────────────────────────────────────────────────────────────────────────────


def first_plan(budget: SimpleNamespace, seed: int, first: bool) -> Iterator[Cell]:
    """A seed's soft prompts from every start at every rate; of the first LoRA at its rates, too."""
    for start, rate in itertools.product(STARTS, RATES["soft"]):
        yield Cell("soft", "words", start, budget.length, rate, budget.steps, seed)
    for rate in RATES["lora"] if first else ():
        yield Cell("lora", "words", "", 0, rate, budget.steps, seed)


def second_plan(budget: SimpleNamespace, soft: Cell, lora: Cell, first: bool) -> Iterator[Cell]:
    """With what was chosen: swapped labels; of the first seed prefixes, more steps, lengths too."""
    yield soft._replace(task="swapped", steps=budget.long)
    yield lora._replace(task="swapped", steps=budget.long)
    if first:
        for rate in RATES["prefix"]:
            yield soft._replace(method="prefix", rate=rate)
        yield soft._replace(steps=budget.long)
        yield from (soft._replace(length=n) for n in budget.lengths)


def chosen_cell(rows: Sequence[Run], method: str, budget: SimpleNamespace) -> Cell:
    """The first seed's cell with the least cost on development tweets.

    Compared are those of as many steps and vectors, on true labels.
    """
    first = min((row.seed for row in rows), default=0)
    like = (method, "words", budget.steps, first)
    found = [
        row
        for row in rows
        if (row.method, row.task, row.steps, row.seed) == like and row.length in (0, budget.length)
    ]
    if not found:
        raise ValueError(f"no row is of the method {method!r}")
    return min(found, key=lambda row: row.dev).cell


def one_row(
    decoder: Decoder,
    tokenizer: Any,
    cell: Cell,
    train: Sequence[Rated],
    held: tuple[Sequence[Rated], Sequence[Rated]],
) -> Run:
    """One training, scored."""
    begun, device = time.perf_counter(), decoder.token_embedding.weight.device
    order = some(train, len(train), cell.seed)
    known, watched, unseen = (asked(rows, tokenizer, cell.task) for rows in (order, *held))
    how = dict(rate=cell.rate, steps=cell.steps, seed=cell.seed, label=" ".join(map(str, cell)))
    if cell.method == "lora":
        read, _ = tune_lora(decoder, known, **how)
    else:
        vectors = start_vectors(decoder, cell.start, cell.length, tokenizer, known, cell.seed)
        tune = {"soft": tune_prompt, "prefix": tune_prefix}[cell.method]
        read, _ = tune(decoder, vectors, known, **how)
    dev, found = (scores(logits_of(read, part, device), part) for part in (watched, unseen))
    if cell.method == "lora":
        remove_adapter(decoder, "default")
    seconds = time.perf_counter() - begun
    return Run(*cell, dev=dev["format"] + dev["choice"], **found, seconds=seconds)


def train(profile: str = "cpu", seed: int = 0, out: Path | None = None) -> Path:
    """Train what is not yet stored of the grid, write rows and card; return their folder."""
    budget, device = budget_for(profile), device_for(profile)
    torch.set_num_threads(threads())
    decoder, tokenizer = load_smollm2()
    decoder.to(device)
    parts = clear_tweets(tokenizer)
    facts = stored.facts_now(profile, seed, device, **vars(budget))
    grid = stored.Grid(NAME, Run, facts, out)
    held = some(parts.dev, budget.dev, 0), some(parts.test, budget.test, 0)
    for cell in _plan(grid.rows, budget, range(seed, seed + budget.seeds)):
        if not any(row.cell == cell for row in grid.rows):
            row = one_row(decoder, tokenizer, cell, parts.train, held)
            print(f"    {row.format:.2f} + {row.choice:.2f} nats", flush=True)
            grid.add(row)
    best, lora = (chosen_cell(grid.rows, method, budget) for method in ("soft", "lora"))
    found = dict(start=best.start, rate=best.rate, lora_rate=lora.rate)
    return grid.finish(CARD, longest=LONGEST, batch=BATCH, **found)


def _plan(rows: Sequence[Run], budget: SimpleNamespace, seeds: Sequence[int]) -> Iterator[Cell]:
    """All cells, seed by seed; `rows` grows in between, and decides what the second half is of."""
    for seed in seeds:
        yield from first_plan(budget, seed, first=seed == seeds[0])
        both = (chosen_cell(rows, method, budget) for method in ("soft", "lora"))
        soft, lora = (cell._replace(seed=seed) for cell in both)
        yield from second_plan(budget, soft, lora, first=seed == seeds[0])


# ── what is stored ────────────────────────────────────────────────────────────────────────────────


def runs(folder: Path | None = None) -> list[Run]:
    """The rows of the stored grid. AssetError when it is not there."""
    return stored.read_rows(folder or stored.folder_of(NAME), Run)


def facts_of(folder: Path | None = None) -> dict:
    """How the stored grid was made."""
    return stored.read_facts(folder or stored.folder_of(NAME))
