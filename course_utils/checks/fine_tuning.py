"""Exercises of notebook 06: what learns, a head, answers that count, rows that share no attention.

Each names the mistakes that learners make; tests/planted plants them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.architectures.encoder import mean_pool
from course_utils.exercises import Case, ClassExercise, Exercise, Probe, Statement
from course_utils.finetuning import transfer
from course_utils.finetuning.packing import block_diagonal_mask
from course_utils.finetuning.transfer import Classifier, train_last

# ── freeze, and thaw the last blocks ─────────────────────────────────────────────────────────────


class _Stack(nn.Module):
    """An embedding, four blocks, of which the second was frozen before, and a norm behind."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 2)
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
        self.norm = nn.LayerNorm(2)
        self.blocks[1].requires_grad_(False)


def _learning(function: Callable, k: int) -> list[str]:
    """Names of the parts that learn, after the learner's function."""
    net = _Stack()
    function(net, net.blocks, k)
    return sorted({n.rsplit(".", 1)[0] for n, p in net.named_parameters() if p.requires_grad})


def _thaw_alone(model: nn.Module, blocks: Sequence[nn.Module], k: int) -> None:
    for block in list(blocks)[len(blocks) - k :]:
        block.requires_grad_(True)


def _slice_from_zero(model: nn.Module, blocks: Sequence[nn.Module], k: int) -> None:
    model.requires_grad_(False)
    for block in list(blocks)[-k:]:
        block.requires_grad_(True)


def _first(model: nn.Module, blocks: Sequence[nn.Module], k: int) -> None:
    model.requires_grad_(False)
    for block in list(blocks)[:k]:
        block.requires_grad_(True)


def _blocks_alone(model: nn.Module, blocks: Sequence[nn.Module], k: int) -> None:
    for i, block in enumerate(blocks):
        block.requires_grad_(i >= len(blocks) - k)


# ── an answer that counts ────────────────────────────────────────────────────────────────────────


def instruction(prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    """ids, and the labels of which the answer's alone are not −100."""
    example = transfer.instruction(prompt, answer, limit=1_000_000)
    return example.ids, example.labels


def _instruction_inputs() -> Iterator[tuple]:
    yield [7, 8, 9], [4, 2]
    yield [5], [6]
    yield [1, 2, 1, 2], [1, 2, 3, 2]


def _all_counts(prompt: list[int], answer: list[int]) -> tuple:
    return [*prompt, *answer], [*prompt, *answer]


def _prompt_counts(prompt: list[int], answer: list[int]) -> tuple:
    return [*prompt, *answer], [*prompt, *[-100] * len(answer)]


def _shifted(prompt: list[int], answer: list[int]) -> tuple:
    """Moved one to the left already; the loss moves labels once more."""
    return [*prompt, *answer], [*[-100] * (len(prompt) - 1), *answer, -100]


def _labels_alone(prompt: list[int], answer: list[int]) -> tuple:
    return [*prompt, *answer], list(answer)


def _zeros(prompt: list[int], answer: list[int]) -> tuple:
    return [*prompt, *answer], [*[0] * len(prompt), *answer]


# ── packed rows ──────────────────────────────────────────────────────────────────────────────────


def may_look(segments: Tensor) -> Tensor:
    """(T,) numbers of examples, 0 for empty -> (T, T): True where row i may look at column j."""
    return block_diagonal_mask(segments.unsqueeze(0))[0, 0]


def _segments() -> Iterator[tuple]:
    for row in ([1, 1, 2, 2, 2], [1, 2, 3], [1, 1, 1, 0, 0], [2, 2, 1, 0]):
        yield (torch.tensor(row),)


def _no_triangle(segments: Tensor) -> Tensor:
    same = segments.unsqueeze(1) == segments.unsqueeze(0)
    return same & (segments > 0).unsqueeze(1)


def _one_triangle(segments: Tensor) -> Tensor:
    return torch.ones(len(segments), len(segments), dtype=torch.bool).tril()


def _empty_sees(segments: Tensor) -> Tensor:
    return (segments.unsqueeze(1) == segments.unsqueeze(0)).tril()


def _upper(segments: Tensor) -> Tensor:
    return may_look(segments).T


def _hidden(segments: Tensor) -> Tensor:
    return ~may_look(segments)


# ── a head on an encoder ─────────────────────────────────────────────────────────────────────────


class _Words(nn.Module):
    """A stand-in for an encoder: each id's vector, whatever stands beside it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(9, 3, generator=generator))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.table[ids]


IDS = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


class Rater(Classifier):
    """A head that tells one number from an encoder's mean vector; it starts at zero."""

    def __init__(self, encoder: nn.Module, d_model: int) -> None:
        super().__init__(encoder, d_model, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask (B, T) -> (B,)."""
        return super().forward(ids, mask).squeeze(1)


def _made(cls: type) -> nn.Module:
    """A rater whose head is set by hand, whatever it is called."""
    net = cls(_Words(), 3)
    _head(net).weight.data = torch.tensor([[1.0, -2.0, 0.5]])
    _head(net).bias.data.fill_(0.25)
    return net


def _head(net: nn.Module) -> nn.Linear:
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    if len(layers) != 1:
        raise ValueError(f"it has {len(layers)} linear layers; one is the head")
    return layers[0]


def _at_the_start(cls: type) -> Tensor:
    return cls(_Words(), 3)(IDS, MASK)


def _numbers(cls: type) -> Tensor:
    ones = torch.ones_like(IDS[:, :2])
    return _made(cls)(IDS[:, :2], ones)


def _padded(cls: type) -> Tensor:
    return _made(cls)(IDS, MASK)


def _gradients(cls: type) -> dict[str, Any]:
    net = _made(cls)
    net(IDS, MASK).sum().backward()
    table = next(m for m in net.modules() if isinstance(m, _Words)).table
    grads = {"the head": _head(net).weight.grad, "the encoder": table.grad}
    return {name: torch.zeros(1) if g is None else g for name, g in grads.items()}


class _RandomHead(Rater):
    def __init__(self, encoder: nn.Module, d_model: int) -> None:
        super().__init__(encoder, d_model)
        torch.manual_seed(0)
        self.head.reset_parameters()


class _MeanOfAll(Rater):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.encoder(ids, mask).mean(dim=1)).squeeze(1)


class _FirstToken(Rater):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.encoder(ids, mask)[:, 0]).squeeze(1)


class _SumOfTokens(Rater):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(ids, mask) * mask.unsqueeze(-1)
        return self.head(hidden.sum(dim=1)).squeeze(1)


class _Column(Rater):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(mean_pool(self.encoder(ids, mask), mask))


class _CutOff(Rater):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.encoder(ids, mask)
        return self.head(mean_pool(hidden, mask)).squeeze(1)


EXERCISES = {
    "train_last": Exercise(
        reference=train_last,
        hint="Freeze everything first: model.requires_grad_(False). Then thaw the last k blocks, "
        "blocks[len(blocks) − k:]. With k = 0 that is none; blocks[−0:] would be all.",
        cases=(
            Case((1,), ["blocks.3"], why="The last of four blocks, and nothing else."),
            Case((0,), [], why="Nothing learns."),
        ),
        inputs=lambda: ((k,) for k in (2, 3, 4)),
        mistakes={
            "what was not frozen before goes on learning": _thaw_alone,
            "the slice [-k:] is everything for k = 0": _slice_from_zero,
            "the first blocks are thawed, not the last": _first,
            "embedding and norm, which stand outside of the blocks, go on learning": _blocks_alone,
        },
        through=_learning,
    ),
    "rater": ClassExercise(
        reference=Rater,
        hint="super().__init__() first. Keep the encoder, make self.head = nn.Linear(d_model, 1) "
        "and set its weight and bias to zero (nn.init.zeros_). forward: vectors of all tokens, "
        "their mean over the real ones, the head, and squeeze(1).",
        probes=(
            Probe("at the start it says 0 of every text", _at_the_start, "The head starts at 0."),
            Probe("one number a text, from the mean vector", _numbers),
            Probe("padding does not count", _padded, "Where the mask is 0 nothing stands."),
            Probe("head and encoder both have a gradient", _gradients),
        ),
        mistakes={
            "the head starts with random numbers": _RandomHead,
            "padding is averaged too": _MeanOfAll,
            "only the first token is looked at": _FirstToken,
            "vectors are summed, so that long texts say more": _SumOfTokens,
            "the answers stand in a column, (B, 1)": _Column,
            "no gradient reaches the encoder": _CutOff,
        },
        solution=(Classifier, mean_pool),
    ),
    "instruction": Exercise(
        reference=instruction,
        hint="Both lists are as long as prompt and answer together. A label is the token itself "
        "where it counts, and −100 where it does not; do not move them, the loss does that.",
        cases=(
            Case(
                ([7, 8], [9, 2]),
                ([7, 8, 9, 2], [-100, -100, 9, 2]),
                why="Two tokens are asked, two are answered, and two labels count.",
            ),
        ),
        inputs=_instruction_inputs,
        mistakes={
            "the prompt counts too": _all_counts,
            "the prompt counts in place of the answer": _prompt_counts,
            "labels are moved by one, and the loss moves them again": _shifted,
            "labels are shorter than ids": _labels_alone,
            "token 0 stands where −100 should: it is learned as if it were an answer": _zeros,
        },
        solution=(transfer.instruction,),
    ),
    "may_look": Exercise(
        reference=may_look,
        hint="Compare every place with every other: segments.unsqueeze(1) == segments.unsqueeze(0)"
        " is (T, T). Keep what is not in the future (.tril()), and no row of an empty place.",
        cases=(
            Case(
                (torch.tensor([1, 2, 2, 0]),),
                torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool(),
                why="Place 2 sees 1 and itself, of its own example, and not place 0.",
            ),
        ),
        inputs=_segments,
        mistakes={
            "the future can be seen": _no_triangle,
            "examples see each other": _one_triangle,
            "empty places see": _empty_sees,
            "rows and columns have changed places": _upper,
            "True is what must not be seen": _hidden,
        },
        solution=(block_diagonal_mask,),
    ),
}

STATEMENTS = {
    "verdicts": {
        "a": Statement(
            "Fine-tuning means that the first layers are frozen.",
            supported=False,
            why="It is one of several ways. With 256 ratings, all layers made the better rater.",
        ),
        "b": Statement(
            "What pre-training left in the weights is worth more than the shape of the network.",
            supported=True,
            why="The same network from random numbers, trained as long, was far behind a head on "
            "the frozen body.",
        ),
        "c": Statement(
            "The more layers learn, the better, whatever the number of ratings.",
            supported=False,
            why="With 16 ratings the seeds differed by more than the arms: it was not decided.",
        ),
        "d": Statement(
            "Training on films leaves the rest of what the model could do as it was.",
            supported=False,
            why="Its own task, to find a paraphrase, cost more nats afterwards.",
        ),
        "e": Statement(
            "Freezing all but two blocks divides the optimizer's memory more than the weights'.",
            supported=True,
            why="Adam's two numbers are kept for what learns; the weights are all still there.",
        ),
        "f": Statement(
            "How much is forgotten depends on how many layers learn, and on nothing else.",
            supported=False,
            why="Every higher rate made the network forget more, whichever layers learned.",
        ),
        "g": Statement(
            "Packed examples, with the right mask and positions, get the logits they have alone.",
            supported=True,
            why="They differed by rounding; without the mask they differed by far more.",
        ),
    },
}
