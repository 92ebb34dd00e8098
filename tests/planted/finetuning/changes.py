"""Plausible wrong versions of course_utils.finetuning.changes."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("finetuning.changes")


def shares_without_squares(change):
    right["energy_shares"](change)
    values = torch.linalg.svdvals(change)
    return values.cumsum(0) / values.sum()


def shares_one_by_one(change):
    right["energy_shares"](change)
    energy = torch.linalg.svdvals(change).square()
    return energy / energy.sum()


def cut_with_one_more(change, k):
    right["check_directions"](change, k)
    return right["cut_to_rank"](change, min(k + 1, min(change.shape)))


def cut_the_last(change, k):
    right["check_directions"](change, k)
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    return (u[:, -k:] * s[-k:]) @ v[-k:]


def random_cut_not_orthonormal(change, k, generator):
    right["check_directions"](change, k)
    drawn = torch.randn(change.shape[1], k, generator=generator)
    return (change @ drawn) @ drawn.T


def random_cut_of_the_best(change, k, generator):
    return right["cut_to_rank"](change, k)


def noise_of_another_norm(change, generator):
    return torch.randn(change.shape, generator=generator)


def noise_shuffled_signs(change, generator):
    """The same sizes at the same places."""
    return change


def random_like_scaled_once(A, B, generator):
    drawn = [torch.randn(x.shape, generator=generator) for x in (A, B)]
    factor = (B @ A).norm() / (drawn[1] @ drawn[0]).norm()
    return factor * drawn[0], factor * drawn[1]


def random_like_by_parts(A, B, generator):
    """Each factor as long as before, and the product longer or shorter."""
    drawn = [torch.randn(x.shape, generator=generator) for x in (A, B)]
    return drawn[0] * (A.norm() / drawn[0].norm()), drawn[1] * (B.norm() / drawn[1].norm())


def random_like_without_a_seed(A, B, generator):
    return right["random_like"](A, B, torch.Generator().manual_seed(0))


def norm_unscaled(model, name="default"):
    layers = right["lora_layers"](model).values()
    changes = [layer.adapters[name].B @ layer.adapters[name].A for layer in layers]
    return sum(c.detach().square().sum().item() for c in changes) ** 0.5


def norms_added(model, name="default"):
    layers = right["lora_layers"](model).values()
    return sum(layer.adapters[name].update().detach().norm().item() for layer in layers)


def weights_not_copied(model, names):
    return {name: model.get_submodule(name).weight.detach() for name in names}


def put_nothing(model, weights):
    return None


def randomize_one_factor(model, generator, name="default"):
    with torch.no_grad():
        for layer in right["lora_layers"](model).values():
            layer.adapters[name].A.copy_(torch.randn(layer.adapters[name].A.shape))


BUGS = [
    Bug("energy_shares", "adds the singular values, not their squares", shares_without_squares),
    Bug("energy_shares", "gives each share instead of their sum", shares_one_by_one),
    Bug("cut_to_rank", "keeps a direction too many", cut_with_one_more),
    Bug("cut_to_rank", "keeps the smallest", cut_the_last),
    Bug("random_cut", "has directions of any length", random_cut_not_orthonormal),
    Bug("random_cut", "keeps the best directions", random_cut_of_the_best),
    Bug("noise_like", "has another norm", noise_of_another_norm),
    Bug("noise_like", "is the change itself", noise_shuffled_signs),
    Bug("random_like", "scales both by the whole factor", random_like_scaled_once),
    Bug("random_like", "keeps the factors' norms", random_like_by_parts),
    Bug("random_like", "draws the same each time", random_like_without_a_seed),
    Bug("update_norm", "leaves the scale out", norm_unscaled),
    Bug("update_norm", "adds norms", norms_added),
    Bug("weights_of", "gives the weights themselves", weights_not_copied),
    Bug("put_weights", "writes nothing", put_nothing),
    Bug("randomize_adapters", "draws one factor, of any length", randomize_one_factor),
]
