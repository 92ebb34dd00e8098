"""Prompts, shots, label scores, calibration, answers, budgets and evaluation.

Parity with scikit-learn (nearest neighbours, recall, balanced accuracy), scipy (softmax), torch and
transformers (label scores, chat template) on the packaged models.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score
from sklearn.neighbors import NearestNeighbors

from course_utils.prompting import (
    Shot,
    balanced_shots,
    calibrate,
    chat_prompt,
    compare,
    content_free_probabilities,
    different_orders,
    evaluate,
    extract_label,
    extract_number,
    fill,
    fit_budget,
    label_endings,
    label_probabilities,
    nearest_shots,
    plain_prompt,
    predict,
    random_shots,
    score_labels,
)
from course_utils.retrieval import DenseIndex

LABELS = ["positive", "negative"]
SHOTS = [Shot("lovely", "positive"), Shot("awful", "negative")]
POOL = [Shot(f"text {i}", "positive" if i % 3 else "negative") for i in range(12)]  # 8 and 4
no_braces = st.text(st.characters(exclude_characters="{}"), min_size=1)


# ── templates ─────────────────────────────────────────────────────────────────────────────────


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


def test_plain_prompt_by_hand():
    got = plain_prompt("fine", SHOTS, template="T: {text}\nS: {label}", instruction="Judge.")
    assert got == "Judge.\n\nT: lovely\nS: positive\n\nT: awful\nS: negative\n\nT: fine\nS:"


def test_plain_prompt_without_shots_and_instruction():
    assert plain_prompt("fine", template='"{text}" is {label}') == '"fine" is'


@given(no_braces, no_braces)
def test_plain_prompt_and_label_endings_join_to_the_filled_template(text, label):
    template = "Review: {text} => {label}"
    (ending, _) = label_endings([label, label + "x"], template=template)
    got = plain_prompt(text, template=template) + ending
    assert got == fill(template, text=text, label=label)


def test_label_endings_by_hand():
    assert label_endings(LABELS, template="{text}: {label}") == [" positive", " negative"]
    assert label_endings(LABELS, template="{text}\n{label}") == LABELS


@pytest.mark.parametrize("template", ["{text}", "{label}: {text}", "{text} {label}."])
def test_plain_prompt_and_label_endings_want_the_label_last(template):
    with pytest.raises(ValueError, match=r"must end with \{label\}"):
        plain_prompt("a", template=template)
    with pytest.raises(ValueError, match=r"must end with \{label\}"):
        label_endings(LABELS, template=template)


def test_plain_prompt_wants_a_place_for_the_text():
    with pytest.raises(ValueError, match=r"field \{text\} is not in the template"):
        plain_prompt("a", template="Label: {label}")


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


# ── shots ─────────────────────────────────────────────────────────────────────────────────────


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


def test_different_orders_beyond_what_there_is():
    assert different_orders([], 1, seed=0) == [[]]
    with pytest.raises(ValueError, match="7 orders are asked for, and these shots have 6"):
        different_orders(POOL[:3], 7, seed=0)
    with pytest.raises(ValueError, match="2 orders are asked for, and these shots have 1"):
        different_orders([POOL[0]] * 3, 2, seed=0)
    with pytest.raises(ValueError, match="0 orders are asked for"):
        different_orders(POOL[:3], 0, seed=0)


# ── labels ────────────────────────────────────────────────────────────────────────────────────


def by_length(prompts, endings):
    """A stand-in for a model: likes prompts and endings of like length."""
    return [[-abs(len(str(prompt)) - len(ending)) / 10 for ending in endings] for prompt in prompts]


def test_score_labels_by_hand():
    scores = score_labels(["abc", "a"], ["xyz", "xx"], by_length)
    assert scores.tolist() == [[0, -0.1], [-0.2, -0.1]]


@pytest.mark.parametrize(
    ("prompts", "logprobs", "message"),
    [
        ([], by_length, "at least one prompt"),
        ("a prompt", by_length, "give a list"),
        (["a"], lambda prompts, endings: [[0.0]], r"shape \(1, 1\) for 1 prompts and 2 endings"),
        (["a"], lambda prompts, endings: [[0.0, math.nan]], "returned NaN"),
    ],
)
def test_score_labels_bad_input(prompts, logprobs, message):
    with pytest.raises(ValueError, match=message):
        score_labels(prompts, ["x", "y"], logprobs)


@given(st.lists(st.lists(st.floats(-1e4, 0), min_size=3, max_size=3), min_size=1))
def test_label_probabilities_equal_scipy(rows):
    got = label_probabilities(np.array(rows))
    np.testing.assert_allclose(got, softmax(rows, axis=1), atol=1e-12)
    np.testing.assert_allclose(got.sum(axis=1), 1)


def test_label_probabilities_by_hand():
    got = label_probabilities(np.log([[0.03, 0.01], [1e-300, 1e-300]]))
    np.testing.assert_allclose(got, [[0.75, 0.25], [0.5, 0.5]])
    assert label_probabilities([[-math.inf, -5.0]]).tolist() == [[0, 1]]


def test_label_probabilities_where_no_label_is_possible():
    with pytest.raises(ValueError, match="no label with a finite log-probability"):
        label_probabilities([[-math.inf, -math.inf]])


def test_content_free_probabilities_are_the_mean_over_the_inputs():
    probabilities = {"S:N/A": (0.5, 0.5), "S:": (0.9, 0.1)}
    got = content_free_probabilities(
        lambda text: f"S:{text}",
        ["a", "b"],
        lambda prompts, endings: [np.log(probabilities[prompt]) - 3 for prompt in prompts],
        inputs=("N/A", ""),
    )
    np.testing.assert_allclose(got, [0.7, 0.3])


def test_calibrate_by_hand():
    """A prompt that says "positive" of nothing at all in 3 of 4 cases."""
    got = calibrate(np.array([[0.6, 0.4], [0.9, 0.1]]), np.array([0.75, 0.25]))
    # 0.6 / 0.75 = 0.8 and 0.4 / 0.25 = 1.6: one third, two thirds. 1.2 and 0.4: 3 to 1.
    np.testing.assert_allclose(got, [[1 / 3, 2 / 3], [0.75, 0.25]])
    np.testing.assert_allclose(calibrate([0.6, 0.4], [0.75, 0.25]), [1 / 3, 2 / 3])


positive = st.floats(0.01, 1)


@given(st.lists(st.tuples(positive, positive, positive), min_size=1), st.tuples(*[positive] * 3))
def test_calibrate_orders_labels_as_the_matrix_of_zhao_et_al(rows, prior):
    probabilities, prior = np.array(rows), np.array(prior)
    theirs = probabilities @ np.linalg.inv(np.diag(prior)).T  # W p, before their softmax
    ours = calibrate(probabilities, prior)
    np.testing.assert_allclose(ours, theirs / theirs.sum(1, keepdims=True), rtol=1e-9)
    np.testing.assert_allclose(ours.sum(axis=1), 1)


@given(st.tuples(positive, positive, positive))
def test_calibrate_makes_the_content_free_input_even(prior):
    np.testing.assert_allclose(calibrate(prior, prior), [1 / 3] * 3)


@pytest.mark.parametrize(
    ("probabilities", "content_free", "message"),
    [
        ([[0.5, 0.5]], [0.2, 0.3, 0.5], r"\(1, 2\) and content_free \(3,\)"),
        ([[0.5, 0.5]], [[0.5, 0.5]], r"they must be \(N, L\) and \(L,\)"),
        ([[0.5, 0.5]], [1.0, 0.0], "each label needs more than 0"),
    ],
)
def test_calibrate_bad_input(probabilities, content_free, message):
    with pytest.raises(ValueError, match=message):
        calibrate(np.array(probabilities), np.array(content_free))


def test_predict_by_hand_and_the_first_of_equals():
    got = predict(np.array([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5]]), LABELS)
    assert got == ["negative", "positive", "positive"]


def test_predict_with_other_labels():
    with pytest.raises(ValueError, match=r"shape \(1, 3\) for 2 labels"):
        predict(np.ones((1, 3)), LABELS)


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
        lambda: label_endings(labels),
        lambda: predict(np.ones((1, 2)), labels),
        lambda: extract_label("positive", labels),
        lambda: balanced_shots(SHOTS, 1, labels=labels, seed=0),
        lambda: evaluate(["positive"], ["positive"], labels=labels),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_score_labels_equal_the_models_logits(smollm2):
    """Through the engine, two endings of one token each: the log-softmax of one forward pass."""
    import torch

    from course_utils.engines import load_engine

    model, tokenizer = smollm2
    prompts = [plain_prompt(text, SHOTS) for text in ("What a day!", "I hate Mondays")]
    endings = label_endings(LABELS)
    with load_engine("transformers", model, tokenizer=tokenizer) as engine:
        ours = score_labels(prompts, endings, engine.logprobs)
    tokens = [tokenizer(ending).input_ids for ending in endings]
    assert all(len(ids) == 1 for ids in tokens)
    for row, prompt in zip(ours, prompts, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        expected = logits.log_softmax(-1)[torch.tensor(tokens).flatten()]
        np.testing.assert_allclose(row, expected, atol=1e-4)  # fp32, other batch


# ── answers in a text ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", 42),
        ("5 + 3 = 8, so 8 apples are left.", 8),
        ("1,234,567", 1234567),
        ("It costs $3.50", 3.5),
        ("−7 degrees", -7),
        ("It is -$1,200.75.", -1200.75),
        ("from 10-12", 12),
        ("9 - 4", 4),
        ("(3)-5", 5),
        (".5 litres", 0.5),
        ("1e6", 1000000),
        ("2.5E-1", 0.25),
        ("1, 2, 3", 3),
        ("1,2,3", 3),
        ("4.0", 4),
        ("50% of them", 50),
        ("8th", 8),
        ("variables x2 and y_3", None),
        ("no number", None),
        ("", None),
        ("--- ... $ , -", None),
        ("9" * 30, int("9" * 30)),
    ],
)
def test_extract_number_by_hand(text, number):
    got = extract_number(text)
    assert got == number
    assert isinstance(got, type(number))


def test_extract_number_after_a_phrase():
    text = "There are 5. The answer is 8 apples. Next: 12 pears."
    assert extract_number(text) == 12
    assert extract_number(text, after="answer is") == 8
    assert extract_number(text, after="THE ANSWER") == 8
    assert extract_number(text, after="####") == 12
    assert extract_number("7, the answer is: none", after="answer is") == 7
    assert extract_number("the answer is 3. No, the answer is 4", after="answer is") == 4


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_extract_number_reads_what_python_writes(number, grouped):
    text = f"{number:,}" if grouped and isinstance(number, int) else str(number)
    assert extract_number(f"It is {text}.") == number


@given(st.text())
def test_extract_number_never_fails(text):
    got = extract_number(text, after="is")
    assert got is None or math.isfinite(got)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" Positive.", "positive"),
        ("negative, not positive", "negative"),
        ("positively awful", None),
        ("nonnegative", None),
        ("", None),
        ("I don't know", None),
    ],
)
def test_extract_label_by_hand(text, label):
    assert extract_label(text, LABELS) == label


def test_extract_label_takes_the_longer_and_labels_as_they_are():
    assert extract_label("It is not good", ["not", "not good", "good"]) == "not good"
    assert extract_label("a C++ program", ["c", "C++"]) == "C++"
    with pytest.raises(ValueError, match="differ in nothing but capital letters"):
        extract_label("good", ["good", "Good"])


# ── the context window ────────────────────────────────────────────────────────────────────────


def words(prompt):
    return len(prompt.split())


def build(shots):
    return plain_prompt("what is this", shots, template="{text} : {label}")


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


# ── evaluation ────────────────────────────────────────────────────────────────────────────────


def test_evaluate_by_hand():
    truth = ["positive", "positive", "positive", "negative"]
    got = evaluate(["positive", "negative", None, "negative"], truth, labels=LABELS)
    assert got.correct == (True, False, False, True)
    assert got.accuracy.value == 0.5
    assert (got.accuracy.low, got.accuracy.high) == pytest.approx((0.15, 0.85), abs=0.001)
    assert got.recall == pytest.approx({"positive": 1 / 3, "negative": 1})
    assert got.balanced == pytest.approx(2 / 3)
    assert got.predicted == {"positive": 1, "negative": 2}
    assert got.unanswered == 1


many = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1)


@given(many)
def test_evaluate_equals_scikit_learn(pairs):
    predictions, truth = map(list, zip(*pairs, strict=True))
    got = evaluate(predictions, truth, labels=list("abc"))
    assert got.accuracy.value == pytest.approx(accuracy_score(truth, predictions))
    theirs = recall_score(truth, predictions, labels=list(got.recall), average=None)
    assert list(got.recall.values()) == pytest.approx(theirs.tolist())
    if set(predictions) <= set(truth) and len(set(truth)) > 1:  # otherwise scikit-learn warns
        assert got.balanced == pytest.approx(balanced_accuracy_score(truth, predictions))


@pytest.mark.parametrize(
    ("predictions", "truth", "message"),
    [
        ([], [], "at least one"),
        (["positive"], [], "1 predictions for 0 items"),
        (["good"], ["positive"], "'good' is no label"),
        (["positive"], ["good"], "'good' is no label"),
        (["positive"], [None], "the truth of an item is None"),
    ],
)
def test_evaluate_bad_input(predictions, truth, message):
    with pytest.raises(ValueError, match=message):
        evaluate(predictions, truth, labels=LABELS)


def test_compare_by_hand():
    truth = ["positive"] * 6
    first = evaluate(["positive"] * 5 + ["negative"], truth, labels=LABELS)
    second = evaluate(["negative"] * 5 + ["negative"], truth, labels=LABELS)
    got = compare(first, second)
    assert got == (5 / 6, 0.0625, 5, 0)  # five in a row of fair coins, on either side: 2 / 2⁵
    assert compare(second, first) == (-5 / 6, 0.0625, 0, 5)
    assert compare(first, first) == (0, 1, 0, 0)


def test_compare_other_items():
    one = evaluate(["positive"], ["positive"], labels=LABELS)
    two = evaluate(["positive"] * 2, ["positive"] * 2, labels=LABELS)
    with pytest.raises(ValueError, match="same items"):
        compare(one, two)
