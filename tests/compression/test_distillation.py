"""Losses against torch's, sentence-transformers' and transformers', by hand, and their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.compression import distillation as kd


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pair(*shape):
    return torch.randn(*shape, requires_grad=True), torch.randn(*shape, requires_grad=True)


def decoder(d_model=16):
    sizes = dict(vocab_size=11, d_model=d_model, n_heads=2, n_layers=1, d_ff=16)
    return Decoder(DecoderConfig(**sizes))


# ── against torch ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("temperature", [0.5, 1, 4])
def test_distillation_loss_is_torchs(temperature):
    """batchmean, not mean, and times T²; and no gradient for the teacher."""
    student, teacher = pair(6, 9)
    ours = kd.distillation_loss(student, teacher, temperature)
    log_q, p = F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
    theirs = F.kl_div(log_q, p.detach(), reduction="batchmean") * temperature**2
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads)
    ours.backward()
    assert teacher.grad is None


def test_distillation_loss_is_sentence_transformers():
    from sentence_transformers.losses import DistillKLDivLoss

    class Scores(nn.Module):
        """A model of theirs gives vectors; with a first query of 1 the scores are the passages."""

        def forward(self, features):
            return {"sentence_embedding": features["x"]}

    student, teacher = pair(5, 3)
    columns = [{"x": torch.ones(5, 1)}] + [{"x": column.unsqueeze(1)} for column in student.T]
    theirs = DistillKLDivLoss(Scores(), temperature=2.0)(columns, teacher)
    torch.testing.assert_close(kd.distillation_loss(student, teacher, 2.0), theirs)


def test_the_reverse_direction_is_torchs_with_sides_swapped():
    student, teacher = pair(6, 9)
    ours = kd.distillation_loss(student, teacher, 2.0, direction="reverse")
    log_p, log_q = F.log_softmax(teacher / 2, -1), F.log_softmax(student / 2, -1)
    theirs = 4 * F.kl_div(log_p.detach(), log_q, reduction="batchmean", log_target=True)
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(loss, student)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jensen_shannon_is_its_definition(beta):
    student, teacher = pair(4, 7)
    p, q = teacher.softmax(-1).detach(), student.softmax(-1)
    m = beta * p + (1 - beta) * q
    wanted = beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)
    ours = kd.jensen_shannon(student, teacher, beta)
    torch.testing.assert_close(ours, wanted.mean())
    grads = [torch.autograd.grad(loss, student)[0] for loss in (ours, wanted.mean())]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)  # fp32, another form
    assert teacher.grad is None


def test_jensen_shannon_has_the_two_directions_as_limits():
    """JSD/β → KL(p ‖ q) as β → 0, and JSD/(1 − β) → KL(q ‖ p) as β → 1."""
    student, teacher = (each.double() for each in pair(4, 7))
    for beta, share, direction in ((1e-6, 1e-6, "forward"), (1 - 1e-6, 1e-6, "reverse")):
        limit = kd.jensen_shannon(student, teacher, beta) / share
        wanted = kd.distillation_loss(student, teacher, direction=direction)
        assert limit.item() == pytest.approx(wanted.item(), rel=1e-3)


def test_attention_loss_is_torchs():
    student, teacher = (each.softmax(-1) for each in pair(2, 3, 5, 5))
    wanted = F.kl_div(student.log(), teacher, reduction="sum") / (2 * 3 * 5)
    ours = kd.attention_loss(student, teacher)
    torch.testing.assert_close(ours, wanted)
    gradients = torch.autograd.grad(ours, [student, teacher], allow_unused=True)
    assert gradients[0] is not None
    assert gradients[1] is None


def test_value_relation_is_attentions():
    """Queries, keys alike the values: torch's attention of the values with themselves."""
    v = torch.randn(2, 5, 12)
    heads = v.view(2, 5, 3, 4).transpose(1, 2)
    relation = kd.value_relation(v, n_heads=3)
    wanted = F.scaled_dot_product_attention(heads, heads, heads)
    torch.testing.assert_close(relation @ heads, wanted)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    hidden = F.scaled_dot_product_attention(
        heads, heads, heads, attn_mask=mask.bool()[:, None, None, :]
    )
    torch.testing.assert_close(kd.value_relation(v, 3, mask) @ heads, hidden)


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────


def test_soft_targets_by_hand():
    z = torch.tensor([0.0, math.log(9)])
    torch.testing.assert_close(kd.soft_targets(z, 1), torch.tensor([0.1, 0.9]))
    torch.testing.assert_close(kd.soft_targets(z, 2), torch.tensor([0.25, 0.75]))
    assert kd.soft_targets(z, 0).tolist() == [0, 1]
    assert kd.soft_targets(torch.tensor([2.0, 1.0, 2.0]), 0).tolist() == [0.5, 0, 0.5]


def test_soft_targets_go_to_the_hard_label_as_the_temperature_falls():
    z = torch.randn(20, 8)
    apart = [(kd.soft_targets(z, T) - kd.soft_targets(z, 0)).abs().max() for T in (1, 0.1, 0.001)]
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 0.05


def test_distillation_loss_by_hand():
    """¼·log(¼/½) + ¾·log(¾/½) for one row, 0 for the other: the mean is over rows."""
    teacher = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    wanted = (0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2
    assert kd.distillation_loss(torch.zeros(2, 2), teacher).item() == pytest.approx(wanted)
    mask = torch.tensor([True, False])
    masked = kd.distillation_loss(torch.zeros(2, 2), teacher, mask=mask)
    assert masked.item() == pytest.approx(2 * wanted)


def test_kl_by_hand():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.75, 0.0])
    found = kd.kl(p.log(), q.log())
    assert found.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kd.kl(q.log(), torch.tensor([1.0, 0.0, 0.0]).log()).item() == math.inf


def test_words_that_both_forbid_change_nothing():
    student, teacher = pair(3, 5)
    barred = torch.tensor([0, 0, 0, 1, 1]).bool()
    ours = kd.distillation_loss(
        student.masked_fill(barred, -math.inf), teacher.masked_fill(barred, -math.inf)
    )
    torch.testing.assert_close(ours, kd.distillation_loss(student[:, :3], teacher[:, :3]))
    ours.backward()
    assert student.grad.isfinite().all()


def test_labels_and_soft_targets_by_hand():
    student, teacher = pair(4, 3)
    labels = torch.tensor([0, 2, 1, 1])
    hard = F.cross_entropy(student, labels)
    soft = kd.distillation_loss(student, teacher, 3.0)
    both = kd.labels_and_soft_targets(student, teacher, labels, 3.0, share=0.3)
    torch.testing.assert_close(both, 0.7 * hard + 0.3 * soft)
    for share, wanted in ((0, hard), (1, soft)):
        found = kd.labels_and_soft_targets(student, teacher, labels, 3.0, share)
        torch.testing.assert_close(found, wanted)


def test_pseudo_labels_by_hand():
    teacher = torch.tensor([[0.0, math.log(9)], [math.log(3), 0.0]])
    labels, sure = kd.pseudo_labels(teacher, least=0.8)
    assert (labels.tolist(), sure.tolist()) == ([1, 0], [True, False])
    assert kd.pseudo_labels(teacher)[1].all()


def test_hidden_loss_by_hand():
    student, teacher = (
        torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]),
        torch.tensor([[[1.0, 0.0], [6, 0]]]),
    )
    assert kd.hidden_loss(student, teacher).item() == (4 / 2 + 36 / 2) / 2
    assert kd.hidden_loss(student, teacher, mask=torch.tensor([[1, 0]])).item() == 2


def test_hidden_loss_through_a_projection_trains_both_sides_of_it():
    student, teacher = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 6)
    projection = nn.Linear(4, 6)
    loss = kd.hidden_loss(student, teacher.requires_grad_(), projection)
    torch.testing.assert_close(loss, F.mse_loss(projection(student), teacher))
    loss.backward()
    assert student.grad.abs().sum() > 0
    assert projection.weight.grad.abs().sum() > 0
    assert teacher.grad is None


def test_cosine_loss_by_hand():
    student, teacher = (
        torch.tensor([[2.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[3.0, 4.0], [0.0, 9.0]]),
    )
    assert kd.cosine_loss(student, teacher).item() == pytest.approx(0.2)
    assert kd.cosine_loss(student, teacher, torch.tensor([1, 0])).item() == pytest.approx(0.4)
    theirs = F.cosine_embedding_loss(student, teacher, torch.ones(2))
    torch.testing.assert_close(kd.cosine_loss(student, teacher), theirs)
    student.requires_grad_()
    teacher.requires_grad_()
    kd.cosine_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_attention_loss_leaves_padding_out():
    student, teacher = (each.softmax(-1).detach() for each in pair(1, 2, 3, 3))
    mask = torch.tensor([[1, 1, 0]])
    wanted = kd.attention_loss(student[:, :, :2], teacher[:, :, :2])
    torch.testing.assert_close(kd.attention_loss(student, teacher, mask), wanted)


def test_attention_loss_with_hidden_keys_has_finite_gradients():
    scores, teacher = pair(1, 1, 3, 3)
    triangle = torch.ones(3, 3, dtype=torch.bool).tril()
    student = scores.masked_fill(~triangle, -math.inf).softmax(-1)
    target = teacher.masked_fill(~triangle, -math.inf).softmax(-1)
    loss = kd.attention_loss(student, target)
    loss.backward()
    assert 0 < loss.item() < 10
    assert scores.grad.isfinite().all()


def test_uniform_layers_by_hand():
    assert kd.uniform_layers(6, 12) == [1, 3, 5, 7, 9, 11]
    assert kd.uniform_layers(4, 4) == [0, 1, 2, 3]
    assert kd.uniform_layers(1, 6) == [5]
    assert kd.uniform_layers(4, 6) == [1, 2, 4, 5]


# ── limits and properties ─────────────────────────────────────────────────────────────────────────

LOGITS = arrays.arrays(np.float64, (3, 4), elements=st.floats(-8, 8))


@settings(max_examples=60, deadline=None)
@given(student=LOGITS, teacher=LOGITS, temperature=st.floats(0.3, 30))
def test_losses_are_at_least_zero_and_zero_for_equals(student, teacher, temperature):
    student, teacher = torch.from_numpy(student), torch.from_numpy(teacher)
    for direction in kd.DIRECTIONS:
        loss = kd.distillation_loss(student, teacher, temperature, direction=direction)
        assert loss >= -1e-9 * temperature**2
        same = kd.distillation_loss(teacher + 5, teacher, temperature, direction=direction)
        assert abs(same.item()) < 1e-9 * temperature**2
    assert -1e-9 <= kd.jensen_shannon(student, teacher) <= math.log(2) + 1e-9


def test_gradients_with_the_square_of_the_temperature_have_a_limit():
    """Hinton et al., equation 4: (z − v)/V for logits of mean 0, per row; so T² is needed."""
    student, teacher = torch.randn(5, 8).double(), torch.randn(5, 8).double()
    student -= student.mean(-1, keepdim=True)
    teacher -= teacher.mean(-1, keepdim=True)
    student.requires_grad_()
    wanted = (student - teacher).detach() / 8 / 5
    off = []
    for temperature in (10, 100, 1000):
        loss = kd.distillation_loss(student, teacher, temperature)
        off.append((torch.autograd.grad(loss, student)[0] - wanted).abs().max().item())
    assert off[0] > 5 * off[1] > 25 * off[2]
    assert off[2] < 1e-3 * wanted.abs().max()


def test_forward_covers_and_reverse_seeks():
    """A student that can have one hump of a teacher with two: forward spreads, reverse picks."""
    teacher = torch.tensor([2.0, 0.0, -2.0, 0.0, 2.0]).repeat(1, 1) * 2
    places = torch.arange(5.0)
    answers = {}
    for direction in kd.DIRECTIONS:
        centre, width = torch.tensor(1.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)
        optimizer = torch.optim.Adam([centre, width], lr=0.1)
        for _ in range(120):
            student = (-(places - centre).square() * width.exp()).unsqueeze(0)
            loss = kd.distillation_loss(student, teacher, direction=direction)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        answers[direction] = student.softmax(-1).squeeze(0).detach()
    assert answers["forward"][4] > 0.1  # both ends have some
    assert answers["reverse"][4] < 0.02  # the nearer end has it all
    assert answers["reverse"][0] > 0.8


# ── sequences ─────────────────────────────────────────────────────────────────────────────────────


def test_answer_mask_by_hand():
    ids = torch.tensor([[1, 2, 3, 4, 9, 9], [1, 9, 9, 5, 5, 5], [1, 2, 3, 4, 5, 6]])
    found = kd.answer_mask(ids, n_prompt=2, stop=9).int().tolist()
    assert found == [
        [0, 1, 1, 1, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 1, 1],
    ]  # a 9 in a prompt stops none
    assert kd.answer_mask(ids, n_prompt=3).int().tolist() == [[0, 0, 1, 1, 1]] * 3


def test_sequence_loss_is_the_cross_entropy_of_the_answers():
    model, ids = decoder(), torch.randint(1, 11, (3, 7))
    ids[0, 4] = 0
    logits, losses = model(ids), []
    for row, last in ((0, 4), (1, 6), (2, 6)):
        for t in range(3, last + 1):
            losses.append(F.cross_entropy(logits[row, t - 1], ids[row, t]))
    found = kd.sequence_loss(model, ids, n_prompt=3, stop=0)
    torch.testing.assert_close(found, torch.stack(losses).mean())


@pytest.mark.parametrize("direction", kd.DIRECTIONS)
def test_token_loss_is_the_distillation_of_the_answers_tokens(direction):
    student, teacher, ids = decoder(), decoder(32), torch.randint(1, 11, (2, 6))
    pieces = [
        kd.distillation_loss(student(ids)[:, t], teacher(ids)[:, t], 2.0, direction=direction)
        for t in (1, 2, 3, 4)
    ]
    found = kd.token_loss(student, teacher, ids, 2, 2.0, direction)
    torch.testing.assert_close(found, torch.stack(pieces).mean())
    found.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_hard_and_soft_labels_agree_for_a_teacher_that_is_sure():
    """Its own words, and no doubt about them: both losses are the student's cross-entropy."""
    student, ids = decoder(), torch.randint(1, 11, (2, 6))

    def teacher(ids):
        return F.one_hot(F.pad(ids[:, 1:], (0, 1)), 11) * 1e4

    soft, hard = kd.token_loss(student, teacher, ids, 2), kd.sequence_loss(student, ids, 2)
    torch.testing.assert_close(soft, hard)


def test_written_by_draws_the_share_and_takes_no_gradient():
    prompts, draw = torch.tensor([[1, 2]]), torch.Generator().manual_seed(0)
    weight = torch.ones(1, requires_grad=True)

    def own(prompts):
        assert not (weight * 2).requires_grad
        return F.pad(prompts, (0, 1), value=7)

    def other(prompts):
        return F.pad(prompts, (0, 1), value=8)

    drawn = [kd.written_by(prompts, own, other, 0.25, draw) for _ in range(400)]
    assert all(ids[0, 2].item() == (7 if mine else 8) for ids, mine in drawn)
    assert sum(mine for _, mine in drawn) == pytest.approx(100, abs=30)
    for share, token in ((0.0, 8), (1.0, 7)):
        kinds = {kd.written_by(prompts, own, other, share, draw)[0][0, 2].item() for _ in range(50)}
        assert kinds == {token}


def test_a_student_learns_its_teacher_on_and_off_policy():
    """The divergence on the teacher's own texts falls after either."""
    teacher, prompts = decoder(32), torch.randint(0, 11, (16, 3))
    for parameter in teacher.parameters():
        parameter.data *= 6 if parameter.ndim == 2 else 1

    def writing(model):
        def write(ids):
            for _ in range(4):
                ids = torch.cat([ids, model(ids)[:, -1:].softmax(-1)[:, 0].multinomial(1)], dim=1)
            return ids

        return write

    texts = writing(teacher)(prompts).detach()
    for share in (0.0, 1.0):
        torch.manual_seed(1)
        student = decoder(24)
        optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
        before = kd.token_loss(student, teacher, texts, 3).item()
        for _ in range(40):
            ids, _ = kd.written_by(
                prompts, writing(student), writing(teacher), share, torch.Generator()
            )
            loss = kd.token_loss(student, teacher, ids, 3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after = kd.token_loss(student, teacher, texts, 3).item()
        assert after < 0.7 * before, (share, before, after)


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_refused_by_name():
    z = torch.zeros(2, 5)
    with pytest.raises(ValueError, match="the student's vocabulary is 5, the teacher's 7"):
        kd.distillation_loss(z, torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"answers are \(2, 5\), the teacher's \(3, 5\)"):
        kd.distillation_loss(z, torch.zeros(3, 5))
    for temperature in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"temperature is {temperature}"):
            kd.distillation_loss(z, z, temperature)
    with pytest.raises(ValueError, match="direction is 'backward'"):
        kd.distillation_loss(z, z, direction="backward")
    with pytest.raises(ValueError, match="beta is 1"):
        kd.jensen_shannon(z, z, 1)
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        kd.labels_and_soft_targets(z, z, torch.zeros(2).long(), 1.0, 1.5)
    with pytest.raises(ValueError, match="least is 2"):
        kd.pseudo_labels(z, 2)
    with pytest.raises(ValueError, match=r"are \(1, 2, 3\), the teacher's \(1, 2, 4\); give proj"):
        kd.hidden_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="the projection gives another width"):
        kd.hidden_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), nn.Linear(3, 5))
    with pytest.raises(ValueError, match="the student's width is 5, the teacher's 6"):
        kd.cosine_loss(z, torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 3\), the teacher's \(1, 4, 3, 3\)"):
        kd.attention_loss(torch.ones(1, 2, 3, 3) / 3, torch.ones(1, 4, 3, 3) / 3)
    with pytest.raises(ValueError, match="n_heads is 3, which does not divide 4 numbers"):
        kd.value_relation(torch.zeros(1, 2, 4), 3)
    with pytest.raises(ValueError, match="n_student is 5, n_teacher 4"):
        kd.uniform_layers(5, 4)
    for n_prompt in (0, 4):
        with pytest.raises(ValueError, match=f"n_prompt is {n_prompt} of 4 tokens"):
            kd.answer_mask(torch.zeros(1, 4).long(), n_prompt)
    with pytest.raises(ValueError, match="no answer counts"):
        kd.distillation_loss(z, z, mask=torch.zeros(2))
    with pytest.raises(ValueError, match=r"the mask is \(2, 5\), the answers \(2,\)"):
        kd.distillation_loss(z, z, mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match="must follow their prompts"):
        kd.written_by(
            torch.tensor([[1]]), torch.zeros_like, torch.zeros_like, 1.0, torch.Generator()
        )
    with pytest.raises(ValueError, match=r"share is -0\.1"):
        kd.written_by(torch.tensor([[1]]), str, str, -0.1, torch.Generator())
