"""Exercises of notebook 15: what textbooks write passes, and what learners get wrong is named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from course_utils import exercises
from course_utils.checks import distillation


def problem(name, attempt):
    return exercises.first_problem(distillation.EXERCISES[name], attempt)


# ── textbook variants ───────────────────────────────────────────────────────────────────────────


def targets_by_one_hot(logits, temperature):
    if temperature == 0:
        best = (logits == logits.max(-1, keepdim=True)[0]).float()
        return best / best.sum(-1, keepdim=True)
    return F.softmax(logits / temperature, dim=-1)


def targets_by_a_shift(logits, temperature):
    if temperature == 0:
        return targets_by_one_hot(logits, 0)
    powers = ((logits - logits.amax(-1, keepdim=True)) / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


def loss_by_kl_div(student, teacher, temperature):
    log_q = F.log_softmax(student / temperature, dim=1)
    p = F.softmax(teacher.detach() / temperature, dim=1)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def loss_in_no_grad(student, teacher, temperature):
    with torch.no_grad():
        log_p = F.log_softmax(teacher / temperature, dim=-1)
    log_q = F.log_softmax(student / temperature, dim=-1)
    return (
        F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature * temperature
    )


def both_by_kl_div(student, teacher, labels, temperature, share):
    soft = loss_by_kl_div(student, teacher, temperature)
    return F.cross_entropy(student, labels) * (1 - share) + soft * share


def both_by_log_likelihood(student, teacher, labels, temperature, share):
    hard = F.nll_loss(student.log_softmax(1), labels)
    return torch.lerp(hard, distillation.distillation_loss(student, teacher, temperature), share)


def labels_by_argmax(teacher, least):
    p = torch.softmax(teacher, dim=1)
    return teacher.argmax(1), p.amax(1) >= least


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("both", both_by_kl_div),
        ("both", both_by_log_likelihood),
        ("pseudo_labels", labels_by_argmax),
        ("soft_targets", targets_by_one_hot),
        ("soft_targets", targets_by_a_shift),
        ("distillation_loss", loss_by_kl_div),
        ("distillation_loss", loss_in_no_grad),
    ],
)
def test_textbook_variants_pass(name, attempt):
    assert problem(name, attempt) is None


# ── what is named ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", list(distillation.EXERCISES))
def test_every_mistake_is_named(name):
    for sentence, wrong in distillation.EXERCISES[name].mistakes.items():
        assert sentence in problem(name, wrong), sentence


def test_a_loss_without_a_way_back_is_wrong():
    def cut_off(student, teacher, temperature):
        return distillation.distillation_loss(student.detach(), teacher, temperature)

    assert problem("distillation_loss", cut_off)


def test_one_loss_a_row_is_wrong():
    def rows(student, teacher, temperature):
        log_p = (teacher.detach() / temperature).log_softmax(-1)
        return temperature**2 * (
            log_p.exp() * (log_p - (student / temperature).log_softmax(-1))
        ).sum(-1)

    assert problem("distillation_loss", rows)


def test_a_forgotten_return_is_named():
    def no_return(logits, temperature):
        F.softmax(logits, -1)

    assert "is a `return` missing" in problem("soft_targets", no_return)


def test_statements_have_reasons():
    statements = distillation.STATEMENTS["verdicts"]
    assert {s.supported for s in statements.values()} == {True, False}
    assert all(s.why.endswith(".") for s in statements.values())
