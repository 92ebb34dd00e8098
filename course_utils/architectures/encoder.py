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
    """Attention, then feed-forward, each added to its input and then normalised (post-norm).

    >>> import torch
    >>> config = EncoderConfig(vocab_size=9, d_model=4, n_heads=1, n_layers=1, d_ff=4)
    >>> out = EncoderBlock(config)(torch.randn(2, 3, 4), None)
    >>> out.shape, bool(out.mean(dim=-1).abs().max() < 1e-6)  # normalised last: means of 0
    (torch.Size([2, 3, 4]), True)
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        d = config.d_model
        self.attention = MultiHeadAttention(d, config.n_heads, dropout=config.dropout)
        self.attention_norm = nn.LayerNorm(d, eps=config.eps)
        self.feed_forward = FeedForward(d, config.d_ff, F.gelu)
        self.feed_forward_norm = nn.LayerNorm(d, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, T, D) -> (B, T, D); `mask` (…, T, T) is True where one may look."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask=mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Encoder(nn.Module):
    """BERT without its heads: ids in, one vector a token out, each having seen both sides."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.max_positions, config.d_model)
        self.segment_embedding = nn.Embedding(config.n_segments, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.n_layers))
        init_weights(self, std=0.02)

    def embed(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """Token + position + segment, normalised: ids (B, T) -> (B, T, D)."""
        places = self.position_embedding.weight[: ids.shape[1]]  # (T, D)
        if segments is None:
            segment = self.segment_embedding.weight[0]  # (D,): all are of the first
        else:
            segment = self.segment_embedding(segments)  # (B, T, D)
        summed = self.token_embedding(ids) + places + segment
        return self.dropout(self.norm(summed))

    def hidden_states(
        self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None
    ) -> list[Tensor]:
        """ids (B, T) -> the embedding and each block's output (B, T, D)."""
        check_ids(ids, self.config.vocab_size)
        limit = self.config.max_positions
        check_length(ids.shape[1], limit, "cut it into pieces, since each position is learned")
        check_mask(mask, ids)
        visible = None if mask is None else padding_mask(mask)
        hidden = [self.embed(ids, segments)]
        for block in self.blocks:
            hidden.append(block(hidden[-1], visible))
        return hidden

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """ids (B, T) -> the last block's output (B, T, D).

        A row that is all padding gives finite numbers without meaning; `mean_pool` makes it 0.
        """
        return self.hidden_states(ids, mask, segments)[-1]


class MaskedLM(nn.Module):
    """An encoder that guesses hidden tokens: transform, normalise, compare with every embedding."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        config = encoder.config
        self.encoder = encoder
        self.transform = nn.Linear(config.d_model, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=config.eps)
        self.out = nn.Linear(config.d_model, config.vocab_size)
        init_weights(self.transform, std=0.02)
        nn.init.zeros_(self.out.bias)
        self.out.weight = encoder.token_embedding.weight  # tied: one table to read and to write

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """ids (B, T) -> logits (B, T, V)."""
        hidden = self.encoder(ids, mask, segments)
        return self.out(self.norm(F.gelu(self.transform(hidden))))


def mean_pool(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average of the real tokens' vectors (B, T, D) -> (B, D); 0 where a row has none.

    >>> import torch
    >>> hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]])
    >>> mean_pool(hidden, torch.tensor([[1, 1, 0]]))  # the third is padding
    tensor([[2., 4.]])
    """
    if mask is None:
        return hidden.mean(dim=1)
    weights = mask.to(hidden.dtype).unsqueeze(-1)  # (B, T, 1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def embed_sentences(encoder: Encoder, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """One vector of length 1 a sentence (B, D): mean pooling, as all-MiniLM-L6-v2 was trained.

    >>> import torch
    >>> config = EncoderConfig(vocab_size=9, d_model=4, n_heads=1, n_layers=1, d_ff=4)
    >>> vectors = embed_sentences(Encoder(config), torch.tensor([[1, 2, 3]]))
    >>> vectors.shape, round(vectors.norm().item(), 5)
    (torch.Size([1, 4]), 1.0)
    """
    return F.normalize(mean_pool(encoder(ids, mask), mask), dim=-1)
