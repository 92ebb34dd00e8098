"""Plausible wrong versions of course_utils.prompting.prompts."""

from __future__ import annotations

import random

from planting import Bug, originals

from course_utils.prompting.prompts import Shot, Template

right = originals("prompting.prompts")


def fill_with_format(template, **fields):
    return template.format(**fields)


def fill_one_after_the_other(template, **fields):
    right["fill"](template, **fields)
    for name, value in fields.items():
        template = template.replace("{" + name + "}", value)
    return template


class TemplateEndsWithABlank(Template):
    def prompt(self, text, shots=(), **options):
        return super().prompt(text, shots, **options) + " "


class TemplateShotsReversed(Template):
    def prompt(self, text, shots=(), **options):
        return super().prompt(text, list(shots)[::-1], **options)


class TemplateShotsWithoutLabels(Template):
    def prompt(self, text, shots=(), **options):
        return super().prompt(text, [Shot(shot.text, "") for shot in shots], **options)


class TemplateEndingsWithoutBlank(Template):
    def endings(self, labels):
        return [ending.strip() for ending in super().endings(labels)]


class TemplateEndingsAlwaysABlank(Template):
    def endings(self, labels):
        return [" " + label for label in labels]


def chat_prompt_roles_swapped(text, shots=(), *, template="{text}", system=""):
    other = {"user": "assistant", "assistant": "user", "system": "system"}
    chat = right["chat_prompt"](text, shots, template=template, system=system)
    return [{**message, "role": other[message["role"]]} for message in chat]


def chat_prompt_shots_without_template(text, shots=(), *, template="{text}", system=""):
    chat = right["chat_prompt"](text, shots, template="{text}", system=system)
    return [*chat[:-1], *right["chat_prompt"](text, template=template)]


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


BUGS = [
    Bug("fill", "uses str.format", fill_with_format),
    Bug("fill", "fills fields one after the other", fill_one_after_the_other),
    Bug("Template", "ends with a blank", TemplateEndsWithABlank),
    Bug("Template", "reverses the shots", TemplateShotsReversed),
    Bug("Template", "leaves the labels out", TemplateShotsWithoutLabels),
    Bug("Template", "drops the blank", TemplateEndingsWithoutBlank),
    Bug("Template", "adds a blank to all", TemplateEndingsAlwaysABlank),
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
    Bug("fit_budget", "drops the newest", fit_budget_drops_the_last),
    Bug("fit_budget", "forgets the question", fit_budget_forgets_the_question),
    Bug("fit_budget", "drops one more", fit_budget_one_too_few),
    Bug("fit_budget", "changes its input", fit_budget_in_place),
    Bug("fit_budget", "returns what is too long", fit_budget_too_long_in_silence),
]
