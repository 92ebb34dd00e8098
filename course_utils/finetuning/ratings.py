"""Ratings told from texts by simple means, and what a model still recalls. Notebooks 06, 07 and 15.

The comparators that a tuned model must beat: counted words and fixed vectors, with a ridge
regression on either (Hoerl & Kennard 1970), which is also a head that a model can start from.
Shapes: N texts, D features, V words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PENALTIES = tuple(10.0**k for k in range(-3, 4))  # times the mean squared singular value

# ── counted words ─────────────────────────────────────────────────────────────────────────────────


def common_words(texts: Sequence[Sequence[str]], least: int = 2) -> list[str]:
    """Words that stand in at least `least` of the texts, in alphabetical order.

    ValueError where there is none.

    >>> common_words([["a", "good", "film"], ["a", "bad", "film"]])
    ['a', 'film']
    """
    found = Counter(word for text in texts for word in set(text))
    vocabulary = sorted(word for word, n in found.items() if n >= least)
    if not vocabulary:
        raise ValueError(f"no word occurs in {least} of {len(texts)} texts; give more, or least=1")
    return vocabulary


def count_words(texts: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> Tensor:
    """(N, V): how often each text has each word; words that are not in the vocabulary are left out.

    >>> count_words([["so", "so", "good"]], ["bad", "good", "so"])
    tensor([[0., 1., 2.]])
    """
    place = {word: i for i, word in enumerate(vocabulary)}
    counts = torch.zeros(len(texts), len(vocabulary))
    for row, text in enumerate(texts):
        for word in text:
            if word in place:
                counts[row, place[word]] += 1
    return counts


def balance(texts: Sequence[Sequence[str]], good: Collection[str], bad: Collection[str]) -> Tensor:
    """(N,): how many words of a text are of the good ones, less those of the bad ones.

    >>> balance([["so", "good", "not", "bad", "good"]], good={"good", "fine"}, bad={"bad"})
    tensor([1.])
    """
    return torch.tensor([float(sum((w in good) - (w in bad) for w in text)) for text in texts])


# ── ridge regression ──────────────────────────────────────────────────────────────────────────────


class Ridge(NamedTuple):
    """A linear predictor: weights (D,), features' means (D,), targets' mean, and the penalty."""

    weights: Tensor
    center: Tensor
    offset: float
    penalty: float

    def predict(self, features: Tensor) -> Tensor:
        """features (N, D) -> (N,)."""
        return ((features.double() - self.center) @ self.weights + self.offset).float()


def ridge(features: Tensor, targets: Tensor, penalties: Sequence[float] = PENALTIES) -> Ridge:
    """Least squares with a penalty on the weights' squares, chosen by leaving out one at a time.

    features (N, D), targets (N,). `penalties` count in mean squared singular values, so that the
    features' unit does not matter. What each text would be told without itself needs no second fit:
    its residual is divided by 1 − h, its leverage (Golub, Heath & Wahba 1979). ValueError for fewer
    than three texts, or features that do not differ.

    >>> fit = ridge(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([1.0, 3.0, 5.0, 7.0]))
    >>> fit.predict(torch.tensor([[10.0]])).round(decimals=1)  # 1 + 2·10, shrunk a little
    tensor([21.])
    """
    if len(features) < 3 or len(features) != len(targets):
        raise ValueError(f"{len(features)} texts, {len(targets)} ratings; give as many, 3 or more")
    x, y = features.double(), targets.double()
    center, offset = x.mean(dim=0), y.mean()
    u, s, vt = torch.linalg.svd(x - center, full_matrices=False)
    if not s.max() > 0:
        raise ValueError("all texts have the same features; there is nothing to tell them apart")
    inside = u.T @ (y - offset)  # targets along each direction
    chosen, least = 0.0, torch.inf
    for penalty in penalties:
        kept = s**2 / (s**2 + penalty * s.square().mean())
        leverage = u.square() @ kept + 1 / len(x)  # the mean is fitted too
        left_out = (y - offset - u @ (kept * inside)) / (1 - leverage).clamp(min=1e-9)
        if (error := left_out.square().mean()) < least:
            chosen, least = penalty * s.square().mean().item(), error
    return Ridge(vt.T @ (s / (s**2 + chosen) * inside), center, offset.item(), chosen)


def logistic(vectors: Tensor, labels: Tensor, classes: int = 2, penalty: float = 0.1) -> nn.Linear:
    """Logistic regression: Σ loss + penalty·½·Σ weight², minimised by L-BFGS.

    vectors (N, D), labels (N,) from 0 to `classes` − 1 -> a layer that gives logits (N, C) and does
    not learn on. Twice scikit-learn's `1/C` is our penalty, with two classes.
    """
    head = nn.Linear(vectors.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(vectors), labels, reduction="sum")
        loss = loss + penalty * head.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return head.requires_grad_(False)


# ── scores ────────────────────────────────────────────────────────────────────────────────────────


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r of two lists of numbers, 0 where one of them is constant.

    >>> correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, -1.0]))
    -1.0
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"{len(a)} and {len(b)} numbers; give as many of both, 2 at least")
    a, b = (x.double() - x.double().mean() for x in (a, b))
    norm = a.norm() * b.norm()
    return round((a @ b / norm).item(), 12) if norm > 0 else 0.0


def recall_nats(questions: Tensor, answers: Tensor, scale: float = 20.0) -> Tensor:
    """−ln p (N,) of each question's own answer among all N, by their cosines.

    The logits are scale·cosine: the loss on which sentence encoders are trained to find the other
    one of a pair (Henderson et al. 2017, section 4, with dot products).

    >>> recall_nats(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.ones(2, 2))  # all alike: ln 2
    tensor([0.6931, 0.6931])
    """
    if questions.shape != answers.shape:
        raise ValueError(f"{tuple(questions.shape)} and {tuple(answers.shape)}; one answer each")
    cosines = F.normalize(questions, dim=1) @ F.normalize(answers, dim=1).T  # (N, N)
    return F.cross_entropy(scale * cosines, torch.arange(len(cosines)), reduction="none")
