"""Pre-training a decoder: one loop that can stop and go on, and its score. Notebook 00.

The steps are those of `course_utils.training`; here stands what pre-training adds: the schedule,
what decays, which batch comes when, bits per byte. Shapes: N rows of T tokens, B of them a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from course_utils.architectures.objectives import next_token_loss
from course_utils.building.preference import token_logprobs
from course_utils.training import History, train

if TYPE_CHECKING:
    from course_utils.building.tokenizer import Tokenizer

# ── the schedule and the groups ───────────────────────────────────────────────────────────────────


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.1) -> float:
    """The share of the learning rate at a step, from 0 on: up in a line, then down half a cosine.

    It reaches 1 at `warmup` and `floor` at `steps`. Loshchilov & Hutter 2017 (cosine); Goyal et al.
    2017, §2.2 (warm-up). ValueError unless 0 ≤ warmup < steps.

    >>> [round(warmup_cosine(step, steps=8, warmup=4, floor=0), 2) for step in (0, 2, 4, 6, 8)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup is {warmup} of {steps} steps; it is at least 0 and below them")
    if step < warmup:
        return step / warmup
    done = min((step - warmup) / (steps - warmup), 1)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW: matrices shrink by `weight_decay`, norms and biases do not.

    A gain pulled towards 0 would silence its layer. As GPT-3 and Llama are trained (Brown et al.
    2020, appendix B; in this form, Karpathy 2023, nanoGPT). Tied weights come once.

    >>> groups = decay_groups(nn.Linear(3, 2), weight_decay=0.1)
    >>> [(group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in groups]
    [(0.1, [(2, 3)]), (0.0, [(2,)])]
    """
    learned = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learned if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learned if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw_with_cosine(
    model: nn.Module, steps: int, *, lr: float, warmup: int = 20, weight_decay: float = 0.1
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW of `decay_groups`, β = (0.9, 0.95), and its `warmup_cosine` over `steps` steps.

    Where steps are few, the warm-up ends a step before they do. ValueError for fewer than one.

    >>> optimizer, schedule = adamw_with_cosine(nn.Linear(3, 2), steps=4, lr=1.0, warmup=2)
    >>> schedule.get_last_lr()  # of both groups; the first step does not stand still
    [0.5, 0.5]
    """
    warmup = min(warmup, steps - 1)
    warmup_cosine(0, steps, warmup)
    groups = decay_groups(model, weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step + 1, steps + 1, warmup)
    )


def batch_at(rows: Tensor, size: int, seed: int, step: int) -> Tensor:
    """The batch (B, T) of a step: every pass over rows (N, T) has its own order, drawn from `seed`.

    It depends on nothing that went before, so a run that goes on reads what it would have read.
    What does not fill a batch is left out of a pass. ValueError for more than N rows in a batch.

    >>> rows = torch.arange(4).unsqueeze(1)
    >>> first_pass = [batch_at(rows, 2, seed=0, step=step) for step in (0, 1)]
    >>> sorted(torch.cat(first_pass).flatten().tolist())
    [0, 1, 2, 3]
    """
    if not 1 <= size <= len(rows):
        raise ValueError(f"size is {size}; a batch holds from 1 to all {len(rows)} rows")
    epoch, at = divmod(step, len(rows) // size)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + 7919 * epoch))
    return rows[order[at * size : (at + 1) * size]]


# ── the run ───────────────────────────────────────────────────────────────────────────────────────


class Pretraining:
    """A run of `steps` AdamW steps that can be left, saved, and gone on with, to the same bits.

    rows (N, T) as from `corpus.pack`. With `bf16` the forward pass is in bfloat16 where that is
    safe and the weights stay float32: for a GPU, where it is faster. ValueError for settings that
    do not fit together.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Tensor,
        *,
        steps: int,
        batch_size: int = 8,
        lr: float = 3e-3,
        warmup: int = 20,
        weight_decay: float = 0.1,
        max_norm: float = 1.0,
        seed: int = 0,
        bf16: bool = False,
    ) -> None:
        warmup_cosine(0, steps, warmup)
        batch_at(rows, batch_size, seed, 0)
        self.model, self.rows, self.steps = model, rows, steps
        self.batch_size, self.max_norm, self.seed, self.bf16 = batch_size, max_norm, seed, bf16
        self.settings = dict(steps=steps, batch_size=batch_size, lr=lr, warmup=warmup)
        self.settings |= dict(weight_decay=weight_decay, max_norm=max_norm, seed=seed, bf16=bf16)
        self.settings |= dict(rows=list(rows.shape))
        self.optimizer, self.scheduler = adamw_with_cosine(
            model, steps, lr=lr, warmup=warmup, weight_decay=weight_decay
        )
        self.done = 0

    def loss(self, batch: Tensor) -> Tensor:
        """Nats per token of a batch (B, T)."""
        device = next(self.model.parameters()).device
        batch = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.model(batch)
        return next_token_loss(logits, batch)

    def batches(self) -> Iterator[Tensor]:
        """The batches that are still to come."""
        for step in range(self.done, self.steps):
            yield batch_at(self.rows, self.batch_size, self.seed, step)

    def train(self, steps: int | None = None, *, label: str = "pre-training") -> History:
        """Take the next `steps` steps, all that are left if None; see `training.train`."""
        left = self.steps - self.done
        wanted = left if steps is None else steps
        if not 1 <= wanted <= left:
            raise ValueError(f"{wanted} steps are asked for; {left} of {self.steps} are left")
        self.model.train()
        history = train(
            self.loss,
            self.batches(),
            self.optimizer,
            steps=wanted,
            max_norm=self.max_norm,
            scheduler=self.scheduler,
            label=label,
        )
        self.done += wanted
        return history

    def save(self, path: str | Path) -> None:
        """Write all that going on needs: weights, both moments of Adam, the schedule, the step."""
        state = {name: getattr(self, name).state_dict() for name in STATEFUL}
        torch.save({**state, "done": self.done, "settings": self.settings}, path)

    def resume(self, path: str | Path) -> None:
        """Take over what `save` wrote; ValueError where it was a run with other settings."""
        state = torch.load(path, weights_only=True, map_location="cpu")
        other = [k for k, v in self.settings.items() if state["settings"].get(k) != v]
        if other:
            k = other[0]
            raise ValueError(
                f"{k} is {self.settings[k]} here, {state['settings'].get(k)} in {Path(path).name}; "
                "go on with the settings the run began with"
            )
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.done = state["done"]


STATEFUL = ("model", "optimizer", "scheduler")


# ── the score ─────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def nats_of_rows(model: nn.Module, rows: Tensor, batch_size: int = 16) -> list[float]:
    """Of each row of ids (N, T) the mean nats of its tokens but the first: N numbers.

    ValueError where there is no row, or nothing to guess in it.

    >>> alike = nn.Embedding.from_pretrained(torch.zeros(4, 4))  # four tokens, all as likely
    >>> found = nats_of_rows(alike, torch.tensor([[0, 1, 2], [3, 2, 1]]))
    >>> [round(nats, 4) for nats in found]  # ln 4
    [1.3863, 1.3863]
    """
    if rows.dim() != 2 or rows.shape[0] == 0 or rows.shape[1] < 2:
        raise ValueError(f"rows are {tuple(rows.shape)}; give at least one of at least 2 tokens")
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    found: list[float] = []
    for batch in rows.split(batch_size):
        batch = batch.to(device)
        found += (-token_logprobs(model(batch), batch).mean(dim=1)).tolist()
    model.train(was_training)
    return found


def nats_per_token(model: nn.Module, rows: Tensor, batch_size: int = 16) -> float:
    """Mean cross-entropy in nats of each token of rows (N, T) but the first of each row."""
    return math.fsum(nats_of_rows(model, rows, batch_size)) / len(rows)


def bits_per_byte(nats: float, n_tokens: int, n_bytes: int) -> float:
    """Nats per token as bits per byte of the text, in which all tokenizers can be compared.

    A tokenizer with longer tokens has fewer and dearer ones: nats per token cannot be compared, nor
    perplexities. Gao et al. 2020 (The Pile), §3.1. ValueError for no bytes or no tokens.

    >>> round(bits_per_byte(math.log(4), n_tokens=10, n_bytes=25), 6)  # 2 bits for 2.5 bytes
    0.8
    """
    if n_tokens < 1 or n_bytes < 1:
        raise ValueError(f"{n_tokens} tokens of {n_bytes} bytes; score at least one of each")
    return nats * n_tokens / (math.log(2) * n_bytes)


def bytes_of(tokenizer: Tokenizer, rows: Tensor) -> int:
    """Bytes of text in the scored tokens of rows (N, T), all but each row's first.

    Special tokens are no text and count none.

    >>> from course_utils.building import tokenizer
    >>> small = tokenizer.train(["low low"], 1, specials=["<end>"])  # merges l and o
    >>> bytes_of(small, torch.tensor([[*small.encode("x low"), 0]]))  # " ", "lo", "w", the end
    4
    """
    scored = rows[:, 1:].flatten().tolist()
    return len(tokenizer.decode_bytes(scored, specials=False))


def bits_of(nats: Sequence[float], tokenizer: Tokenizer, rows: Tensor) -> float:
    """Bits per byte of rows (N, T), from what `nats_of_rows` says of them.

    ValueError where there is not a number for each row.

    >>> from course_utils.building import tokenizer
    >>> small = tokenizer.train(["low low"], 1)
    >>> rows = torch.tensor([small.encode("x low")])  # "x", then " ", "lo", "w": 3 tokens, 4 bytes
    >>> round(bits_of([math.log(16)], small, rows), 6)  # 3 · 4 bits / 4
    3.0
    """
    if len(nats) != len(rows):
        raise ValueError(f"{len(nats)} numbers for {len(rows)} rows; give one for each")
    mean = math.fsum(nats) / len(rows)
    return bits_per_byte(mean, rows[:, 1:].numel(), bytes_of(tokenizer, rows))
