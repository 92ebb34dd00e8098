"""Attention from its equation: masks, heads, positions, and the cache of keys and values.

Three forms of one computation, tested equal: `attention_plain` (loops, one sequence), `attention`
(batched, the textbook's two products) and `fused_attention` (torch's kernel, which never stores the
weights). Shapes: B sequences, H heads, T_q queries, T_k keys, D numbers per head.

A mask is True where a query may look, here as in `F.scaled_dot_product_attention`; the masks of
`nn.MultiheadAttention` say the opposite. A query that may look nowhere gets weights and an output
of exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.layers import Linear, check_positive

# ── masks ─────────────────────────────────────────────────────────────────────────────────────────


def causal_mask(
    n_queries: int, n_keys: int | None = None, device: torch.device | str | None = None
) -> Tensor:
    """(T_q, T_k): query i sees keys up to itself; the queries are the *last* T_q of the T_k steps.

    With a cache T_q < T_k, and the triangle must stand at the right end: torch's own
    `is_causal=True` puts it at the left.
    """
    n_keys = n_queries if n_keys is None else n_keys
    if n_queries > n_keys:
        raise ValueError(f"{n_queries} queries, {n_keys} keys; every query is one of the keys")
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_queries)


def padding_mask(real: Tensor) -> Tensor:
    """(B, T_k), 1 or True where a token is real -> (B, 1, 1, T_k), for every head and query.

    Of the keys' own sequence it is the padding mask, of the source's the cross-attention mask.
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
    """
    scale = 1 / math.sqrt(q.shape[1]) if scale is None else scale
    outputs = []
    for i, query in enumerate(q):
        seen = [j for j in range(len(k)) if mask is None or mask[i, j]]
        scores = [math.exp(scale * torch.dot(query, k[j]).item()) for j in seen]
        output = torch.zeros_like(v[0])
        for j, score in zip(seen, scores, strict=True):
            output += score / sum(scores) * v[j]
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
    """(B, G, T, D) -> (B, H, T, D): each of G heads serves H/G neighbours. Ainslie et al. 2023."""
    return kv.repeat_interleave(n_heads // kv.shape[1], dim=1) if kv.shape[1] != n_heads else kv


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


# ── the cache ─────────────────────────────────────────────────────────────────────────────────────


class LayerCache:
    """Keys and values (B, G, T, D) of one layer, in buffers that grow by doubling.

    Appending one step then copies that step alone; joining tensors would copy all of them.
    """

    def __init__(self) -> None:
        self.keys = self.values = None
        self.length = 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new steps (B, G, T, D) and return all, as views of the buffers."""
        if k.requires_grad:
            raise RuntimeError("a cache is written in place; use it inside torch.no_grad()")
        start, self.length = self.length, self.length + k.shape[2]
        if self.keys is None or self.length > self.keys.shape[2]:
            room = max(self.length, 2 * start)
            self.keys, self.values = (
                self._grown(self.keys, k, room),
                self._grown(self.values, v, room),
            )
        self.keys.narrow(2, start, k.shape[2]).copy_(k)
        self.values.narrow(2, start, v.shape[2]).copy_(v)
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    @staticmethod
    def _grown(old: Tensor | None, new: Tensor, room: int) -> Tensor:
        buffer = new.new_empty(*new.shape[:2], room, new.shape[3])
        if old is not None:
            buffer[:, :, : old.shape[2]] = old
        return buffer


class KVCache:
    """What a decoder has computed of the tokens so far: one `LayerCache` a layer.

    Only for inference: the buffers are written in place, so no gradient passes through them.
    """

    def __init__(self, n_layers: int) -> None:
        check_positive(n_layers=n_layers)
        self.layers = [LayerCache() for _ in range(n_layers)]

    @property
    def length(self) -> int:
        """Steps stored."""
        return self.layers[0].length

    def nbytes(self) -> int:
        """Bytes of the stored steps: 2 · layers · B · G · T · D · bytes per number."""
        return sum(
            tensor[:, :, : layer.length].numel() * tensor.element_size()
            for layer in self.layers
            if layer.keys is not None
            for tensor in (layer.keys, layer.values)
        )

    def crop(self, length: int) -> None:
        """Forget everything after the first `length` steps."""
        if not 0 <= length <= self.length:
            raise ValueError(f"length is {length}; the cache holds {self.length} steps")
        for layer in self.layers:
            layer.length = length

    def select(self, rows: Tensor) -> None:
        """Keep these sequences, in this order, repeats allowed: what beam search needs."""
        for layer in self.layers:
            if layer.keys is not None:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]


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
        self.query = Linear(d_model, n_heads * d_head, bias=bias)
        self.key = Linear(d_memory, n_kv_heads * d_head, bias=bias)
        self.value = Linear(d_memory, n_kv_heads * d_head, bias=bias)
        self.out = Linear(n_heads * d_head, d_model if d_out is None else d_out, bias=bias)
        self.probe: Callable[[Tensor], Tensor | None] | None = None  # see `probed`

    def split(self, x: Tensor) -> Tensor:
        """(B, T, H·D) -> (B, H, T, D)."""
        return x.unflatten(-1, (-1, self.d_head)).transpose(1, 2)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """memory (B, T_k, d_memory) -> keys and values (B, G, T_k, D)."""
        return self.split(self.key(memory)), self.split(self.value(memory))

    def forward(
        self,
        x: Tensor,
        memory: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x (B, T_q, d_model) attends to itself, or to `memory` -> (B, T_q, d_out).

        `memory` is (B, T_k, d_memory) or its finished keys and values. `mask` (…, T_q, T_k) is True
        where one may look; `bias` (…, T_q, T_k) is added to the scores; `rotary` holds the cosines
        and sines of x's positions; `cache` adds the steps before x.
        """
        q = self.split(self.query(x))
        k, v = (
            memory
            if isinstance(memory, tuple)
            else self.keys_values(x if memory is None else memory)
        )
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
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
        weights = attention_weights(
            q, share_heads(k, self.n_heads), mask, scale=self.scale, bias=bias
        )
        replaced = self.probe(weights)
        return (weights if replaced is None else replaced) @ share_heads(v, self.n_heads)


@contextmanager
def probed(model: nn.Module, look: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Inside, `look` sees the weights (B, H, T_q, T_k) of every attention in the order they run.

    What it returns replaces them; None leaves them. `maps = []; with probed(model, maps.append):`
    records them all.
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


def path_length(output: Tensor, source: Tensor) -> int:
    """Fewest operations of torch's graph between a result and a leaf it was computed from.

    So many derivatives a gradient is multiplied by on its shortest way back: the "maximum path
    length" of Vaswani et al. 2017, table 1, in operations. ValueError when none leads there.
    """
    front, seen, length = {output.grad_fn} - {None}, set(), 0
    while front:
        if any(getattr(node, "variable", None) is source for node in front):
            return length
        seen |= front
        steps = {following for node in front for following, _ in node.next_functions}
        front, length = steps - seen - {None}, length + 1
    raise ValueError("no path leads back; the source must be a leaf that requires a gradient")


# ── positions ─────────────────────────────────────────────────────────────────────────────────────


def sinusoidal_positions(n_positions: int, d_model: int) -> Tensor:
    """sin and cos of pos/10000^(2i/d) in turns -> (T, d_model). Vaswani et al. 2017, §3.5."""
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}; sines and cosines come in pairs, so make it even")
    angles = torch.arange(n_positions).unsqueeze(1) * rotary_frequencies(d_model)  # (T, d/2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def rotary_frequencies(d_head: int, theta: float = 10_000.0) -> Tensor:
    """θ^(−2i/D), i = 0 … D/2 − 1: how far pair i turns from a position to the next, in radians.

    Su et al. 2021 (RoFormer), equation 15.
    """
    if d_head % 2:
        raise ValueError(f"d_head is {d_head}; rotary positions turn pairs, so make it even")
    return 1 / theta ** (torch.arange(0, d_head, 2).float() / d_head)  # as transformers rounds it


def rotate_plain(x: Tensor, position: int, theta: float = 10_000.0) -> Tensor:
    """One vector (D,), turned pair by pair as in the paper: neighbours 2i and 2i + 1 are a pair.

    Su et al. 2021, equation 15.
    """
    turned = torch.empty_like(x)
    for i, frequency in enumerate(rotary_frequencies(len(x), theta).tolist()):
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        turned[2 * i] = x[2 * i] * cos - x[2 * i + 1] * sin
        turned[2 * i + 1] = x[2 * i] * sin + x[2 * i + 1] * cos
    return turned


def rotary_angles(
    positions: Tensor, frequencies: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """What `rotate` needs at positions (B or 1, T): cosines and signed sines, (B or 1, 1, T, D).

    Numbers i and i + D/2 of a head are a pair with one angle; the sine of the first has a minus.
    `scale` multiplies both.
    """
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, T, 1) (D/2,)
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, H, T, D) by its positions: x_i cos − x_{i+D/2} sin and x_{i+D/2} cos + x_i sin.

    The layout of Llama's weights in transformers; `pair_halves` makes it of the paper's.
    """
    partner = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, partner, sin)


def pair_halves(weight: Tensor, n_heads: int) -> Tensor:
    """Reorder a query or key weight (H·D, …) from neighbouring pairs to pairs half a head apart.

    Scores do not change when both are reordered; GGUF files and Meta's Llama weights hold the
    former, transformers the latter.
    """
    heads = weight.unflatten(0, (n_heads, -1, 2))  # (H, D/2, 2, …)
    return heads.transpose(1, 2).flatten(0, 2)


# ── longer contexts: other frequencies for the same weights ───────────────────────────────────────


def linear_scaling(frequencies: Tensor, factor: float) -> Tensor:
    """Position interpolation: step `factor` times as slowly everywhere. Chen et al. 2023."""
    return frequencies / factor


def dynamic_scaling(
    d_head: int, theta: float, factor: float, length: int, original_length: int
) -> Tensor:
    """Raise the base as the text outgrows what was trained: slow pairs stretch, fast ones do not.

    Dynamic NTK-aware scaling (bloc97 and emozilla 2023, in Peng et al. 2023, §3.3).
    """
    stretch = factor * max(length, original_length) / original_length - (factor - 1)
    return rotary_frequencies(d_head, theta * stretch ** (d_head / (d_head - 2)))


def yarn_scaling(
    frequencies: Tensor,
    theta: float,
    factor: float,
    original_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> tuple[Tensor, float]:
    """Pairs that turn often keep their frequency, those that turn less than once are stretched.

    Between `beta_fast` and `beta_slow` turns over the original length a ramp mixes the two. Also
    returns the factor 0.1·ln(factor) + 1 on cosines and sines. Peng et al. 2023 (YaRN), §3.2–3.4,
    with the ends of the ramp rounded to whole pairs as in the authors' code.
    """
    half = len(frequencies)

    def pair_that_turns(times: float) -> float:  # solve original_length·θ^(−i/half) = 2π·times
        return half * math.log(original_length / (times * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(pair_that_turns(beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(beta_slow)), 2 * half - 1)
    ramp = (torch.arange(half) - low) / max(high - low, 1e-3)
    stretched = ramp.clamp(0, 1)  # 0 keeps, 1 stretches
    mixed = frequencies / factor * stretched + frequencies * (1 - stretched)
    return mixed, 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def llama3_scaling(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_length: int,
) -> Tensor:
    """Stretch wavelengths above original/low, keep those below original/high, blend in between.

    Llama 3.1's rule (Meta's reference code, 2024).
    """
    turns = original_length * frequencies / (2 * math.pi)  # over the original length
    keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    keep = keep.clamp(0, 1)
    return frequencies / factor * (1 - keep) + frequencies * keep


_SCALING_NAMES = {
    *("rope_type", "rope_theta", "factor", "original_max_position_embeddings"),
    *("beta_fast", "beta_slow", "attention_factor", "low_freq_factor", "high_freq_factor"),
}


def scaled_frequencies(
    d_head: int,
    theta: float = 10_000.0,
    scaling: Mapping[str, Any] | None = None,
    *,
    length: int = 0,
    max_positions: int = 0,
) -> tuple[Tensor, float]:
    """Frequencies (D/2,) and the factor on cosines and sines under a model's scaling rule.

    `scaling` has the names of a transformers configuration: "rope_type" (default, linear, dynamic,
    yarn, llama3), "factor", "original_max_position_embeddings" and the rule's own. `length` is how
    far the text goes, used by "dynamic". ValueError for a rule that is not here.
    """
    scaling = dict(scaling or {})
    if unknown := scaling.keys() - _SCALING_NAMES:
        raise ValueError(f"scaling has {', '.join(sorted(unknown))}, which no rule here uses")
    kind, factor = scaling.get("rope_type", "default"), scaling.get("factor", 1.0)
    original = scaling.get("original_max_position_embeddings") or max_positions
    frequencies = rotary_frequencies(d_head, theta)
    if kind == "default":
        return frequencies, 1.0
    if kind == "linear":
        return linear_scaling(frequencies, factor), 1.0
    if kind == "dynamic":
        return dynamic_scaling(d_head, theta, factor, length, max_positions), 1.0
    if kind == "yarn":
        betas = [scaling.get("beta_fast") or 32.0, scaling.get("beta_slow") or 1.0]
        mixed, magnitude = yarn_scaling(frequencies, theta, factor, original, *betas)
        return mixed, scaling.get("attention_factor") or magnitude
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        return llama3_scaling(frequencies, factor, low, high, original), 1.0
    raise ValueError(f"rope_type is {kind!r}; known are default, linear, dynamic, yarn, llama3")


def relative_buckets(
    n_queries: int,
    n_keys: int,
    *,
    n_buckets: int = 32,
    max_distance: int = 128,
    both_ways: bool = True,
) -> Tensor:
    """Which learned bias each pair of positions uses -> (T_q, T_k), queries at the right end.

    Near distances have a bucket each, farther ones share buckets that widen logarithmically up to
    `max_distance`; `both_ways` gives the keys after a query the upper half. Raffel et al. 2020
    (T5), §2.1, with the rounding of the published models.
    """
    positions = torch.arange(n_keys)
    distance = positions - positions[n_keys - n_queries :].unsqueeze(1)  # key − query
    if both_ways:
        n_buckets //= 2
        upper, distance = (distance > 0) * n_buckets, distance.abs()
    else:
        upper, distance = 0, (-distance).clamp(min=0)
    exact = n_buckets // 2
    ratio = (distance.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    far = (exact + (ratio * (n_buckets - exact)).long()).clamp(max=n_buckets - 1)
    return upper + torch.where(distance < exact, distance, far)
