"""Plausible wrong versions of course_utils.architectures.probes."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("architectures.probes")


def clip_all_together(stacked, max_norm):
    grads = [weight.grad for weight in stacked]
    norm = torch.cat([grad.flatten() for grad in grads]).norm()
    for grad in grads:
        grad.mul_((max_norm / norm).clamp(max=1.0))


def draw_one_for_all(batch, delay, symbols, generators, make):
    ids, targets = make(batch, delay, symbols, generators[0])
    n = len(generators)
    return ids.expand(n, *ids.shape), targets.expand(n, *targets.shape)


def ask_for_the_last(batch, delay, n_symbols, generator=None):
    ids = torch.randint(n_symbols, (batch, delay + 1), generator=generator)
    return ids, ids[:, -1].clone()


def put_back_nothing(weights, nets):
    return None


def flow_from_before_the_symbol(net, delay, seed=0):
    ids, _ = right["recall_batch"](
        1, delay, net.out.out_features, torch.Generator().manual_seed(seed)
    )
    x, weights = net.embedding(ids)[0].detach(), tuple(w.detach() for w in net.weights)
    part = "c" if net.kind == "lstm" else "h"
    return right["gradient_flow"](net.kind, x, weights, part=part)[0].item()


BUGS = [
    Bug("_clip_each", "clips all nets by one norm", clip_all_together, tests="side_by_side"),
    Bug("_draw", "gives all nets one batch", draw_one_for_all, tests="side_by_side"),
    Bug("any_symbols_batch", "asks for the last", ask_for_the_last, tests="any_symbols"),
    Bug("_put_back", "leaves the nets untrained", put_back_nothing, tests="side_by_side"),
    Bug("flow", "starts before the symbol", flow_from_before_the_symbol),
]
