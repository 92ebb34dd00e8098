"""Plausible wrong versions of course_utils.parallel.activations."""

from __future__ import annotations

import torch
from planting import Bug, originals
from torch.autograd.graph import saved_tensors_hooks

right = originals("parallel.activations")


def bytes_of_all_that_is_kept(module, call):
    """The weights count too."""
    return right["activation_bytes"](torch.nn.Module(), call)


def bytes_counted_each_time(module, call):
    """Two that keep one tensor are counted twice."""
    own = {x.untyped_storage()._cdata for x in (*module.parameters(), *module.buffers())}
    found = []

    def note(x):
        if x.untyped_storage()._cdata not in own:
            found.append(x.nbytes)
        return x

    with saved_tensors_hooks(note, lambda x: x):
        call()
    return sum(found)


class WithNewRandomNumbers(right["Recompute"]):
    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(x)
        torch.autograd.backward(y, gradient)
        return None, x.grad


class WithoutTheGraph(right["Recompute"]):
    """Nothing is left for the backward pass: the input's gradient is taken as it came."""

    @staticmethod
    def backward(ctx, gradient):
        return None, gradient


def published_without_attention(d_model, n_layers, n_heads, tokens, sequence, again="nothing"):
    again = "attention" if again == "nothing" else again
    sizes = d_model, n_layers, n_heads, tokens, sequence
    return right["published_activation_bytes"](*sizes, again)


def published_of_one_layer(d_model, n_layers, n_heads, tokens, sequence, again="nothing"):
    whole = right["published_activation_bytes"](d_model, n_layers, n_heads, tokens, sequence, again)
    return whole / n_layers


BUGS = [
    Bug("activation_bytes", "counts weights", bytes_of_all_that_is_kept, tests="by_hand"),
    Bug("activation_bytes", "counts again", bytes_counted_each_time, tests="by_hand"),
    Bug("Recompute", "draws anew", WithNewRandomNumbers, tests="dropped"),
    Bug("Recompute", "computes nothing again", WithoutTheGraph, tests="gives_the_gradients"),
    Bug("published_activation_bytes", "leaves attention out", published_without_attention),
    Bug("published_activation_bytes", "is one layer's", published_of_one_layer),
]
