"""Transfer learning: what learns, how fast, and from which tokens. Notebook 06.

Freezing and rates by layer (Howard & Ruder 2018, ULMFiT), a classification head, and instructions
of which the answer alone counts. Shapes: B texts of T tokens, D = d_model, V = vocab_size. Labels
are −100 where no loss is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.architectures.encoder import mean_pool
from course_utils.architectures.layers import check_positive
from course_utils.architectures.objectives import IGNORED, label_loss

# ── what learns, and how fast ─────────────────────────────────────────────────────────────────────


def freeze(module: nn.Module) -> int:
    """No parameter of the module learns any more; returns how many numbers that are.

    >>> freeze(nn.Linear(3, 2))
    8
    """
    module.requires_grad_(False)
    return sum(p.numel() for p in module.parameters())


def train_last(model: nn.Module, blocks: Sequence[nn.Module], k: int) -> int:
    """Freeze a model but for the last k of its blocks; returns how many numbers learn.

    What stands behind the blocks (a norm, a head) stays frozen too: `requires_grad_()` it.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    >>> train_last(net, net, k=2)
    12
    """
    if not 0 <= k <= len(blocks):
        raise ValueError(f"k is {k}; there are {len(blocks)} blocks")
    freeze(model)
    for block in list(blocks)[len(blocks) - k :]:
        block.requires_grad_(True)
    return trainable(model)


def train_only(model: nn.Module, names: Iterable[str]) -> int:
    """Freeze a model but for the parameters of these names; returns how many numbers learn.

    >>> train_only(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)), ["0.weight", "1.bias"])
    10
    """
    freeze(model)
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    return trainable(model)


def trainable(model: nn.Module) -> int:
    """How many numbers of a model learn.

    >>> trainable(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def depths(model: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, int]:
    """Each parameter's depth: 0 before the blocks, i in block i, n + 1 behind all n of them.

    Before or behind is told by the order in which the model lists its parts; a tied head belongs to
    the embedding.

    >>> net = nn.Sequential(nn.Embedding(5, 2), nn.ModuleList([nn.Linear(2, 2)]), nn.Linear(2, 3))
    >>> depths(net, net[1])
    {'0.weight': 0, '1.0.weight': 1, '1.0.bias': 1, '2.weight': 2, '2.bias': 2}
    """
    inside = {p: i for i, block in enumerate(blocks, start=1) for p in block.parameters()}
    found, reached = {}, 0
    for name, parameter in model.named_parameters():
        if parameter in inside:
            reached = len(blocks) + 1
        found[name] = inside.get(parameter, reached)
    if not reached:
        raise ValueError(f"the blocks are not in this {type(model).__name__}; give its own")
    return found


def layerwise_rates(
    model: nn.Module, blocks: Sequence[nn.Module], rate: float, decay: float
) -> list[dict]:
    """Parameter groups for an optimizer: rate·decay^(levels below the top), of what learns.

    Howard & Ruder 2018, section 3.2 ("discriminative fine-tuning"), with decay = 1/2.6.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> [group["lr"] for group in layerwise_rates(net, net, rate=0.1, decay=0.5)]
    [0.05, 0.1]
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay is {decay}; it must be above 0 and at most 1")
    by_depth: dict[int, list[nn.Parameter]] = {}
    depth = depths(model, blocks)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_depth.setdefault(depth[name], []).append(parameter)
    if not by_depth:
        raise ValueError("nothing in this model learns; unfreeze some of it first")
    top = max(by_depth)
    return [{"params": by_depth[at], "lr": rate * decay ** (top - at)} for at in sorted(by_depth)]


# ── a head ────────────────────────────────────────────────────────────────────────────────────────


def first_token(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """The vector of the first token (B, T, D) -> (B, D): BERT's [CLS]."""
    return hidden[:, 0]


def last_token(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """The vector of the last real token (B, T, D) -> (B, D), the only one that saw all others.

    >>> hidden = torch.tensor([[[1.0], [2.0], [9.0]]])
    >>> last_token(hidden, torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    if mask is None:
        return hidden[:, -1]
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = (mask.bool() * steps).argmax(dim=1)  # (B,)
    return hidden[torch.arange(len(hidden), device=mask.device), last]


class Classifier(nn.Module):
    """A head on any encoder: pool its vectors, drop some, multiply.

    `encoder(ids, mask)` gives (B, T, D); `pool(hidden, mask)` (B, D). The head starts at zero, so
    that at first all labels are as likely.
    """

    def __init__(
        self,
        encoder: nn.Module,
        d_model: int,
        n_labels: int,
        *,
        pool: Callable[[Tensor, Tensor | None], Tensor] = mean_pool,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, n_labels=n_labels)
        self.encoder, self.pool = encoder, pool
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(d_model, n_labels, bias)
        nn.init.zeros_(self.head.weight)
        if bias:
            nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids (B, T) -> logits (B, n_labels)."""
        return self.head(self.dropout(self.pool(self.encoder(ids, mask), mask)))


def graded(logits: Tensor, truth: Tensor) -> tuple[float, float]:
    """The share of right answers and the nats that the right one costs: logits (N, C), (N,)."""
    right = (logits.argmax(dim=1) == truth).float().mean().item()
    return right, F.cross_entropy(logits, truth).item()


def check_classes(labels: Iterable[int], n_labels: int) -> None:
    """Raise ValueError for a training set from which no classifier can learn.

    >>> check_classes([0, 1, 1], n_labels=2)
    """
    labels = list(labels)
    if not labels:
        raise ValueError("the training set is empty; give at least one example of each class")
    low, high = min(labels), max(labels)
    if low < 0 or high >= n_labels:
        raise ValueError(f"labels go from {low} to {high}; they must be 0 … {n_labels - 1}")
    if low == high:
        raise ValueError(
            f"all {len(labels)} examples are of class {low}; a classifier would learn to say that "
            "of everything: give examples of another class too"
        )


# ── instructions ──────────────────────────────────────────────────────────────────────────────────


class Example(NamedTuple):
    """Token ids, and for each the label: the id itself in the answer, −100 elsewhere."""

    ids: list[int]
    labels: list[int]


def instruction(prompt: Sequence[int], answer: Sequence[int], limit: int) -> Example:
    """A prompt's tokens and its answer's, of which the answer alone counts.

    Encode the two apart, the end sign with the answer: together, a tokenizer may make one token of
    the prompt's end and the answer's beginning, which no prompt at use has. `limit` is the model's.

    >>> instruction([7, 8], [9, 2], limit=8)
    Example(ids=[7, 8, 9, 2], labels=[-100, -100, 9, 2])
    """
    if not prompt or not answer:
        raise ValueError(
            f"the prompt has {len(prompt)} tokens, the answer {len(answer)}; both need one at least"
        )
    length = len(prompt) + len(answer)
    if length > limit:
        raise ValueError(
            f"the example has {length} tokens, the model {limit} positions; shorten the prompt, or "
            "leave the example out: a cut answer teaches to stop in the middle"
        )
    return Example([*prompt, *answer], [IGNORED] * len(prompt) + list(answer))


def chat_prompt(turns: Sequence[tuple[str, str]]) -> str:
    """(role, text) turns as ChatML, up to where the assistant begins.

    >>> chat_prompt([("user", "Hi")])
    '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n'
    """
    if not turns:
        raise ValueError("there are no turns; give (role, text) at least once")
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return f"{said}<|im_start|>assistant\n"


class Batch(NamedTuple):
    """ids, labels and mask, each (B, T)."""

    ids: Tensor
    labels: Tensor
    mask: Tensor


def pad(examples: Sequence[Example], pad_id: int = 0) -> Batch:
    """Examples of different lengths, filled up on the right.

    >>> pad([Example([7, 8, 9], [-100, 8, 9]), Example([5, 6], [-100, 6])]).labels
    tensor([[-100,    8,    9],
            [-100,    6, -100]])
    """
    if not examples:
        raise ValueError("there is no example to pad; the training set is empty")
    longest = max(len(example.ids) for example in examples)

    def filled(rows: Iterable[list[int]], value: int) -> Tensor:
        return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])

    ids = filled((example.ids for example in examples), pad_id)
    labels = filled((example.labels for example in examples), IGNORED)
    return Batch(ids, labels, filled(([1] * len(example.ids) for example in examples), 0))


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats over all answers' tokens: logits (B, T, V), labels (B, T).

    Each token of an answer counts alike, in a long answer and in a short one: it is not the mean of
    the rows' means. ValueError where no token counts.

    >>> answer_loss(torch.zeros(1, 3, 4), torch.tensor([[-100, 2, 3]]))  # two guesses of ln 4
    tensor(1.3863)
    """
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)  # logits at a token are of the next one
    if not (shifted != IGNORED).any():
        raise ValueError("no token of an answer is left to count; look at the labels")
    return label_loss(logits, shifted)
