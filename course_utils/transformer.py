"""The three transformer families, each small enough to read in one sitting.

- `Encoder`: every token sees every other (BERT; Devlin et al. 2019);
- `Decoder`: every token sees those before it (Llama; Touvron et al. 2023);
- `EncoderDecoder`: a decoder that also sees an encoder's output (T5; Raffel et al. 2020).

They differ in masks, in how they mark positions and in where they normalise; the attention is
the same `MultiHeadAttention`. Real weights load into all three (`load_bert_weights`,
`load_llama_weights`, `load_t5_weights`), from a plain mapping of names to tensors.

Shapes: B sequences, T tokens, S source tokens, D = d_model, V = vocab_size. A `mask` (B, T) is 1
where a token is real, 0 where it is padding; None means that all are real.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.attention import (
    KVCache,
    MultiHeadAttention,
    padding_mask,
    relative_buckets,
    rotary_angles,
    scaled_frequencies,
    sinusoidal_positions,
)
from course_utils.layers import Linear, check_ids, check_positive, copy_weights

IGNORED = -100  # a label that no loss counts, as in F.cross_entropy


# ── parts that the families share ─────────────────────────────────────────────────────────────────


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x/√(mean(x²) + eps)·weight over the last dimension. Zhang & Sennrich 2019, equation 4."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # squares overflow 16 bits
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with its learned weight (D,)."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d_model)), eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class FeedForward(nn.Module):
    """Two layers, applied to each token alone: down(f(up(x))). Vaswani et al. 2017, equation 2."""

    def __init__(
        self, d_model: int, d_ff: int, activation: Callable[[Tensor], Tensor], bias: bool = True
    ) -> None:
        super().__init__()
        self.up = Linear(d_model, d_ff, bias=bias)
        self.down = Linear(d_ff, d_model, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class GatedFeedForward(nn.Module):
    """down(f(gate(x))·up(x)), f = SiLU or GELU. Shazeer 2020 ("GLU variants"), equation 6."""

    def __init__(
        self, d_model: int, d_ff: int, activation: Callable[[Tensor], Tensor] = F.silu
    ) -> None:
        super().__init__()
        self.gate = Linear(d_model, d_ff, bias=False)
        self.up = Linear(d_model, d_ff, bias=False)
        self.down = Linear(d_ff, d_model, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh approximation, as T5 v1.1 was trained. Hendrycks & Gimpel 2016."""
    return F.gelu(x, approximate="tanh")


def _check_mask(mask: Tensor | None, ids: Tensor, past: int = 0) -> None:
    wanted = (ids.shape[0], past + ids.shape[1])
    if mask is not None and tuple(mask.shape) != wanted:
        raise ValueError(f"the mask has shape {tuple(mask.shape)}; these ids need {wanted}")


def _check_length(length: int, limit: int, remedy: str) -> None:
    if length > limit:
        raise ValueError(f"the text has {length} tokens, the model {limit} positions; {remedy}")


def _draw(module: nn.Module, std: float) -> None:
    """Normal weights, zero biases, for every product and embedding inside."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


# ── encoder ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class EncoderSizes:
    """The numbers that make an `Encoder`."""

    vocab_size: int
    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int
    max_positions: int = 512
    n_segments: int = 2
    eps: float = 1e-12
    dropout: float = 0.0


class EncoderBlock(nn.Module):
    """Attention, then feed-forward, each added to its input and then normalised (post-norm)."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        d = sizes.d_model
        self.attention = MultiHeadAttention(d, sizes.n_heads, dropout=sizes.dropout)
        self.attention_norm = nn.LayerNorm(d, eps=sizes.eps)
        self.feed_forward = FeedForward(d, sizes.d_ff, F.gelu)
        self.feed_forward_norm = nn.LayerNorm(d, eps=sizes.eps)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask=mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Encoder(nn.Module):
    """BERT without its heads: ids in, one vector a token out, each having seen both sides."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.tokens = nn.Embedding(sizes.vocab_size, sizes.d_model)
        self.positions = nn.Embedding(sizes.max_positions, sizes.d_model)
        self.segments = nn.Embedding(sizes.n_segments, sizes.d_model)
        self.norm = nn.LayerNorm(sizes.d_model, eps=sizes.eps)
        self.dropout = nn.Dropout(sizes.dropout)
        self.blocks = nn.ModuleList(EncoderBlock(sizes) for _ in range(sizes.n_layers))
        _draw(self, std=0.02)

    def embed(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """Token + position + segment, normalised: ids (B, T) -> (B, T, D)."""
        positions = self.positions.weight[: ids.shape[1]]  # (T, D)
        segment = self.segments.weight[0] if segments is None else self.segments(segments)
        return self.dropout(self.norm(self.tokens(ids) + positions + segment))

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        segments: Tensor | None = None,
        *,
        all_layers: bool = False,
    ) -> Tensor | list[Tensor]:
        """ids (B, T) -> (B, T, D), or with `all_layers` the embedding and each block's output.

        A row that is all padding gives finite numbers without meaning; `mean_pool` makes it 0.
        """
        check_ids(ids, self.sizes.vocab_size)
        limit = self.sizes.max_positions
        _check_length(ids.shape[1], limit, "cut it into pieces, since each position is learned")
        _check_mask(mask, ids)
        visible = None if mask is None else padding_mask(mask)
        hidden = [self.embed(ids, segments)]
        for block in self.blocks:
            hidden.append(block(hidden[-1], visible))
        return hidden if all_layers else hidden[-1]


class MaskedLM(nn.Module):
    """An encoder that guesses hidden tokens: transform, normalise, compare with every embedding."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        d, sizes = encoder.sizes.d_model, encoder.sizes
        self.encoder = encoder
        self.transform = Linear(d, d)
        self.norm = nn.LayerNorm(d, eps=sizes.eps)
        self.out = Linear(d, sizes.vocab_size)
        _draw(self.transform, std=0.02)
        nn.init.zeros_(self.out.bias)
        self.out.weight = encoder.tokens.weight  # tied: one table to read and to write

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """ids (B, T) -> logits (B, T, V)."""
        hidden = self.encoder(ids, mask, segments)
        return self.out(self.norm(F.gelu(self.transform(hidden))))


def mean_pool(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average of the real tokens' vectors (B, T, D) -> (B, D); 0 where a row has none."""
    if mask is None:
        return hidden.mean(dim=1)
    weights = mask.to(hidden.dtype).unsqueeze(-1)  # (B, T, 1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def embed_sentences(encoder: Encoder, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """One vector of length 1 a sentence (B, D): mean pooling, as all-MiniLM-L6-v2 was trained."""
    return F.normalize(mean_pool(encoder(ids, mask), mask), dim=-1)


# ── decoder ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class DecoderSizes:
    """The numbers that make a `Decoder`. `scaling` is a rule of `scaled_frequencies`.

    Without `causal` the triangle is gone: the same network, in which every token sees every other.
    """

    vocab_size: int
    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int
    n_kv_heads: int | None = None
    d_head: int | None = None
    max_positions: int = 2048
    theta: float = 10_000.0
    scaling: Mapping[str, Any] | None = None
    eps: float = 1e-5
    tied: bool = True
    causal: bool = True


class DecoderBlock(nn.Module):
    """Normalise first, then attend and feed forward, each added to its input (pre-norm)."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(sizes.d_model, sizes.eps)
        self.attention = MultiHeadAttention(
            sizes.d_model,
            sizes.n_heads,
            n_kv_heads=sizes.n_kv_heads,
            d_head=sizes.d_head,
            bias=False,
        )
        self.feed_forward_norm = RMSNorm(sizes.d_model, sizes.eps)
        self.feed_forward = GatedFeedForward(sizes.d_model, sizes.d_ff)

    def forward(self, x: Tensor, **seen: Any) -> Tensor:
        """`seen`: mask, causal, rotary and cache, as in `MultiHeadAttention`."""
        x = x + self.attention(self.attention_norm(x), **seen)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Decoder(nn.Module):
    """Llama: ids in, logits of the next token out, rotary positions, grouped heads, SwiGLU."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.tokens = nn.Embedding(sizes.vocab_size, sizes.d_model)
        self.blocks = nn.ModuleList(DecoderBlock(sizes) for _ in range(sizes.n_layers))
        self.norm = RMSNorm(sizes.d_model, sizes.eps)
        self.out = Linear(sizes.d_model, sizes.vocab_size, bias=False)
        _draw(self, std=0.02)
        for block in self.blocks:  # keeps the sum of the blocks' outputs near 1: GPT-2, §2.3
            for last in (block.attention.out, block.feed_forward.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * sizes.n_layers))
        if sizes.tied:
            self.out.weight = self.tokens.weight
        frequencies, self.angle_scale = self._frequencies(length=0)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _frequencies(self, length: int) -> tuple[Tensor, float]:
        sizes, d_head = self.sizes, self.blocks[0].attention.d_head
        longest = sizes.max_positions
        return scaled_frequencies(
            d_head, sizes.theta, sizes.scaling, length=length, max_positions=longest
        )

    def rotary(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions (B or 1, T) in a text of `length` tokens."""
        grows = (self.sizes.scaling or {}).get("rope_type") == "dynamic"
        if length > self.sizes.max_positions and not grows:
            remedy = "shorten it, or give sizes with a scaling rule and more max_positions"
            _check_length(length, self.sizes.max_positions, remedy)
        frequencies = self.frequencies
        if length > self.sizes.max_positions:
            frequencies = self._frequencies(length)[0].to(positions.device)
        cos, sin = rotary_angles(positions, frequencies, self.angle_scale)
        return cos.to(self.tokens.weight.dtype), sin.to(self.tokens.weight.dtype)

    def hidden(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        all_layers: bool = False,
    ) -> Tensor | list[Tensor]:
        """ids (B, T) -> normalised (B, T, D), or with `all_layers` the embedding and each block.

        With a cache, `ids` are the tokens after those in it, and the mask covers both. Padding does
        not count as a position. The last of `all_layers` is normalised, as in transformers.
        """
        check_ids(ids, self.sizes.vocab_size)
        if cache is not None and not self.sizes.causal:
            raise ValueError("a cache needs causal sizes: else a new token changes all before it")
        past = 0 if cache is None else cache.length
        length = past + ids.shape[1]
        _check_mask(mask, ids, past)
        if mask is None:
            positions = torch.arange(past, length, device=ids.device).unsqueeze(0)  # (1, T)
        else:
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, past:]  # (B, T)
        rotary = self.rotary(positions, length)
        visible, causal = None if mask is None else padding_mask(mask), self.sizes.causal
        hidden = [self.tokens(ids)]
        for i, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[i]
            x = block(hidden[-1], mask=visible, causal=causal, rotary=rotary, cache=layer)
            hidden = [*hidden, x] if all_layers else [x]
        hidden[-1] = self.norm(hidden[-1])
        return hidden if all_layers else hidden[-1]

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """ids (B, T) -> logits (B, T, V), or (B, 1, V) with `last_only`. See `hidden`."""
        hidden = self.hidden(ids, mask, cache)
        return self.out(hidden[:, -1:] if last_only else hidden)

    @torch.inference_mode()
    def greedy(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        *,
        max_new: int,
        stop: int | None = None,
        use_cache: bool = True,
    ) -> list[list[int]]:
        """The likeliest next token, again and again, after ids (B, T): new ids, without the stop.

        A batch of different lengths is padded on the left, its mask given.
        """
        cache = KVCache(self.sizes.n_layers) if use_cache else None

        def next_logits(new: Tensor, everything: Tensor) -> Tensor:
            width = everything.shape[1] - ids.shape[1]
            seen = None if mask is None else F.pad(mask, (0, width), value=1)
            return self(new if use_cache else everything, seen, cache, last_only=True)[:, -1]

        return _greedy(next_logits, ids, max_new, stop)


def _greedy(
    next_logits: Callable[[Tensor, Tensor], Tensor], ids: Tensor, max_new: int, stop: int | None
) -> list[list[int]]:
    """Extend ids (B, T) by argmax until every row has said `stop`, or `max_new` times.

    `next_logits(new, everything)` is given the ids it has not seen, and all of them.
    """
    start, new = ids.shape[1], ids
    alive = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    while ids.shape[1] - start < max_new and alive.any():
        new = next_logits(new, ids).argmax(dim=-1, keepdim=True)  # (B, 1)
        ids = torch.cat([ids, new], dim=1)
        if stop is not None:
            alive &= new[:, 0] != stop
    rows = ids[:, start:].tolist()
    return [row[: row.index(stop)] if stop in row else row for row in rows]


# ── encoder–decoder ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class EncoderDecoderSizes:
    """The numbers that make an `EncoderDecoder`; source and target share one vocabulary.

    `sinusoidal` adds the positions of Vaswani et al. 2017 to the embeddings. T5 has none: a query
    of its decoder knows which source tokens it looks at, but not where they stand.
    """

    vocab_size: int
    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int
    n_decoder_layers: int | None = None
    d_head: int | None = None
    n_buckets: int = 32
    max_distance: int = 128
    gated: bool = True
    tied: bool = True
    sinusoidal: bool = False
    eps: float = 1e-6
    dropout: float = 0.0


class Seq2SeqBlock(nn.Module):
    """Pre-norm: attend to oneself, in the decoder also to the source, feed forward."""

    def __init__(self, sizes: EncoderDecoderSizes, cross: bool) -> None:
        super().__init__()

        def attention() -> MultiHeadAttention:  # T5 leaves 1/√D to the initial weights
            options = {"d_head": sizes.d_head, "bias": False, "scale": 1.0}
            return MultiHeadAttention(
                sizes.d_model, sizes.n_heads, dropout=sizes.dropout, **options
            )

        self.attention_norm = RMSNorm(sizes.d_model, sizes.eps)
        self.attention = attention()
        self.cross_norm = RMSNorm(sizes.d_model, sizes.eps) if cross else None
        self.cross = attention() if cross else None
        self.feed_forward_norm = RMSNorm(sizes.d_model, sizes.eps)
        if sizes.gated:
            self.feed_forward = GatedFeedForward(sizes.d_model, sizes.d_ff, gelu_tanh)
        else:
            self.feed_forward = FeedForward(sizes.d_model, sizes.d_ff, F.relu, bias=False)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | tuple[Tensor, Tensor] | None = None,
        memory_mask: Tensor | None = None,
        **seen: Any,
    ) -> Tensor:
        """`seen`: mask, causal, bias and cache of the self-attention."""
        x = x + self.dropout(self.attention(self.attention_norm(x), **seen))
        if self.cross is not None:
            read = self.cross(self.cross_norm(x), memory, mask=memory_mask)
            x = x + self.dropout(read)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Stack(nn.Module):
    """The blocks of one side, the position bias that they share, and the last norm."""

    def __init__(self, sizes: EncoderDecoderSizes, n_layers: int, decoder: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.n_buckets, self.max_distance = sizes.n_buckets, sizes.max_distance
        self.position_bias = nn.Embedding(sizes.n_buckets, sizes.n_heads)
        self.blocks = nn.ModuleList(Seq2SeqBlock(sizes, cross=decoder) for _ in range(n_layers))
        self.norm = RMSNorm(sizes.d_model, sizes.eps)
        self.dropout = nn.Dropout(sizes.dropout)

    def bias(self, n_queries: int, n_keys: int) -> Tensor:
        """What each head adds to a score by distance alone -> (1, H, T_q, T_k)."""
        buckets = relative_buckets(
            n_queries,
            n_keys,
            n_buckets=self.n_buckets,
            max_distance=self.max_distance,
            both_ways=not self.decoder,
        )
        bias = self.position_bias(buckets.to(self.position_bias.weight.device))  # (T_q, T_k, H)
        return bias.permute(2, 0, 1).unsqueeze(0)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | list[tuple[Tensor, Tensor]] | None = None,
        memory_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D), normalised. `memory` may be each block's keys and values."""
        past = 0 if cache is None else cache.length
        bias = self.bias(x.shape[1], past + x.shape[1])
        visible = None if mask is None else padding_mask(mask)
        visible_memory = None if memory_mask is None else padding_mask(memory_mask)
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            x = block(
                x,
                memory[i] if isinstance(memory, list) else memory,
                visible_memory,
                mask=visible,
                causal=self.decoder,
                bias=bias,
                cache=None if cache is None else cache.layers[i],
            )
        return self.dropout(self.norm(x))


class EncoderDecoder(nn.Module):
    """T5: a source is read as a whole, a target written token by token while looking at it."""

    def __init__(self, sizes: EncoderDecoderSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.n_decoder_layers = sizes.n_decoder_layers or sizes.n_layers
        check_positive(n_layers=sizes.n_layers, n_decoder_layers=self.n_decoder_layers)
        self.tokens = nn.Embedding(sizes.vocab_size, sizes.d_model)
        self.encoder = Stack(sizes, sizes.n_layers, decoder=False)
        self.decoder = Stack(sizes, self.n_decoder_layers, decoder=True)
        self.out = Linear(sizes.d_model, sizes.vocab_size, bias=False)
        self._draw_weights()
        if sizes.tied:
            self.out.weight = self.tokens.weight

    def _draw_weights(self) -> None:
        """Deviation 1/√(inputs), and queries 1/√D smaller again, since scores are not scaled."""
        nn.init.normal_(self.tokens.weight)
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if isinstance(module, Stack):
                nn.init.normal_(module.position_bias.weight, std=self.sizes.d_model**-0.5)
        for module in self.modules():
            if isinstance(module, MultiHeadAttention):
                nn.init.normal_(
                    module.query.weight, std=(self.sizes.d_model * module.d_head) ** -0.5
                )

    def embed(self, ids: Tensor, past: int = 0) -> Tensor:
        """ids (B, T), the first of them at position `past` -> (B, T, D)."""
        embedded = self.tokens(ids)
        if self.sizes.sinusoidal:
            positions = sinusoidal_positions(past + ids.shape[1], self.sizes.d_model)[past:]
            embedded = embedded + positions.to(embedded)
        return embedded

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """Source ids (B, S) -> memory (B, S, D)."""
        check_ids(source, self.sizes.vocab_size, "source ids")
        _check_mask(mask, source)
        return self.encoder(self.embed(source), mask)

    def remember(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each decoder block's keys and values of a memory, computed once for all steps to come."""
        return [block.cross.keys_values(memory) for block in self.decoder.blocks]

    def decode(
        self,
        target: Tensor,
        memory: Tensor | list[tuple[Tensor, Tensor]],
        mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Target ids (B, T) over a memory with source mask (B, S) -> logits (B, T, V)."""
        check_ids(target, self.sizes.vocab_size, "target ids")
        past = 0 if cache is None else cache.length
        _check_mask(target_mask, target, past)
        hidden = self.decoder(self.embed(target, past), target_mask, memory, mask, cache)
        if self.sizes.tied:  # embeddings have length √D; logits want 1
            hidden = hidden * self.sizes.d_model**-0.5
        return self.out(hidden)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """Source ids (B, S) with mask (B, S) and target ids (B, T) -> logits (B, T, V)."""
        return self.decode(target, self.encode(source, mask), mask, target_mask)

    @torch.inference_mode()
    def greedy(
        self,
        source: Tensor,
        mask: Tensor | None = None,
        *,
        start: int,
        stop: int,
        max_new: int,
        use_cache: bool = True,
    ) -> list[list[int]]:
        """The likeliest next token, again and again: ids of each target, without start and stop."""
        memory = self.remember(self.encode(source, mask))
        cache = KVCache(self.n_decoder_layers) if use_cache else None

        def next_logits(new: Tensor, everything: Tensor) -> Tensor:
            ids = new if use_cache else everything
            return self.decode(ids, memory, mask, cache=cache)[:, -1]

        first = torch.full((len(source), 1), start, dtype=torch.long, device=source.device)
        return _greedy(next_logits, first, max_new, stop)

    @torch.no_grad()
    def next_logits(self, source: Tensor, mask: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """For search: a function from prefixes (N, T) over one source (1, S) to logits (N, V)."""
        memory = self.remember(self.encode(source, mask))

        @torch.no_grad()
        def logits_after(ids: Tensor) -> Tensor:
            rows = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
            repeated = [(k[rows], v[rows]) for k, v in memory]
            return self.decode(ids, repeated, None if mask is None else mask[rows])[:, -1]

        return logits_after


# ── objectives ────────────────────────────────────────────────────────────────────────────────────


def hide_tokens(
    ids: Tensor,
    mask_id: int,
    vocab_size: int,
    *,
    rate: float = 0.15,
    keep: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose tokens to guess: ids (B, T) -> inputs (B, T) and labels (B, T), −100 where not chosen.

    Of the chosen, 80 % become `mask_id`, 10 % a random token and 10 % stay, so that the model
    cannot tell which tokens to trust. `keep` (B, T) is True where a token must not be chosen
    (padding, special tokens). Devlin et al. 2019, §3.1 and appendix A.1.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}; it is a share of the tokens, above 0 and at most 1")
    draw, fate = (torch.rand(ids.shape, generator=generator) for _ in range(2))
    chosen = draw.to(ids.device) < rate
    if keep is not None:
        chosen &= ~keep.bool()
    random = torch.randint(vocab_size, ids.shape, generator=generator).to(ids.device)
    return hide_chosen(ids, chosen, fate.to(ids.device), random, mask_id)


def hide_chosen(
    ids: Tensor, chosen: Tensor, fate: Tensor, random: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    """Hide the `chosen` tokens of ids (B, T), each by its fate: below 0.8 `mask_id`, from 0.9 on
    the token of `random`, between them nothing. Returns inputs and labels, −100 where not chosen.
    """
    inputs = torch.where(chosen & (fate < 0.8), mask_id, ids)
    inputs = torch.where(chosen & (fate >= 0.9), random, inputs)
    return inputs, torch.where(chosen, ids, IGNORED)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits (B, T, V) against labels (B, T), −100 left out."""
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


def next_token_loss(logits: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats of each real token given those before it: logits (B, T, V)."""
    labels = ids if mask is None else ids.masked_fill(mask == 0, IGNORED)
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)  # moving labels copies no logits
    return label_loss(logits, shifted)


def shift_right(labels: Tensor, start: int, pad: int) -> Tensor:
    """What the decoder is given while it learns labels (B, T): start, then all but the last."""
    shifted = F.pad(labels[:, :-1], (1, 0), value=start)
    return shifted.masked_fill(shifted == IGNORED, pad)


# ── real weights ──────────────────────────────────────────────────────────────────────────────────


def _only(config: Mapping[str, Any], **wanted: Any) -> None:
    """Raise ValueError where a configuration asks for what the module does not do."""
    for name, values in wanted.items():
        values = values if isinstance(values, tuple) else (values,)
        if config.get(name, values[0]) not in values:
            raise ValueError(
                f"{name} is {config[name]!r}; this module does {' or '.join(map(repr, values))}"
            )


def bert_sizes(config: Mapping[str, Any]) -> EncoderSizes:
    """Sizes of a transformers BERT configuration (`config.to_dict()`)."""
    _only(config, hidden_act="gelu", position_embedding_type="absolute", is_decoder=False)
    return EncoderSizes(
        vocab_size=config["vocab_size"],
        d_model=config["hidden_size"],
        n_heads=config["num_attention_heads"],
        n_layers=config["num_hidden_layers"],
        d_ff=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        n_segments=config["type_vocab_size"],
        eps=config["layer_norm_eps"],
    )


def llama_sizes(config: Mapping[str, Any]) -> DecoderSizes:
    """Sizes of a transformers Llama configuration (`config.to_dict()`)."""
    _only(config, hidden_act="silu", attention_bias=False, mlp_bias=False)
    rope = dict(config["rope_parameters"])
    theta = rope.pop("rope_theta")
    return DecoderSizes(
        vocab_size=config["vocab_size"],
        d_model=config["hidden_size"],
        n_heads=config["num_attention_heads"],
        n_layers=config["num_hidden_layers"],
        d_ff=config["intermediate_size"],
        n_kv_heads=config["num_key_value_heads"],
        d_head=config.get("head_dim"),
        max_positions=config["max_position_embeddings"],
        theta=theta,
        scaling=rope,
        eps=config["rms_norm_eps"],
        tied=config["tie_word_embeddings"],
    )


def t5_sizes(config: Mapping[str, Any]) -> EncoderDecoderSizes:
    """Sizes of a transformers T5 configuration (`config.to_dict()`)."""
    _only(config, feed_forward_proj=("relu", "gated-gelu"))
    return EncoderDecoderSizes(
        vocab_size=config["vocab_size"],
        d_model=config["d_model"],
        n_heads=config["num_heads"],
        n_layers=config["num_layers"],
        d_ff=config["d_ff"],
        n_decoder_layers=config["num_decoder_layers"],
        d_head=config["d_kv"],
        n_buckets=config["relative_attention_num_buckets"],
        max_distance=config["relative_attention_max_distance"],
        gated=config["feed_forward_proj"] == "gated-gelu",
        tied=config.get("scale_decoder_outputs", True),
        eps=config["layer_norm_epsilon"],
    )


def _names(prefix: str, theirs: str, pairs: Mapping[str, str], *parts: str) -> dict[str, str]:
    """{our parameter: theirs} for modules under two prefixes, for each of their parts."""
    return {
        f"{prefix}{ours}.{part}": f"{theirs}{name}.{part}"
        for ours, name in pairs.items()
        for part in parts
    }


def _without(state: Mapping[str, Tensor], prefix: str, skip: tuple[str, ...]) -> dict[str, Tensor]:
    """Names without a model's outer prefix, and without what the module has no use for."""
    short = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in short.items() if not name.startswith(skip)}


def load_bert_weights(model: Encoder | MaskedLM, state: Mapping[str, Tensor]) -> None:
    """Copy a transformers BERT's `state_dict()` into ours.

    The pooler is left out, the masked-language head goes to a `MaskedLM` alone. ValueError lists
    what is missing, left over or of another size.
    """
    encoder = model.encoder if isinstance(model, MaskedLM) else model
    ours = "encoder." if isinstance(model, MaskedLM) else ""
    embeddings = {
        "tokens": "word_embeddings",
        "positions": "position_embeddings",
        "segments": "token_type_embeddings",
    }
    names = _names(ours, "embeddings.", embeddings, "weight")
    names |= _names(ours, "embeddings.", {"norm": "LayerNorm"}, "weight", "bias")
    block = {
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    }
    for i in range(encoder.sizes.n_layers):
        names |= _names(f"{ours}blocks.{i}.", f"encoder.layer.{i}.", block, "weight", "bias")
    skip = ("pooler.", "embeddings.position_ids", "cls.predictions.decoder.")
    if isinstance(model, MaskedLM):
        head = {"transform": "transform.dense", "norm": "transform.LayerNorm"}
        names |= _names("", "cls.predictions.", head, "weight", "bias")
        names["out.bias"] = "cls.predictions.bias"
    copy_weights(model, _without(state, "bert.", (*skip, "cls.seq_relationship.")), names, "BERT")


def load_llama_weights(model: Decoder, state: Mapping[str, Tensor]) -> None:
    """Copy a transformers Llama's `state_dict()` into ours.

    ValueError lists what is missing, left over or of another size.
    """
    names = {"tokens.weight": "embed_tokens.weight", "norm.weight": "norm.weight"}
    block = {
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.out": "self_attn.o_proj",
        "attention_norm": "input_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
        "feed_forward_norm": "post_attention_layernorm",
    }
    for i in range(model.sizes.n_layers):
        names |= _names(f"blocks.{i}.", f"layers.{i}.", block, "weight")
    if not model.sizes.tied:
        names["out.weight"] = "lm_head.weight"
    skip = ("rotary_emb.", *(("lm_head.",) if model.sizes.tied else ()))
    copy_weights(model, _without(state, "model.", skip), names, "Llama")


def load_t5_weights(model: EncoderDecoder, state: Mapping[str, Tensor]) -> None:
    """Copy a transformers T5's `state_dict()` into ours.

    ValueError lists what is missing, left over or of another size.
    """
    names = {"tokens.weight": "shared.weight"}
    sides = {"encoder": model.sizes.n_layers, "decoder": model.n_decoder_layers}
    for side, n_layers in sides.items():
        names[f"{side}.norm.weight"] = f"{side}.final_layer_norm.weight"
        first = f"{side}.block.0.layer.0.SelfAttention"
        names[f"{side}.position_bias.weight"] = f"{first}.relative_attention_bias.weight"
        block = _t5_block(side == "decoder", model.sizes.gated)
        for i in range(n_layers):
            names |= _names(f"{side}.blocks.{i}.", f"{side}.block.{i}.layer.", block, "weight")
    if not model.sizes.tied:
        names["out.weight"] = "lm_head.weight"
    skip = ("encoder.embed_tokens.", "decoder.embed_tokens.")  # the shared table again
    skip += ("lm_head.",) if model.sizes.tied else ()
    copy_weights(model, _without(state, "transformer.", skip), names, "T5")


def _t5_block(decoder: bool, gated: bool) -> dict[str, str]:
    """Our names of one T5 block's parts, and theirs: layers 0, 1 (decoder: cross) and the last."""
    parts = {"query": "q", "key": "k", "value": "v", "out": "o"}
    block = {f"attention.{ours}": f"0.SelfAttention.{name}" for ours, name in parts.items()}
    block["attention_norm"] = "0.layer_norm"
    if decoder:
        block |= {f"cross.{ours}": f"1.EncDecAttention.{name}" for ours, name in parts.items()}
        block["cross_norm"] = "1.layer_norm"
    last = "2" if decoder else "1"
    up = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    for ours, name in {**up, "down": "wo"}.items():
        block[f"feed_forward.{ours}"] = f"{last}.DenseReluDense.{name}"
    block["feed_forward_norm"] = f"{last}.layer_norm"
    return block
