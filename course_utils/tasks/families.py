"""From spelling to sound, put to each family of transformers. Notebook 03.

The encoder fills in places, all at once; the others are given letters and `<s>`, and write sound by
sound. Shapes: B words, S letters, P places, T sounds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils import training
from course_utils.architectures.decoder import DecoderConfig
from course_utils.architectures.families import Stacks
from course_utils.architectures.objectives import IGNORED, label_loss
from course_utils.architectures.onednn import use_onednn
from course_utils.inference.decoding import greedy
from course_utils.metrics import edit_distance
from course_utils.tasks import pronunciation
from course_utils.tasks.pronunciation import PAD, START, STOP, SYMBOLS, Batch, Entry, Write

MASK = len(SYMBOLS)  # one symbol more: a place to be filled in
LONGER = 2  # a few words have more sounds than letters


class Family(NamedTuple):
    """How a family is built, and how it is put to work."""

    fills_in: bool = False  # all places at once, else sound by sound
    sees_letters_both_ways: bool = True
    two_stacks: bool = False
    rotary: bool = True


FAMILIES = {
    "encoder": Family(fills_in=True),
    "decoder": Family(sees_letters_both_ways=False),
    "prefix LM": Family(),
    "encoder–decoder": Family(two_stacks=True),
}


def build(family: Family, d_model: int, seed: int) -> Stacks:
    """The untrained network; with one seed, the same numbers in every family."""
    config = DecoderConfig(
        vocab_size=len(SYMBOLS) + 1, d_model=d_model, n_heads=4, n_layers=4, d_ff=5 * d_model // 2
    )
    torch.manual_seed(seed)
    return Stacks(config, two=family.two_stacks, rotary=family.rotary)


# ── the task as a sequence, and as places ───────────────────────────────────────────────────────


def right_aligned(source: Tensor) -> Tensor:
    """Padding moved to the left, so that what follows the word stands beside it: (B, S) -> (B, S).

    >>> right_aligned(torch.tensor([[5, 6, PAD]])).tolist()
    [[0, 5, 6]]
    """
    return source.gather(1, (source != PAD).long().argsort(dim=1, stable=True))


def places(source: Tensor, n: int) -> Tensor:
    """The letters, then masks up to place n: (B, S) -> (B, n)."""
    ids = F.pad(source, (0, n - source.shape[1]), value=PAD)
    return ids.masked_fill(ids == PAD, MASK)


def loss_of(family: Family, net: Stacks, batch: Batch, n_places: int) -> Tensor:
    """Mean cross-entropy in nats per sound to be said, `</s>` among them."""
    if family.fills_in:
        labels = F.pad(batch.labels, (0, n_places), value=IGNORED)[:, :n_places]
        ids = places(batch.source, n_places)
        return label_loss(net(ids, n_places), labels.masked_fill(labels == IGNORED, STOP))
    letters = batch.source.shape[1]
    ids = torch.cat([right_aligned(batch.source), batch.target_in], dim=1)  # (B, S + T)
    n_prefix = letters if family.sees_letters_both_ways else 0
    return label_loss(net(ids, n_prefix, ids != PAD)[:, letters:], batch.labels)


def writer(family: Family, net: Stacks, n_places: int) -> Write:
    """How the trained network transcribes words, as `pronunciation.score` takes it."""
    device = next(net.parameters()).device

    @torch.inference_mode()
    def fill(source: Tensor, mask: Tensor) -> list[list[int]]:
        ids = places(source.to(device), n_places)
        rows = net(ids, n_places).argmax(-1).tolist()
        return [row[: row.index(STOP)] if STOP in row else row for row in rows]

    def write(source: Tensor, mask: Tensor) -> list[list[int]]:
        letters = source.shape[1]
        n_prefix = letters if family.sees_letters_both_ways else 0

        @torch.inference_mode()
        def next_logits(ids: Tensor) -> Tensor:
            real = ids != PAD
            real[:, letters:] = True  # whatever was written counts as written
            return net(ids, n_prefix, real)[:, -1].clone()

        ids = F.pad(right_aligned(source), (0, 1), value=START).to(device)
        written = greedy(next_logits, ids, 2 * n_places, stop=[STOP])
        return pronunciation.without_stop(written)

    return fill if family.fills_in else write


# ── training and scoring ────────────────────────────────────────────────────────────────────────


def fit(
    net: torch.nn.Module,
    loss: Callable,
    batches: object,
    *,
    steps: int,
    lr: float,
    label: str,
) -> training.History:
    """AdamW, with a learning rate that rises for a fifth of the steps and then falls to 0."""
    use_onednn(net)  # the same products, quicker on some processors
    optimizer = torch.optim.AdamW(net.parameters(), lr, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    options = {"steps": steps, "max_norm": 1.0, "scheduler": schedule, "label": label}
    return training.train(loss, batches, optimizer, **options)


def learn(
    name: str, family: Family, train: Sequence[Entry], *, d_model: int, steps: int, seed: int,
    n_places: int, device: torch.device | str = "cpu",
) -> tuple[Stacks, training.History]:  # fmt: skip
    """Build and train one network; with one seed all families see the same words in one order."""
    net = build(family, d_model, seed).to(device)
    epochs = training.cycle(lambda: pronunciation.batches(train, 64, seed=seed))
    batches = (Batch(*(tensor.to(device) for tensor in batch)) for batch in epochs)

    def loss(batch: Batch) -> Tensor:
        return loss_of(family, net, batch, n_places)

    history = fit(net, loss, batches, steps=steps, lr=6e-3, label=name)
    return net.eval(), history


def wrong(write: Write, words: Sequence[Entry]) -> list[tuple[int, int]]:
    """Of each word, edits to the nearest pronunciation, and that one's sounds."""
    said = pronunciation.transcribe(write, [entry.word for entry in words])
    return [
        min((edit_distance(sounds, right), len(right)) for right in entry.pronunciations)
        for sounds, entry in zip(said, words, strict=True)
    ]


def by_frequency(train: Sequence[Entry], n_places: int = 0) -> float:
    """Loss in nats of guessing by how often each sound is asked for, where letters are not read.

    Those that write are asked for the sounds and one `</s>`; the encoder, to which `n_places`
    belongs, has `</s>` asked at every place left.

    >>> be, bee = Entry("be", (("B", "IY"),)), Entry("bee", (("B", "IY"),))
    >>> round(by_frequency([be, bee]), 4), round(math.log(3), 4)  # B, IY and </s>, equally often
    (1.0986, 1.0986)
    >>> round(by_frequency([be, bee], n_places=200), 4)  # almost nothing but </s>
    0.0629
    """
    counts: Counter[int] = Counter()
    for _, sounds in pronunciation.pairs_of(train):
        asked = [*sounds, *[STOP] * max(1, n_places - len(sounds))]
        counts.update(asked[:n_places] if n_places else asked)
    total = counts.total()
    return -sum(n / total * math.log(n / total) for n in counts.values())


def letter_by_letter(train: Sequence[Entry]) -> Write:
    """The dumb baseline: each letter's most frequent sound, from words with as many of both."""
    counts = torch.zeros(len(SYMBOLS), len(SYMBOLS))
    for spelled, spoken in pronunciation.pairs_of(train):
        if len(spelled) == len(spoken):
            counts[spelled, spoken] += 1
    likeliest = counts.argmax(1)

    def write(source: Tensor, mask: Tensor) -> list[list[int]]:
        return [likeliest[row[row != PAD]].tolist() for row in source.cpu()]

    return write
