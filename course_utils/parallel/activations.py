"""What a training step keeps for its backward pass, and how to compute it again instead.

Notebook 05. Activation checkpointing from scratch (Chen et al. 2016), and the bytes of activations
counted and by a published formula.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def activation_bytes(module: nn.Module, call: Callable[[], Tensor]) -> int:
    """Bytes that `call`, a forward pass of `module`, leaves for its backward pass.

    Each storage counts once; those of parameters and buffers, which are there anyway, do not.

    >>> net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh())
    >>> x = torch.zeros(4, 8)  # kept for the weight's gradient, and so is the tanh: 2·4·8 floats
    >>> activation_bytes(net, lambda: net(x))
    256
    """
    own = {x.untyped_storage()._cdata for x in (*module.parameters(), *module.buffers())}
    kept = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its place is not used again
        return x

    with saved_tensors_hooks(note, lambda x: x):
        call()
    return sum(storage.nbytes() for storage in kept.values())


class Recompute(torch.autograd.Function):
    """Run a function, keep its input alone, and run it once more when its gradient is wanted."""

    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """function(x), without a graph; x is all that is kept."""
        ctx.function, ctx.random_state = function, torch.get_rng_state()
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        """Once more with a graph, on the same random numbers; parameters get their gradients."""
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.random_state)  # dropout drops what it dropped before
            y = ctx.function(x)
        torch.autograd.backward(y, gradient)
        return None, x.grad


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Let each block, a function of one tensor and of options, keep its input alone, in place.

    Equal to `torch.utils.checkpoint` bit by bit. Raises ValueError for a block that has it already.
    The input must carry a gradient, or the block would not learn: RuntimeError when it does not.
    """
    for block in blocks:
        if "forward" in vars(block):
            raise ValueError(f"{type(block).__name__} has another forward already; apply it once")
        block.forward = functools.partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Tensor], x: Tensor, **options: Any) -> Tensor:
    if torch.is_grad_enabled() and not x.requires_grad:
        raise RuntimeError(
            "the input of a block that is computed again carries no gradient, so that the block "
            "would not learn; leave the first block as it is, or use x.requires_grad_()"
        )
    return Recompute.apply(functools.partial(forward, **options), x)


def published_activation_bytes(
    d_model: int, n_layers: int, n_heads: int, tokens: int, sequence: int, again: str = "nothing"
) -> float:
    """Bytes of a GPT's activations in 16 bits for `tokens` tokens in sequences of a length.

    Per layer tokens · d_model · (34 + 5 · n_heads · sequence / d_model). What is computed `again`
    need not be kept: with "attention", as fused kernels do, the 34 remain, with "blocks" their
    inputs alone, 2. Korthikanti et al. 2022, equation 1 and §5.

    >>> round(published_activation_bytes(12288, 96, 96, tokens=2048, sequence=2048) / 1e9)
    275
    """
    if min(d_model, n_layers, n_heads, tokens, sequence) < 1:
        raise ValueError("sizes and numbers of tokens are all at least 1")
    scores = 5 * n_heads * sequence / d_model
    kept = {"nothing": 34 + scores, "attention": 34, "blocks": 2}
    if again not in kept:
        raise ValueError(f"again is {again!r}; it must be one of {', '.join(kept)}")
    return float(n_layers) * tokens * d_model * kept[again]
