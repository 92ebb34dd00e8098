"""Pruning of whole heads, neurons and layers, so that matrices really shrink. Notebook 16.

Michel et al. 2019 (heads), Men et al. 2024 (layers). The functions take any attention with `query`,
`key`, `value`, `out` and its sizes, any feed-forward with `up`, `down` and perhaps `gate`, and any
list of blocks, such as those of this course's transformers. They change modules in place: make the
optimizer afterwards. Shapes: W (D_out, D_in), x (B, T, D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ── what matters ──────────────────────────────────────────────────────────────────────────────────


def input_scores(weight: Tensor, norms: Tensor, size: int = 1) -> Tensor:
    """How much each run of `size` inputs of a layer adds to its outputs: (D_in / size,).

    The root of Σ ‖W[:, j]‖²·‖x_j‖² over the run, with the norms (D_in,) of `Moments`. Of a
    feed-forward's `down` a run of 1 is a neuron, of an attention's `out` one of d_head a head.

    >>> W, norms = torch.tensor([[3.0, 0.0], [4.0, 1.0]]), torch.tensor([1.0, 2.0])
    >>> input_scores(W, norms), input_scores(W, norms, size=2)  # 5 · 1, 1 · 2; √(25 + 4)
    (tensor([5., 2.]), tensor([5.3852]))
    """
    if size < 1 or weight.shape[1] % size:
        raise ValueError(f"size is {size}, which does not divide {weight.shape[1]} inputs")
    each = weight.detach().norm(dim=0) * norms.to(weight)
    return each.reshape(-1, size).norm(dim=1)


def gradient_scores(
    out: nn.Linear, loss_of: Callable[[Any], Tensor], batches: Iterable[Any], size: int
) -> Tensor:
    """Mean over texts of |Σ x·∂L/∂x| for each run of `size` inputs of `out`: (D_in / size,).

    What the loss would change by, to first order, if a head gave 0. Michel et al. 2019, equation 2.
    `loss_of(batch)` runs the model that `out` is a layer of; x is (B, T, D_in), and B texts count
    each for itself.

    >>> out, x = nn.Linear(4, 1, bias=False), torch.ones(1, 1, 4)
    >>> _ = out.weight.data.copy_(torch.tensor([[1.0, 2.0, 0.0, -5.0]]))
    >>> gradient_scores(out, lambda batch: out(batch).sum(), [x], size=2)
    tensor([3., 5.])
    """
    seen: list[Tensor] = []

    def hook(layer: nn.Module, arguments: tuple) -> tuple:
        x = arguments[0] if arguments[0].requires_grad else arguments[0].detach().requires_grad_()
        seen.append(x)
        return (x,)

    handle, total, n = out.register_forward_pre_hook(hook), 0, 0
    try:
        for batch in batches:
            seen.clear()
            loss = loss_of(batch)
            if not seen:
                raise ValueError("loss_of did not call the layer; give one of its own model")
            gradient = torch.autograd.grad(loss, seen[-1])[0]
            product = (seen[-1].detach() * gradient).unflatten(-1, (-1, size))  # (B, T, n, size)
            total = total + product.sum(dim=(1, 3)).abs().sum(dim=0)
            n += len(product)
    finally:
        handle.remove()
    if not n:
        raise ValueError("there are no batches; a score needs at least one")
    return total / n


def block_influence(before: Tensor, after: Tensor, mask: Tensor | None = None) -> float:
    """1 − the mean cosine of what goes into a block and what comes out, (B, T, D) each.

    Near 0 for a block that changes little. Men et al. 2024 (ShortGPT), equation 1. `mask` (B, T)
    leaves padding out.

    >>> block_influence(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]]))
    1.0
    """
    cosine = F.cosine_similarity(before, after, dim=-1)
    if mask is not None:
        cosine = cosine[mask.bool()]
    if not cosine.numel():
        raise ValueError("no token is real; give at least one")
    return 1 - cosine.mean().item()


def largest(scores: Tensor, n: int) -> list[int]:
    """The places of the n largest scores, in order: what to keep.

    >>> largest(torch.tensor([5.0, 1.0, 7.0]), 2)
    [0, 2]
    """
    if not 1 <= n <= len(scores):
        raise ValueError(f"n is {n}; keep 1 to {len(scores)}")
    return sorted(scores.topk(n).indices.tolist())


# ── what shrinks ──────────────────────────────────────────────────────────────────────────────────


def keep_rows(linear: nn.Linear, rows: Sequence[int]) -> None:
    """Keep these outputs of a layer.

    >>> layer = nn.Linear(4, 3)
    >>> keep_rows(layer, [0, 2])
    >>> layer
    Linear(in_features=4, out_features=2, bias=True)
    """
    check_kept(rows, linear.out_features)
    _replace(linear, linear.weight[list(rows)])
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[list(rows)], linear.bias.requires_grad)


def keep_columns(linear: nn.Linear, columns: Sequence[int]) -> None:
    """Keep these inputs of a layer.

    >>> layer = nn.Linear(4, 3)
    >>> keep_columns(layer, [0, 2])
    >>> layer
    Linear(in_features=2, out_features=3, bias=True)
    """
    check_kept(columns, linear.in_features)
    _replace(linear, linear.weight[:, list(columns)])


def _replace(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight = nn.Parameter(weight.detach().clone(), linear.weight.requires_grad)
    linear.out_features, linear.in_features = weight.shape


def check_kept(kept: Sequence[int], n: int) -> None:
    """Raise ValueError for nothing, for something twice, and for what there is not."""
    if not kept:
        raise ValueError(f"nothing of {n} is kept; keep at least one")
    if len(set(kept)) < len(kept):
        raise ValueError(f"{sorted(kept)} holds something twice; keep each once")
    if min(kept) < 0 or max(kept) >= n:
        raise ValueError(f"kept go from {min(kept)} to {max(kept)}; there are 0 … {n - 1}")


def keep_neurons(feed_forward: nn.Module, kept: Sequence[int]) -> None:
    """Keep these hidden units of down(f(up(x))), or of down(f(gate(x))·up(x)).

    The output is that of the whole layer with the other units' columns of `down` at 0.

    >>> layer = nn.Module()
    >>> layer.up, layer.down = nn.Linear(4, 8), nn.Linear(8, 4)
    >>> keep_neurons(layer, [1, 2, 5])
    >>> layer.up.weight.shape, layer.down.weight.shape
    (torch.Size([3, 4]), torch.Size([4, 3]))
    """
    check_kept(kept, feed_forward.down.in_features)
    for name in ("gate", "up"):
        if hasattr(feed_forward, name):
            keep_rows(getattr(feed_forward, name), kept)
    keep_columns(feed_forward.down, kept)


def keep_heads(attention: nn.Module, kept: Sequence[int]) -> None:
    """Keep these heads of an attention, with its `n_heads`, `n_kv_heads` and `d_head`.

    Where query heads share a key head (n_kv_heads < n_heads), `kept` counts key heads, each of
    which keeps all of its queries. The width of the model stays.
    """
    check_kept(kept, attention.n_kv_heads)
    shared = attention.n_heads // attention.n_kv_heads  # query heads of each key head
    queries = [group * shared + i for group in kept for i in range(shared)]
    for name, heads in (("query", queries), ("key", kept), ("value", kept)):
        keep_rows(getattr(attention, name), numbers_of_heads(heads, attention.d_head))
    keep_columns(attention.out, numbers_of_heads(queries, attention.d_head))
    attention.n_heads, attention.n_kv_heads = len(queries), len(kept)


def numbers_of_heads(heads: Sequence[int], d_head: int) -> list[int]:
    """The places of these heads' numbers, side by side.

    >>> numbers_of_heads([0, 2], d_head=3)
    [0, 1, 2, 6, 7, 8]
    """
    return [head * d_head + i for head in heads for i in range(d_head)]


def keep_layers(blocks: nn.ModuleList, kept: Sequence[int]) -> nn.ModuleList:
    """A list of these blocks, in this order: put it in place of the model's.

    >>> len(keep_layers(nn.ModuleList(nn.Linear(2, 2) for _ in range(6)), [0, 1, 5]))
    3
    """
    check_kept(kept, len(blocks))
    return nn.ModuleList(blocks[i] for i in kept)
