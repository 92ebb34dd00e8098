"""DPO and GRPO against trl's arithmetic, ridge regression against scikit-learn, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from course_utils.building import preference

TOLERANCE = dict(atol=1e-5, rtol=1e-5)  # fp32, the same sums in another order
IDS = torch.tensor([[5, 1, 2, 3, 0], [5, 1, 4, 0, 0], [5, 2, 2, 6, 1], [5, 1, 1, 1, 1]])
MASK = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])


def logits(seed: int, vocab_size: int = 7) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(4, 5, vocab_size, generator=draw)


# ── trl's arithmetic, transcribed ─────────────────────────────────────────────────────────────────
# From trl/trainer/dpo_trainer.py, `concatenated_forward` and `dpo_loss` with loss_type "sigmoid",
# and trl/trainer/grpo_trainer.py, `_compute_loss` with loss_type "grpo", as of version 0.16
# (von Werra et al. 2020, TRL: Transformer Reinforcement Learning).


def trl_answer_logps(logits, input_ids, loss_mask):
    labels = torch.roll(input_ids, shifts=-1, dims=1)
    loss_mask = torch.roll(loss_mask, shifts=-1, dims=1).bool()
    labels = labels.masked_fill(~loss_mask, 0)
    logps = torch.gather(logits.log_softmax(-1), 2, labels.unsqueeze(-1)).squeeze(-1)
    logps = torch.roll(logps.masked_fill(~loss_mask, 0), shifts=1, dims=1)
    return logps[:, 1:].sum(-1)


def trl_dpo_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    logratios = chosen_logps - rejected_logps
    ref_logratios = ref_chosen_logps - ref_rejected_logps
    logits = logratios - ref_logratios
    losses = -F.logsigmoid(beta * logits)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    return losses, chosen_rewards


def trl_advantages(rewards, num_generations):
    grouped = rewards.view(-1, num_generations)
    mean = grouped.mean(dim=1).repeat_interleave(num_generations, dim=0)
    std = grouped.std(dim=1).repeat_interleave(num_generations, dim=0)
    return (rewards - mean) / (std + 1e-4)


def trl_grpo_loss(per_token_logps, old, reference, advantages, completion_mask, epsilon, beta):
    coef_1 = torch.exp(per_token_logps - old)
    coef_2 = torch.clamp(coef_1, 1 - epsilon, 1 + epsilon)
    loss1, loss2 = coef_1 * advantages.unsqueeze(1), coef_2 * advantages.unsqueeze(1)
    kl = torch.exp(reference - per_token_logps) - (reference - per_token_logps) - 1
    per_token_loss = -torch.min(loss1, loss2) + beta * kl
    each = (per_token_loss * completion_mask).sum(-1) / completion_mask.sum(-1).clamp(min=1.0)
    return each.mean()


# ── log-probabilities ─────────────────────────────────────────────────────────────────────────────


def test_answer_logprobs_by_hand():
    """Two tokens of the answer after a prompt of one, ln ¼ + ln ½; one after a prompt of two."""
    share = torch.tensor([[[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.9, 0.05, 0.05]]])
    mask = torch.tensor([[0, 1, 1]])
    ids = torch.tensor([[0, 1, 2]])
    total = preference.answer_logprobs(share.log(), ids, mask)
    assert total.item() == pytest.approx(math.log(1 / 4) + math.log(1 / 2), abs=1e-6)
    total = preference.answer_logprobs(share.log(), ids, torch.tensor([[0, 0, 1]]))
    assert total.item() == pytest.approx(math.log(1 / 2), abs=1e-6)


def test_answer_logprobs_is_trls():
    ours = preference.answer_logprobs(logits(0), IDS, MASK)
    torch.testing.assert_close(ours, trl_answer_logps(logits(0), IDS, MASK), **TOLERANCE)


def test_answer_logprobs_of_nothing():
    mask = MASK.clone()
    mask[1] = 0
    with pytest.raises(ValueError, match=r"rows \[1\] have an answer of 0 tokens"):
        preference.answer_logprobs(logits(0), IDS, mask)
    with pytest.raises(ValueError, match="an answer begins with the first token"):
        preference.answer_logprobs(logits(0), IDS, torch.ones_like(IDS))


# ── direct preference optimisation ────────────────────────────────────────────────────────────────


def test_dpo_loss_by_hand():
    """½·[(−2 + 4) − (−6 + 5)] = 1.5: −log σ(1.5) = ln(1 + e^−1.5)."""
    numbers = [torch.tensor([x]) for x in (-2.0, -6.0, -4.0, -5.0)]
    loss = preference.dpo_loss(*numbers, beta=0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.5)), abs=1e-6)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_dpo_loss_is_trls(beta):
    """Losses, implicit rewards, and gradients with respect to the logits."""
    results = []
    for ours in (True, False):
        policy = logits(1).requires_grad_()
        read = preference.answer_logprobs if ours else trl_answer_logps
        chosen, rejected = read(policy, IDS, MASK).chunk(2)
        reference = read(logits(2), IDS, MASK).chunk(2)
        if ours:
            losses = preference.dpo_loss(chosen, rejected, *reference, beta)
            rewards = preference.implicit_reward(chosen, reference[0], beta)
        else:
            losses, rewards = trl_dpo_loss(chosen, rejected, *reference, beta)
        results.append([losses, rewards, *torch.autograd.grad(losses.mean(), policy)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_pair_loss_is_trls():
    policy = logits(1).requires_grad_()
    loss = preference.pair_loss(policy, logits(2), IDS, MASK, beta=0.3)
    halves = [trl_answer_logps(x, IDS, MASK).chunk(2) for x in (policy, logits(2))]
    theirs = trl_dpo_loss(*halves[0], *halves[1], 0.3)[0].mean()
    torch.testing.assert_close(loss, theirs, **TOLERANCE)
    grads = [torch.autograd.grad(x, policy, retain_graph=True)[0] for x in (loss, theirs)]
    torch.testing.assert_close(*grads, **TOLERANCE)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-50, 0), min_size=4, max_size=4), st.floats(0.01, 2))
def test_dpo_loss_has_the_papers_gradient(numbers, beta):
    """∂/∂log π(chosen) = −β·σ(−margin), and its opposite for the rejected: §4 of the paper."""
    four = [torch.tensor([x], dtype=torch.double, requires_grad=True) for x in numbers]
    up, down = torch.autograd.grad(preference.dpo_loss(*four, beta).sum(), four[:2])
    margin = beta * (numbers[0] - numbers[2] - numbers[1] + numbers[3])
    expected = -beta / (1 + math.exp(margin))
    assert up.item() == pytest.approx(expected, abs=1e-9)
    assert down.item() == pytest.approx(-expected, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.floats(-5, 5))
def test_dpo_loss_sees_only_what_changed_since_the_reference(shift):
    """What makes an answer likely to both models (a short one, say) earns nothing."""
    base = [torch.tensor([x]) for x in (-3.0, -4.0, -3.5, -4.5)]
    moved = [base[0] + shift, base[1], base[2] + shift, base[3]]
    torch.testing.assert_close(preference.dpo_loss(*moved), preference.dpo_loss(*base), **TOLERANCE)


def test_pair_loss_of_equal_answers_teaches_nothing():
    policy = logits(3).requires_grad_()
    same = torch.cat([policy[:2], policy[:2]])
    ids, mask = IDS[[0, 1, 0, 1]], MASK[[0, 1, 0, 1]]
    loss = preference.pair_loss(same, logits(4)[[0, 1, 0, 1]], ids, mask)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert torch.autograd.grad(loss, policy)[0].abs().max() < 1e-7


def test_pair_loss_leaves_the_reference_alone():
    reference = logits(2).requires_grad_()
    preference.pair_loss(logits(1).requires_grad_(), reference, IDS, MASK).backward()
    assert reference.grad is None


def test_pair_loss_refuses_another_vocabulary():
    with pytest.raises(
        ValueError, match=r"\(4, 5, 7\), the reference's \(4, 5, 9\).*one vocabulary"
    ):
        preference.pair_loss(logits(1), logits(2, vocab_size=9), IDS, MASK)
    with pytest.raises(ValueError, match="3 rows; give each chosen answer"):
        preference.pair_loss(logits(1)[:3], logits(2)[:3], IDS[:3], MASK[:3])


@pytest.mark.parametrize("beta", [0, -0.1, math.inf, math.nan])
def test_dpo_loss_refuses_beta(beta):
    with pytest.raises(ValueError, match=f"beta is {beta}"):
        preference.dpo_loss(*torch.zeros(4, 1), beta)


def test_dpo_loss_refuses_other_numbers_of_answers():
    with pytest.raises(ValueError, match="one for each pair"):
        preference.dpo_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(1))


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────


def test_widest_pair_by_hand():
    answers, rewards = ["ab", "abcdef", "cd", "xyz"], [0.2, 0.9, 0.0, 0.5]
    assert preference.widest_pair(answers, rewards) == (1, 2)
    assert preference.widest_pair(answers, rewards, max_gap=1) == (3, 2)
    assert preference.widest_pair(answers, rewards, max_gap=0) == (0, 2)
    assert preference.widest_pair(answers, rewards, choosable=[0, 2]) == (0, 2)
    assert preference.widest_pair(answers, rewards, choosable=[]) is None


@pytest.mark.parametrize(
    ("answers", "rewards"),
    [([], []), (["a"], [1.0]), (["a", "a"], [0.0, 1.0]), (["a", "b"], [0.5, 0.5])],
)
def test_widest_pair_of_what_teaches_nothing(answers, rewards):
    assert preference.widest_pair(answers, rewards) is None


def test_widest_pair_needs_a_reward_for_each():
    with pytest.raises(ValueError, match="2 answers have 1 rewards"):
        preference.widest_pair(["a", "b"], [0.5])


# ── the reward model ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("n", "d"), [(12, 5), (5, 12), (1, 3)])
@pytest.mark.parametrize("penalty", [0.1, 30.0])
def test_ridge_is_scikit_learns(n, d, penalty):
    draw = torch.Generator().manual_seed(n)
    features, targets = torch.randn(n, d, generator=draw) + 3, torch.randn(n, generator=draw) + 9
    weights, intercept = preference.ridge(features, targets, penalty)
    theirs = Ridge(penalty).fit(features.double().numpy(), targets.double().numpy())
    torch.testing.assert_close(weights.double(), torch.tensor(theirs.coef_), **TOLERANCE)
    # a sum of products near 30 in fp32
    assert intercept.item() == pytest.approx(theirs.intercept_, abs=1e-4)


@pytest.mark.parametrize(
    ("features", "targets", "penalty", "said"),
    [
        ([[1.0]], [1.0], 0, "penalty is 0"),
        ([[1.0]], [1.0], math.inf, "penalty is inf"),
        ([[1.0]], [1.0, 2.0], 1, "1 texts, 2 targets"),
        ([[math.nan]], [1.0], 1, "inf or NaN"),
    ],
)
def test_ridge_refuses(features, targets, penalty, said):
    with pytest.raises(ValueError, match=said):
        preference.ridge(torch.tensor(features), torch.tensor(targets), penalty)
    with pytest.raises(ValueError, match="0 texts"):
        preference.ridge(torch.zeros(0, 2), torch.zeros(0))


def test_fit_reward_reads_words_once():
    texts = ["Good, good play", "good", "a bad play", "bad. Bad!"]
    reward = preference.fit_reward(texts, [2, 2, -2, -2])
    assert reward("good") == reward("GOOD good!") > 0 > reward("bad")
    assert reward("never seen") == pytest.approx(reward.intercept)
    assert set(reward.weights) == {"good", "bad", "play"}  # "a" stands in one text alone
    assert preference.words_of("l'été ne m'a 2 fois") == {"l'été", "ne", "m'a", "fois"}


def test_fit_reward_of_too_little():
    with pytest.raises(ValueError, match="no word stands in 2 of 1 texts"):
        preference.fit_reward(["good"], [1])


# ── group-relative policy gradient ────────────────────────────────────────────────────────────────


def test_group_advantages_are_trls():
    rewards = torch.tensor([0.1, 0.9, 0.5, 3.0, 2.0, 2.0])
    ours = preference.group_advantages(rewards.view(2, 3)).flatten()
    torch.testing.assert_close(ours, trl_advantages(rewards, 3), **TOLERANCE)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=6), st.booleans())
def test_group_advantages_do_not_see_the_level(rewards, scale):
    """An easy prompt, on which all do well, counts as much as a hard one."""
    low = torch.tensor([rewards], dtype=torch.double)
    both = preference.group_advantages(torch.cat([low, low + 10]), scale=scale)
    torch.testing.assert_close(both[0], both[1], atol=1e-6, rtol=1e-6)  # eps / tiny deviations
    assert abs(both[0].sum().item()) < 1e-6


def test_group_advantages_of_equals_and_of_one():
    assert (preference.group_advantages(torch.full((1, 4), 0.7)).abs() < 1e-3).all()
    with pytest.raises(ValueError, match="groups have 1 answer"):
        preference.group_advantages(torch.zeros(3, 1))


@pytest.mark.parametrize(("clip", "beta"), [(0.2, 0.0), (0.2, 0.04), (0.05, 1.0)])
def test_grpo_loss_is_trls(clip, beta):
    """Values and gradients, where ratios lie on both sides of the clip."""
    draw = torch.Generator().manual_seed(0)
    now, old, reference = -torch.rand(3, 4, 6, generator=draw)
    now.requires_grad_()
    mask = (torch.arange(6) < torch.tensor([[6], [3], [1], [5]])).float()
    advantages = torch.tensor([1.5, -0.5, 0.3, -1.3])
    ours = preference.grpo_loss(now, old, reference, advantages, mask, clip=clip, beta=beta)
    theirs = trl_grpo_loss(now, old, reference, advantages, mask, clip, beta)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    grads = [torch.autograd.grad(x, now, retain_graph=True)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*grads, **TOLERANCE)


def test_grpo_loss_by_hand():
    """r = 1.5 and A = 1 earn 1.2, clipped; r = 1.5 and A = −1 cost 1.5 in full."""
    old = torch.zeros(2, 1)
    now, mask = old + math.log(1.5), torch.ones(2, 1)
    loss = preference.grpo_loss(now, old, old, torch.tensor([1.0, -1.0]), mask, beta=0)
    assert loss.item() == pytest.approx((-1.2 + 1.5) / 2, abs=1e-6)


def test_grpo_loss_on_policy_is_the_policy_gradient():
    """With r = 1 its gradient is −A·∇log π, averaged: REINFORCE (Williams 1992)."""
    now = (-torch.rand(2, 3)).requires_grad_()
    A, still = torch.tensor([2.0, -1.0]), now.detach()
    loss = preference.grpo_loss(now, still, still, A, torch.ones(2, 3))
    (gradient,) = torch.autograd.grad(loss, now)
    torch.testing.assert_close(gradient, -A.unsqueeze(1).expand(2, 3) / 6, **TOLERANCE)


def test_grpo_loss_of_an_empty_answer():
    zero = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"rows \[1\] have an answer of 0 tokens"):
        preference.grpo_loss(zero, zero, zero, zero[0], torch.tensor([[1, 1], [0, 0]]))


def test_kl_estimate_is_right_on_average():
    """Its mean under π is KL(π ‖ π_ref), and no single value is below 0."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    each = preference.kl_estimate(p.log(), q.log())
    assert (each >= 0).all()
    torch.testing.assert_close((p * each).sum(), (p * (p / q).log()).sum(), **TOLERANCE)
