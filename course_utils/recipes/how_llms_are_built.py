"""The whole chain, and the same chain with one stage left out or done otherwise. Notebook 00.

Notebook 00 runs the chain once, by these functions. `course train how-llms-are-built` runs every
one of the `ARMS` with several seeds and writes data/checkpoints/how-llms-are-built: `runs.json`, a
row a chain, and a card. Chains of one seed share what they have in common. Corpus, prompts and
judge are as in the notebook: plays are split by seed, settings were picked on the development plays
of seed 0, and rows are of test plays. Those of other seeds may be among the plays looked at then.
"""

from __future__ import annotations

import copy
import random
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from course_utils import training
from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.objectives import IGNORED
from course_utils.building import chat, corpus, preference, tokenizer
from course_utils.building.pretraining import (
    Pretraining,
    adamw_with_cosine,
    bits_of,
    nats_of_rows,
)
from course_utils.building.tokenizer import Tokenizer
from course_utils.compression import gguf_file
from course_utils.finetuning.transfer import Batch, Example, answer_loss, instruction, pad
from course_utils.profiles import device_for, for_profile, threads
from course_utils.recipes import stored
from course_utils.tasks import replies, sentiment
from course_utils.tasks.replies import Exchange

NAME = "how-llms-are-built"
LENGTH = 128  # tokens a row; a chat has at most twice as many
RATE = 4e-3  # of pre-training
Line = tuple[str, str]  # what is said, and the kind in which to reply
Pair = tuple[list[int], tuple[int, ...], tuple[int, ...]]  # prompt, chosen, rejected
Reward = Callable[[str], float]

CARD = """\
# how-llms-are-built

{n} chains of {arms} kinds, from Shakespeare's plays (Open Knowledge Foundation, CC-BY-2.5) and
rated texts (Hutto & Gilbert 2014, MIT) to a small chat model: `runs.json` has a row a chain.
`course train how-llms-are-built` makes all of it again, and this card. Licence: Apache-2.0.

| | |
|---|---|
| model | decoder, width {width}, {layers} layers |
| steps | {pretraining} of pre-training, {tuning} of tuning, {rounds} rounds of preferences |
| scored on | {prompts} prompts and {rows} rows of three test plays |
| run | profile {profile}, {minutes} minutes on {device}, {threads} thread(s) |
| torch | {torch} |
"""


def budget_for(profile: str) -> SimpleNamespace:
    """Sizes and lengths of the chain in one profile."""
    return for_profile(
        profile,
        cpu=dict(
            merges=1000, width=64, layers=3, heads=2, d_ff=192, pretraining=1200, batch=4,
            tuning=300, rated=4800, rounds=2, asked=192, prompts=540, rows=192, seeds=3,
        ),
        gpu=dict(
            merges=8000, width=512, layers=8, heads=8, d_ff=1408, pretraining=20_000, batch=16,
            tuning=3_000, rated=4800, rounds=6, asked=2_000, prompts=540, rows=192, seeds=3,
        ),
    )  # fmt: skip


# ── nulls that the notebook draws beside the chain ────────────────────────────────────────────────


def of_shuffled_letters(counts: Mapping[bytes, int], n: int, seed: int) -> Tokenizer:
    """A tokenizer of n merges, learned from counted words whose bytes were shuffled."""
    draw, mixed = random.Random(seed), Counter[bytes]()
    for word, times in counts.items():
        mixed[bytes(draw.sample(list(word), len(word)))] += times
    merges = tokenizer.learn_merges(mixed, n, tokenizer.byte_tokens())
    tokens = dict.fromkeys([*tokenizer.byte_tokens(), *(a + b for a, b in merges)])
    return Tokenizer({token: i for i, token in enumerate(tokens)}, merges, {})


def write_unordered(path: Path, model: Decoder, table: Mapping[str, gguf_file.Value]) -> None:
    """A GGUF in F32 in which nobody has put the rows of queries and keys in llama.cpp's order.

    `table` is the tokenizer's part, `chat.gguf_tokenizer`.
    """
    tensors, state = gguf_file.decoder_tensors(model), model.state_dict()
    for i in range(model.config.n_layers):
        for theirs, ours in {"attn_q": "query", "attn_k": "key"}.items():
            tensors[f"blk.{i}.{theirs}.weight"] = state[f"blocks.{i}.attention.{ours}.weight"]
    metadata = {**gguf_file.decoder_metadata(model.config), **table}
    gguf_file.write_gguf(path, metadata, tensors, gguf_file.decoder_kinds(tensors, "F32", "F32"))


# ── pre-training ──────────────────────────────────────────────────────────────────────────────────


def rows_of(bpe: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Texts as rows (N, 128) of tokens, the end sign after each text."""
    return corpus.packed(bpe, texts, LENGTH, chat.END)


def new_model(vocab_size: int, budget: SimpleNamespace, seed: int) -> Decoder:
    """An untrained decoder of the budget's sizes, with room for two rows."""
    torch.manual_seed(seed)
    sizes = (budget.width, budget.heads, budget.layers, budget.d_ff)
    return Decoder(DecoderConfig(vocab_size, *sizes, max_positions=2 * LENGTH))


def pretraining_of(
    model: Decoder, rows: Tensor, budget: SimpleNamespace, seed: int, times: int = 1
) -> Pretraining:
    """A run over rows (N, T), `times` as many steps as the budget has."""
    steps = times * budget.pretraining
    return Pretraining(model, rows, steps=steps, batch_size=budget.batch, seed=seed, lr=RATE)


# ── supervised tuning ─────────────────────────────────────────────────────────────────────────────


def lesson(bpe: Tokenizer, item: Exchange) -> Example:
    """A line with the instruction that its reply obeys, and the reply, which alone counts."""
    asked = replies.asked(item.said, str(replies.kind_of(item.reply)))
    prompt, answer = chat.prompt_ids(bpe, asked), chat.answer_ids(bpe, item.reply)
    return instruction(prompt, answer, limit=2 * LENGTH)


def lessons(bpe: Tokenizer, items: Sequence[Exchange]) -> dict[str, list[Example]]:
    """Kind → a lesson for each exchange; ValueError where one kind has none."""
    return {kind: [lesson(bpe, item) for item in of] for kind, of in replies.by_kind(items).items()}


def drawn_batches(
    examples: Mapping[str, Sequence[Example]], size: int, seed: int, *, balanced: bool = True
) -> Iterator[Batch]:
    """Batches for ever: the kinds in turns where `balanced`, as often as they come otherwise."""
    draw, kinds = random.Random(seed), list(examples)
    everything = [example for of in examples.values() for example in of]
    while True:
        if balanced:
            yield pad([draw.choice(examples[kinds[i % len(kinds)]]) for i in range(size)])
        else:
            yield pad([draw.choice(everything) for _ in range(size)])


def tune(
    model: Decoder,
    examples: Mapping[str, Sequence[Example]],
    steps: int,
    seed: int,
    *,
    balanced: bool = True,
    lr: float = 6e-3,
    size: int = 16,
) -> training.History:
    """Train a decoder on answers alone; prompts are read and not learned."""
    device = next(model.parameters()).device
    optimizer, schedule = adamw_with_cosine(model, steps, lr=lr)

    def loss(batch: Batch) -> Tensor:
        return answer_loss(model(batch.ids.to(device)), batch.labels.to(device))

    batches = drawn_batches(examples, size, seed, balanced=balanced)
    return training.train(
        loss, batches, optimizer, steps=steps, max_norm=1.0, scheduler=schedule, label="tuning"
    )


@torch.no_grad()
def answer_nats(
    model: Decoder, bpe: Tokenizer, items: Sequence[Exchange], batch_size: int = 64
) -> list[float]:
    """Nats a token of each reply, its end included, after its line and the instruction it obeys."""
    device, found = next(model.parameters()).device, []
    for first in range(0, len(items), batch_size):
        batch = pad([lesson(bpe, item) for item in items[first : first + batch_size]])
        ids, mask = batch.ids.to(device), (batch.labels != IGNORED).to(device)
        total = preference.answer_logprobs(model(ids), ids, mask)
        found += (-total / mask.sum(dim=1)).tolist()
    return found


# ── preferences ───────────────────────────────────────────────────────────────────────────────────


def opinions(domain: str, n: int, seed: int) -> list[list[sentiment.Rated]]:
    """Two lists of n rated texts of a domain, drawn by seed; no text stands in both.

    ValueError where the domain has too few.
    """
    texts = sentiment.load(domain)
    if not 1 <= n <= len(texts) // 2:
        raise ValueError(f"n is {n}; it is at least 1, and {len(texts)} texts are there for both")
    drawn = random.Random(seed).sample(texts, 2 * n)
    return [drawn[:n], drawn[n:]]


def reward_of(
    texts: Sequence[sentiment.Rated], *, shuffled: int | None = None
) -> preference.RewardModel:
    """A reward model from ratings; with a seed in `shuffled`, from ratings dealt out at random."""
    ratings = [text.rating for text in texts]
    if shuffled is not None:
        random.Random(shuffled).shuffle(ratings)
    return preference.fit_reward([text.text for text in texts], ratings, penalty=10.0, min_texts=8)


def pairs_of(
    model: Decoder,
    lines: Sequence[Line],
    reward: Reward,
    bpe: Tokenizer,
    *,
    seed: int,
    k: int = 8,
    max_gap: int | None = 2,
    obeying: bool = True,
) -> list[Pair]:
    """The model's own answers, k to a line: the best and the worst of nearly equal length.

    With `obeying`, the best is chosen among those that end and are of the kind that was asked for.
    """
    prompts, end = chat_prompts(bpe, lines), bpe.specials[chat.END]
    repeated = [prompt for prompt in prompts for _ in range(k)]
    written = replies.write_replies(model, repeated, end, seed=seed)
    pairs = []
    for i, (prompt, (_, kind)) in enumerate(zip(prompts, lines, strict=True)):
        group = written[i * k : (i + 1) * k]
        rewards = [reward(bpe.decode(tokens, specials=False)) for tokens in group]
        fine = [j for j, t in enumerate(group) if not obeying or reply_obeys(t, kind, bpe)]
        if best := preference.widest_pair(group, rewards, max_gap=max_gap, choosable=fine):
            pairs.append((prompt, group[best[0]], group[best[1]]))
    return pairs


def reply_obeys(tokens: Sequence[int], kind: str, bpe: Tokenizer) -> bool:
    """Whether a reply in tokens ends, and as the kind that was asked for."""
    ended = list(tokens)[-1:] == [bpe.specials[chat.END]]
    return replies.obeys(bpe.decode(tokens, specials=False), kind, ended)


def pair_batch(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """ids and mask (2·B, T) of pairs: the chosen answers first, then the rejected."""
    rows = [instruction(p, list(chosen), limit=2 * LENGTH) for p, chosen, _ in pairs]
    rows += [instruction(p, list(rejected), limit=2 * LENGTH) for p, _, rejected in pairs]
    batch = pad(rows)
    return batch.ids, (batch.labels != IGNORED).long()


def as_reference(model: Decoder) -> Decoder:
    """A copy that does not learn."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def prefer(
    model: Decoder,
    lines: Sequence[Line],
    reward: Reward,
    bpe: Tokenizer,
    *,
    rounds: int,
    seed: int,
    k: int = 8,
    max_gap: int | None = 2,
    obeying: bool = True,
    beta: float = 0.1,
    lr: float = 1e-3,
    size: int = 16,
) -> list[int]:
    """Rounds of DPO on the model's own answers; returns how many pairs each round had.

    The reference is the model as it came, through all rounds. A round without a pair changes
    nothing.
    """
    device, reference = next(model.parameters()).device, as_reference(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, mask = (part.to(device) for part in batch)
        with torch.no_grad():
            before = reference(ids)
        return preference.pair_loss(model(ids), before, ids, mask, beta)

    counts = []
    for number in range(rounds):
        how: dict[str, Any] = dict(seed=seed + 1000 * (number + 1), k=k, max_gap=max_gap)
        pairs = pairs_of(model, lines, reward, bpe, obeying=obeying, **how)
        random.Random(how["seed"]).shuffle(pairs)
        batches = [pair_batch(pairs[i : i + size]) for i in range(0, len(pairs), size)]
        if batches:
            label = f"preferences, round {number + 1}"
            training.train(loss, batches, optimizer, steps=len(batches), max_norm=1.0, label=label)
        counts.append(len(pairs))
    return counts


def policy_gradient(
    model: Decoder,
    lines: Sequence[Line],
    reward: Reward,
    bpe: Tokenizer,
    *,
    rounds: int,
    seed: int,
    k: int = 8,
    fine: float = 1.0,
    lr: float = 5e-4,
    size: int = 32,
) -> None:
    """Rounds of GRPO in place of `prefer`: all k answers count, each against its own group.

    An answer that does not obey has its reward less the `fine`.
    """
    reference, end = as_reference(model), bpe.specials[chat.END]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    repeated = [line for line in lines for _ in range(k)]
    prompts = chat_prompts(bpe, repeated)
    for number in range(rounds):
        at, old = seed + 1000 * (number + 1), as_reference(model)
        written = replies.write_replies(model, prompts, end, seed=at)
        rewards = torch.tensor([
            reward(bpe.decode(tokens, specials=False)) - fine * (not reply_obeys(tokens, kind, bpe))
            for tokens, (_, kind) in zip(written, repeated, strict=True)
        ])  # fmt: skip
        advantages = preference.group_advantages(rewards.view(-1, k)).flatten()
        rows = [
            instruction(prompt, list(tokens), limit=2 * LENGTH)
            for prompt, tokens in zip(prompts, written, strict=True)
        ]
        draw = torch.Generator().manual_seed(at)
        batches = list(corpus.batches(torch.arange(len(rows)), size, draw))
        loss = policy_loss_of(model, old, reference, rows, advantages)
        label = f"policy gradient, round {number + 1}"
        training.train(loss, batches, optimizer, steps=len(batches), max_norm=1.0, label=label)


def policy_loss_of(
    model: Decoder,
    old: Decoder,
    reference: Decoder,
    rows: Sequence[Example],
    advantages: Tensor,
) -> Callable[[Tensor], Tensor]:
    """`grpo_loss` of the rows at given positions; `old` wrote them."""
    device = next(model.parameters()).device

    def loss(chosen: Tensor) -> Tensor:
        batch = pad([rows[i] for i in chosen.tolist()])
        ids, mask = batch.ids.to(device), (batch.labels != IGNORED)[:, 1:].long().to(device)
        with torch.no_grad():
            before, first = (preference.token_logprobs(net(ids), ids) for net in (old, reference))
        now = preference.token_logprobs(model(ids), ids)
        return preference.grpo_loss(now, before, first, advantages[chosen].to(device), mask)

    return loss


# ── what came of it ───────────────────────────────────────────────────────────────────────────────


class Card(NamedTuple):
    """What a model wrote to prompts, item by item."""

    texts: list[str]
    obeys: list[bool]
    ends: list[bool]
    judged: list[float]
    rewarded: list[float]
    lengths: list[int]


def chat_prompts(bpe: Tokenizer, lines: Sequence[Line]) -> list[list[int]]:
    """Lines with the kinds asked for, as the model reads them."""
    return [chat.prompt_ids(bpe, replies.asked(said, kind)) for said, kind in lines]


def card_of(
    written: Sequence[Sequence[int]],
    prompts: Sequence[tuple[str, str]],
    bpe: Tokenizer,
    judge: Reward,
    reward: Reward,
) -> Card:
    """Score replies in tokens to (line, kind) prompts: counted rules, the judge, the reward."""
    texts = [bpe.decode(tokens, specials=False).strip() for tokens in written]
    ends = [list(tokens)[-1:] == [bpe.specials[chat.END]] for tokens in written]
    kinds = [kind for _, kind in prompts]
    return Card(
        texts=texts,
        obeys=list(map(replies.obeys, texts, kinds, ends)),
        ends=ends,
        judged=list(map(judge, texts)),
        rewarded=list(map(reward, texts)),
        lengths=list(map(len, written)),
    )


# ── the grid ──────────────────────────────────────────────────────────────────────────────────────


class Arm(NamedTuple):
    """What a chain does otherwise than the whole one. One that is not `chatting` is only read."""

    merges: bool = True
    pretraining: int = 1  # times the budget's steps
    tuning: bool = True
    balanced: bool = True
    preferences: str = "pairs"
    max_gap: int | None = 2
    obeying: bool = True
    times: int = 1  # the budget's rounds
    shuffled: bool = False
    chatting: bool = True


ARMS = {
    "whole": Arm(),
    "no preferences": Arm(preferences=""),
    "no tuning": Arm(tuning=False, preferences=""),
    "no pre-training": Arm(pretraining=0, preferences=""),
    "no merges": Arm(merges=False, tuning=False, preferences="", chatting=False),
    "kinds unbalanced": Arm(balanced=False, preferences=""),
    "pairs of any length": Arm(max_gap=None),
    "pairs that need not obey": Arm(obeying=False),
    "three times the rounds": Arm(times=3),
    "ratings shuffled": Arm(shuffled=True),
    "policy gradient": Arm(preferences="policy"),
    "four times as long": Arm(pretraining=4, tuning=False, preferences="", chatting=False),
}


ONCE = ("four times as long",)  # with the first seed alone


class Row(NamedTuple):
    """One chain: its arm and seed, and what it scored on test plays at its end.

    `bits` a byte of plays after pre-training (None without it), `play_nats` of plays at the end,
    and `reply_nats` of people's replies; shares that obey and that end; the judge's and the
    reward's mean; tokens an answer. None of a chain that is not chatting, but for the first two.
    `seconds` are those of what it did not share with an earlier chain.
    """

    arm: str
    seed: int
    bits: float | None
    play_nats: float
    reply_nats: float | None
    obeys: float | None
    ends: float | None
    judged: float | None
    rewarded: float | None
    length: float | None
    seconds: float


Shelf = dict[Hashable, Any]  # what chains of one seed share


def kept(shelf: Shelf, key: Hashable, make: Callable[[], Any]) -> Any:
    """What stands on the shelf under a key, made where it does not."""
    if key not in shelf:
        shelf[key] = make()
    return shelf[key]


def exchanges_of(plays: corpus.Corpus, part: str) -> list[Exchange]:
    """All exchanges of the plays of "train", "dev" or "test"."""
    return [item for text in plays.of(part) for item in replies.exchanges(text)]


class Read(NamedTuple):
    """Plays in a tokenizer's tokens: rows to learn from, and rows of test plays to be scored on."""

    bpe: Tokenizer
    rows: Tensor
    unseen: Tensor


def read_plays(plays: corpus.Corpus, merges: int, n_rows: int) -> Read:
    """Learn a tokenizer from the plays to learn from, and read all of them."""
    bpe = tokenizer.train(plays.of("train"), merges, specials=chat.SPECIALS)
    unseen = corpus.spread_out(rows_of(bpe, plays.of("test")), n_rows)
    return Read(bpe, rows_of(bpe, plays.of("train")), unseen)


def pretrained(
    arm: Arm, seed: int, budget: SimpleNamespace, read: Read, device: torch.device
) -> Decoder:
    """A new model, pre-trained where the arm says so."""
    model = new_model(len(read.bpe), budget, seed).to(device)
    if arm.pretraining:
        pretraining_of(model, read.rows, budget, seed, arm.pretraining).train()
    return model


def build(
    name: str, seed: int, budget: SimpleNamespace, device: torch.device, shelf: Shelf | None = None
) -> Row:
    """Run one chain from the corpus to the score. Chains of one seed may share a shelf."""
    arm, start, shelf = ARMS[name], time.perf_counter(), {} if shelf is None else shelf
    plays = kept(shelf, "plays", lambda: replies.load_plays(seed))
    merges = budget.merges if arm.merges else 0
    read = kept(shelf, merges, lambda: read_plays(plays, merges, budget.rows))
    base = kept(
        shelf, (merges, arm.pretraining), lambda: pretrained(arm, seed, budget, read, device)
    )
    bits = (
        bits_of(nats_of_rows(base, read.unseen), read.bpe, read.unseen) if arm.pretraining else None
    )
    model = base
    if arm.tuning:
        key = (merges, arm.pretraining, arm.balanced)
        model = kept(shelf, key, lambda: tuned(base, arm, seed, budget, plays, read.bpe))
    scores = dict.fromkeys(("reply_nats", "obeys", "ends", "judged", "rewarded", "length"))
    if arm.chatting:
        model, scores = chatted(copy.deepcopy(model), arm, seed, budget, plays, read.bpe, shelf)
    play_nats = fmean(nats_of_rows(model, read.unseen))
    return Row(name, seed, bits, play_nats, **scores, seconds=time.perf_counter() - start)


def tuned(
    base: Decoder,
    arm: Arm,
    seed: int,
    budget: SimpleNamespace,
    plays: corpus.Corpus,
    bpe: Tokenizer,
) -> Decoder:
    """A copy of the base that has learned to reply."""
    model = copy.deepcopy(base)
    examples = lessons(bpe, exchanges_of(plays, "train"))
    tune(model, examples, budget.tuning, seed, balanced=arm.balanced)
    return model


def chatted(
    model: Decoder,
    arm: Arm,
    seed: int,
    budget: SimpleNamespace,
    plays: corpus.Corpus,
    bpe: Tokenizer,
    shelf: Shelf,
) -> tuple[Decoder, dict[str, float]]:
    """The model after the arm's preferences, and what it scores when it is asked."""
    known, unseen = (exchanges_of(plays, part) for part in ("train", "test"))
    films = opinions("movies", budget.rated, seed)
    judge = kept(shelf, "judge", lambda: reward_of(films[1]))
    dealt = seed if arm.shuffled else None
    reward = kept(shelf, ("reward", dealt), lambda: reward_of(films[0], shuffled=dealt))
    asked = replies.draw_prompts(known, budget.asked, seed)
    if arm.preferences == "pairs":
        how: dict[str, Any] = dict(max_gap=arm.max_gap, obeying=arm.obeying)
        prefer(model, asked, reward, bpe, rounds=arm.times * budget.rounds, seed=seed, **how)
    elif arm.preferences:
        policy_gradient(model, asked, reward, bpe, rounds=budget.rounds, seed=seed)
    prompts = replies.draw_prompts(unseen, budget.prompts, seed)
    end = bpe.specials[chat.END]
    written = replies.write_replies(model, chat_prompts(bpe, prompts), end, seed=seed)
    card = card_of(written, prompts, bpe, judge, reward)
    people = replies.some_of_each(unseen, 64, seed)
    scores = {column: fmean(getattr(card, column)) for column in ("obeys", "ends", "judged")}
    scores |= {"rewarded": fmean(card.rewarded), "length": fmean(card.lengths)}
    return model, scores | {"reply_nats": fmean(answer_nats(model, bpe, people))}


def train(profile: str = "cpu", seed: int = 0, out: Path | None = None) -> Path:
    """Run the whole grid and write rows and card; return their folder.

    What was stopped goes on where it stood: a chain is written as soon as it has its score.
    """
    budget, device = budget_for(profile), device_for(profile)
    torch.set_num_threads(threads())
    facts = stored.facts_now(profile, seed, device, **vars(budget))
    grid = stored.Grid(NAME, Row, facts, out)
    done = {(row.arm, row.seed) for row in grid.rows}
    for each in range(seed, seed + budget.seeds):
        shelf: Shelf = {}
        for name in ARMS:
            wanted = each == seed or name not in ONCE
            if wanted and (name, each) not in done:
                grid.add(build(name, each, budget, device, shelf))
    return grid.finish(CARD, arms=len(ARMS))


def runs(folder: Path | None = None) -> list[Row]:
    """The rows of the stored grid. AssetError when it is not there."""
    return stored.read_rows(folder or stored.folder_of(NAME), Row)


def facts_of(folder: Path | None = None) -> dict[str, Any]:
    """How the stored grid was made."""
    return stored.read_facts(folder or stored.folder_of(NAME))


def scores(rows: Sequence[Row], arm: str, column: str) -> dict[int, float]:
    """One column of one arm by seed."""
    return {row.seed: getattr(row, column) for row in rows if row.arm == arm}
