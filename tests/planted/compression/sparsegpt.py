"""Plausible wrong versions of course_utils.compression.sparsegpt."""

from __future__ import annotations

from planting import Bug, originals

right = originals("compression.sparsegpt", "compression.pruning", "compression.gptq")


def saliency_of_the_weight(weight, factor):
    return weight.square()


def saliency_times_the_diagonal(weight, factor):
    """H⁻¹ in place of H: the wrong way round."""
    return (weight * factor.diagonal()).square()


def saliency_of_the_whole_inverse(weight, factor):
    """As if no column were done."""
    return weight.square() / (factor.T @ factor).diagonal()


def mask_without_an_update(weight, hessian, sparsity, *, damping=0.01, block_size=128):
    """Removes the right weights, and lets none make up for them."""
    done = right["sparsegpt"](weight, hessian, sparsity, damping=damping, block_size=block_size)
    return weight * (done != 0)


def mask_chosen_beforehand(weight, hessian, sparsity, *, damping=0.01, block_size=128):
    """All blocks at once, before any has changed."""
    return right["sparsegpt"](
        weight, hessian, sparsity, damping=damping, block_size=max(block_size, weight.shape[1])
    )


def one_too_many(weight, hessian, sparsity, *, damping=0.01, block_size=128):
    n = weight.shape[0] * min(block_size, weight.shape[1])
    more = min(1.0, (int(n * sparsity) + 1) / n)
    return right["sparsegpt"](weight, hessian, more, damping=damping, block_size=block_size)


def n_goes(weight, hessian, n=2, m=4, *, damping=0.01, block_size=128):
    left = max(1, m - n)
    options = {"damping": damping, "block_size": block_size}
    return right["sparsegpt_n_of_m"](weight, hessian, left, m, **options)


def n_of_m_by_magnitude(weight, hessian, n=2, m=4, *, damping=0.01, block_size=128):
    right["check_n_of_m"](n, m, weight.shape[-1])
    return weight * right["n_of_m_mask"](weight.abs(), n, m)


BUGS = [
    Bug("saliencies", "are magnitudes", saliency_of_the_weight, "saliencies or llm"),
    Bug("saliencies", "multiply", saliency_times_the_diagonal, "saliencies or llm"),
    Bug("saliencies", "forget what is done", saliency_of_the_whole_inverse, "saliencies"),
    Bug("sparsegpt", "updates nothing", mask_without_an_update),
    Bug("sparsegpt", "chooses beforehand", mask_chosen_beforehand, "least or llm"),
    Bug("sparsegpt", "removes one too many", one_too_many, "what_stays or ends"),
    Bug("sparsegpt_n_of_m", "removes n", n_goes),
    Bug("sparsegpt_n_of_m", "masks alone", n_of_m_by_magnitude),
]
