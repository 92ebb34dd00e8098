"""Small students and their teachers: tweets for encoders, plays for decoders. Notebook 15.

`course train distilled-students` trains a small decoder on Shakespeare's plays, the teacher; then
students of both kinds, alone and taught, with several seeds; and writes
data/checkpoints/distilled-students: the teacher's weights and tokenizer, `teacher.json` with how it
was made, `runs.json` with a row a student, and a card. The encoders' teacher is MiniLM with a
logistic regression on its vectors: it takes no training of its own. What was made already is kept,
so that the recipe can be stopped and called again. Notebook 15 trains some of the rows again.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils import models, training
from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.encoder import Encoder, EncoderConfig
from course_utils.architectures.layers import copy_weights
from course_utils.building import chat, corpus, tokenizer, tokenizer_files
from course_utils.building.pretraining import (
    Pretraining,
    adamw_with_cosine,
    batch_at,
    bits_of,
    nats_of_rows,
)
from course_utils.building.tokenizer import Tokenizer
from course_utils.compression import distillation as kd
from course_utils.finetuning import ratings
from course_utils.finetuning.transfer import Classifier, Example, graded, pad
from course_utils.metrics import seconds_in_turns
from course_utils.profiles import device_for, for_profile, threads
from course_utils.recipes import stored
from course_utils.tasks import replies, sentence_vectors, sentiment
from course_utils.tasks.sentiment import Rated

NAME = "distilled-students"
WEIGHTS, TEACHER, TOKENS = "model.safetensors", "teacher.json", "tokenizer.json"
BOUNDS = {2: (0.0,), 5: (-0.87, 0.35, 1.1, 1.8)}  # ratings that part the classes; five are alike
CLEAR = 1.0  # of two classes: ratings further from 0 than this have a label
LONGEST = 40  # word pieces of a tweet that a student reads
LENGTH = 128  # tokens a row of plays
SHARED_BY = (1, 16, 64)  # students between whom a teacher's training is divided

CARD = """\
# distilled-students

A decoder of {weights:,} weights (`Decoder` in `course_utils.architectures`), trained on plays by
Shakespeare (Open Knowledge Foundation, CC-BY-2.5), and {n} students of two kinds.
`runs.json` has a row a student, `model.safetensors` the teacher in float16, `tokenizer.json` its
tokens. Encoder students read tweets with human ratings (Hutto and Gilbert 2014, MIT).
`course train distilled-students` makes all of it again, and this card. Licence: Apache-2.0.

| | |
|---|---|
| teacher | {teacher:,} steps of {batch} pieces of 128 tokens; {bits} bits a byte on test plays |
| equal time | a step with the teacher counts as {dearer} plain ones, one of the teacher's own \
training as {own} |
| run | profile {profile}, {minutes} minutes on {device}, {threads} thread(s) |
| torch | {torch} |
"""


def budget_for(profile: str) -> SimpleNamespace:
    """Sizes and lengths in one profile."""
    common = dict(width=128, layers=3, batch=4, labels=(100, 400, 1000), unlabelled=1800)
    common |= dict(tokens=(10_000, 100_000, 0), rows=192, long_seeds=2)  # 0: all there are
    return for_profile(
        profile,
        cpu=common | dict(teacher=9000, steps=220, decoder_steps=300, seeds=3),
        gpu=common | dict(teacher=40_000, steps=2000, decoder_steps=3000, seeds=8),
    )


# ── tweets ────────────────────────────────────────────────────────────────────────────────────────


class Tweets(NamedTuple):
    """Tweets with labels, tweets whose labels nobody looks at, and tweets for the exam."""

    labelled: list[Rated]
    unlabelled: list[Rated]
    test: list[Rated]


def load_tweets(
    n_labels: int, n_unlabelled: int, seed: int, classes: int = 2, exam: str = "test"
) -> Tweets:
    """Draw the first two parts from `sentiment.split`'s train part; the exam is another one.

    That is its test part, or "dev", on which settings are chosen. Of two classes only clear tweets
    have a label. With more labels, those of fewer stay.
    """
    parts = sentiment.split(sentiment.load("tweets"))
    every = random.Random(seed).sample(parts.train, len(parts.train))
    clear = [tweet for tweet in every if classes > 2 or abs(tweet.rating) > CLEAR]
    if n_labels > len(clear) or n_labels + n_unlabelled > len(every):
        raise ValueError(
            f"{n_labels} labels and {n_unlabelled} tweets without are asked for; of {len(every)} "
            f"tweets {len(clear)} have a label"
        )
    labelled = clear[:n_labels]
    taken = {tweet.id for tweet in labelled}
    left = [tweet for tweet in every if tweet.id not in taken]
    test = [t for t in getattr(parts, exam) if classes > 2 or abs(t.rating) > CLEAR]
    return Tweets(labelled, left[len(left) - n_unlabelled :], test)


def labels_of(tweets: Sequence[Rated], classes: int = 2) -> Tensor:
    """How many of the classes' bounds each rating is above: (N,), from 0 to classes − 1."""
    return torch.tensor([sum(tweet.rating > at for at in BOUNDS[classes]) for tweet in tweets])


# ── the encoders' teacher ─────────────────────────────────────────────────────────────────────────


def vectors_of(encoder: Encoder, words: Callable, texts: Sequence[str], size: int = 32) -> Tensor:
    """A unit vector a text (N, D), read in batches of like length."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    device = next(encoder.parameters()).device
    batches = sentence_vectors.batches(words, [texts[i] for i in order], size, device)
    found = sentence_vectors.vectors_of(encoder, batches).cpu()
    return found[torch.tensor(order).argsort()]


# ── encoder students ──────────────────────────────────────────────────────────────────────────────


class Words:
    """The most frequent word pieces of some texts, renumbered: 0 is padding, 1 all others."""

    def __init__(self, words: Callable, texts: Sequence[str], size: int = 5000) -> None:
        self.words = words
        counts = Counter(id for row in self._pieces(texts) for id in row)
        frequent = sorted(counts, key=lambda id: (-counts[id], id))[: size - 2]
        self.place = {id: i for i, id in enumerate(frequent, start=2)}

    def __len__(self) -> int:
        return len(self.place) + 2

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        return self.words(list(texts), truncation=True, max_length=LONGEST)["input_ids"]

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self.place.get(id, 1) for id in row] for row in self._pieces(texts)]


class Reader(nn.Module):
    """A `Decoder` as an encoder: what its last block says of each token (B, T, D)."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.decoder.hidden(ids, mask)


BODIES = ("encoder", "forwards", "both ways")


def new_student(vocab_size: int, seed: int, classes: int = 2, body: str = "encoder") -> Classifier:
    """A small untrained network with a head: an encoder, or a decoder's blocks.

    "forwards": a token sees those before it. "both ways": the same network, and all are seen.
    """
    if body not in BODIES:
        raise ValueError(f"body is {body!r}; it must be one of {', '.join(BODIES)}")
    torch.manual_seed(seed)
    if body == "encoder":
        config = EncoderConfig(vocab_size, 64, 4, 1, 256, max_positions=LONGEST, dropout=0.1)
        return Classifier(Encoder(config), 64, classes)
    causal = body == "forwards"
    config = DecoderConfig(vocab_size, 64, 4, 1, 160, max_positions=LONGEST, causal=causal)
    return Classifier(Reader(Decoder(config)), 64, classes)


class Taught(NamedTuple):
    """Rows of ids, and what is to be learned of each: labels (N,), or a teacher's logits (N, C), or
    with `inside` its vectors (N, D).
    """

    ids: list[list[int]]
    target: Tensor
    inside: bool = False

    @property
    def hard(self) -> bool:
        return self.target.dim() == 1


def padded(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """ids and mask (B, T) of rows of different lengths."""
    batch = pad([Example(row, row) for row in rows])
    return batch.ids, batch.mask


def of_like_length(rows: Sequence[list[int]], size: int, seed: int) -> Iterator[list[int]]:
    """For ever: positions of `size` rows of like length, in another order an epoch."""
    groups = training.batches_by_length([len(row) for row in rows], size)
    return (group for (group,) in training.shuffled_batches(groups, 1, seed))


def loss_of(
    model: Classifier, part: Taught, chosen: list[int], temperature: float, projection: nn.Module
) -> Tensor:
    """Cross-entropy of labels, the distillation loss of logits, or 1 − cosine of vectors."""
    device = next(model.parameters()).device
    ids, mask = padded([part.ids[i] for i in chosen])
    ids, mask, target = (x.to(device) for x in (ids, mask, part.target[chosen]))
    if part.inside:
        return kd.cosine_loss(projection(model.pool(model.encoder(ids, mask), mask)), target)
    logits = model(ids, mask)
    if part.hard:
        return F.cross_entropy(logits, target)
    return kd.distillation_loss(logits, target, temperature)


def teach(
    model: Classifier,
    parts: Sequence[Taught],
    steps: int,
    seed: int,
    *,
    temperature: float = 2.0,
    lr: float = 2e-3,
    size: int = 32,
    label: str = "student",
) -> training.History:
    """Train on all parts at once, `size` rows of like length of each a step; losses are added up.

    For a teacher's vectors a projection is trained beside the student, and thrown away.
    """
    wide = max((part.target.shape[1] for part in parts if part.inside), default=1)
    torch.manual_seed(seed)
    projection = nn.Linear(model.head.in_features, wide).to(model.head.weight.device)
    learned = [*model.parameters(), *projection.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=lr, weight_decay=0.01)

    def loss(chosen: tuple[list[int], ...]) -> Tensor:
        each = [
            loss_of(model, part, at, temperature, projection)
            for part, at in zip(parts, chosen, strict=True)
        ]
        return torch.stack(each).sum()

    batches = zip(*(of_like_length(part.ids, size, seed) for part in parts), strict=True)
    torch.manual_seed(seed)  # dropout
    model.train()
    schedule = training.warm_up_and_decay(optimizer, steps)
    options = dict(steps=steps, max_norm=1.0, scheduler=schedule, label=label)
    history = training.train(loss, batches, optimizer, **options)
    model.eval()
    return history


@torch.no_grad()
def logits_of(model: Classifier, ids: Sequence[list[int]], size: int = 128) -> Tensor:
    """A student's answers (N, C), in eval mode."""
    device, found = next(model.parameters()).device, []
    for first in range(0, len(ids), size):
        rows, mask = padded(ids[first : first + size])
        found.append(model(rows.to(device), mask.to(device)).cpu())
    return torch.cat(found)


ENCODER_ARMS = ("alone", "its own", "dealt out", "vectors", "hard", "soft")


def lessons(
    arm: str,
    labelled: Taught,
    unlabelled: Sequence[list[int]],
    teacher: Tensor,
    seed: int,
    own: Tensor | None = None,
    vectors: Tensor | None = None,
) -> list[Taught]:
    """What a student of an arm learns from; `teacher` (N, C) are logits on the unlabelled texts.

    "alone": its labels. "soft", "hard": the teacher's logits or labels as well. "dealt out": the
    teacher's logits, but of other texts. "its own": labels by `own` (N, C), what a student that
    learned alone says. "vectors": the directions of the teacher's `vectors` (N, D).
    """
    if arm not in ENCODER_ARMS:
        raise ValueError(f"arm is {arm!r}; it must be one of {', '.join(ENCODER_ARMS)}")
    if arm == "alone":
        return [labelled]
    order = torch.randperm(len(teacher), generator=torch.Generator().manual_seed(seed))
    target = {
        "soft": lambda: teacher,
        "hard": lambda: kd.pseudo_labels(teacher)[0],
        "dealt out": lambda: teacher[order],
        "its own": lambda: kd.pseudo_labels(own)[0],
        "vectors": lambda: vectors,
    }[arm]()
    return [labelled, Taught(list(unlabelled), target, inside=arm == "vectors")]


# ── decoders ──────────────────────────────────────────────────────────────────────────────────────


def new_decoder(vocab_size: int, width: int, layers: int, seed: int) -> Decoder:
    """An untrained decoder with four heads."""
    torch.manual_seed(seed)
    d_ff = 32 * round(8 * width / 3 / 32)
    return Decoder(DecoderConfig(vocab_size, width, 4, layers, d_ff, max_positions=256))


def small_decoder(vocab_size: int, seed: int) -> Decoder:
    """A student: half as wide as the teacher, and two blocks."""
    return new_decoder(vocab_size, 64, 2, seed)


DECODER_ARMS = ("plain", "smoothed", "dealt out", "drawn", "taught")


def decoder_loss(
    arm: str,
    student: Decoder,
    teacher: Decoder | None,
    ids: Tensor,
    draw: torch.Generator,
    temperature: float = 1.0,
) -> Tensor:
    """The loss of a student of an arm on ids (B, T).

    "plain": the next tokens. "smoothed": these with 0.9, and 0.1 dealt evenly to all. "taught": the
    teacher's whole answer at each place. "drawn": one token a place, drawn from that answer. "dealt
    out": what the teacher says of another text.
    """
    if arm not in DECODER_ARMS:
        raise ValueError(f"arm is {arm!r}; it must be one of {', '.join(DECODER_ARMS)}")
    if arm == "plain":
        return kd.sequence_loss(student, ids, n_prompt=1)
    if arm == "taught":
        return kd.token_loss(student, teacher, ids, 1, temperature)
    if arm == "dealt out":
        return kd.token_loss(student, lambda x: teacher(x.roll(1, dims=0)), ids, 1, temperature)
    logits, target = student(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    if arm == "smoothed":
        return F.cross_entropy(logits, target, label_smoothing=0.1)
    return F.cross_entropy(logits, drawn_tokens(teacher, ids, draw))


@torch.no_grad()
def drawn_tokens(teacher: Decoder, ids: Tensor, draw: torch.Generator) -> Tensor:
    """A next token for each place of ids (B, T), drawn from the teacher's answer: (B·(T − 1),)."""
    p = teacher(ids)[:, :-1].flatten(0, 1).softmax(dim=-1)
    return torch.multinomial(p.cpu(), 1, generator=draw).squeeze(1).to(ids.device)


def teach_decoder(
    model: Decoder,
    rows: Tensor,
    steps: int,
    seed: int,
    *,
    arm: str = "plain",
    teacher: Decoder | None = None,
    temperature: float = 1.0,
    lr: float = 4e-3,
    size: int = 4,
    label: str = "",
) -> training.History:
    """Train on rows (N, T), `size` of them a step, as `decoder_loss` says of the arm."""
    device, draw = next(model.parameters()).device, torch.Generator().manual_seed(seed)
    optimizer, schedule = adamw_with_cosine(model, steps, lr=lr)

    def loss(batch: Tensor) -> Tensor:
        return decoder_loss(arm, model, teacher, batch.to(device), draw, temperature)

    batches = (batch_at(rows, size, seed, step) for step in range(steps))
    options = dict(steps=steps, max_norm=1.0, scheduler=schedule, label=label or arm)
    model.train()
    history = training.train(loss, batches, optimizer, **options)
    model.eval()
    return history


def some_of(rows: Tensor, n_tokens: int, seed: int) -> Tensor:
    """Rows of n_tokens or a little less, drawn by seed; of 0 tokens, all rows."""
    if n_tokens == 0:
        return rows
    n = max(1, n_tokens // rows.shape[1])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:n]]


@torch.no_grad()
def share_right(model: Decoder, rows: Tensor, size: int = 16) -> float:
    """How many of the next tokens of rows (N, T) are the likeliest one to the model."""
    device, right = next(model.parameters()).device, 0
    for batch in rows.split(size):
        said = model(batch.to(device))[:, :-1].argmax(dim=-1).cpu()
        right += (said == batch[:, 1:]).sum().item()
    return right / rows[:, 1:].numel()


# ── the grid ──────────────────────────────────────────────────────────────────────────────────────


class Row(NamedTuple):
    """One student: its kind, what it learned from, and how well it does.

    `kind` is "encoder" (two classes of tweets), "five" (five classes), "forwards" and "both ways"
    (two classes, another network), or "decoder". `data` counts labels or tokens, 0 is all plays.
    `right` is the share of right answers and `nats` what the right one costs, on exam tweets or for
    the next tokens of test plays; so for its teacher.
    """

    kind: str
    arm: str
    data: int
    steps: int
    temperature: float
    seed: int
    right: float
    nats: float
    teacher_right: float
    teacher_nats: float
    seconds: float


Cell = tuple[str, str, int, int, float, int]  # the columns of a row up to its seed
TWO, ONE = 2.0, 1.0  # the temperatures of tweets and of plays, but where others are tried


def encoder_plan(budget: SimpleNamespace, seed: int, first: bool) -> list[Cell]:
    """The encoder students of one seed; a student that learns from its own follows that alone.

    The first seed tries other temperatures as well.
    """
    few, middle, _ = budget.labels
    cells = [
        ("encoder", arm, n, TWO)
        for n in budget.labels
        for arm in ENCODER_ARMS
        if n == few or arm not in ("dealt out", "vectors")
    ]
    cells += [("five", arm, middle, TWO) for arm in ("alone", "hard", "soft")]
    cells += [(body, arm, few, TWO) for body in BODIES[1:] for arm in ("alone", "soft")]
    cells += [("encoder", "soft", few, T) for T in (1.0, 4.0) if first]
    return [(kind, arm, n, budget.steps, T, seed) for kind, arm, n, T in cells]


def whole_bill(
    budget: SimpleNamespace, price: dict[str, float], steps: int, students: int = 1
) -> int:
    """Plain steps that take as long as `steps` with the teacher and the teacher's own training.

    `price` has "dearer" and "own", as from `prices`. Several students share the latter.
    """
    return round(budget.teacher * price["own"] / students + steps * price["dearer"])


def decoder_plan(
    budget: SimpleNamespace, seed: int, number: int, price: dict[str, float]
) -> list[Cell]:
    """The decoder students of one seed, the `number`-th from 0.

    Plain students learn a quarter, half, as many and `dearer` times as many steps as taught ones;
    `price` as from `prices`. With all plays there are students of four times the length, for the
    first seeds, and plain ones that learn as long as those and their teacher, or a share of it.
    """
    steps, dearer = budget.decoder_steps, price["dearer"]
    lengths = (steps // 4, steps // 2, steps, round(steps * dearer))
    cells = []
    for data in budget.tokens:
        cells += [("plain", data, n, ONE) for n in lengths] + [("taught", data, steps, ONE)]
        if data in (budget.tokens[0], budget.tokens[-1]):
            cells += [(arm, data, steps, ONE) for arm in ("drawn", "smoothed", "dealt out")]
            cells += [("taught", data, steps, T) for T in (2.0, 4.0) if number == 0]
    if number < budget.long_seeds:
        cells += [("plain", 0, n, ONE) for n in (4 * steps, round(4 * steps * dearer))]
        cells += [("taught", 0, 4 * steps, ONE)]
        bills = (whole_bill(budget, price, 4 * steps, students) for students in SHARED_BY)
        cells += [("plain", 0, n, ONE) for n in bills]
    return [("decoder", arm, data, n, T, seed) for arm, data, n, T in cells]


class Tutor:
    """The encoders' teacher and what it says of one seed's tweets; `row` makes a student's row."""

    def __init__(self, encoder: Encoder, words: Callable, budget: SimpleNamespace, seed: int):
        self.encoder, self.words, self.budget, self.seed = encoder, words, budget, seed
        self.known: dict[int, tuple] = {}  # by classes: ids, vectors, labels, truth, vocabulary
        self.own: dict[int, Tensor] = {}  # by labels: what the student says that learned alone

    def tweets(self, classes: int) -> tuple:
        if classes not in self.known:
            most = max(self.budget.labels)
            drawn = load_tweets(most, self.budget.unlabelled, self.seed, classes)
            texts = {name: [t.text for t in getattr(drawn, name)] for name in drawn._fields}
            vectors = {name: vectors_of(self.encoder, self.words, of) for name, of in texts.items()}
            names = Words(self.words, texts["labelled"] + texts["unlabelled"])
            ids = {name: names(of) for name, of in texts.items()}
            labels, truth = (labels_of(part, classes) for part in (drawn.labelled, drawn.test))
            self.known[classes] = ids, vectors, labels, truth, len(names)
        return self.known[classes]

    def row(self, cell: Cell) -> Row:
        """Train and examine the student of a cell."""
        kind, arm, n, steps, temperature, seed = cell
        classes = 5 if kind == "five" else 2
        ids, vectors, labels, truth, size = self.tweets(classes)
        head = ratings.logistic(vectors["labelled"][:n], labels[:n], classes)
        parts = lessons(
            arm,
            Taught(ids["labelled"][:n], labels[:n]),
            ids["unlabelled"],
            head(vectors["unlabelled"]),
            seed,
            own=self.own.get(n),
            vectors=vectors["unlabelled"],
        )
        student = new_student(size, seed, classes, kind if kind in BODIES else "encoder")
        student = student.to(next(self.encoder.parameters()).device)
        label = f"{kind}, {arm}, {n} labels, seed {seed}"
        history = teach(student, parts, steps, seed, temperature=temperature, label=label)
        if (kind, arm) == ("encoder", "alone"):
            self.own[n] = logits_of(student, ids["unlabelled"])
        grades = graded(logits_of(student, ids["test"]), truth)
        return Row(*cell, *grades, *graded(head(vectors["test"]), truth), history.seconds)


def decoder_row(cell: Cell, teacher: Decoder, rows: Tensor, test: Tensor, reached: tuple) -> Row:
    """Train and examine the decoder student of a cell; `reached` are its teacher's grades."""
    _, arm, data, steps, temperature, seed = cell
    student = small_decoder(teacher.config.vocab_size, seed)
    student = student.to(next(teacher.parameters()).device)
    history = teach_decoder(
        student,
        some_of(rows, data, seed),
        steps,
        seed,
        arm=arm,
        teacher=teacher,
        temperature=temperature,
        label=f"{arm}, {data:,} tokens, seed {seed}",
    )
    return Row(*cell, *examined(student, test), *reached, history.seconds)


def examined(model: Decoder, rows: Tensor) -> tuple[float, float]:
    """The share of next tokens that a decoder gets right, and their mean nats."""
    return share_right(model, rows), fmean(nats_of_rows(model, rows))


# ── the teacher, and all of it ────────────────────────────────────────────────────────────────────


def pieces(bpe: Tokenizer, n_test: int) -> tuple[Tensor, Tensor]:
    """Rows of the plays that are learned from, and `n_test` spread over the test plays.

    The split is the same for all seeds: the teacher has read the plays of one.
    """
    plays = replies.load_plays(0)
    rows, test = (
        corpus.packed(bpe, plays.of(part), LENGTH, chat.END) for part in ("train", "test")
    )
    return rows, corpus.spread_out(test, n_test)


def make_teacher(folder: Path, budget: SimpleNamespace, device: torch.device | str) -> None:
    """Train the decoders' teacher, and store its weights, its tokens and what was measured."""
    from safetensors.torch import save_file

    begun = time.perf_counter()
    bpe = tokenizer.train(replies.load_plays(0).of("train"), 1000, specials=chat.SPECIALS)
    rows, test = pieces(bpe, budget.rows)
    model = new_decoder(len(bpe), budget.width, budget.layers, seed=0).to(device)
    options = dict(
        steps=budget.teacher, batch_size=budget.batch, warmup=min(100, budget.teacher - 1)
    )
    Pretraining(model, rows, **options).train(label="the teacher")
    seconds = time.perf_counter() - begun
    tensors = {name: p.detach().half().cpu().contiguous() for name, p in model.named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    tokenizer_files.save(bpe, folder / TOKENS)
    nats = nats_of_rows(model, test)
    facts = {
        "weights": sum(p.numel() for p in model.parameters()),
        "width": budget.width,
        "layers": budget.layers,
        "bits": round(bits_of(nats, bpe, test), 3),
        **prices(model, rows, budget.batch),
        "seconds": round(seconds, 1),
    }
    (folder / TEACHER).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def prices(teacher: Decoder, rows: Tensor, size: int, repeats: int = 40) -> dict[str, float]:
    """Plain steps of a student that take as long as others do, to a tenth.

    "dearer": a student's step with the teacher. "own": a step of the teacher's own training.
    """
    device, config = next(teacher.parameters()).device, teacher.config
    ids, draw = rows[:size].to(device), torch.Generator()

    def step_of(model: Decoder, arm: str) -> Callable[[], None]:
        model = model.to(device)
        optimizer, _ = adamw_with_cosine(model, 1, lr=0.0)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            decoder_loss(arm, model, teacher, ids, draw).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return step

    untaught = new_decoder(config.vocab_size, config.d_model, config.n_layers, 0)
    students = {arm: small_decoder(config.vocab_size, 0) for arm in ("plain", "taught")}
    calls = {arm: step_of(student, arm) for arm, student in students.items()}
    calls["own"] = step_of(untaught, "plain")
    spent = {name: median(s) for name, s in seconds_in_turns(calls, repeats, warmup=3).items()}
    of = {"dearer": "taught", "own": "own"}
    return {name: round(spent[call] / spent["plain"], 1) for name, call in of.items()}


def train(profile: str = "cpu", seed: int = 0, out: Path | None = None) -> Path:
    """Compute what is not yet stored, write weights, rows and card; return their folder."""
    budget, device = budget_for(profile), device_for(profile)
    torch.set_num_threads(threads())
    facts = stored.facts_now(profile, seed, device, **vars(budget))
    grid = stored.Grid(NAME, Row, facts, out)
    if not (grid.folder / TEACHER).is_file():
        make_teacher(grid.folder, budget, device)
    for row in rows_of(grid.folder, budget, seed, device, tuple(grid.rows)):
        grid.add(row)
    made = teacher_facts(grid.folder)
    seconds = made.pop("seconds") + sum(row.seconds for row in grid.rows)
    return grid.finish(CARD, seconds=seconds, **made)


def rows_of(
    folder: Path,
    budget: SimpleNamespace,
    seed: int,
    device: torch.device | str,
    done: Sequence[Row],
) -> Iterator[Row]:
    """All rows but those that are done, seed after seed."""
    known = {row[:6] for row in done}
    teacher, bpe = load(folder)
    teacher, price = teacher.to(device), teacher_facts(folder)
    plays, test = pieces(bpe, budget.rows)
    reached = examined(teacher, test)
    encoder, words = sentence_vectors.load(device=device)
    for number in range(budget.seeds):
        cells = decoder_plan(budget, seed + number, number, price)
        for cell in cells:
            if cell not in known:
                yield decoder_row(cell, teacher, plays, test, reached)
        tutor = Tutor(encoder, words, budget, seed + number)
        cells = encoder_plan(budget, seed + number, first=number == 0)
        if not set(cells) <= known:
            for cell in cells:
                if cell not in known:
                    yield tutor.row(cell)
                elif cell[1] == "alone":
                    tutor.row(cell)  # for what learns from its own labels


# ── what is stored ────────────────────────────────────────────────────────────────────────────────


def runs(folder: Path | None = None) -> list[Row]:
    """The rows of the stored grid. AssetError when it is not there."""
    return stored.read_rows(folder or stored.folder_of(NAME), Row)


def teacher_facts(folder: Path | None = None) -> dict[str, Any]:
    """How the decoders' teacher was made, and what a step with it costs."""
    folder = folder or models.checkpoint_folder(NAME)
    return json.loads((folder / TEACHER).read_text(encoding="utf-8"))


def load(folder: Path | None = None) -> tuple[Decoder, Tokenizer]:
    """The stored teacher (eval mode, no gradients, float32) and its tokenizer."""
    from safetensors.torch import load_file

    folder = folder or models.checkpoint_folder(NAME)
    bpe, facts = tokenizer_files.load(folder / TOKENS), teacher_facts(folder)
    model = new_decoder(len(bpe), facts["width"], facts["layers"], seed=0)
    names = {name: name for name, _ in model.named_parameters()}
    copy_weights(model, load_file(folder / WEIGHTS), names, NAME)
    return model.eval().requires_grad_(False), bpe
