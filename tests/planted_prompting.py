"""Plausible wrong versions of `course_utils.prompting`, which its tests must reject."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
from planting import Bug

from course_utils import prompting
from course_utils.metrics import accuracy
from course_utils.prompting import Comparison, Shot

right = {name: getattr(prompting, name) for name in prompting.__all__}


# ── templates ─────────────────────────────────────────────────────────────────────────────────


def fill_with_format(template, **fields):
    return template.format(**fields)


def fill_one_after_the_other(template, **fields):
    right["fill"](template, **fields)
    for name, value in fields.items():
        template = template.replace("{" + name + "}", value)
    return template


def plain_prompt_ends_with_a_blank(text, shots=(), *, template=prompting.TEMPLATE, **options):
    return right["plain_prompt"](text, shots, template=template, **options) + " "


def plain_prompt_shots_reversed(text, shots=(), **options):
    return right["plain_prompt"](text, list(shots)[::-1], **options)


def plain_prompt_shots_without_labels(text, shots=(), **options):
    return right["plain_prompt"](text, [Shot(shot.text, "") for shot in shots], **options)


def label_endings_without_blank(labels, *, template=prompting.TEMPLATE):
    return [ending.strip() for ending in right["label_endings"](labels, template=template)]


def label_endings_always_a_blank(labels, *, template=prompting.TEMPLATE):
    return [" " + label for label in labels]


def chat_prompt_roles_swapped(text, shots=(), *, template="{text}", system=""):
    other = {"user": "assistant", "assistant": "user", "system": "system"}
    chat = right["chat_prompt"](text, shots, template=template, system=system)
    return [{**message, "role": other[message["role"]]} for message in chat]


def chat_prompt_shots_without_template(text, shots=(), *, template="{text}", system=""):
    chat = right["chat_prompt"](text, shots, template="{text}", system=system)
    return [*chat[:-1], *right["chat_prompt"](text, template=template)]


# ── shots ─────────────────────────────────────────────────────────────────────────────────────


def random_shots_with_replacement(pool, k, *, seed):
    right["random_shots"](pool, k, seed=seed)
    return random.Random(seed).choices(pool, k=k) if k else []


def random_shots_the_first(pool, k, *, seed):
    right["random_shots"](pool, k, seed=seed)
    return list(pool[:k])


def balanced_shots_ignores_labels(pool, k, *, labels, seed):
    right["balanced_shots"](pool, k, labels=labels, seed=seed)
    return right["random_shots"](pool, k, seed=seed)


def balanced_shots_by_label(pool, k, *, labels, seed):
    """All shots of one label come first."""
    drawn = right["balanced_shots"](pool, k, labels=labels, seed=seed)
    return sorted(drawn, key=lambda shot: labels.index(shot.label))


def balanced_shots_odd_one_fixed(pool, k, *, labels, seed):
    drawn = right["balanced_shots"](pool, k - k % 2, labels=labels, seed=seed)
    rest = [shot for shot in pool if shot.label == labels[0] and shot not in drawn]
    return drawn + rest[: k % 2]


def balanced_shots_rounds_down(pool, k, *, labels, seed):
    right["balanced_shots"](pool, k, labels=labels, seed=seed)
    return right["balanced_shots"](pool, k - k % len(labels), labels=labels, seed=seed)


def nearest_shots_nearest_first(text, pool, k, *, index):
    return right["nearest_shots"](text, pool, k, index=index)[::-1]


def nearest_shots_gives_the_label_away(text, pool, k, *, index):
    right["nearest_shots"](text, pool, k, index=index)
    return [pool[hit.index] for hit in reversed(index.search(text, k))] if k else []


def nearest_shots_farthest(text, pool, k, *, index):
    everything = right["nearest_shots"](
        text, pool, sum(shot.text != text for shot in pool), index=index
    )
    right["nearest_shots"](text, pool, k, index=index)
    return everything[:k]


def different_orders_may_repeat(shots, n, *, seed):
    right["different_orders"](shots, n, seed=seed)
    draw = random.Random(seed)
    return [list(shots), *(draw.sample(list(shots), len(shots)) for _ in range(n - 1))]


# ── labels ────────────────────────────────────────────────────────────────────────────────────


def score_labels_transposed(prompts, endings, logprobs):
    scores = right["score_labels"](prompts, endings, logprobs)
    return scores.T if len(prompts) == len(endings) else scores


def label_probabilities_of_the_batch(scores):
    right["label_probabilities"](scores)
    shares = np.exp(np.asarray(scores) - np.max(scores))
    return shares / shares.sum()


def label_probabilities_overflow(scores):
    right["label_probabilities"](scores)
    shares = np.exp(np.asarray(scores, dtype=float))
    return shares / np.maximum(shares.sum(axis=-1, keepdims=True), 1e-250)


def label_probabilities_not_shared(scores):
    right["label_probabilities"](scores)
    return np.exp(np.asarray(scores, dtype=float))


def content_free_probabilities_of_the_first(prompt_of, endings, logprobs, *, inputs=("N/A",)):
    return right["content_free_probabilities"](prompt_of, endings, logprobs, inputs=inputs[:1])


def content_free_probabilities_mean_of_logs(prompt_of, endings, logprobs, *, inputs=("N/A",)):
    scores = right["score_labels"]([prompt_of(text) for text in inputs], endings, logprobs)
    return right["label_probabilities"](scores.mean(axis=0))


def calibrate_multiplies(probabilities, content_free):
    right["calibrate"](probabilities, content_free)
    lifted = np.asarray(probabilities) * np.asarray(content_free)
    return lifted / lifted.sum(axis=-1, keepdims=True)


def calibrate_subtracts(probabilities, content_free):
    right["calibrate"](probabilities, content_free)
    return np.asarray(probabilities) - np.asarray(content_free) + 1 / len(content_free)


def calibrate_unnormalized(probabilities, content_free):
    right["calibrate"](probabilities, content_free)
    return np.asarray(probabilities) / np.asarray(content_free)


def calibrate_over_the_batch(probabilities, content_free):
    right["calibrate"](probabilities, content_free)
    lifted = np.asarray(probabilities) / np.asarray(content_free)
    return lifted / lifted.sum(axis=0, keepdims=True)


def predict_unlikeliest(probabilities, labels):
    right["predict"](probabilities, labels)
    return [labels[i] for i in np.asarray(probabilities).argmin(axis=1)]


def predict_last_of_equals(probabilities, labels):
    right["predict"](probabilities, labels)
    flipped = np.asarray(probabilities)[:, ::-1]
    return [labels[::-1][i] for i in flipped.argmax(axis=1)]


# ── answers ───────────────────────────────────────────────────────────────────────────────────


def extract_number_first(text, *, after=""):
    found = prompting._NUMBER.search(text)
    return prompting._value(found) if found else None


def extract_number_digits_only(text, *, after=""):
    found = re.findall(r"[0-9]+", text)
    return int(found[-1]) if found else None


def extract_number_range_as_negative(text, *, after=""):
    found = re.findall(r"[-−]?[0-9]+(?:\.[0-9]+)?", text.replace(",", ""))
    got = right["extract_number"](text, after=after)
    return got if not found or "." in found[-1] else type(got)(found[-1].replace("−", "-"))


def extract_number_last_behind_the_phrase(text, *, after=""):
    place = text.lower().rfind(after.lower()) if after else 0
    behind = right["extract_number"](text[max(place, 0) :])
    return right["extract_number"](text) if behind is None else behind


def extract_label_in_words(text, labels):
    right["extract_label"](text, labels)
    found = [(text.lower().find(label), label) for label in labels if label in text.lower()]
    return min(found)[1] if found else None


def extract_label_last(text, labels):
    found = right["extract_label"](text, labels)
    while found:
        text = text[text.lower().index(found.lower()) + len(found) :]
        later = right["extract_label"](text, labels)
        if later is None:
            return found
        found = later
    return None


def extract_label_case_matters(text, labels):
    right["extract_label"](text, labels)
    found = re.search("|".join(rf"\b{re.escape(label)}\b" for label in labels), text)
    return found[0] if found else None


def extract_label_guesses(text, labels):
    return right["extract_label"](text, labels) or labels[0]


# ── budget ────────────────────────────────────────────────────────────────────────────────────


def fit_budget_drops_the_last(parts, build, *, count_tokens, budget):
    kept = list(parts)
    right["fit_budget"](parts, build, count_tokens=count_tokens, budget=budget)
    while count_tokens(build(kept)) > budget:
        del kept[-1]
    return kept


def fit_budget_forgets_the_question(parts, build, *, count_tokens, budget):
    right["fit_budget"](parts, build, count_tokens=count_tokens, budget=budget)
    kept, question = list(parts), count_tokens(build([]))
    while count_tokens(build(kept)) - question > budget:
        del kept[0]
    return kept


def fit_budget_one_too_few(parts, build, *, count_tokens, budget):
    kept = right["fit_budget"](parts, build, count_tokens=count_tokens, budget=budget)
    return kept[1:] if count_tokens(build(kept)) == budget else kept


def fit_budget_in_place(parts, build, *, count_tokens, budget):
    parts[:] = right["fit_budget"](parts, build, count_tokens=count_tokens, budget=budget)
    return parts


def fit_budget_too_long_in_silence(parts, build, *, count_tokens, budget):
    kept = list(parts)
    while kept and count_tokens(build(kept)) > budget:
        del kept[0]
    return kept


# ── evaluation ────────────────────────────────────────────────────────────────────────────────


def evaluate_skips_the_unanswered(predictions, truth, *, labels):
    got = right["evaluate"](predictions, truth, labels=labels)
    answered = [c for c, p in zip(got.correct, predictions, strict=True) if p is not None]
    return replace(got, accuracy=accuracy(answered or [False]))


def evaluate_precision_for_recall(predictions, truth, *, labels):
    got = right["evaluate"](predictions, truth, labels=labels)
    hits = [p for p, c in zip(predictions, got.correct, strict=True) if c]
    shares = {label: hits.count(label) / max(got.predicted[label], 1) for label in got.recall}
    return replace(got, recall=shares)


def evaluate_balanced_over_all_labels(predictions, truth, *, labels):
    got = right["evaluate"](predictions, truth, labels=labels)
    return replace(got, balanced=sum(got.recall.values()) / len(labels))


def compare_the_other_way_round(first, second):
    got = right["compare"](first, second)
    return got._replace(difference=-got.difference)


def compare_only_accuracies(first, second):
    """As if the two had answered different items."""
    got = right["compare"](first, second)
    return Comparison(got.difference, 1.0, got.only_first, got.only_second)


PROMPTING = [
    Bug("fill", "uses str.format", fill_with_format),
    Bug("fill", "fills fields one after the other", fill_one_after_the_other),
    Bug("plain_prompt", "ends with a blank", plain_prompt_ends_with_a_blank),
    Bug("plain_prompt", "reverses the shots", plain_prompt_shots_reversed),
    Bug("plain_prompt", "leaves the labels out", plain_prompt_shots_without_labels),
    Bug("label_endings", "drops the blank", label_endings_without_blank),
    Bug("label_endings", "adds a blank to all", label_endings_always_a_blank),
    Bug("chat_prompt", "swaps the roles", chat_prompt_roles_swapped),
    Bug("chat_prompt", "shows bare shots", chat_prompt_shots_without_template),
    Bug("random_shots", "draws with replacement", random_shots_with_replacement),
    Bug("random_shots", "takes the first", random_shots_the_first),
    Bug("balanced_shots", "ignores the labels", balanced_shots_ignores_labels),
    Bug("balanced_shots", "sorts by label", balanced_shots_by_label),
    Bug("balanced_shots", "gives the odd one to the first", balanced_shots_odd_one_fixed),
    Bug("balanced_shots", "rounds down", balanced_shots_rounds_down),
    Bug("nearest_shots", "puts the nearest first", nearest_shots_nearest_first),
    Bug("nearest_shots", "shows the text itself", nearest_shots_gives_the_label_away),
    Bug("nearest_shots", "takes the farthest", nearest_shots_farthest),
    Bug("different_orders", "may repeat one", different_orders_may_repeat),
    Bug("score_labels", "is transposed", score_labels_transposed),
    Bug("label_probabilities", "shares over the batch", label_probabilities_of_the_batch),
    Bug("label_probabilities", "underflows", label_probabilities_overflow),
    Bug("label_probabilities", "does not share", label_probabilities_not_shared),
    Bug(
        "content_free_probabilities",
        "takes one input only",
        content_free_probabilities_of_the_first,
    ),
    Bug("content_free_probabilities", "averages logs", content_free_probabilities_mean_of_logs),
    Bug("calibrate", "multiplies", calibrate_multiplies, exercise="10.calibrate"),
    Bug("calibrate", "subtracts", calibrate_subtracts, exercise="10.calibrate"),
    Bug("calibrate", "does not normalize", calibrate_unnormalized, exercise="10.calibrate"),
    Bug("calibrate", "normalizes columns", calibrate_over_the_batch, exercise="10.calibrate"),
    Bug("predict", "takes the unlikeliest", predict_unlikeliest),
    Bug("predict", "takes the last of equals", predict_last_of_equals),
    Bug("extract_number", "takes the first", extract_number_first),
    Bug("extract_number", "reads digits only", extract_number_digits_only),
    Bug("extract_number", "takes a range for a minus", extract_number_range_as_negative),
    Bug("extract_number", "takes the last after all", extract_number_last_behind_the_phrase),
    Bug("extract_label", "finds labels inside words", extract_label_in_words),
    Bug("extract_label", "takes the last", extract_label_last),
    Bug("extract_label", "minds capital letters", extract_label_case_matters),
    Bug("extract_label", "guesses", extract_label_guesses),
    Bug("fit_budget", "drops the newest", fit_budget_drops_the_last),
    Bug("fit_budget", "forgets the question", fit_budget_forgets_the_question),
    Bug("fit_budget", "drops one more", fit_budget_one_too_few),
    Bug("fit_budget", "changes its input", fit_budget_in_place),
    Bug("fit_budget", "returns what is too long", fit_budget_too_long_in_silence),
    Bug("evaluate", "skips the unanswered", evaluate_skips_the_unanswered),
    Bug("evaluate", "takes precision for recall", evaluate_precision_for_recall),
    Bug("evaluate", "averages over absent labels", evaluate_balanced_over_all_labels),
    Bug("compare", "has the sign wrong", compare_the_other_way_round),
    Bug("compare", "forgets the pairs", compare_only_accuracies),
]
