"""The encoder–decoder: a decoder that also sees an encoder's output (T5; Raffel et al. 2020).

Notebook 03. Shapes: B sequences, S source tokens, T target tokens, D = d_model, V = vocab_size. A
`mask` (B, S or T) is 1 where a token is real, 0 where it is padding; None: all are real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.architectures.attention import MultiHeadAttention, padding_mask
from course_utils.architectures.blocks import (
    FeedForward,
    GatedFeedForward,
    RMSNorm,
    check_mask,
    gelu_tanh,
)
from course_utils.architectures.kv_cache import KVCache, LayerCache
from course_utils.architectures.layers import (
    check_ids,
    check_one_prompt,
    check_positive,
    one_each,
)
from course_utils.architectures.positions import relative_buckets, sinusoidal_positions

# ── encoder–decoder ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class EncoderDecoderConfig:
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

    def __init__(self, config: EncoderDecoderConfig, cross: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.eps)
        self.attention = _attention(config)
        self.cross_norm = RMSNorm(config.d_model, config.eps) if cross else None
        self.cross = _attention(config) if cross else None
        self.feed_forward_norm = RMSNorm(config.d_model, config.eps)
        if config.gated:
            self.feed_forward = GatedFeedForward(config.d_model, config.d_ff, gelu_tanh)
        else:
            self.feed_forward = FeedForward(config.d_model, config.d_ff, F.relu, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        keys_values: tuple[Tensor, Tensor] | None = None,
        source_mask: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D). `keys_values` are the source's, seen through `source_mask`.

        The rest belongs to the attention to oneself, as in `MultiHeadAttention`.

        >>> config = EncoderDecoderConfig(vocab_size=9, d_model=4, n_heads=1, n_layers=1, d_ff=4)
        >>> block = Seq2SeqBlock(config, cross=True)
        >>> source = block.cross.keys_values(torch.randn(1, 5, 4))
        >>> block(torch.randn(1, 3, 4), source, causal=True).shape
        torch.Size([1, 3, 4])
        """
        attended = self.attention(
            self.attention_norm(x), mask=mask, causal=causal, bias=bias, cache=cache
        )
        x = x + self.dropout(attended)
        if self.cross is not None:
            read = self.cross(self.cross_norm(x), keys_values, mask=source_mask)
            x = x + self.dropout(read)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


def _attention(config: EncoderDecoderConfig) -> MultiHeadAttention:
    return MultiHeadAttention(
        config.d_model,
        config.n_heads,
        d_head=config.d_head,
        bias=False,
        scale=1.0,  # T5 leaves 1/√D to the initial weights
        dropout=config.dropout,
    )


class Stack(nn.Module):
    """The blocks of one side, the position bias that they share, and the last norm."""

    def __init__(self, config: EncoderDecoderConfig, n_layers: int, decoder: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.n_buckets, self.max_distance = config.n_buckets, config.max_distance
        self.position_bias = nn.Embedding(config.n_buckets, config.n_heads)
        self.blocks = nn.ModuleList(Seq2SeqBlock(config, cross=decoder) for _ in range(n_layers))
        self.norm = RMSNorm(config.d_model, config.eps)
        self.dropout = nn.Dropout(config.dropout)

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
        cross_keys_values: Sequence[tuple[Tensor, Tensor]] = (),
        source_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D), normalised.

        The decoder is given the source's keys and values for each of its blocks.
        """
        past = 0 if cache is None else cache.length
        bias = self.bias(x.shape[1], past + x.shape[1])
        visible = None if mask is None else padding_mask(mask)
        visible_source = None if source_mask is None else padding_mask(source_mask)
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            x = block(
                x,
                cross_keys_values[i] if self.decoder else None,
                visible_source,
                mask=visible,
                causal=self.decoder,
                bias=bias,
                cache=None if cache is None else cache.layers[i],
            )
        return self.dropout(self.norm(x))


class EncoderDecoder(nn.Module):
    """T5: a source is read as a whole, a target written token by token while looking at it."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.n_decoder_layers = config.n_decoder_layers or config.n_layers
        check_positive(n_layers=config.n_layers, n_decoder_layers=self.n_decoder_layers)
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config, config.n_layers, decoder=False)
        self.decoder = Stack(config, self.n_decoder_layers, decoder=True)
        self.out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._init_weights()
        if config.tied:
            self.out.weight = self.token_embedding.weight

    def _init_weights(self) -> None:
        """Deviation 1/√(inputs), and queries 1/√D smaller again, since scores are not scaled."""
        d_model = self.config.d_model
        nn.init.normal_(self.token_embedding.weight)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if isinstance(module, Stack):
                nn.init.normal_(module.position_bias.weight, std=d_model**-0.5)
        for module in self.modules():
            if isinstance(module, MultiHeadAttention):
                nn.init.normal_(module.query.weight, std=(d_model * module.d_head) ** -0.5)

    def embed(self, ids: Tensor, past: int = 0) -> Tensor:
        """ids (B, T), the first of them at position `past` -> (B, T, D)."""
        embedded = self.token_embedding(ids)
        if self.config.sinusoidal:
            positions = sinusoidal_positions(past + ids.shape[1], self.config.d_model)[past:]
            embedded = embedded + positions.to(embedded)
        return embedded

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """Source ids (B, S) -> memory (B, S, D)."""
        check_ids(source, self.config.vocab_size, "source ids")
        check_mask(mask, source)
        return self.encoder(self.embed(source), mask)

    def cross_keys_values(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each decoder block's keys and values of a memory, computed once for all steps to come."""
        return [block.cross.keys_values(memory) for block in self.decoder.blocks]

    def decode(
        self,
        target: Tensor,
        cross_keys_values: Sequence[tuple[Tensor, Tensor]],
        mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Target ids (B, T) over the source's keys and values -> logits (B, T, V).

        `mask` (B, S) is the source's.
        """
        check_ids(target, self.config.vocab_size, "target ids")
        past = 0 if cache is None else cache.length
        check_mask(target_mask, target, past)
        embedded = self.embed(target, past)
        hidden = self.decoder(embedded, target_mask, cross_keys_values, mask, cache)
        if self.config.tied:  # embeddings have length √D; logits want 1
            hidden = hidden * self.config.d_model**-0.5
        return self.out(hidden)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """Source ids (B, S) with mask (B, S) and target ids (B, T) -> logits (B, T, V)."""
        cross = self.cross_keys_values(self.encode(source, mask))
        return self.decode(target, cross, mask, target_mask)

    @torch.inference_mode()
    def read_and_reorder(
        self, source: Tensor, mask: Tensor | None = None
    ) -> tuple[Callable, Callable]:
        """Two callables with which a decoding loop writes targets of source ids (B, S).

        `read(ids, cache)` takes target ids (B, T) that follow those in the cache, None at first,
        and gives the logits (B, V) of the next one, and the cache. `reorder(cache, rows)` keeps
        these rows. One source serves any number of targets; several have one target each.
        """
        memory = self.cross_keys_values(self.encode(source, mask))

        def read(ids: Tensor, cache: KVCache | None) -> tuple[Tensor, KVCache]:
            cache = KVCache(self.n_decoder_layers) if cache is None else cache
            n = len(ids)
            cross = [(one_each(k, n, "sources"), one_each(v, n, "sources")) for k, v in memory]
            seen = None if mask is None else one_each(mask, n, "masks")
            with torch.inference_mode():
                logits = self.decode(ids, cross, seen, cache=cache)[:, -1]
            return logits.clone(), cache  # a clone: the caller may be out of that mode

        def reorder(cache: KVCache, rows: Tensor) -> KVCache:
            check_one_prompt(source)
            cache.select(rows)
            return cache

        return read, reorder
