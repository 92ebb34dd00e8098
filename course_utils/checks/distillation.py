"""The exercises of notebook 15, with the mistakes that learners make in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.compression.distillation import (
    distillation_loss,
    labels_and_soft_targets,
    mean_of,
    pseudo_labels,
    soft_targets,
)
from course_utils.exercises import Case, Exercise, Statement

LN4 = 1.3862943611198906
LN3 = 1.0986122886681098


def drawn(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ── soft targets ─────────────────────────────────────────────────────────────────────────────────


def _target_inputs() -> Iterator[tuple]:
    yield drawn(0, 5), 1.0
    yield drawn(1, 2, 6), 4.0
    yield drawn(2, 3, 4), 0.5
    yield torch.tensor([[2.0, 1.0, 2.0], [0.0, 3.0, 1.0]]), 0
    yield torch.tensor([900.0, 0.0]), 2.0  # e^450 is too large for a float


def _multiplied(logits: Tensor, temperature: float) -> Tensor:
    return (logits * temperature).softmax(-1)


def _after(logits: Tensor, temperature: float) -> Tensor:
    return logits.softmax(-1) / temperature


def _one_winner(logits: Tensor, temperature: float) -> Tensor:
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    return soft_targets(logits, temperature)


def _over_rows(logits: Tensor, temperature: float) -> Tensor:
    if temperature == 0:
        return soft_targets(logits, 0)
    return (logits / temperature).softmax(0)


def _plain_exponentials(logits: Tensor, temperature: float) -> Tensor:
    if temperature == 0:
        return soft_targets(logits, 0)
    powers = (logits / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


# ── the loss ─────────────────────────────────────────────────────────────────────────────────────


def loss_and_gradients(function, student: Tensor, teacher: Tensor, temperature: float) -> tuple:
    """The loss, and its gradients by both logits; None where none arrives."""
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    loss = function(student, teacher, temperature)
    if not isinstance(loss, Tensor) or loss.dim():
        return (loss,)
    if not loss.requires_grad:
        return (loss, "no gradient", "no gradient")
    loss.backward()
    blank = "no gradient"
    return (
        loss.detach(),
        blank if student.grad is None else student.grad,
        blank if teacher.grad is None or not teacher.grad.any() else teacher.grad,
    )


def _loss_inputs() -> Iterator[tuple]:
    yield drawn(3, 2, 3), drawn(4, 2, 3), 1.0
    yield drawn(5, 4, 7), drawn(6, 4, 7), 4.0
    yield drawn(7, 1, 5), drawn(8, 1, 5), 2.0


def _wrong(before: Callable | None = None, after: Callable | None = None) -> Callable:
    """The loss of other arguments, `before(student, teacher, temperature, mask, direction)`, or
    with another value, `after(loss, student, temperature)`.
    """

    def wrong(
        student: Tensor,
        teacher: Tensor,
        temperature: float = 1.0,
        mask: Tensor | None = None,
        direction: str = "forward",
    ) -> Tensor:
        given = (student, teacher, temperature, mask, direction)
        loss = distillation_loss(*(before(*given) if before else given))
        return after(loss, student, temperature) if after else loss

    return wrong


def _other(direction: str) -> str:
    return {"forward": "reverse", "reverse": "forward"}.get(direction, direction)


_twice_the_teacher = _wrong(lambda z, t, *rest: (t.detach() + 0 * z, t, *rest))
_swapped = _wrong(lambda z, t, T, mask, direction: (z, t, T, mask, _other(direction)))
_student_at_one = _wrong(lambda z, t, T, *rest: (z * T, t, T, *rest))
_mean = _wrong(after=lambda loss, z, T: loss / z.shape[-1])
_sum = _wrong(after=lambda loss, z, T: loss * len(z))
_no_square = _wrong(after=lambda loss, z, T: loss / T**2)
_one_factor = _wrong(after=lambda loss, z, T: loss / T)


def _cross_entropy(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    direction: str = "forward",
) -> Tensor:
    p = soft_targets(teacher.detach(), temperature)
    log_q = (student / temperature).log_softmax(-1)
    return -(temperature**2) * mean_of((p * log_q).sum(-1), mask)


def _teacher_learns(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    direction: str = "forward",
) -> Tensor:
    log_p = (teacher / temperature).log_softmax(-1)
    log_q = (student / temperature).log_softmax(-1)
    return temperature**2 * mean_of((log_p.exp() * (log_p - log_q)).sum(-1), mask)


# ── labels and a teacher ─────────────────────────────────────────────────────────────────────────


def _both_inputs() -> Iterator[tuple]:
    yield drawn(9, 4, 3), drawn(10, 4, 3), torch.tensor([0, 2, 1, 1]), 3.0, 0.3
    yield drawn(11, 2, 6), drawn(12, 2, 6), torch.tensor([5, 0]), 1.0, 0.5
    yield drawn(13, 3, 4), drawn(14, 3, 4), torch.tensor([1, 1, 3]), 2.0, 1.0


def _shares_swapped(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, share: float = 0.5
) -> Tensor:
    return labels_and_soft_targets(student, teacher, labels, temperature, 1 - share)


def _whole_labels(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, share: float = 0.5
) -> Tensor:
    soft = distillation_loss(student, teacher, temperature)
    return F.cross_entropy(student, labels) + share * soft


def _labels_softened(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, share: float = 0.5
) -> Tensor:
    soft = distillation_loss(student, teacher, temperature)
    return (1 - share) * F.cross_entropy(student / temperature, labels) + share * soft


def _never_softened(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, share: float = 0.5
) -> Tensor:
    return labels_and_soft_targets(student, teacher, labels, 1.0, share)


# ── pseudo-labels ────────────────────────────────────────────────────────────────────────────────


def _pseudo_inputs() -> Iterator[tuple]:
    yield drawn(15, 6, 2), 0.8
    yield drawn(16, 8, 5), 0.5
    yield drawn(17, 4, 3), 0.0


def _sure_by_logits(teacher: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    high, labels = teacher.max(dim=-1)
    return labels, high >= least


def _the_sure_alone(teacher: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    labels, sure = pseudo_labels(teacher, least)
    return labels[sure], sure


def _the_unsure(teacher: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    labels, sure = pseudo_labels(teacher, least)
    return labels, ~sure


def _the_unlikeliest(teacher: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    return teacher.argmin(dim=-1), pseudo_labels(teacher, least)[1]


EXERCISES = {
    "soft_targets": Exercise(
        reference=soft_targets,
        hint="(logits / temperature).softmax(dim=-1). For T = 0 compare the logits with their "
        "maximum (amax, keepdim=True), and divide by how many are equal to it.",
        cases=(
            Case(
                (torch.tensor([0.0, LN4]), 1),
                torch.tensor([0.2, 0.8]),
                why="Odds of 1 to 4: T = 1 is the model's own answer.",
            ),
            Case(
                (torch.tensor([0.0, LN4]), 2),
                torch.tensor([1 / 3, 2 / 3]),
                why="Half of ln 4 is ln 2: odds of 1 to 2.",
            ),
            Case((torch.tensor([0.0, LN4]), 0), torch.tensor([0.0, 1.0]), why="The hard label."),
        ),
        inputs=_target_inputs,
        mistakes={
            "logits are multiplied by T": _multiplied,
            "probabilities are divided, and no longer add up to 1": _after,
            "of equal logits one takes all at T = 0": _one_winner,
            "the sum runs over the texts, and not over the vocabulary": _over_rows,
            "large logits overflow: use softmax, which subtracts the largest first": (
                _plain_exponentials
            ),
        },
    ),
    "distillation_loss": Exercise(
        reference=distillation_loss,
        hint="p = softmax(teacher.detach() / T), both logarithms by log_softmax; sum p · (log p − "
        "log q) over the last dimension, take the mean, multiply by T². With PyTorch's F.kl_div it "
        'is reduction="batchmean".',
        cases=(
            Case(
                (torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, LN3]]), 1.0),
                (
                    torch.tensor(0.1308120),
                    torch.tensor([[0.25, -0.25]]),
                    "no gradient",
                ),
                why="¼·ln ½ + ¾·ln 3/2; the gradient is q − p, and the teacher has none.",
            ),
        ),
        inputs=_loss_inputs,
        mistakes={
            "the teacher stands on both sides, and the student learns nothing": _twice_the_teacher,
            "the mean is over the vocabulary too": _mean,
            "answers are added up, and not averaged": _sum,
            "the factor T² is missing": _no_square,
            "T² is only T": _one_factor,
            "the two have changed places in the divergence": _swapped,
            "it is the cross-entropy: right gradients, but the loss does not end at 0": (
                _cross_entropy
            ),
            "the teacher learns too: detach its logits": _teacher_learns,
            "only the teacher is softened": _student_at_one,
        },
        through=loss_and_gradients,
    ),
    "both": Exercise(
        reference=labels_and_soft_targets,
        hint="(1 - share) * F.cross_entropy(student, labels) + share * kd.distillation_loss("
        "student, teacher, temperature).",
        cases=(
            Case(
                (
                    torch.tensor([[0.0, 0.0]]),
                    torch.tensor([[0.0, LN3]]),
                    torch.tensor([1]),
                    1.0,
                    0.25,
                ),
                torch.tensor(0.75 * 0.6931472 + 0.25 * 0.1308120),
                why="¾ of ln 2, which the label costs, and ¼ of 0.13, the teacher's part.",
            ),
        ),
        inputs=_both_inputs,
        mistakes={
            "the shares have changed places": _shares_swapped,
            "the labels' loss keeps its whole weight": _whole_labels,
            "the labels' loss is softened too": _labels_softened,
            "the temperature is not used": _never_softened,
        },
    ),
    "pseudo_labels": Exercise(
        reference=pseudo_labels,
        hint="sure, labels = teacher.softmax(dim=-1).max(dim=-1), and sure >= least.",
        cases=(
            Case(
                (torch.tensor([[0.0, 2.1972246], [LN3, 0.0]]), 0.8),
                (torch.tensor([1, 0]), torch.tensor([True, False])),
                why="ln 9 gives odds of 1 to 9, so 0.9; ln 3 gives 0.75.",
            ),
        ),
        inputs=_pseudo_inputs,
        mistakes={
            "logits are compared with `least`, and not probabilities": _sure_by_logits,
            "labels of the unsure ones are left out; both results have a value for each text": (
                _the_sure_alone
            ),
            "it says which are *not* sure": _the_unsure,
            "the least likely class is taken": _the_unlikeliest,
        },
    ),
}

STATEMENTS = {
    "verdicts": {
        "a": Statement(
            "At T = 1 a teacher gives hard labels.",
            supported=False,
            why="T = 1 is its own answer, as soft as it is; hard labels are T → 0.",
        ),
        "b": Statement(
            "With the factor T² the temperature no longer changes the size of the gradient.",
            supported=False,
            why="Only at high temperatures. From 1 to 4 it fell by half and more.",
        ),
        "c": Statement(
            "With few labels, a teacher's hard labels bring most of the right answers that its "
            "soft ones bring.",
            supported=True,
            why="More than half, in all six recorded pairs with 100 and 400 labels.",
        ),
        "d": Statement(
            "So softness is of no use.",
            supported=False,
            why="The soft student knew better how sure to be, and a decoder learned more from "
            "whole answers than from tokens drawn from them.",
        ),
        "e": Statement(
            "Distillation is of no use for models that write text.",
            supported=False,
            why="With little text the taught decoder was well ahead, in steps and in time.",
        ),
        "f": Statement(
            "A taught student is ahead at equal time, so it pays to train a teacher for it.",
            supported=False,
            why="That comparison left the teacher's own training out. With it counted, plain "
            "training was ahead; a teacher pays where it is there already, or serves many.",
        ),
        "g": Statement(
            "Distillation works better for encoders than for decoders.",
            supported=False,
            why="That compared tweets with plays. On the same tweets, a network that looks back "
            "alone gained about as much; undecided.",
        ),
    },
}
