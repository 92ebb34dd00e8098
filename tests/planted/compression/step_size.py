"""Plausible wrong versions of course_utils.compression.step_size."""

from __future__ import annotations

import torch
from planting import Bug, originals, refusing

right = originals("compression.step_size")


def not_cut_off(x, step, bits):
    return (x / step).round() * step


def one_step_for_all(x, bits, candidates=20):
    found = right["best_step"](x.reshape(1, -1), bits, candidates)
    return found.expand(x.shape[0], 1)


def the_widest(x, bits, candidates=20):
    return right["best_step"](x, bits, 1)


def by_signed_error(x, bits, candidates=20):
    """Plus and minus cancel."""
    widest = x.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    tried = torch.stack([widest * (i / candidates) for i in range(1, candidates + 1)])
    lost = torch.stack([(right["on_grid"](x, s, bits) - x).sum(-1, keepdim=True) for s in tried])
    best = tried.gather(0, lost.abs().argmin(dim=0, keepdim=True))[0]
    return torch.where(widest > 0, best, torch.ones_like(best))


def rounds_with_the_widest(weight, bits, group_size=64):
    groups = right["into_groups"](weight, "group", group_size)
    return right["on_grid"](groups, the_widest(groups, bits), bits).view_as(weight)


def whole_range(x, bits, candidates=20):
    return right["best_range"](x, bits, 1)


def drawn_in_at_the_top(x, bits, candidates=20):
    """The lower end stays."""
    step, _ = right["best_range"](x, bits, candidates)
    return step, x.amin(dim=-1, keepdim=True)


def only_rounds(weight, hessian, bits, group_size=64, **options):
    rounded = right["round_with_best_step"](weight, bits, group_size)
    return right["gptq_with_best_step"](weight, hessian, bits, group_size, **options)._replace(
        weight=rounded
    )


def never_in_order(weight, hessian, bits, group_size=64, *, act_order=False, **options):
    return right["gptq_with_best_step"](weight, hessian, bits, group_size, **options)


def numbers_as_they_came(weight, hessian, bits, group_size=64, **options):
    done = right["gptq_with_best_step"](weight, hessian, bits, group_size, **options)
    return done._replace(before=weight.clone())


BUGS = [
    Bug("on_grid", "does not cut off", not_cut_off),
    Bug("best_step", "has one step for all rows", refusing(right["best_step"], one_step_for_all)),
    Bug("best_step", "takes the widest step", refusing(right["best_step"], the_widest)),
    Bug("best_step", "lets errors cancel", refusing(right["best_step"], by_signed_error)),
    Bug(
        "round_with_best_step",
        "rounds with the widest step",
        refusing(right["round_with_best_step"], rounds_with_the_widest),
    ),
    Bug("best_range", "takes the whole", refusing(right["best_range"], whole_range)),
    Bug("best_range", "keeps the lower end", refusing(right["best_range"], drawn_in_at_the_top)),
    Bug("gptq_with_best_step", "only rounds", only_rounds),
    Bug("gptq_with_best_step", "forgets what it rounded", numbers_as_they_came, "before_gptq"),
    Bug("gptq_with_best_step", "ignores act_order", never_in_order, tests="is_gptq"),
]
