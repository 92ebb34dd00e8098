"""The word problems: reproducible, right by an independent formula, and split without leaks."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from course_utils.prompting.sandbox import run
from course_utils.recipes import word_problems as generator

FOLDER = Path(__file__).parents[2] / "data" / "word_problems"
SPLITS = ("shots", "dev", "test")


def read(split: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text().splitlines()]


PROBLEMS = {split: read(split) for split in SPLITS}
EVERY = [problem for split in SPLITS for problem in PROBLEMS[split]]

# Each template's answer from the numbers as they stand in the question, written apart from it.
ANSWERS = {
    "gain": lambda a, b: a + b,
    "loss": lambda a, b: a - b,
    "groups": lambda a, b: a * b,
    "share": lambda a, b: a / b,
    "change": lambda count, price, paid: paid - count * price,
    "compare": lambda a, extra: 2 * a + extra,
    "packed_and_loose": lambda boxes, each, loose: boxes * each + loose,
    "per_day": lambda made, sold, days: (made - sold) / days,
    "two_purchases": lambda a, b, c, d: a * b + c * d,
    "collect_and_pack": lambda a, b, given, boxes: (a + b - given) / boxes,
    "two_rates": lambda a, b, c, d: a * b + c * d,
    "fence": lambda length, width, price: 2 * (length + width) * price,
    "two_purchases_and_change": lambda a, b, c, d, paid: paid - a * b - c * d,
    "savings": lambda wage, hours, weeks, spent, n: (wage * hours * weeks - spent) / n,
    "half_sold": lambda boxes, each, kept, price: (boxes * each / 2 - kept) * price,
    "bus": lambda a, b, c, d, e: a - b + c - d + e,
}
USELESS = re.compile(
    r"\w+ is \d+ years old\.|It is \d+ degrees outside\.|The house of \w+ has .*?\."
)


def numbers(problem: dict) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", USELESS.sub("", problem["question"]))]


@pytest.mark.parametrize("split", SPLITS)
def test_the_generator_writes_these_very_bytes(split):
    name = f"{split}.jsonl"
    assert (FOLDER / name).read_bytes() == generator.files()[name].encode()


def test_every_answer_equals_an_independent_formula():
    for problem in EVERY:
        answer = ANSWERS[problem["template"]](*numbers(problem))
        assert answer == problem["answer"], problem


def test_every_program_gives_its_answer():
    """All in a few sandboxes: each program's function under a name of its own."""
    for start in range(0, len(EVERY), 80):
        part = EVERY[start : start + 80]
        named = [p["program"].replace("solution", f"solve_{i}") for i, p in enumerate(part)]
        calls = ", ".join(f"solve_{i}()" for i in range(len(part)))
        result = run("\n".join([*named, f"[{calls}]"]))
        assert result.value == [problem["answer"] for problem in part], result


def test_one_program_in_a_sandbox_as_the_notebook_runs_it():
    problem = PROBLEMS["test"][0]
    assert run(problem["program"], entry="solution").value == problem["answer"]


def test_every_sum_of_the_reasoning_is_right_and_leads_to_the_answer():
    for problem in EVERY:
        sums = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", problem["reasoning"])
        assert len(sums) == problem["steps"]
        for a, sign, b, result in sums:
            a, b = int(a), int(b)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign] == int(result)
            assert int(result) > 1
        assert int(sums[-1][3]) == problem["answer"]
        assert problem["reasoning"].endswith(f"The answer is {problem['answer']}.")


def test_no_answer_can_be_copied_and_no_number_stands_twice():
    for problem in EVERY:
        assert str(problem["answer"]) not in re.findall(r"\d+", problem["question"]), problem
        assert len(set(numbers(problem))) == len(numbers(problem)), problem
        assert bool(USELESS.search(problem["question"])) == problem["distractor"]


def test_splits_share_no_question_name_object_or_container():
    questions = [problem["question"] for problem in EVERY]
    assert len(set(questions)) == len(questions)
    vocabulary = {
        split: {word for text in lists.values() for word in text.split()}
        for split, lists in generator.WORDS.items()
    }
    for split in SPLITS:
        others = set().union(*(vocabulary[other] for other in SPLITS if other != split))
        assert not vocabulary[split] & others
        for problem in PROBLEMS[split]:
            assert not others & set(re.findall(r"\w+", problem["question"])), problem


def test_templates_steps_and_sizes_are_balanced():
    assert len(generator.TEMPLATES) == 16
    assert set(ANSWERS) == {template.__name__ for template in generator.TEMPLATES}
    for split in SPLITS:
        each = generator.PER_TEMPLATE[split]
        assert set(Counter(p["template"] for p in PROBLEMS[split]).values()) == {each}
        assert Counter(p["steps"] for p in PROBLEMS[split]) == dict.fromkeys(range(1, 5), 4 * each)
    sizes = Counter(p["numbers"] for p in PROBLEMS["test"])
    assert sizes == {"small": 16 * 8, "large": 16 * 7}
    assert sum(p["distractor"] for p in PROBLEMS["test"]) == 16 * 5


def test_difficulty_follows_its_rule():
    assert generator.difficulty(1, False, False) == "easy"
    assert generator.difficulty(2, True, False) == "medium"
    assert generator.difficulty(4, False, True) == "hard"
    for p in EVERY:
        expected = generator.difficulty(p["steps"], p["numbers"] == "large", p["distractor"])
        assert p["difficulty"] == expected
    assert len({p["difficulty"] for p in PROBLEMS["test"]}) == 3


def test_another_seed_gives_other_problems_and_as_many_as_wanted():
    more = generator.generate("test", seed=1, per_template=20)
    assert len({problem["question"] for problem in more}) == 16 * 20
    assert more == generator.generate("test", seed=1, per_template=20)
    assert more[0] != generator.generate("test", seed=2, per_template=20)[0]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="split is 'train'"):
        generator.generate("train")
    with pytest.raises(ValueError, match="per_template is 0"):
        generator.generate("test", per_template=0)


def test_a_story_that_does_not_come_out_whole_is_not_solved():
    step = generator.Step("each", "total / friends", "each")
    story = generator.Story("", dict(total=7, friends=2), (step,), "")
    assert generator.solve(story) is None
    assert generator.solve(generator.Story("", dict(total=8, friends=2), (step,), "")) == [4]
    assert generator.solve(generator.Story("", dict(total=2, friends=2), (step,), "")) is None
