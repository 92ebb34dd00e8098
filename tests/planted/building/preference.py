"""Plausible wrong versions of course_utils.building.preference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planting import Bug, originals

right = originals("building.preference")


def answer_logprobs_mean(logits, ids, mask):
    """Mean for sum: the loss no longer sees length."""
    return right["answer_logprobs"](logits, ids, mask) / mask.sum(1)


def answer_logprobs_of_the_prompt_too(logits, ids, mask):
    right["answer_logprobs"](logits, ids, mask)
    last = mask.flip(1).cumsum(1).flip(1) > 0  # all before the answer's end
    return right["token_logprobs"](logits, ids).masked_fill(~last[:, 1:], 0).sum(1)


def answer_logprobs_of_the_padding_too(logits, ids, mask):
    right["answer_logprobs"](logits, ids, mask)
    started = mask.cumsum(1) > 0
    return right["token_logprobs"](logits, ids).masked_fill(~started[:, 1:], 0).sum(1)


def token_logprobs_of_the_same_place(logits, ids):
    """The logits of a token's own place, which has seen it."""
    return logits.log_softmax(-1).gather(2, ids.unsqueeze(2)).squeeze(2)[:, 1:]


def token_logprobs_unnormalised(logits, ids):
    return logits[:, :-1].gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)


def dpo_loss_without_reference(chosen, rejected, reference_chosen, reference_rejected, beta=0.1):
    right["dpo_loss"](chosen, rejected, reference_chosen, reference_rejected, beta)
    return -F.logsigmoid(beta * (chosen - rejected))


def dpo_loss_beta_outside(chosen, rejected, reference_chosen, reference_rejected, beta=0.1):
    return beta * right["dpo_loss"](chosen, rejected, reference_chosen, reference_rejected, 1.0)


def dpo_loss_the_wrong_way(chosen, rejected, reference_chosen, reference_rejected, beta=0.1):
    return right["dpo_loss"](rejected, chosen, reference_rejected, reference_chosen, beta)


def dpo_loss_without_log(chosen, rejected, reference_chosen, reference_rejected, beta=0.1):
    return -(-right["dpo_loss"](chosen, rejected, reference_chosen, reference_rejected, beta)).exp()


def dpo_loss_reference_added(chosen, rejected, reference_chosen, reference_rejected, beta=0.1):
    return right["dpo_loss"](chosen, rejected, -reference_chosen, -reference_rejected, beta)


def pair_loss_with_a_learning_reference(logits, reference_logits, ids, mask, beta=0.1):
    right["pair_loss"](logits, reference_logits, ids, mask, beta)
    chosen, rejected = right["answer_logprobs"](logits, ids, mask).chunk(2)
    reference = right["answer_logprobs"](reference_logits, ids, mask).chunk(2)
    return right["dpo_loss"](chosen, rejected, *reference, beta).mean()


def pair_loss_of_neighbours(logits, reference_logits, ids, mask, beta=0.1):
    """Chosen and rejected in turns."""
    turns = [*range(0, len(ids), 2), *range(1, len(ids), 2)]
    return right["pair_loss"](logits[turns], reference_logits[turns], ids[turns], mask[turns], beta)


def widest_pair_of_any_length(answers, rewards, *, max_gap=None, choosable=None):
    return right["widest_pair"](answers, rewards, choosable=choosable)


def widest_pair_whoever_wins(answers, rewards, *, max_gap=None, choosable=None):
    return right["widest_pair"](answers, rewards, max_gap=max_gap)


def widest_pair_of_best_and_worst(answers, rewards, *, max_gap=None, choosable=None):
    """Whatever they are: equal answers too."""
    right["widest_pair"](answers, rewards, max_gap=max_gap)
    if len(answers) < 2:
        return None
    order = sorted(range(len(answers)), key=rewards.__getitem__)
    return order[-1], order[0]


def ridge_with_a_penalised_intercept(features, targets, penalty=1.0):
    right["ridge"](features, targets, penalty)
    X = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    both = torch.linalg.solve(X.T @ X + penalty * torch.eye(X.shape[1]), X.T @ targets.double())
    return both[:-1].float(), both[-1].float()


def ridge_with_a_mean(features, targets, penalty=1.0):
    """The penalty against the mean square, not the sum."""
    right["ridge"](features, targets, penalty)
    return right["ridge"](features, targets, penalty * len(features) + 1e-3)


def group_advantages_over_all(rewards, *, scale=True, eps=1e-4):
    """One mean for all prompts."""
    flat = right["group_advantages"](rewards.reshape(1, -1), scale=scale, eps=eps)
    return flat.reshape(rewards.shape)


def group_advantages_over_k(rewards, *, scale=True, eps=1e-4):
    right["group_advantages"](rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True, correction=0) + eps) if scale else centred


def _grpo(gain_of, mean_of):
    def loss(logprobs, old_logprobs, reference_logprobs, advantages, mask, *, clip=0.2, beta=0.04):
        ratio, A = (logprobs - old_logprobs).exp(), advantages.unsqueeze(1)
        kl = right["kl_estimate"](logprobs, reference_logprobs)
        each = beta * kl - gain_of(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)
        return mean_of(each * mask, mask)

    return loss


def by_answer(each, mask):
    return (each.sum(1) / mask.sum(1)).mean()


def by_token(each, mask):
    return each.sum() / mask.sum()


def kl_estimate_the_other_way(logprobs, reference_logprobs):
    return right["kl_estimate"](reference_logprobs, logprobs)


def kl_estimate_plain(logprobs, reference_logprobs):
    return logprobs - reference_logprobs


SUM = "by_hand or trls"
BUGS = [
    Bug("answer_logprobs", "takes the mean for the sum", answer_logprobs_mean),
    Bug("answer_logprobs", "counts the prompt", answer_logprobs_of_the_prompt_too),
    Bug("answer_logprobs", "counts the padding", answer_logprobs_of_the_padding_too),
    Bug("token_logprobs", "looks at the token's own place", token_logprobs_of_the_same_place, SUM),
    Bug("token_logprobs", "does not normalise", token_logprobs_unnormalised, SUM),
    Bug("dpo_loss", "has no reference", dpo_loss_without_reference),
    Bug(
        "dpo_loss",
        "has no reference where it is asked what earns",
        dpo_loss_without_reference,
        "sees_only",
    ),
    Bug("dpo_loss", "has beta outside", dpo_loss_beta_outside),
    Bug("dpo_loss", "prefers the rejected", dpo_loss_the_wrong_way),
    Bug("dpo_loss", "has no logarithm", dpo_loss_without_log),
    Bug("dpo_loss", "adds the reference", dpo_loss_reference_added),
    Bug("pair_loss", "lets the reference learn", pair_loss_with_a_learning_reference),
    Bug("pair_loss", "pairs neighbours", pair_loss_of_neighbours),
    Bug("widest_pair", "does not match lengths", widest_pair_of_any_length),
    Bug("widest_pair", "lets any answer win", widest_pair_whoever_wins),
    Bug("widest_pair", "pairs equal answers", widest_pair_of_best_and_worst, "teaches_nothing"),
    Bug("ridge", "penalises the intercept", ridge_with_a_penalised_intercept),
    Bug("ridge", "weighs the penalty by N", ridge_with_a_mean),
    Bug("group_advantages", "compares across prompts", group_advantages_over_all),
    Bug("group_advantages", "divides by K", group_advantages_over_k),
    Bug("grpo_loss", "does not clip", _grpo(lambda free, clipped: free, by_answer)),
    Bug("grpo_loss", "always clips", _grpo(lambda free, clipped: clipped, by_answer)),
    Bug("grpo_loss", "takes the larger gain", _grpo(torch.maximum, by_answer)),
    Bug("grpo_loss", "averages over all tokens", _grpo(torch.minimum, by_token)),
    Bug("kl_estimate", "measures the other way", kl_estimate_the_other_way),
    Bug("kl_estimate", "can be below 0", kl_estimate_plain),
]
