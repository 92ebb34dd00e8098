"""Learning from preferences: a reward model, DPO, and the policy gradient of GRPO. Notebook 00.

Shapes: B answers, T tokens, V = vocab_size, G groups of K answers to one prompt, N rated texts,
D features. Log-probabilities are natural logarithms, of an answer as a sum over its tokens.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

# ── log-probabilities of answers ──────────────────────────────────────────────────────────────────


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """log p of each token but the first, given those before it: logits (B, T, V) -> (B, T − 1).

    >>> token_logprobs(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])).exp()
    tensor([[0.2500, 0.2500]])
    """
    before = logits[:, :-1].float().log_softmax(dim=-1)  # (B, T − 1, V)
    return before.gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)


def answer_logprobs(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """log π(answer | prompt), a sum over tokens: logits (B, T, V), ids and mask (B, T) -> (B,).

    `mask` is 1 on the tokens of the answer, its end included, 0 on prompt and padding. A mean would
    hide length from the loss, and is another method (Meng et al. 2024, SimPO). ValueError for an
    answer of no tokens, and for one that begins with the first token, which nothing predicts.

    >>> ids, mask = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[0, 0, 1, 1]])
    >>> answer_logprobs(torch.zeros(1, 4, 8), ids, mask)  # two tokens, one of eight each: 2·ln 1/8
    tensor([-4.1589])
    """
    if mask[:, 0].any():
        raise ValueError("an answer begins with the first token; put at least one token before it")
    check_answers(mask)
    each = token_logprobs(logits, ids)
    return each.masked_fill(mask[:, 1:] == 0, 0).sum(dim=1)


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────


def widest_pair(
    answers: Sequence[Sequence[Hashable]],
    rewards: Sequence[float],
    *,
    max_gap: int | None = None,
    choosable: Collection[int] | None = None,
) -> tuple[int, int] | None:
    """Of all answers to one prompt, the positions of the chosen and the rejected: the two that lie
    furthest apart in reward and not more than `max_gap` tokens in length (any, if None).

    Chosen is one of the positions in `choosable` (any, if None). None where there is no such pair:
    equal answers, or equal rewards, teach nothing. Without a limit on the gap, lengths that go with
    rewards are learned too (Park et al. 2024).

    >>> widest_pair([[1], [2, 3], [4, 5, 6, 7]], [0.1, 0.5, 0.9]), widest_pair([[1], [1]], [0, 1])
    ((2, 0), None)
    >>> widest_pair([[1], [2, 3], [4, 5, 6, 7]], [0.1, 0.5, 0.9], max_gap=1)
    (1, 0)
    >>> widest_pair([[1], [2, 3], [4, 5, 6, 7]], [0.1, 0.5, 0.9], choosable=[1])
    (1, 0)
    """
    if len(answers) != len(rewards):
        raise ValueError(f"{len(answers)} answers have {len(rewards)} rewards; give one for each")
    limit = math.inf if max_gap is None else max_gap
    best = range(len(answers)) if choosable is None else choosable
    pairs = [
        (i, j)
        for i, j in permutations(range(len(answers)), 2)
        if i in best
        and rewards[i] > rewards[j]
        and tuple(answers[i]) != tuple(answers[j])
        and abs(len(answers[i]) - len(answers[j])) <= limit
    ]
    return max(pairs, key=lambda pair: rewards[pair[0]] - rewards[pair[1]], default=None)


# ── direct preference optimisation ────────────────────────────────────────────────────────────────


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """−log σ(β·[(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)]), each (B,).

    All four are log-probabilities of whole answers (`answer_logprobs`), those of the reference
    without gradient. β says how dear it is to leave the reference. Rafailov et al. 2023, eq. 7.

    >>> same = torch.tensor([-5.0])
    >>> dpo_loss(same, same, same, same)  # nothing learned yet: ln 2
    tensor([0.6931])
    >>> dpo_loss(same + 10, same, same, same, beta=0.1)  # −log σ(0.1·10)
    tensor([0.3133])
    """
    check_beta(beta)
    shapes = {tuple(t.shape) for t in (chosen, rejected, reference_chosen, reference_rejected)}
    if len(shapes) > 1:
        raise ValueError(f"log-probabilities have shapes {sorted(shapes)}; give one for each pair")
    ours = implicit_reward(chosen, reference_chosen, beta)
    return -F.logsigmoid(ours - implicit_reward(rejected, reference_rejected, beta))


def implicit_reward(logprobs: Tensor, reference_logprobs: Tensor, beta: float = 0.1) -> Tensor:
    """β·(log π − log π_ref), the reward under which π is optimal: Rafailov et al. 2023, §4.

    >>> implicit_reward(torch.tensor(-3.0), torch.tensor(-5.0), beta=0.5)
    tensor(1.)
    """
    return beta * (logprobs - reference_logprobs)


def pair_loss(
    logits: Tensor, reference_logits: Tensor, ids: Tensor, mask: Tensor, beta: float = 0.1
) -> Tensor:
    """Mean `dpo_loss` of B pairs: logits (2·B, T, V), the chosen answers first, then the rejected.

    `ids` and `mask` (2·B, T) as in `answer_logprobs`. A pair of equal answers has loss ln 2 and no
    gradient. ValueError for an odd number of rows, or a reference of another vocabulary.

    >>> ids, mask = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[0, 1], [0, 1]])
    >>> pair_loss(torch.zeros(2, 2, 3), torch.zeros(2, 2, 3), ids, mask)
    tensor(0.6931)
    """
    if logits.shape != reference_logits.shape:
        raise ValueError(
            f"the policy's logits are {tuple(logits.shape)}, the reference's "
            f"{tuple(reference_logits.shape)}; both must read the same tokens with one vocabulary: "
            "take the model from before the tuning"
        )
    if len(ids) % 2:
        raise ValueError(f"there are {len(ids)} rows; give each chosen answer its rejected one")
    with torch.no_grad():
        reference = answer_logprobs(reference_logits, ids, mask)
    chosen, rejected = answer_logprobs(logits, ids, mask).chunk(2)
    return dpo_loss(chosen, rejected, *reference.chunk(2), beta).mean()


def check_beta(beta: float) -> None:
    if not 0 < beta < math.inf:
        raise ValueError(f"beta is {beta}; it is finite and above 0 (0.1 is customary)")


# ── a reward model ────────────────────────────────────────────────────────────────────────────────


def ridge(features: Tensor, targets: Tensor, penalty: float = 1.0) -> tuple[Tensor, Tensor]:
    """Weights (D,) and intercept that minimise Σ(target − prediction)² + penalty·Σ weight².

    features (N, D), targets (N,). The intercept is not penalised. Solved in the smaller of N and D
    dimensions, in float64. Hoerl & Kennard 1970. ValueError for no texts, numbers that are not
    finite, a penalty that is not above 0.

    >>> weights, intercept = ridge(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0, 5.0]), 2.0)
    >>> weights, intercept  # centred: x = ∓1, y = ∓2, so w = 4 / (2 + 2) and b = 3 − 1·w
    (tensor([1.]), tensor(2.))
    """
    if not 0 < penalty < math.inf:
        raise ValueError(f"penalty is {penalty}; it is finite and above 0")
    if len(features) == 0 or len(features) != len(targets):
        raise ValueError(f"{len(features)} texts, {len(targets)} targets; give one target for each")
    if not (features.isfinite().all() and targets.isfinite().all()):
        raise ValueError("features or targets hold inf or NaN; repair them first")
    X, y = features.double(), targets.double()
    X, y = X - X.mean(0), y - y.mean()
    if X.shape[0] < X.shape[1]:
        weights = X.T @ torch.linalg.solve(_plus(X @ X.T, penalty), y)
    else:
        weights = torch.linalg.solve(_plus(X.T @ X, penalty), X.T @ y)
    weights = weights.to(features.dtype)
    return weights, targets.mean() - features.mean(0) @ weights


def _plus(square: Tensor, penalty: float) -> Tensor:
    return square + penalty * torch.eye(len(square), dtype=square.dtype)


@dataclass(frozen=True)
class RewardModel:
    """A text's reward: the intercept and the weight of each of its words, once for each word."""

    weights: dict[str, float]
    intercept: float

    def __call__(self, text: str) -> float:
        return self.intercept + sum(self.weights.get(word, 0.0) for word in words_of(text))


def words_of(text: str) -> set[str]:
    """The different words of a text, in lower case.

    >>> sorted(words_of("Don't! I don't."))
    ["don't", 'i']
    """
    return set(re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower()))


def fit_reward(
    texts: Sequence[str], ratings: Sequence[float], penalty: float = 1.0, min_texts: int = 2
) -> RewardModel:
    """A reward model from human ratings: `ridge` on which words a text holds.

    Words in fewer than `min_texts` texts are left out. ValueError where none is left.

    >>> reward = fit_reward(["good", "good fun", "bad", "bad fun"], [2, 2, -2, -2])
    >>> round(reward("a good play"), 6), round(reward("fun"), 6)  # half of it is taken by penalty 1
    (1.333333, 0.0)
    """
    held = [words_of(text) for text in texts]
    counts = Counter(word for words in held for word in words)
    vocabulary = sorted(word for word, count in counts.items() if count >= min_texts)
    if not vocabulary:
        raise ValueError(f"no word stands in {min_texts} of {len(texts)} texts; rate more texts")
    features = torch.tensor([[float(word in words) for word in vocabulary] for words in held])
    weights, intercept = ridge(features, torch.tensor(ratings, dtype=torch.float32), penalty)
    return RewardModel(dict(zip(vocabulary, weights.tolist(), strict=True)), intercept.item())


# ── group-relative policy gradient ────────────────────────────────────────────────────────────────


def group_advantages(rewards: Tensor, *, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """How much better each answer is than its group: rewards (G, K) -> (G, K), each row sums to 0.

    With `scale`, in units of the row's standard deviation (over K − 1) plus `eps`; without it, Liu
    et al. 2025 (Dr. GRPO). A group of equal rewards gives 0: it teaches nothing. Shao et al. 2024,
    §4.1.2. ValueError for groups of one.

    >>> group_advantages(torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]]), eps=0)[0]
    tensor([-1.,  0.,  1.])
    """
    if rewards.shape[1] < 2:
        raise ValueError(f"groups have {rewards.shape[1]} answer; compare at least 2 to one prompt")
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + eps) if scale else centred


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    reference_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float = 0.2,
    beta: float = 0.04,
) -> Tensor:
    """The clipped policy gradient with a price on leaving the reference; a scalar to minimise.

    Log-probabilities of each token (B, T): now, when the answers were written, under the reference;
    advantages (B,); mask (B, T). A token's share is −min(r·A, clip(r, 1 ± clip)·A) + β·KL with
    r = π/π_old; the mean is over an answer's tokens, then over answers. Shao et al. 2024, eq. 3.

    >>> half, mask = torch.full((2, 1), 0.5).log(), torch.ones(2, 1)
    >>> grpo_loss((1.5 * half.exp()).log(), half, half, torch.tensor([1.0, -1.0]), mask, beta=0)
    tensor(0.1500)
    """
    check_answers(mask)
    ratio = (logprobs - old_logprobs).exp()
    A = advantages.unsqueeze(1)  # (B, 1)
    gain = torch.minimum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)
    each = -gain + beta * kl_estimate(logprobs, reference_logprobs)
    each = each.masked_fill(mask == 0, 0)
    return (each.sum(dim=1) / mask.sum(dim=1)).mean()


def check_answers(mask: Tensor) -> None:
    empty = (mask.sum(dim=1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"rows {empty} have an answer of 0 tokens; leave them out")


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """An estimate of KL(π ‖ π_ref) from each token that π drew: q/p − log(q/p) − 1, never below 0.

    Unbiased, as −log(q/p) is, with less spread. Schulman 2020, "Approximating KL divergence" (k3);
    Shao et al. 2024, eq. 4.

    >>> kl_estimate(torch.tensor(0.5).log(), torch.tensor(0.25).log())  # ½ + ln 2 − 1
    tensor(0.1931)
    """
    log_ratio = reference_logprobs - logprobs
    return log_ratio.exp() - log_ratio - 1
