"""The parts of both schools on toys, the plan of the grid, and the grid as it is stored."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_sentences import tiny_encoder, tokenizer

from course_utils.building.corpus import Corpus, Split
from course_utils.recipes import RECIPES
from course_utils.recipes import distilled_students as school
from course_utils.recipes.distilled_students import Taught
from course_utils.tasks import sentiment


class Splitter:
    """A tokenizer of single letters, called as transformers' are."""

    def __call__(self, texts, *, truncation, max_length):
        return {"input_ids": [[ord(c) for c in text][:max_length] for text in texts]}


def toy(n: int = 64, seed: int = 0):
    """Rows of ids in which 5 says yes and 6 says no."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=draw)
    rows = torch.randint(7, 20, (n, 6), generator=draw)
    rows[:, 2] = torch.where(labels == 1, 5, 6)
    return rows.tolist(), labels


# ── tweets ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def rated(monkeypatch):
    rows = [sentiment.Rated(str(i), -4 + i % 90 / 10, f"text {i}") for i in range(400)]
    monkeypatch.setattr(sentiment, "load", lambda domain: rows)


def test_load_tweets_parts_are_disjoint_and_nested(rated):
    few, many = (school.load_tweets(n, 100, seed=3) for n in (10, 60))
    for tweets in (few, many):
        ids = [t.id for part in tweets for t in part]
        assert len(ids) == len(set(ids))
        assert all(abs(t.rating) > school.CLEAR for t in (*tweets.labelled, *tweets.test))
        assert len(tweets.unlabelled) == 100
    assert few.test == many.test
    assert few.labelled == many.labelled[:10]
    assert school.load_tweets(10, 100, seed=4).labelled != few.labelled
    with pytest.raises(ValueError, match="500 labels and 100 tweets without are asked for"):
        school.load_tweets(500, 100, seed=3)


def test_of_five_classes_every_tweet_has_a_label(rated):
    drawn = school.load_tweets(10, 100, seed=3, classes=5)
    assert any(abs(t.rating) <= school.CLEAR for t in (*drawn.labelled, *drawn.test))
    labels = school.labels_of(drawn.test, 5)
    assert labels.unique().tolist() == [0, 1, 2, 3, 4]
    assert all(
        (a.rating <= b.rating) or x >= y
        for a, x in zip(drawn.test, labels, strict=True)
        for b, y in zip(drawn.test, labels, strict=True)
    )


def test_labels_of_two_classes_are_signs():
    tweets = [sentiment.Rated("1", -0.2, "a"), sentiment.Rated("2", 1.0, "b")]
    assert school.labels_of(tweets).tolist() == [0, 1]


def test_words_are_the_most_frequent_and_the_rest_is_one():
    words = school.Words(Splitter(), ["aab", "aac"], size=4)
    assert len(words) == 4
    assert words(["abc", "aXa"]) == [[2, 3, 1], [2, 1, 2]]  # b and c tie: the lower id stays


def test_vectors_come_in_the_order_of_their_texts():
    encoder, texts = tiny_encoder(), ["abc abc abc", "a", "ab c", "cc"]
    together = school.vectors_of(encoder, tokenizer, texts, size=2)
    alone = torch.cat([school.vectors_of(encoder, tokenizer, [text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)  # padded or not


# ── encoder students ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("body", school.BODIES)
def test_teach_by_labels_and_by_logits(body):
    ids, labels = toy()
    logits = torch.nn.functional.one_hot(labels, 2).float() * 8
    for target in (labels, logits):
        student = school.new_student(30, seed=0, body=body)
        school.teach(student, [Taught(ids, target)], steps=60, seed=0)
        unseen, truth = toy(seed=1)
        right = (school.logits_of(student, unseen).argmax(1) == truth).float().mean()
        assert right > 0.9


def test_bodies_look_back_or_both_ways():
    ids, changed = torch.tensor([[5, 7, 8]]), torch.tensor([[5, 7, 9]])
    for body, seen in (("forwards", False), ("both ways", True), ("encoder", True)):
        encoder = school.new_student(30, seed=0, body=body).eval().encoder
        first = [encoder(x, torch.ones_like(x))[0, 0] for x in (ids, changed)]
        assert torch.allclose(*first) != seen
    with pytest.raises(ValueError, match="body is 'sideways'; it must be one of encoder"):
        school.new_student(30, 0, body="sideways")


def test_teach_by_vectors_leaves_a_student_whose_vectors_tell():
    """Vectors point left or right by the label; sixteen labels are then enough for the head."""
    ids, labels = toy(96)
    vectors = torch.nn.functional.one_hot(labels, 2).float() @ torch.tensor(
        [[1.0, 0, 0], [0, 1, 0]]
    )
    student = school.new_student(30, seed=0)
    few = Taught(ids[:32], labels[:32])
    school.teach(student, [few, Taught(ids, vectors, inside=True)], steps=80, seed=0)
    unseen, truth = toy(seed=1)
    assert (school.logits_of(student, unseen).argmax(1) == truth).float().mean() > 0.9


def test_teach_is_the_same_for_the_same_seed():
    ids, labels = toy(64)
    found = []
    for seed in (1, 1, 2):
        student = school.new_student(30, seed=0)
        school.teach(student, [Taught(ids, labels)], steps=3, seed=seed)
        found.append(school.logits_of(student, ids))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_lessons_of_each_arm():
    ids, labels = toy(8)
    mine, said = Taught(ids[:2], labels[:2]), torch.randn(8, 2)
    assert school.lessons("alone", mine, ids, said, 0) == [mine]
    own, vectors = -said, torch.randn(8, 3)
    arms = ("soft", "hard", "dealt out", "its own", "vectors")
    soft, hard, dealt, itself, inside = (
        school.lessons(arm, mine, ids, said, 0, own=own, vectors=vectors)[1] for arm in arms
    )
    assert soft.target is said
    assert not soft.hard
    assert hard.hard
    assert hard.target.tolist() == said.argmax(1).tolist()
    assert itself.target.tolist() == said.argmin(1).tolist()
    assert inside.inside
    assert inside.target is vectors
    assert not torch.equal(dealt.target, said)
    assert sorted(dealt.target[:, 0].tolist()) == sorted(said[:, 0].tolist())
    with pytest.raises(ValueError, match="arm is 'loud'; it must be one of alone"):
        school.lessons("loud", mine, ids, said, 0)


# ── decoders ────────────────────────────────────────────────────────────────────────────────────


def rows_of_noise(n: int = 32, size: int = 12):
    return torch.randint(0, size, (n, 10), generator=torch.Generator().manual_seed(0))


def sharp_teacher(size: int = 12):
    teacher = school.small_decoder(size, seed=7)
    with torch.no_grad():
        teacher.out.weight.mul_(20)
    return teacher.eval().requires_grad_(False)


def test_a_taught_decoder_comes_near_its_teacher_whatever_the_tokens():
    """The tokens are noise: only the teacher can have taught it what it says."""
    teacher, rows = sharp_teacher(), rows_of_noise()

    def apart(student):
        with torch.no_grad():
            p, q = (net(rows).log_softmax(-1) for net in (teacher, student))
            return (p.exp() * (p - q)).sum(-1).mean().item()

    student = school.small_decoder(12, seed=1)
    before, alone = apart(student), copy.deepcopy(student)
    dealt = copy.deepcopy(student)
    school.teach_decoder(student, rows, 60, 0, arm="taught", teacher=teacher)
    school.teach_decoder(alone, rows, 60, 0)
    school.teach_decoder(dealt, rows, 60, 0, arm="dealt out", teacher=teacher)
    assert apart(student) < 0.5 * min(before, apart(alone), apart(dealt))


def test_a_smoothed_loss_is_nine_tenths_of_the_tokens_and_one_tenth_of_all():
    student, ids = school.small_decoder(12, seed=1).eval(), rows_of_noise(4)
    draw = torch.Generator()
    log_q = student(ids)[:, :-1].log_softmax(-1)
    plain = school.decoder_loss("plain", student, None, ids, draw)
    wanted = 0.9 * plain - 0.1 * log_q.mean()
    torch.testing.assert_close(school.decoder_loss("smoothed", student, None, ids, draw), wanted)
    with pytest.raises(ValueError, match="arm is 'loud'; it must be one of plain"):
        school.decoder_loss("loud", student, None, ids, draw)


def test_drawn_tokens_are_the_teachers_in_the_mean():
    """The loss of tokens drawn many times is the cross-entropy of the teacher's whole answers."""
    student, teacher = school.small_decoder(12, seed=1).eval(), sharp_teacher()
    ids, draw = rows_of_noise(2), torch.Generator().manual_seed(0)
    with torch.no_grad():
        p, log_q = teacher(ids)[:, :-1].softmax(-1), student(ids)[:, :-1].log_softmax(-1)
        wanted = -(p * log_q).sum(-1).mean()
        losses = [school.decoder_loss("drawn", student, teacher, ids, draw) for _ in range(400)]
    assert torch.stack(losses).mean() == pytest.approx(wanted.item(), abs=0.02)
    first = school.drawn_tokens(teacher, ids, torch.Generator().manual_seed(5))
    assert torch.equal(first, school.drawn_tokens(teacher, ids, torch.Generator().manual_seed(5)))


def test_some_of_rows():
    rows = torch.arange(50).view(10, 5)
    few = school.some_of(rows, 17, seed=0)
    assert few.shape == (3, 5)
    assert len({row[0].item() for row in few}) == 3
    assert torch.equal(few, school.some_of(rows, 17, seed=0))
    assert len(school.some_of(rows, 1, seed=0)) == 1
    assert school.some_of(rows, 0, seed=0) is rows


def test_share_right_by_hand():
    said = torch.nn.Embedding.from_pretrained(torch.eye(4))  # says each token again
    assert school.share_right(said, torch.tensor([[0, 0, 1], [2, 2, 2]])) == 3 / 4


# ── the grid ────────────────────────────────────────────────────────────────────────────────────

BUDGET = SimpleNamespace(
    width=32, layers=1, batch=2, labels=(8, 12, 16), unlabelled=40, tokens=(600, 900, 0), rows=4,
    long_seeds=1, teacher=3, steps=2, decoder_steps=4, seeds=1,
)  # fmt: skip

PRICE = {"dearer": 1.5, "own": 20.0}


@pytest.fixture
def small(monkeypatch, rated):
    texts = {
        "one": "low lower lowest " * 1500,
        "two": "slow slower " * 300,
        "three": "low lower " * 900,
    }
    split = Split(["one"], ["two"], ["three"])
    monkeypatch.setattr(school.replies, "load_plays", lambda seed: Corpus(texts, split))
    monkeypatch.setattr(school.sentence_vectors, "load", lambda device: (tiny_encoder(), tokenizer))
    monkeypatch.setattr(school, "budget_for", lambda profile: BUDGET)
    monkeypatch.setattr(school, "prices", lambda *arguments: PRICE)


def test_the_recipe_writes_a_row_a_student(tmp_path: Path, small):
    folder = school.train("cpu", 3, tmp_path / "new")
    rows = school.runs(folder)
    wanted = {
        *school.decoder_plan(BUDGET, 3, 0, PRICE),
        *school.encoder_plan(BUDGET, 3, first=True),
    }
    assert {row[:6] for row in rows} == wanted
    assert len(rows) == len(wanted)
    assert {row.steps for row in rows if row.kind == "decoder"} == {1, 2, 4, 6, 16, 24, 25, 28, 84}
    assert f"{len(rows)} students" in (folder / "README.md").read_text(encoding="utf-8")
    teacher, bpe = school.load(folder)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert bpe.decode(bpe.encode("lowest")) == "lowest"
    assert school.teacher_facts(folder)["own"] == PRICE["own"]


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path, small, monkeypatch):
    right, calls = school.teach, []

    def stops(*arguments, **options):
        calls.append(options)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return right(*arguments, **options)

    monkeypatch.setattr(school, "teach", stops)
    with pytest.raises(KeyboardInterrupt):
        school.train("cpu", 3, tmp_path / "stopped")
    monkeypatch.setattr(school, "make_teacher", pytest.fail)  # it is there already
    folder = school.train("cpu", 3, tmp_path / "stopped")
    monkeypatch.undo()
    rows = school.runs(folder)
    assert len({row[:6] for row in rows}) == len(rows)


def test_a_step_with_a_teacher_and_one_of_its_own_are_dearer_than_a_plain_one():
    teacher = school.new_decoder(50, 64, 6, 0).eval().requires_grad_(False)
    rows = torch.randint(0, 50, (4, 64), generator=torch.Generator().manual_seed(0))
    price = school.prices(teacher, rows, 4, repeats=5)
    assert min(price.values()) > 1
    assert not any(p.requires_grad for p in teacher.parameters())


def test_the_whole_bill_has_both_prices():
    assert school.whole_bill(BUDGET, PRICE, steps=4) == 3 * 20 + 4 * 1.5
    assert school.whole_bill(BUDGET, PRICE, steps=4, students=3) == 20 + 4 * 1.5


def test_the_stored_grid_is_whole():
    assert RECIPES[school.NAME] == school.__name__
    budget, rows = school.budget_for("cpu"), school.runs()
    price = school.teacher_facts()
    wanted = {
        cell
        for number in range(budget.seeds)
        for cell in (
            *school.decoder_plan(budget, number, number, price),
            *school.encoder_plan(budget, number, first=number == 0),
        )
    }
    assert {row[:6] for row in rows} == wanted
    assert len(rows) == len(wanted)
