"""What nets are trained to guess: hidden tokens, or the next one. Notebooks 01 and 03.

Shapes: B sequences, T tokens, V = vocab_size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # a label that no loss counts, as in F.cross_entropy


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

    >>> ids, draw = torch.arange(1, 9).unsqueeze(0), torch.Generator().manual_seed(0)
    >>> inputs, labels = hide_tokens(ids, mask_id=99, vocab_size=9, rate=0.5, generator=draw)
    >>> inputs[0].tolist(), labels[0].tolist()
    ([99, 2, 99, 99, 99, 6, 99, 8], [1, -100, 3, 4, 5, -100, 7, -100])
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

    >>> ids, fate = torch.tensor([5, 6, 7, 8]), torch.tensor([0.1, 0.85, 0.95, 0.1])
    >>> chosen = torch.tensor([True, True, True, False])
    >>> hide_chosen(ids, chosen, fate, random=torch.tensor([1, 2, 3, 4]), mask_id=0)
    (tensor([0, 6, 3, 8]), tensor([   5,    6,    7, -100]))
    """
    inputs = torch.where(chosen & (fate < 0.8), mask_id, ids)
    inputs = torch.where(chosen & (fate >= 0.9), random, inputs)
    return inputs, torch.where(chosen, ids, IGNORED)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits (B, T, V) against labels (B, T), −100 left out.

    >>> label_loss(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))  # one of four, evenly: ln 4
    tensor(1.3863)
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


def next_token_loss(logits: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats of each real token given those before it: logits (B, T, V).

    >>> next_token_loss(torch.zeros(1, 3, 2), torch.tensor([[0, 1, 1]]))  # two guesses of ln 2
    tensor(0.6931)
    """
    labels = ids if mask is None else ids.masked_fill(mask == 0, IGNORED)
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)  # moving labels copies no logits
    return label_loss(logits, shifted)


def shift_right(labels: Tensor, start: int, pad: int) -> Tensor:
    """What the decoder is given while it learns labels (B, T): start, then all but the last.

    >>> shift_right(torch.tensor([[5, 6, 2, -100]]), start=1, pad=0)
    tensor([[1, 5, 6, 2]])
    """
    shifted = F.pad(labels[:, :-1], (1, 0), value=start)
    return shifted.masked_fill(shifted == IGNORED, pad)


# ── the baseline of counting ──────────────────────────────────────────────────────────────────────


def counted_nats(seen: Tensor, unseen: Tensor, order: int, vocab_size: int) -> Tensor:
    """What counting says of each token of unseen ids (B, T): −ln p in nats, (B, T − order).

    p interpolates the counts of the last `order` tokens in `seen` (N, T), of fewer, and of none:
    p_n = (count + u·p_{n−1}) / (all + u), where u is how many different tokens followed the context
    (Witten & Bell 1991, method C). order 1 counts pairs, 2 triples. Raises ValueError where the
    contexts have no number of 64 bits: vocab_size^(order + 1) above 2^62.

    >>> seen, unseen = torch.tensor([[0, 1, 0, 1, 0]]), torch.tensor([[0, 1]])
    >>> counted_nats(seen, unseen, order=1, vocab_size=2).exp()  # 1/p, p = (2 + 1·(2 + 1)/7) / 3
    tensor([[1.2353]])
    """
    if order < 0 or vocab_size ** (order + 1) > 2**62:
        raise ValueError(
            f"order is {order} over {vocab_size} tokens; counts need an order from 0 on, and "
            "vocab_size^(order + 1) of at most 2^62"
        )
    p = torch.full((unseen.shape[0], unseen.shape[1] - order), 1 / vocab_size, dtype=torch.double)
    for n in range(order + 1):
        grams, count = _codes(seen, n, vocab_size).unique(return_counts=True)
        contexts, which = (grams // vocab_size).unique(return_inverse=True)
        total = torch.zeros_like(contexts).scatter_add_(0, which, count)
        code = _codes(unseen, n, vocab_size)[:, order - n :]
        here = _looked_up(code, grams, count)
        of = _looked_up(code // vocab_size, contexts, total)
        followers = _looked_up(code // vocab_size, contexts, which.bincount())
        p = torch.where(of > 0, (here + followers * p) / (of + followers).clamp(min=1), p)
    return -p.log().float()


def _looked_up(codes: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """The value of each code among the `known` ones, which are sorted; 0 for the others."""
    at = torch.searchsorted(known, codes.contiguous()).clamp(max=len(known) - 1)
    return torch.where(known[at] == codes, values[at], 0)


def _codes(ids: Tensor, n: int, vocab_size: int) -> Tensor:
    """Each window of n + 1 ids (B, T) as one number: -> (B, T − n)."""
    code = torch.zeros_like(ids[:, n:])
    for i in range(n + 1):
        code = code * vocab_size + ids[:, i : ids.shape[1] - n + i]
    return code
