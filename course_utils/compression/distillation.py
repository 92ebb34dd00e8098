"""Distillation: a small model learns from what a large one says. Notebook 15.

Soft targets (Hinton et al. 2015), hidden states and attention (Romero et al. 2015; Wang et al.
2020), whole sequences (Kim & Rush 2016), the student's own (Agarwal et al. 2024). No gradient
reaches the teacher. Shapes: logits (…, V), hidden (B, T, D), ids (B, T); a mask has the shape of
the logits without V and is 1 or True where an answer counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Logits = Callable[[Tensor], Tensor]  # ids (B, T) -> (B, T, V)
DIRECTIONS = ("forward", "reverse")

# ── soft targets ──────────────────────────────────────────────────────────────────────────────────


def soft_targets(logits: Tensor, temperature: float) -> Tensor:
    """softmax(z/T) over the last dimension: 1 is the model's own, more is smoother.

    Towards 0 it becomes the hard label, which T = 0 gives (equal logits share). Hinton et al.,
    equation 1.

    >>> z = torch.tensor([0.0, math.log(4)])
    >>> [soft_targets(z, T).tolist() for T in (0, 1, 2)]  # 1 : 4, and 1 : 2
    [[0.0, 1.0], [0.20000000298023224, 0.800000011920929], [0.3333333432674408, 0.6666666865348816]]
    """
    if temperature == 0:
        highest = (logits == logits.amax(dim=-1, keepdim=True)).to(logits.dtype)
        return highest / highest.sum(dim=-1, keepdim=True)
    check_temperature(temperature)
    return (logits / temperature).softmax(dim=-1)


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    direction: str = "forward",
) -> Tensor:
    """T²·KL of the softened answers, summed over V and averaged over answers that count.

    "forward" is KL(teacher ‖ student), which punishes what the student leaves out, "reverse" the
    other, which punishes what it adds. Gradients shrink as 1/T² for large T (Hinton et al.,
    equation 4), so that T² keeps their size beside a loss of labels.

    >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3)]])
    >>> distillation_loss(student, teacher)  # ¼·log(¼/½) + ¾·log(¾/½)
    tensor(0.1308)
    """
    check_temperature(temperature)
    check_answers(student, teacher)
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {direction!r}; it must be one of {DIRECTIONS}")
    log_p = log_softmax(teacher.detach() / temperature)
    log_q = log_softmax(student / temperature)
    each = kl(log_p, log_q) if direction == "forward" else kl(log_q, log_p)
    return temperature**2 * mean_of(each, mask)


def log_softmax(logits: Tensor) -> Tensor:
    """log softmax over the last dimension, of 16-bit logits in float32.

    >>> log_softmax(torch.zeros(1, 2, dtype=torch.bfloat16))
    tensor([[-0.6931, -0.6931]])
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ p·(log p − log q) over the last dimension; what p says never happens adds 0.

    >>> p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    >>> kl(p.log(), q.log())  # 1·log(1/½)
    tensor(0.6931)
    """
    possible = log_p > -math.inf
    zero = torch.zeros_like(log_p)
    ratio = torch.where(possible, log_p, zero) - torch.where(possible, log_q, zero)
    return (log_p.exp() * ratio).sum(dim=-1)


def jensen_shannon(
    student: Tensor, teacher: Tensor, beta: float = 0.5, mask: Tensor | None = None
) -> Tensor:
    """β·KL(p ‖ m) + (1 − β)·KL(q ‖ m) with m = β·p + (1 − β)·q: between the two directions.

    p is the teacher's, q the student's answer. Agarwal et al. 2024, equation 1.

    >>> student, teacher = torch.tensor([[0.0, -90.0]]), torch.tensor([[-90.0, 0.0]])
    >>> jensen_shannon(student, teacher)  # nothing in common: log 2
    tensor(0.6931)
    """
    check_answers(student, teacher)
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}; it lies between 0 and 1, whose limits are the KLs")
    log_p, log_q = log_softmax(teacher.detach()), log_softmax(student)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return mean_of(beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m), mask)


def labels_and_soft_targets(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, share: float = 0.5
) -> Tensor:
    """(1 − share) of the labels' cross-entropy at T = 1, and `share` of `distillation_loss`.

    student and teacher (N, V), labels (N,). Hinton et al., section 2.

    >>> z, labels = torch.tensor([[0.0, 0.0]]), torch.tensor([1])
    >>> labels_and_soft_targets(z, z, labels, temperature=4.0)  # ½·log 2 + ½·0
    tensor(0.3466)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it lies between 0 and 1")
    soft = distillation_loss(student, teacher, temperature)
    return (1 - share) * F.cross_entropy(student, labels) + share * soft


def pseudo_labels(teacher: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """The teacher's answers (…,), and where its probability is at least `least`.

    >>> pseudo_labels(torch.tensor([[0.0, 3.0], [0.1, 0.0]]), least=0.9)
    (tensor([1, 0]), tensor([ True, False]))
    """
    if not 0 <= least <= 1:
        raise ValueError(f"least is {least}; it is a probability, between 0 and 1")
    sure, labels = teacher.detach().softmax(dim=-1).max(dim=-1)
    return labels, sure >= least


# ── inside: hidden states, attention ──────────────────────────────────────────────────────────────


def hidden_loss(
    student: Tensor,
    teacher: Tensor,
    projection: nn.Module | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean square between hidden states (B, T, D), of the tokens that count.

    A narrower student needs a `projection`, a linear layer that is trained with it and thrown away:
    Romero et al. 2015 (FitNets), equation 3; Jiao et al. 2020 (TinyBERT), equation 8.

    >>> hidden_loss(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[1.0, 1.0]]]))  # (0 + 4)/2
    tensor(2.)
    """
    return mean_of(_compared(student, teacher, projection).square().mean(dim=-1), mask)


def _compared(student: Tensor, teacher: Tensor, projection: nn.Module | None) -> Tensor:
    seen = student if projection is None else projection(student)
    if seen.shape != teacher.shape:
        remedy = "give projection=nn.Linear(student's, teacher's)" if projection is None else ""
        raise ValueError(
            f"the student's hidden states are {tuple(seen.shape)}, the teacher's "
            f"{tuple(teacher.shape)}; {remedy or 'the projection gives another width'}"
        )
    return seen - teacher.detach()


def cosine_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 − the cosine of hidden states (…, D): their directions. Sanh et al. 2019 (DistilBERT).

    >>> cosine_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]]))  # 1 − 3/5
    tensor(0.4000)
    """
    check_answers(student, teacher, "width")
    return mean_of(1 - F.cosine_similarity(student, teacher.detach(), dim=-1), mask)


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(teacher ‖ student) of attention weights (B, H, T, T), over heads and queries that count.

    `mask` (B, T) is 1 at real tokens: queries that are padding are left out, and keys that are have
    a weight of 0 on both sides. Wang et al. 2020 (MiniLM), equation 5.

    >>> student, teacher = torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[[1.0, 0.0]]]])
    >>> attention_loss(student, teacher)
    tensor(0.6931)
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's weights are {tuple(student.shape)}, the teacher's "
            f"{tuple(teacher.shape)}; where heads differ in number, compare `value_relation`s"
        )
    least = torch.finfo(student.dtype).tiny  # a weight that underflowed, not a hidden key
    each = kl(teacher.detach().log(), student.clamp(min=least).log())  # (B, H, T)
    return mean_of(each, None if mask is None else mask.unsqueeze(1).expand(each.shape))


def value_relation(values: Tensor, n_heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(v vᵀ/√d) of values (B, T, D), cut into `n_heads`: (B, n_heads, T, T).

    Two models compare these whatever their widths and heads are: give both the same `n_heads`, any
    number that divides both widths. `mask` (B, T) hides padding. Wang et al. 2020, equation 6, and
    Wang et al. 2021 (MiniLMv2), section 3.

    >>> value_relation(torch.zeros(1, 2, 4), n_heads=2).shape
    torch.Size([1, 2, 2, 2])
    """
    if n_heads < 1 or values.shape[-1] % n_heads:
        raise ValueError(f"n_heads is {n_heads}, which does not divide {values.shape[-1]} numbers")
    heads = values.unflatten(-1, (n_heads, -1)).transpose(1, 2)  # (B, H, T, d)
    scores = heads @ heads.transpose(-2, -1) / math.sqrt(heads.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask.bool()[:, None, None, :], -math.inf)
    return scores.softmax(dim=-1)


def uniform_layers(n_student: int, n_teacher: int) -> list[int]:
    """Which teacher block each student block learns from: evenly spread, the last from the last.

    Jiao et al. 2020, section 3.2.

    >>> uniform_layers(4, 12), uniform_layers(3, 4)
    ([2, 5, 8, 11], [1, 2, 3])
    """
    if not 1 <= n_student <= n_teacher:
        raise ValueError(f"n_student is {n_student}, n_teacher {n_teacher}; give 1 to n_teacher")
    return [-(-(i * n_teacher) // n_student) - 1 for i in range(1, n_student + 1)]


# ── sequences ─────────────────────────────────────────────────────────────────────────────────────


def answer_mask(ids: Tensor, n_prompt: int, stop: int | None = None) -> Tensor:
    """(B, T − 1): which next tokens of ids (B, T) are the answer's, up to the first `stop`.

    Place i stands for token i + 1, which the logits at i predict. The stop itself counts.

    >>> answer_mask(torch.tensor([[5, 6, 7, 0, 0]]), n_prompt=2, stop=0).int()
    tensor([[0, 1, 1, 0]], dtype=torch.int32)
    """
    if not 1 <= n_prompt < ids.shape[1]:
        raise ValueError(
            f"n_prompt is {n_prompt} of {ids.shape[1]} tokens; a prompt has at least one, and so "
            "has an answer"
        )
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, :n_prompt] = False
    if stop is not None:
        stopped = ((ids == stop) & mask).cumsum(dim=1)  # stops up to here
        mask &= stopped - ((ids == stop) & mask).long() == 0
    return mask[:, 1:]


def sequence_loss(student: Logits, ids: Tensor, n_prompt: int, stop: int | None = None) -> Tensor:
    """Cross-entropy of the answers in ids (B, T): hard labels, a token each.

    On texts that the teacher wrote this is sequence-level distillation (Kim & Rush 2016, section
    3.2), on texts of people it is ordinary training.

    >>> sequence_loss(lambda ids: torch.zeros(1, 4, 8), torch.tensor([[1, 2, 3, 4]]), n_prompt=1)
    tensor(2.0794)
    """
    mask, logits = answer_mask(ids, n_prompt, stop), student(ids)[:, :-1]  # (B, T − 1, V)
    each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")  # (B, T − 1)
    return mean_of(each, mask)


def token_loss(
    student: Logits,
    teacher: Logits,
    ids: Tensor,
    n_prompt: int,
    temperature: float = 1.0,
    direction: str = "forward",
    stop: int | None = None,
) -> Tensor:
    """`distillation_loss` at each token of the answers in ids (B, T), whoever wrote them.

    The teacher's texts or a person's: off-policy. The student's own: on-policy, so that it learns
    where its own mistakes lead (Agarwal et al. 2024, equation 2).

    >>> uniform = lambda ids: torch.zeros(1, 4, 8)
    >>> token_loss(uniform, uniform, torch.tensor([[1, 2, 3, 4]]), n_prompt=1)
    tensor(0.)
    """
    mask = answer_mask(ids, n_prompt, stop)
    with torch.no_grad():
        target = teacher(ids)[:, :-1]
    return distillation_loss(student(ids)[:, :-1], target, temperature, mask, direction)


def written_by(
    prompts: Tensor,
    student: Callable[[Tensor], Tensor],
    other: Callable[[Tensor], Tensor],
    share: float,
    generator: torch.Generator,
) -> tuple[Tensor, bool]:
    """Prompts (B, P) with answers (B, T): the student's with probability `share`, else the other's.

    Both are functions from prompts to prompts with answers; `other` is the teacher, or looks up a
    data set. 0 is off-policy, 1 on-policy. Returns whether they are the student's too. Agarwal et
    al. 2024, algorithm 1.

    >>> add = lambda token: lambda prompts: F.pad(prompts, (0, 1), value=token)
    >>> written_by(torch.tensor([[5]]), add(7), add(8), 1.0, torch.Generator())
    (tensor([[5, 7]]), True)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it is a probability, between 0 and 1")
    own = torch.rand((), generator=generator).item() < share
    with torch.no_grad():
        ids = (student if own else other)(prompts)
    if not torch.equal(ids[:, : prompts.shape[1]], prompts) or ids.shape[1] == prompts.shape[1]:
        raise ValueError("the answers must follow their prompts, in ids that hold both")
    return ids, own


# ── checks and means ──────────────────────────────────────────────────────────────────────────────


def check_temperature(temperature: float) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(
            f"temperature is {temperature}; it must be above 0 (towards 0 targets are hard labels)"
        )


def check_answers(student: Tensor, teacher: Tensor, what: str = "vocabulary") -> None:
    """Raise ValueError where the two do not answer the same questions with the same words."""
    if student.shape == teacher.shape:
        return
    if student.shape[:-1] == teacher.shape[:-1]:
        raise ValueError(
            f"the student's {what} is {student.shape[-1]}, the teacher's {teacher.shape[-1]}; "
            "distil between models that share it, or by the texts they write"
        )
    raise ValueError(
        f"the student's answers are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; "
        "let both read the same"
    )


def mean_of(each: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of what counts; ValueError where nothing does.

    >>> mean_of(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([1, 1, 0]))
    tensor(2.)
    """
    if mask is None:
        mask = torch.ones_like(each, dtype=torch.bool)
    if mask.shape != each.shape:
        raise ValueError(f"the mask is {tuple(mask.shape)}, the answers {tuple(each.shape)}")
    if not mask.any():
        raise ValueError("no answer counts; give a mask that is 1 somewhere")
    return each[mask.bool()].mean()
