"""Templates, shots and budgets, against scikit-learn's neighbours and a chat template."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompting_inputs import LABELS, SHOTS
from sklearn.neighbors import NearestNeighbors

from course_utils.metrics import evaluate
from course_utils.prompting.answers import extract_label
from course_utils.prompting.labels import predict
from course_utils.prompting.prompts import (
    Shot,
    Template,
    balanced_shots,
    chat_prompt,
    different_orders,
    fill,
    fit_budget,
    nearest_shots,
    random_shots,
)
from course_utils.prompting.retrieval import DenseIndex

POOL = [Shot(f"text {i}", "positive" if i % 3 else "negative") for i in range(12)]  # 8 and 4


no_braces = st.text(st.characters(exclude_characters="{}"), min_size=1)


def test_fill_by_hand():
    assert fill("{text} is {label}.", text="It", label="good") == "It is good."


def test_fill_leaves_the_braces_of_a_text_alone():
    assert fill("{text}|{label}", text="{label} {0} {", label="}") == "{label} {0} {|}"


@pytest.mark.parametrize(
    ("template", "fields", "message"),
    [
        ("{text} {label}", {"text": "a"}, r"field \{label\} is not given"),
        ("{text}", {"text": "a", "label": "b"}, r"field \{label\} is not in the template"),
    ],
)
def test_fill_with_other_fields(template, fields, message):
    with pytest.raises(ValueError, match=message):
        fill(template, **fields)


def test_template_prompt_by_hand():
    got = Template("T: {text}\nS: {label}").prompt("fine", SHOTS, instruction="Judge.")
    assert got == "Judge.\n\nT: lovely\nS: positive\n\nT: awful\nS: negative\n\nT: fine\nS:"


def test_template_prompt_without_shots_and_instruction():
    assert Template('"{text}" is {label}').prompt("fine") == '"fine" is'


@given(no_braces, no_braces)
def test_template_prompt_and_endings_join_to_the_filled_form(text, label):
    template = Template("Review: {text} => {label}")
    (ending, _) = template.endings([label, label + "x"])
    assert template.prompt(text) + ending == fill(template.form, text=text, label=label)


def test_template_endings_by_hand():
    assert Template("{text}: {label}").endings(LABELS) == [" positive", " negative"]
    assert Template("{text}\n{label}").endings(LABELS) == LABELS


@pytest.mark.parametrize("form", ["", "{text}", "{label}: {text}", "{text} {label}.",
                                  "{text} {label} {label}"])  # fmt: skip
def test_template_wants_the_label_last(form):
    with pytest.raises(ValueError, match=r"must end with \{label\}"):
        Template(form)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("Label: {label}", r"field \{text\} is not in the template"),
        ("{texts} {label}", r"field \{text\} is not in the template"),
        ("{language}: {text} {label}", r"field \{language\} is not given"),
    ],
)
def test_template_wants_a_place_for_the_text_and_no_other_field(form, message):
    with pytest.raises(ValueError, match=message):
        Template(form)


def test_chat_prompt_by_hand():
    assert chat_prompt("fine", SHOTS[:1], template="{text}?", system="Judge.") == [
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": "lovely?"},
        {"role": "assistant", "content": "positive"},
        {"role": "user", "content": "fine?"},
    ]
    assert chat_prompt("fine") == [{"role": "user", "content": "fine"}]


def test_chat_prompt_goes_through_a_real_template(smollm2):
    _, tokenizer = smollm2
    chat = chat_prompt("fine", SHOTS, system="Judge.")
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    turns = ["system\nJudge.", "user\nlovely", "assistant\npositive", "user\nawful"]
    turns += ["assistant\nnegative", "user\nfine"]
    ends = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns)
    assert text == ends + "<|im_start|>assistant\n"


def test_random_shots_are_a_reproducible_draw_without_replacement():
    drawn = random_shots(POOL, 12, seed=1)
    assert sorted(drawn) == sorted(POOL)
    assert drawn != POOL
    assert drawn == random_shots(POOL, 12, seed=1) != random_shots(POOL, 12, seed=2)


def test_random_shots_draw_every_shot_and_every_place_alike():
    first = [random_shots(POOL, 2, seed=seed)[0] for seed in range(600)]
    assert all(20 < first.count(shot) < 100 for shot in POOL)  # 50 expected, sd 7


@given(st.integers(0, 8), st.integers(0, 50))
def test_balanced_shots_hold_each_label_as_often(k, seed):
    drawn = balanced_shots(POOL, k, labels=LABELS, seed=seed)
    counts = [sum(shot.label == label for shot in drawn) for label in LABELS]
    assert len(drawn) == len(set(drawn)) == k
    assert max(counts) - min(counts) == k % 2


def test_balanced_shots_draw_the_odd_one_and_the_order():
    odd = {balanced_shots(POOL, 1, labels=LABELS, seed=seed)[0].label for seed in range(20)}
    assert odd == set(LABELS)
    first = [balanced_shots(POOL, 4, labels=LABELS, seed=seed)[0].label for seed in range(100)]
    assert 25 < first.count("positive") < 75
    assert len({tuple(balanced_shots(POOL, 4, labels=LABELS, seed=s)) for s in range(50)}) > 40


def test_random_shots_and_balanced_shots_of_none_from_an_empty_pool():
    assert random_shots([], 0, seed=0) == []
    assert balanced_shots([], 0, labels=LABELS, seed=0) == []


@pytest.mark.parametrize("k", [-1, 1])
def test_random_shots_and_balanced_shots_beyond_the_pool(k):
    for draw in (
        lambda: random_shots([], k, seed=0),
        lambda: balanced_shots([], k, labels=LABELS, seed=0),
    ):
        with pytest.raises(ValueError, match=f"{k} shots are asked for, and the pool holds 0"):
            draw()


def test_balanced_shots_with_too_few_of_a_label():
    with pytest.raises(ValueError, match="5 shots are asked for, and of label 'negative' the pool"):
        balanced_shots(POOL, 10, labels=LABELS, seed=0)


def test_balanced_shots_with_an_unknown_label():
    with pytest.raises(ValueError, match="the pool has the label 'meh'; known are"):
        balanced_shots([*POOL, Shot("so so", "meh")], 2, labels=LABELS, seed=0)


def letters(texts):
    """A vector of letter counts for each text."""
    return np.array([[text.count(c) for c in "abcdefgh"] for text in texts], dtype=float)


def pool_of(texts):
    return [Shot(text, "positive") for text in texts]


def test_nearest_shots_by_hand_with_the_nearest_last():
    pool = pool_of(["bbb", "aab", "aa", "abb"])
    index = DenseIndex([shot.text for shot in pool], letters)
    got = nearest_shots("aaaa", pool, 3, index=index)
    assert [shot.text for shot in got] == ["abb", "aab", "aa"]


def test_nearest_shots_leave_the_text_itself_out():
    pool = pool_of(["aa", "ab", "aa", "bb"])
    index = DenseIndex([shot.text for shot in pool], letters)
    got = nearest_shots("aa", pool, 2, index=index)
    assert [shot.text for shot in got] == ["bb", "ab"]
    with pytest.raises(ValueError, match="3 shots are asked for, and the pool holds other texts"):
        nearest_shots("aa", pool, 3, index=index)


def test_nearest_shots_of_none_need_no_index():
    assert nearest_shots("aa", [], 0, index=None) == []
    with pytest.raises(ValueError, match="1 shots are asked for"):
        nearest_shots("aa", [], 1, index=None)


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=9), min_size=2, max_size=12, unique=True))
def test_nearest_shots_equal_scikit_learn(texts):
    query, *texts = texts
    pool = pool_of(texts)
    index = DenseIndex(texts, letters)
    k = min(3, len(texts))
    got = letters([shot.text for shot in nearest_shots(query, pool, k, index=index)])
    other = NearestNeighbors(n_neighbors=k, metric="cosine").fit(letters(texts))
    distances, _ = other.kneighbors(letters([query]))
    a = letters([query])[0]
    ours = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in got[::-1]]
    assert ours == pytest.approx(distances[0].tolist(), abs=1e-6)  # fp32 in the index; ties differ


def test_different_orders_are_different_and_of_the_same_shots():
    shots = POOL[:4]
    orders = different_orders(shots, 24, seed=0)
    assert orders[0] == shots
    assert sorted(map(tuple, orders)) == sorted(itertools.permutations(shots))


def test_different_orders_of_one_and_of_all():
    assert different_orders(POOL[:3], 1, seed=0) == [POOL[:3]]
    assert len(different_orders([POOL[0], POOL[0], POOL[1]], 3, seed=0)) == 3


def test_balanced_shots_of_all_there_are():
    pool = [*POOL[:2], Shot("one more", "positive"), POOL[3]]
    assert sorted(balanced_shots(pool, 4, labels=LABELS, seed=0)) == sorted(pool)


def test_different_orders_beyond_what_there_is():
    assert different_orders([], 1, seed=0) == [[]]
    with pytest.raises(ValueError, match="7 orders are asked for, and these shots have 6"):
        different_orders(POOL[:3], 7, seed=0)
    with pytest.raises(ValueError, match="2 orders are asked for, and these shots have 1"):
        different_orders([POOL[0]] * 3, 2, seed=0)
    with pytest.raises(ValueError, match="0 orders are asked for"):
        different_orders(POOL[:3], 0, seed=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("positive", "a list of at least two texts"),
        (["positive"], "a list of at least two texts"),
        (["positive", ""], "a list of at least two texts"),
        (["positive", "positive"], "each must occur once"),
    ],
)
def test_labels_that_are_none(labels, message):
    for call in (
        lambda: Template("{text} {label}").endings(labels),
        lambda: predict(np.ones((1, 2)), labels),
        lambda: extract_label("positive", labels),
        lambda: balanced_shots(SHOTS, 1, labels=labels, seed=0),
        lambda: evaluate(["positive"], ["positive"], labels=labels),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def words(prompt):
    return len(prompt.split())


def build(shots):
    return Template("{text} : {label}").prompt("what is this", shots)


def test_fit_budget_by_hand_drops_from_the_front():
    # each shot is "lovely : positive", three words; the question has four: "what is this :"
    assert words(build(SHOTS)) == 10
    assert fit_budget([*SHOTS], build, count_tokens=words, budget=10) == SHOTS
    assert fit_budget([*SHOTS], build, count_tokens=words, budget=9) == SHOTS[1:]
    assert fit_budget([*SHOTS], build, count_tokens=words, budget=7) == SHOTS[1:]
    assert fit_budget([*SHOTS], build, count_tokens=words, budget=6) == []
    assert fit_budget([*SHOTS], build, count_tokens=words, budget=4) == []


def test_fit_budget_where_even_the_question_does_not_fit():
    with pytest.raises(ValueError, match="has 4 tokens with all its parts dropped, and the budget"):
        fit_budget([*SHOTS], build, count_tokens=words, budget=3)


@given(st.lists(st.integers(1, 6), max_size=8), st.integers(4, 40))
def test_fit_budget_keeps_the_most_that_fits_and_leaves_its_input(lengths, budget):
    shots = [Shot(" ".join("w" * n), "x") for n in lengths]
    before = list(shots)
    kept = fit_budget(shots, build, count_tokens=words, budget=budget)
    assert shots == before
    assert kept == shots[len(shots) - len(kept) :]
    assert words(build(kept)) <= budget
    if len(kept) < len(shots):
        assert words(build(shots[len(shots) - len(kept) - 1 :])) > budget


def test_fit_budget_counts_the_whole_prompt_in_any_form():
    def count(chat):
        return sum(1 + words(message["content"]) for message in chat)

    kept = fit_budget(
        [*SHOTS], lambda shots: chat_prompt("fine", shots), count_tokens=count, budget=6
    )
    assert kept == SHOTS[1:]
