"""Exercises of notebook 08: vectors before a text, as a function and as a class; form and choice.

Each names the mistakes that learners make; tests/planted plants them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.exercises import Case, ClassExercise, Exercise, Probe, Statement
from course_utils.finetuning.label_words import label_nats
from course_utils.finetuning.prompt_tuning import PromptTuned

# ── vectors before a text ────────────────────────────────────────────────────────────────────────


def put_before(vectors: Tensor, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """vectors (P, D) before embedded (B, T, D): (B, P + T, D), and the mask (B, P + T)."""
    front = vectors.unsqueeze(0).expand(len(embedded), -1, -1)
    return torch.cat([front, embedded], dim=1), F.pad(mask, (len(vectors), 0), value=1)


def _before_inputs() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    for n, rows, steps in ((1, 1, 2), (3, 2, 4), (2, 3, 1)):
        vectors = torch.randn(n, 3, generator=generator)
        embedded = torch.randn(rows, steps, 3, generator=generator)
        mask = torch.ones(rows, steps, dtype=torch.long)
        mask[0, 0] = 0
        yield vectors, embedded, mask


def _behind(vectors: Tensor, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    front = vectors.unsqueeze(0).expand(len(embedded), -1, -1)
    return torch.cat([embedded, front], dim=1), F.pad(mask, (0, len(vectors)), value=1)


def _masked_out(vectors: Tensor, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return put_before(vectors, embedded, mask)[0], F.pad(mask, (len(vectors), 0), value=0)


def _old_mask(vectors: Tensor, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return put_before(vectors, embedded, mask)[0], mask


def _instead(vectors: Tensor, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The first words of the text are lost."""
    front = vectors.unsqueeze(0).expand(len(embedded), -1, -1)
    return torch.cat([front, embedded[:, len(vectors) :]], dim=1), mask


# ── form and choice ──────────────────────────────────────────────────────────────────────────────


def split_cost(logits: Tensor, labels: list[int], right: int) -> tuple[Tensor, Tensor]:
    """logits (V,) -> −ln p(any label), −ln p(right | any label); right counts among the labels."""
    cost = label_nats(logits.unsqueeze(0), labels, torch.tensor([right]))
    return cost.format[0], cost.choice[0]


def _cost_inputs() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(1)
    for labels, right in (([1, 4], 0), ([4, 1], 0), ([0, 2, 5], 2)):
        yield 3 * torch.randn(6, generator=generator), labels, right


def _only_labels(logits: Tensor, labels: list[int], right: int) -> tuple:
    own = -logits[labels].log_softmax(0)[right]
    return torch.zeros(()), own


def _whole_as_choice(logits: Tensor, labels: list[int], right: int) -> tuple:
    log_p = logits.log_softmax(0)[labels]
    return -log_p.logsumexp(0), -log_p[right]


def _mean_of_labels(logits: Tensor, labels: list[int], right: int) -> tuple:
    log_p = logits.log_softmax(0)[labels]
    either = log_p.mean()
    return -either, either - log_p[right]


def _right_as_token(logits: Tensor, labels: list[int], right: int) -> tuple:
    log_p = logits.log_softmax(0)
    either = log_p[labels].logsumexp(0)
    return -either, either - log_p[right]


def _in_bits(logits: Tensor, labels: list[int], right: int) -> tuple:
    form, choice = split_cost(logits, labels, right)
    return form / 0.6931472, choice / 0.6931472


# ── a soft prompt as a class ─────────────────────────────────────────────────────────────────────


class _Sum(nn.Module):
    """A stand-in for a model: the running sum of all real vectors, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 1.0]]))

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return (embedded * mask.unsqueeze(-1)).cumsum(dim=1) @ self.weight.T  # (B, T, 2)


START = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]])
EMBEDDED = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]], [[9.0, 9.0, 9.0], [1.0, 0.0, 1.0]]])
MASK = torch.tensor([[1, 1], [0, 1]])


class SoftPrompt(nn.Module):
    """A frozen model whose input begins with learned vectors, a copy of those given."""

    def __init__(self, model: nn.Module, vectors: Tensor) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.vectors = nn.Parameter(vectors.detach().clone())

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """embedded (B, T, D), mask (B, T) -> what the model says of all P + T steps."""
        return self.model(*put_before(self.vectors, embedded, mask))


def _made(cls: type) -> tuple[nn.Module, Tensor]:
    start = START.clone()
    return cls(_Sum(), start), start


def _says(cls: type) -> Tensor:
    net, _ = _made(cls)
    return net(EMBEDDED, MASK)


def _learns(cls: type) -> dict[str, Any]:
    net, _ = _made(cls)
    sizes = sorted(p.numel() for p in net.parameters() if p.requires_grad)
    return {"numbers that learn": sum(sizes), "tensors that learn": len(sizes)}


def _gradient(cls: type) -> Tensor:
    net, _ = _made(cls)
    net(EMBEDDED, MASK)[:, -1].sum().backward()
    found = [p.grad for p in net.parameters() if p.requires_grad and p.grad is not None]
    if len(found) != 1:
        raise ValueError(f"{len(found)} parameters have a gradient; the vectors alone should")
    return found[0]


def _after_a_step(cls: type) -> dict[str, Any]:
    net, start = _made(cls)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net(EMBEDDED, MASK).sum().backward()
    optimizer.step()
    return {"what was given as a start": start, "what it says": net(EMBEDDED, MASK).detach()}


class _ThawedModel(SoftPrompt):
    def __init__(self, model: nn.Module, vectors: Tensor) -> None:
        super().__init__(model, vectors)
        self.model.requires_grad_(True)


class _FixedVectors(SoftPrompt):
    def __init__(self, model: nn.Module, vectors: Tensor) -> None:
        super().__init__(model, vectors)
        self.vectors.requires_grad_(False)


class _Shared(SoftPrompt):
    """The parameter is the very tensor that was given, so that training changes it there, too."""

    def __init__(self, model: nn.Module, vectors: Tensor) -> None:
        super().__init__(model, vectors)
        self.vectors.data = vectors


class _NotMasked(SoftPrompt):
    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return self.model(*_masked_out(self.vectors, embedded, mask))


class _Behind(SoftPrompt):
    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return self.model(*_behind(self.vectors, embedded, mask))


class _NoGradients(SoftPrompt):
    """Frozen by no_grad: nothing comes back through the model."""

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        front = self.vectors
        with torch.no_grad():
            said = self.model(*put_before(front, embedded, mask))
        return said + 0 * front.sum()


EXERCISES = {
    "put_before": Exercise(
        reference=put_before,
        hint="vectors.unsqueeze(0).expand(B, -1, -1) is the prompt once for every row; torch.cat "
        "along dim=1 puts it before the text. The mask grows by P ones on the left: F.pad(mask, "
        "(P, 0), value=1).",
        cases=(
            Case(
                (torch.tensor([[7.0]]), torch.tensor([[[1.0], [2.0]]]), torch.tensor([[0, 1]])),
                (torch.tensor([[[7.0], [1.0], [2.0]]]), torch.tensor([[1, 0, 1]])),
                why="One vector, 7, before a text of two; it is real, whatever the text's mask is.",
            ),
        ),
        inputs=_before_inputs,
        mistakes={
            "the vectors stand behind the text, where a causal model cannot use them": _behind,
            "the mask hides the prompt": _masked_out,
            "the mask has kept its length": _old_mask,
            "the vectors take the place of the text's first words": _instead,
        },
        solution=(put_before,),
    ),
    "split_cost": Exercise(
        reference=split_cost,
        hint="log_p = logits.log_softmax(0)[labels]. The probability of any label is a sum: "
        "log_p.logsumexp(0). What is left of the right one's cost is choice.",
        cases=(
            Case(
                (torch.tensor([0.5, 0.125, 0.375]).log(), [1, 2], 0),
                (torch.tensor(0.6931), torch.tensor(1.3863)),
                why="A label has probability ½: ln 2. Of it the right one has a fourth: ln 4.",
            ),
        ),
        inputs=_cost_inputs,
        mistakes={
            "only the labels' logits are looked at, so that form costs nothing": _only_labels,
            "the choice is the whole cost": _whole_as_choice,
            "log-probabilities are averaged where probabilities should be summed": _mean_of_labels,
            "`right` is taken for a token; it counts among the labels": _right_as_token,
            "the costs are in bits": _in_bits,
        },
        atol=1e-4,
        solution=(label_nats,),
    ),
    "soft_prompt": ClassExercise(
        reference=SoftPrompt,
        hint="super().__init__() first. model.requires_grad_(False) freezes the model; "
        "nn.Parameter(vectors.clone()) registers what learns. forward calls the model on what "
        "exercise 2 made. No torch.no_grad(): gradients must pass *through* the frozen model.",
        probes=(
            Probe("it says what the model says of prompt and text", _says),
            Probe("the vectors learn and nothing else does", _learns),
            Probe(
                "a gradient comes back through the frozen model",
                _gradient,
                "Frozen weights get no gradient, but they hand it on.",
            ),
            Probe(
                "a step moves the prompt, and not the tensor it started from",
                _after_a_step,
                "The start may be rows of the model's own table.",
            ),
        ),
        mistakes={
            "the model learns as well": _ThawedModel,
            "the vectors are no parameter, or frozen": _FixedVectors,
            "the parameter is the given tensor itself, not a copy": _Shared,
            "the mask hides the prompt": _NotMasked,
            "the prompt stands behind the text": _Behind,
            "torch.no_grad() cuts the gradient off": _NoGradients,
        },
        solution=(PromptTuned,),
    ),
}

STATEMENTS = {
    "verdicts": {
        "a": Statement(
            "A hard prompt is a special soft prompt.",
            supported=True,
            why="Its words' own vectors as a soft prompt gave the same logits, but for rounding.",
        ),
        "b": Statement(
            "A soft prompt can be read: look up the word nearest to each vector.",
            supported=False,
            why="The nearest words brought less than the vectors: their names do not show it.",
        ),
        "c": Statement(
            "What the prompt learned here was mostly to answer in the wanted form.",
            supported=True,
            why="Form had the larger part of the gain, and shuffled labels gave most of it too.",
        ),
        "d": Statement(
            "Prompt tuning does not work.",
            supported=False,
            why="It depends on rate and start: some cells of the grid learned, some did not.",
        ),
        "e": Statement(
            "Prompt tuning saves the backward pass, since the model is frozen.",
            supported=False,
            why="The gradient must come back through all blocks to reach the vectors.",
        ),
        "g": Statement(
            "Random vectors are a bad start only because they are too long.",
            supported=False,
            why="Those as long as words did better at the lower rates, and words better still.",
        ),
        "f": Statement(
            "Asked for the opposite of the mood, LoRA learned the choice and a soft prompt did "
            "not.",
            supported=True,
            why="In both recorded seeds LoRA paid less for it than the shares do, the prompt more.",
        ),
    },
}
