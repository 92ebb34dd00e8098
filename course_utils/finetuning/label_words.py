"""Labels as a decoder's next word: what they cost, and how much of it is form. Notebook 08.

−ln p(right) = −ln p(any label) − ln p(right | any label): the first part is *format*, that
an answer is given at all; the second is *choice*, which one. Shapes: N texts, V = vocab_size,
L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LabelNats(NamedTuple):
    """What each text's right label costs in nats: format (N,) and choice (N,); their sum is all."""

    format: Tensor
    choice: Tensor

    @property
    def all(self) -> Tensor:
        return self.format + self.choice


def check_label_ids(labels: Sequence[int]) -> None:
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ValueError(f"labels are {list(labels)}; give two or more different tokens")


def label_nats(logits: Tensor, labels: Sequence[int], right: Tensor) -> LabelNats:
    """Format and choice of each text: logits (N, V) of the next token, right (N,) in 0 … L − 1.

    `labels` are token ids, of which each stands for a class.

    >>> logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    >>> cost = label_nats(logits, labels=[1, 2], right=torch.tensor([0]))
    >>> cost.format.exp(), cost.choice.exp()  # half of all is a label, half of that the right one
    (tensor([2.]), tensor([2.]))
    """
    check_label_ids(labels)
    log_p = logits.float().log_softmax(dim=-1)[:, list(labels)]  # (N, L)
    either = log_p.logsumexp(dim=-1)
    own = log_p.gather(1, right.unsqueeze(1).to(log_p.device)).squeeze(1)
    return LabelNats(-either, either - own)


def in_format(logits: Tensor, labels: Sequence[int]) -> Tensor:
    """(N,): whether the likeliest of all tokens is a label.

    >>> in_format(torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), labels=[1, 2])
    tensor([ True, False])
    """
    check_label_ids(labels)
    return torch.isin(logits.argmax(dim=-1), torch.tensor(list(labels), device=logits.device))


def chosen(logits: Tensor, labels: Sequence[int]) -> Tensor:
    """(N,): the likeliest of the labels, whatever other tokens say.

    >>> chosen(torch.tensor([[9.0, 1.0, 2.0]]), labels=[1, 2])
    tensor([1])
    """
    check_label_ids(labels)
    return logits[:, list(labels)].argmax(dim=-1)


def prior_nats(right: Tensor) -> float:
    """What the choice costs him who knows the labels' shares and never reads a text.

    >>> round(prior_nats(torch.tensor([0, 1, 0, 1])), 4)  # ln 2
    0.6931
    """
    shares = torch.bincount(right).double() / len(right)
    shares = shares[shares > 0]
    return -(shares * shares.log()).sum().item()
