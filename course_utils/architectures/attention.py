"""Attention from its equation: masks, weights, heads. Notebook 02.

Three forms of one computation, tested equal: `attention_plain` (loops, one sequence), `attention`
(batched, the textbook's two products) and `fused_attention` (torch's kernel, which never stores the
weights). Shapes: B sequences, H heads, T_q queries, T_k keys, D numbers per head.

A mask is True where a query may look, here as in `F.scaled_dot_product_attention`; the masks of
`nn.MultiheadAttention` say the opposite. A query that may look nowhere gets weights and an output
of exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.architectures.kv_cache import LayerCache
from course_utils.architectures.layers import check_positive
from course_utils.architectures.positions import rotate

# ── masks ─────────────────────────────────────────────────────────────────────────────────────────


def causal_mask(
    n_queries: int, n_keys: int | None = None, device: torch.device | str | None = None
) -> Tensor:
    """(T_q, T_k): query i sees keys up to itself; the queries are the *last* T_q of the T_k steps.

    With a cache T_q < T_k, and the triangle must stand at the right end: torch's own
    `is_causal=True` puts it at the left.

    >>> causal_mask(2, 3).int()  # two new tokens after one that is in the cache
    tensor([[1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    n_keys = n_queries if n_keys is None else n_keys
    if n_queries > n_keys:
        raise ValueError(f"{n_queries} queries, {n_keys} keys; every query is one of the keys")
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_queries)


def prefix_mask(n_tokens: int, n_prefix: int, device: torch.device | str | None = None) -> Tensor:
    """(T, T): the first `n_prefix` tokens see one another, those after them what stands before.

    A prefix of 0 is the decoder's mask, one of all tokens the encoder's; between the two it is the
    prefix LM of Raffel et al. 2020, §3.2.1. ValueError for a prefix longer than the text.

    >>> prefix_mask(4, 2).int()
    tensor([[1, 1, 0, 0],
            [1, 1, 0, 0],
            [1, 1, 1, 0],
            [1, 1, 1, 1]], dtype=torch.int32)
    """
    if not 0 <= n_prefix <= n_tokens:
        raise ValueError(f"n_prefix is {n_prefix}; it lies between 0 and the {n_tokens} tokens")
    in_prefix = torch.arange(n_tokens, device=device) < n_prefix  # (T,), of the keys
    return causal_mask(n_tokens, device=device) | in_prefix


def padding_mask(real: Tensor) -> Tensor:
    """(B, T_k), 1 or True where a token is real -> (B, 1, 1, T_k), for every head and query.

    Of the keys' own sequence it is the padding mask, of the source's the cross-attention mask.

    >>> padding_mask(torch.tensor([[1, 1, 0]]))
    tensor([[[[ True,  True, False]]]])
    """
    if real.ndim != 2:
        raise ValueError(f"the mask has shape {tuple(real.shape)}; give (batch, keys)")
    return real.bool()[:, None, None, :]


# ── scaled dot-product attention ──────────────────────────────────────────────────────────────────


def attention_plain(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """One sequence, one head, one number at a time: q (T_q, D), k (T_k, D), v (T_k, D_v).

    Vaswani et al. 2017, equation 1.

    >>> q, k = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]])
    >>> attention_plain(q, k, v=torch.tensor([[0.0], [1.0]]))  # weights 1/4 and 3/4
    tensor([[0.7500]])
    """
    scale = 1 / math.sqrt(q.shape[1]) if scale is None else scale
    outputs = []
    for i, query in enumerate(q):
        seen = [j for j in range(len(k)) if mask is None or mask[i, j]]
        scores = [scale * torch.dot(query, k[j]).item() for j in seen]
        largest = max(scores, default=0.0)  # taken away from all: exp of a large number overflows
        powers = [math.exp(score - largest) for score in scores]
        output = torch.zeros_like(v[0])
        for j, power in zip(seen, powers, strict=True):
            output += power / sum(powers) * v[j]
        outputs.append(output)
    return torch.stack(outputs)


def attention_weights(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """softmax(q kᵀ·scale + bias) over the keys a query may see: (…, T_q, D) -> (…, T_q, T_k).

    `scale` is 1/√D unless given. Rows sum to 1, or are all 0 where the mask leaves nothing.

    >>> q, k = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [math.log(3)]])
    >>> attention_weights(q, k, causal_mask(2))  # the first query sees the first key alone
    tensor([[1.0000, 0.0000],
            [0.2500, 0.7500]])
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = scale * q @ k.transpose(-2, -1)  # (…, T_q, D) (…, D, T_k) -> (…, T_q, T_k)
    if bias is not None:
        scores = scores + bias
    if mask is None:
        return scores.softmax(dim=-1)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) * mask  # · mask: a row with nothing to see is 0, not uniform


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Weighted sums of the values: q (B, H, T_q, D), k and v (B, G, T_k, ·) -> (B, H, T_q, D_v).

    Fewer key–value heads than heads (G < H) are shared by H/G heads each.
    """
    _check_heads(q, k, v, mask)
    k, v = share_heads(k, q.shape[1]), share_heads(v, q.shape[1])
    return attention_weights(q, k, mask, scale=scale, bias=bias) @ v


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`attention` in one kernel of torch's, which keeps no (T_q, T_k) weights in memory.

    `causal` alone lets the kernel skip the half it would mask. Shapes as in `attention`.
    """
    _check_heads(q, k, v, mask)
    n_queries, n_keys = q.shape[2], k.shape[2]
    square = causal and mask is None and bias is None and n_queries == n_keys
    if causal and not square and n_queries > 1:
        triangle = causal_mask(n_queries, n_keys, q.device)
        mask = triangle if mask is None else mask & triangle
    if bias is not None:
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=square,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def share_heads(kv: Tensor, n_heads: int) -> Tensor:
    """(B, G, T, D) -> (B, H, T, D): each of G heads serves H/G neighbours. Ainslie et al. 2023.

    >>> share_heads(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), n_heads=4).flatten()
    tensor([1., 1., 2., 2.])
    """
    if kv.shape[1] == n_heads:
        return kv
    return kv.repeat_interleave(n_heads // kv.shape[1], dim=1)


def _check_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"{shapes}; each must be (batch, heads, steps, size)")
    if k.shape[1] != v.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"{shapes}: {k.shape[1]} key heads do not divide {q.shape[1]} heads")
    if q.shape[3] != k.shape[3] or k.shape[2] != v.shape[2] or not k.shape[2]:
        raise ValueError(f"{shapes}: q and k need one size, k and v one number of steps above 0")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"the mask is {mask.dtype}; it is boolean here, True where one may look")
    if mask is not None and mask.shape[-1] not in (1, k.shape[2]):
        raise ValueError(f"the mask has shape {tuple(mask.shape)}; there are {k.shape[2]} keys")


# ── heads ─────────────────────────────────────────────────────────────────────────────────────────


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each in a space of its own (Vaswani et al. 2017, §3.2.2).

    `n_kv_heads` below `n_heads` is grouped-query attention (1: multi-query); `d_memory` the width
    of another sequence to attend to (cross-attention); `d_head` is d_model/n_heads unless given.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        d_memory: int | None = None,
        d_out: int | None = None,
        bias: bool = True,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        check_positive(d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads)
        if d_head is None and d_model % n_heads:
            raise ValueError(f"d_model {d_model} is no multiple of n_heads {n_heads}; give d_head")
        if n_heads % n_kv_heads:
            raise ValueError(f"n_heads {n_heads} is no multiple of n_kv_heads {n_kv_heads}")
        d_head = d_model // n_heads if d_head is None else d_head
        d_memory = d_model if d_memory is None else d_memory
        self.n_heads, self.n_kv_heads, self.d_head = n_heads, n_kv_heads, d_head
        self.scale, self.dropout = scale, dropout
        self.query = nn.Linear(d_model, n_heads * d_head, bias=bias)
        self.key = nn.Linear(d_memory, n_kv_heads * d_head, bias=bias)
        self.value = nn.Linear(d_memory, n_kv_heads * d_head, bias=bias)
        self.out = nn.Linear(n_heads * d_head, d_model if d_out is None else d_out, bias=bias)
        self.probe: Callable[[Tensor], Tensor | None] | None = None  # see `probed`

    def split(self, x: Tensor) -> Tensor:
        """(B, T, H·D) -> (B, H, T, D)."""
        return x.unflatten(-1, (-1, self.d_head)).transpose(1, 2)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """What a sequence (B, T_k, d_memory) has to offer: keys and values (B, G, T_k, D)."""
        return self.split(self.key(memory)), self.split(self.value(memory))

    def forward(
        self,
        x: Tensor,
        keys_values: tuple[Tensor, Tensor] | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x (B, T_q, d_model) attends to itself, or to another sequence -> (B, T_q, d_out).

        `keys_values` are those of the other sequence (cross-attention). `mask` (…, T_q, T_k) is
        True where one may look; `bias` (…, T_q, T_k) is added to the scores; `rotary` holds the
        cosines and sines of x's positions; `cache` adds the steps before x.

        >>> layer = MultiHeadAttention(d_model=8, n_heads=2)
        >>> text, source = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
        >>> layer(text, causal=True).shape, layer(text, layer.keys_values(source)).shape
        (torch.Size([1, 3, 8]), torch.Size([1, 3, 8]))
        """
        q = self.split(self.query(x))
        if keys_values is None:
            keys_values = self.keys_values(x)
        k, v = keys_values
        if rotary is not None:
            q = rotate(q, *rotary)
            k = rotate(k, *rotary)
        if cache is not None:
            k, v = cache.extend(k, v)
        attended = self._attend(q, k, v, mask, causal, bias)
        return self.out(attended.transpose(1, 2).flatten(2))  # (B, H, T_q, D) -> (B, T_q, H·D)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        causal: bool,
        bias: Tensor | None,
    ) -> Tensor:
        if self.probe is None:
            dropout = self.dropout if self.training else 0.0
            return fused_attention(
                q, k, v, mask, causal=causal, scale=self.scale, bias=bias, dropout=dropout
            )
        _check_heads(q, k, v, mask)
        if causal:
            triangle = causal_mask(q.shape[2], k.shape[2], q.device)
            mask = triangle if mask is None else mask & triangle
        k = share_heads(k, self.n_heads)
        v = share_heads(v, self.n_heads)
        weights = attention_weights(q, k, mask, scale=self.scale, bias=bias)
        replaced = self.probe(weights)
        if replaced is not None:
            weights = replaced
        return weights @ v


@contextmanager
def probed(model: nn.Module, look: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Inside, `look` sees the weights (B, H, T_q, T_k) of every attention in the order they run.

    What it returns replaces them; None leaves them. `maps = []; with probed(model, maps.append):`
    records them all.

    >>> layer, maps = MultiHeadAttention(8, n_heads=2), []
    >>> with probed(layer, maps.append):
    ...     _ = layer(torch.randn(1, 3, 8), causal=True)
    >>> maps[0].shape, maps[0][0, 0, 0].tolist()  # the first token sees itself alone
    (torch.Size([1, 2, 3, 3]), [1.0, 0.0, 0.0])
    """
    layers = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no MultiHeadAttention to look at")
    for layer in layers:
        layer.probe = look
    try:
        yield
    finally:
        for layer in layers:
            layer.probe = None


def looks_back(weights: Tensor, steps: int, start: int = 0) -> Tensor:
    """Mean weight on the token `steps` before the one that looks: (…, T, T) -> (…).

    Over the queries from `start` on, and those alone that have a token so far back.

    >>> weights = torch.tensor([[1.0, 0.0], [0.75, 0.25]])
    >>> looks_back(weights, 1), looks_back(weights, 0)  # one query has a token before it
    (tensor(0.7500), tensor(0.6250))
    """
    n = weights.shape[-1]
    start = max(start, steps)
    if not 0 <= steps < n or not start < n:
        raise ValueError(f"steps is {steps} and start {start}; there are {n} tokens")
    queries = torch.arange(start, n, device=weights.device)
    return weights[..., queries, queries - steps].mean(-1)
