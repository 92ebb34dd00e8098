"""Label scores and calibration against scipy, torch and transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompting_inputs import LABELS, SHOTS, positive
from scipy.special import softmax

from course_utils.prompting.labels import (
    calibrate,
    content_free_probabilities,
    label_probabilities,
    predict,
    score_labels,
)
from course_utils.prompting.prompts import Template


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
        ([[0.5, 0.5]], [1.0, 0.0], "each label needs a number above 0"),
        ([[0.5, 0.5]], [1.0, math.nan], "each label needs a number above 0"),
        ([[0.5, 0.5]], [1.0, math.inf], "each label needs a number above 0"),
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


def test_score_labels_equal_the_models_logits(smollm2):
    """Through the engine, two endings of one token each: the log-softmax of one forward pass."""
    import torch

    from course_utils.engines import load_engine

    model, tokenizer = smollm2
    template = Template("Text: {text}\nSentiment: {label}")
    prompts = [template.prompt(text, SHOTS) for text in ("What a day!", "I hate Mondays")]
    endings = template.endings(LABELS)
    with load_engine("transformers", model, tokenizer=tokenizer) as engine:
        ours = score_labels(prompts, endings, engine.logprobs)
    tokens = [tokenizer(ending).input_ids for ending in endings]
    assert all(len(ids) == 1 for ids in tokens)
    for row, prompt in zip(ours, prompts, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        expected = logits.log_softmax(-1)[torch.tensor(tokens).flatten()]
        np.testing.assert_allclose(row, expected, atol=1e-4)  # fp32, other batch
