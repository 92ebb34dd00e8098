"""Plausible wrong versions of course_utils.architectures.gradient_flow."""

from __future__ import annotations

import math

import torch
from planting import Bug, originals

right = originals("architectures.gradient_flow")


def gradient_flow_frobenius(kind, x, weights, state=None, part="h"):
    jacobians = right["state_jacobians"](kind, x, weights, state)
    path, norms = torch.eye(jacobians.shape[1], dtype=x.dtype), []
    for jacobian in [None, *jacobians.flip(0)]:
        path = path if jacobian is None else path @ jacobian
        norms.append(path.norm())
    return torch.stack(norms[::-1])


def gradient_flow_product_of_norms(kind, x, weights, state=None, part="h"):
    """An upper bound, not the norm of the product."""
    n = weights[1].shape[1]
    rows = slice(n, None) if part == "c" else slice(n)
    jacobians = right["state_jacobians"](kind, x, weights, state)[:, rows, rows]
    norms = torch.linalg.matrix_norm(jacobians, ord=2).flip(0).cumprod(0).flip(0)
    return torch.cat([norms, norms.new_ones(1)])


def gradient_flow_backwards(*arguments, **options):
    return right["gradient_flow"](*arguments, **options).flip(0)


def set_spectral_radius_by_norm(weight, radius):
    with torch.no_grad():
        weight.mul_(radius / torch.linalg.matrix_norm(weight, ord=2))


def clip_gradients_one_by_one(parameters, max_norm):
    parameters = list(parameters)
    return max(right["clip_gradients"]([p], max_norm) for p in parameters)


def clip_gradients_always(parameters, max_norm):
    """Small gradients are blown up to the limit too."""
    parameters = list(parameters)
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in parameters))
    for p in parameters:
        p.grad.mul_(max_norm / norm)
    return norm


def recall_batch_last(batch, delay, n_symbols, generator=None):
    ids, _ = right["recall_batch"](batch, delay, n_symbols, generator)
    return ids, ids[:, -1].clone()


def chain_counts_leaves(output):
    return right["chain_length"](output) + 1


def chain_is_the_shortest(output):
    front, length = {output.grad_fn} - {None}, 0
    while front and not any(hasattr(node, "variable") for node in front):
        front, length = {n for node in front for n, _ in node.next_functions} - {None}, length + 1
    return length


def path_counts_the_leaf(output, source):
    return right["path_length"](output, source) + 1


def path_is_the_longest(output, source):
    """Depth first, and the longest of all ways."""

    def longest(node):
        if getattr(node, "variable", None) is source:
            return 0
        ways = [longest(following) for following, _ in node.next_functions if following]
        return 1 + max(ways) if ways else -math.inf

    if output.grad_fn is None or (length := longest(output.grad_fn)) < 0:
        raise ValueError("no path leads back")
    return length


BUGS = [
    Bug("gradient_flow", "takes Frobenius norms", gradient_flow_frobenius, tests="flow"),
    Bug("gradient_flow", "multiplies norms", gradient_flow_product_of_norms, tests="flow"),
    Bug("gradient_flow", "counts from the end", gradient_flow_backwards, tests="flow"),
    Bug("set_spectral_radius", "scales the norm", set_spectral_radius_by_norm, tests="spectral"),
    Bug("clip_gradients", "clips one by one", clip_gradients_one_by_one, tests="clipping"),
    Bug("clip_gradients", "blows up small ones", clip_gradients_always, tests="clipping"),
    Bug("recall_batch", "asks for the last symbol", recall_batch_last),
    Bug("chain_length", "counts the leaves", chain_counts_leaves, tests="chain"),
    Bug("chain_length", "takes the shortest way", chain_is_the_shortest, tests="chain"),
    Bug("path_length", "counts the leaf", path_counts_the_leaf),
    Bug("path_length", "takes the longest way", path_is_the_longest),
]
