"""The encoder: every token sees every other (BERT; Devlin et al. 2019). Notebook 03.

Shapes: B sequences, T tokens, D = d_model, V = vocab_size. A `mask` (B, T) is 1 where a token is
real, 0 where it is padding; None means that all are real.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.architectures.attention import MultiHeadAttention, padding_mask
from course_utils.architectures.blocks import FeedForward, check_length, check_mask, init_weights
from course_utils.architectures.layers import check_ids

# ── encoder ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class EncoderConfig:
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

    def __init__(self, sizes: EncoderConfig) -> None:
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

    def __init__(self, sizes: EncoderConfig) -> None:
        super().__init__()
        self.sizes = sizes
        self.tokens = nn.Embedding(sizes.vocab_size, sizes.d_model)
        self.positions = nn.Embedding(sizes.max_positions, sizes.d_model)
        self.segments = nn.Embedding(sizes.n_segments, sizes.d_model)
        self.norm = nn.LayerNorm(sizes.d_model, eps=sizes.eps)
        self.dropout = nn.Dropout(sizes.dropout)
        self.blocks = nn.ModuleList(EncoderBlock(sizes) for _ in range(sizes.n_layers))
        init_weights(self, std=0.02)

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
        check_length(ids.shape[1], limit, "cut it into pieces, since each position is learned")
        check_mask(mask, ids)
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
        self.transform = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d, eps=sizes.eps)
        self.out = nn.Linear(d, sizes.vocab_size)
        init_weights(self.transform, std=0.02)
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
