"""Plausible wrong versions of course_utils.compression.structured_pruning."""

from __future__ import annotations

import torch
from planting import Bug, originals
from torch import nn

right = originals("compression.structured_pruning")


def rows_without_the_bias(linear, rows):
    bias = linear.bias
    linear.bias = None
    right["keep_rows"](linear, rows)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach()[: len(rows)])


def rows_that_only_become_zero(linear, rows):
    """The file and the time stay what they were."""
    right["check_kept"](rows, linear.out_features)
    gone = [i for i in range(linear.out_features) if i not in rows]
    linear.weight.data[gone] = 0


def columns_that_come_first(linear, columns):
    right["check_kept"](columns, linear.in_features)
    right["_replace"](linear, linear.weight[:, : len(columns)])


def always_learning(linear, columns):
    right["keep_columns"](linear, columns)
    linear.weight.requires_grad_(True)


def neurons_without_the_gate(feed_forward, kept):
    """The gate's other half is cut off at the end, whatever is kept."""
    right["keep_rows"](feed_forward.up, kept)
    if hasattr(feed_forward, "gate"):
        right["keep_rows"](feed_forward.gate, range(len(kept)))
    right["keep_columns"](feed_forward.down, kept)


def heads_that_interleave(heads, d_head):
    """Numbers of a head lie side by side, not every n-th."""
    n = max(heads) + 1
    return [head + i * n for head in heads for i in range(d_head)]


def heads_with_neighbouring_queries(attention, kept):
    """Query heads of a group taken as every n-th: another sharing."""
    shared = attention.n_heads // attention.n_kv_heads
    queries = [group + i * attention.n_kv_heads for group in kept for i in range(shared)]
    right["check_kept"](kept, attention.n_kv_heads)
    places = right["numbers_of_heads"](queries, attention.d_head)
    right["keep_rows"](attention.query, places)
    for layer in (attention.key, attention.value):
        right["keep_rows"](layer, right["numbers_of_heads"](kept, attention.d_head))
    right["keep_columns"](attention.out, places)
    attention.n_heads, attention.n_kv_heads = len(queries), len(kept)


def last_layers(blocks, kept):
    right["check_kept"](kept, len(blocks))
    return blocks[-len(kept) :]


def scores_of_weights(weight, norms, size=1):
    return right["input_scores"](weight, torch.ones_like(norms), size)


def scores_of_outputs(weight, norms, size=1):
    each = (weight.detach() * norms).norm(dim=1)
    return each.repeat(-(-weight.shape[1] // len(each)))[: weight.shape[1] // size]


def scores_as_sums(weight, norms, size=1):
    return right["input_scores"](weight, norms).reshape(-1, size).sum(1)


def gradients_without_the_values(out, loss_of, batches, size):
    seen = []
    handle = out.register_forward_pre_hook(
        lambda m, a: (seen.append(a[0].detach().requires_grad_()) or seen[-1],)
    )
    total = n = 0
    for batch in batches:
        gradient = torch.autograd.grad(loss_of(batch), seen[-1])[0]
        total = total + gradient.unflatten(-1, (-1, size)).sum(dim=(1, 3)).abs().sum(0)
        n += len(gradient)
    handle.remove()
    return total / n


def gradients_of_each_token(out, loss_of, batches, size):
    """The size is taken before the sum over tokens."""
    batches = [token for batch in batches for token in batch.flatten(0, 1)[:, None, None]]
    return right["gradient_scores"](out, loss_of, batches, size)


def gradients_summed(out, loss_of, batches, size):
    batches = list(batches)
    n = sum(len(batch) for batch in batches)
    return right["gradient_scores"](out, loss_of, batches, size) * n


def influence_as_cosine(before, after, mask=None):
    return 1 - right["block_influence"](before, after, mask)


def influence_of_padding(before, after, mask=None):
    return right["block_influence"](before, after)


def influence_of_means(before, after, mask=None):
    return right["block_influence"](before.mean(1, keepdim=True), after.mean(1, keepdim=True))


def largest_by_size(scores, n):
    return scores.topk(n).indices.tolist()


def smallest(scores, n):
    return right["largest"](-scores, n)


BUGS = [
    Bug("keep_rows", "leave the bias as it was", rows_without_the_bias, "keep_rows"),
    Bug("keep_rows", "only become zero", rows_that_only_become_zero, "keep_rows"),
    Bug("keep_columns", "are the first", columns_that_come_first, "keep"),
    Bug("keep_columns", "always learn", always_learning, "keep_columns"),
    Bug("keep_neurons", "forget the gate", neurons_without_the_gate),
    Bug("numbers_of_heads", "interleave", heads_that_interleave, "keep_heads"),
    Bug("keep_heads", "take other queries", heads_with_neighbouring_queries),
    Bug("keep_layers", "are the last", last_layers),
    Bug("input_scores", "forget the inputs", scores_of_weights),
    Bug("input_scores", "are of outputs", scores_of_outputs),
    Bug("input_scores", "add norms", scores_as_sums),
    Bug("gradient_scores", "forget the values", gradients_without_the_values),
    Bug("gradient_scores", "look at tokens alone", gradients_of_each_token),
    Bug("gradient_scores", "are sums", gradients_summed),
    Bug("block_influence", "is the cosine", influence_as_cosine),
    Bug("block_influence", "counts padding", influence_of_padding),
    Bug("block_influence", "averages first", influence_of_means),
    Bug("largest", "orders by size", largest_by_size),
    Bug("largest", "are the smallest", smallest),
]
